//! Names for clients of the OpenAI API, who give none: made of their keys.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use aws_lc_rs::{
    hmac::{self, HMAC_SHA256},
    rand::fill,
};
use http::{HeaderMap, header};
use titan_files::Access;

/// What these names begin with. Others may not take one, and with it what belongs to its owner.
pub(crate) const RESERVED: &str = "openai:";
/// Beside the keys that sign tokens.
const FILE: &str = "client-ids.secret";
const SECRET_BYTES: usize = 32;
/// Bytes of the name, in hexadecimal twice as many: no two keys have the same.
const NAME_BYTES: usize = 16;

/// Makes the names. Nobody without the secret can tell a key from its name, or make the name of a key.
pub(crate) struct ClientIds(hmac::Key);

impl ClientIds {
    /// Reads the secret in this directory, or makes one. It outlives a restart, so that clients find their background responses again.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        let mut secret = [0; SECRET_BYTES];
        match File::open(&path) {
            Ok(mut file) => file.read_exact(&mut secret)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fill(&mut secret).map_err(|_| io::Error::other("there are no random numbers"))?;
                titan_files::write(&path, &secret, Access::Private)?;
            }
            Err(error) => return Err(error),
        }
        Ok(Self(hmac::Key::new(HMAC_SHA256, &secret)))
    }

    /// The client that shows these headers. Keys are not checked here, and not kept: those who show none, or the same, are one client.
    pub(crate) fn of(&self, headers: &HeaderMap) -> String {
        let key = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        let tag = hmac::sign(&self.0, key);
        let name: String = tag.as_ref().iter().take(NAME_BYTES).map(|byte| format!("{byte:02x}")).collect();
        format!("{RESERVED}{name}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn headers(key: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, key.parse().unwrap())])
    }

    #[test]
    fn a_key_has_one_name_that_outlives_a_restart_and_is_not_the_same_elsewhere() {
        let (here, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ids = ClientIds::open(here.path()).unwrap();
        let name = ids.of(&headers("Bearer one"));
        assert!(name.starts_with(RESERVED) && !name.contains("one"), "{name}");
        assert_ne!(name, ids.of(&headers("Bearer two")));
        assert_ne!(name, ids.of(&HeaderMap::new()));
        assert_eq!(name, ClientIds::open(here.path()).unwrap().of(&headers("Bearer one")));
        assert_ne!(name, ClientIds::open(elsewhere.path()).unwrap().of(&headers("Bearer one")));
    }

    #[test]
    fn a_secret_that_was_cut_short_is_an_error_and_not_another_secret() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "short").unwrap();
        assert!(ClientIds::open(dir.path()).is_err());
    }
}
