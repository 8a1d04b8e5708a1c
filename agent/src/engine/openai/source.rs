//! `NAME=http://127.0.0.1:8000/v1#MODEL`: which server a model is on, under which name it is served here, and the key for it.

use std::{fmt, fs, path::Path};

use reqwest::{Url, header::HeaderValue};
use titan_proto::host;

/// The path of the API where a URL has none: every server has it there.
const DEFAULT_PATH: &str = "/v1";
/// Longest key. Those of hosted services have some hundred characters.
const MAX_KEY_BYTES: usize = 8 * 1024;

/// A model on an OpenAI-compatible server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerSpec {
    /// The name that requests use here.
    pub name: String,
    /// Where the server's API begins, without a slash at its end: `http://127.0.0.1:8000/v1`.
    pub url: Url,
    /// The server's name of the model. Without one, it has to be the server's only model.
    pub model: Option<String>,
    /// What the server asks of its users.
    pub key: Option<ApiKey>,
}

/// Why a `--model` argument that names a server, or a key for one, was refused.
#[derive(Debug, thiserror::Error)]
pub enum ServerSpecError {
    /// No URL.
    #[error("model {text:?}: {reason}; a model on a server is written NAME=http://127.0.0.1:8000/v1#MODEL")]
    Url {
        /// As written, without what may be secret.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither a name nor a model.
    #[error(
        "model {0:?} has no name: write NAME={0}, or {0}#MODEL, where MODEL is the server's name of it and becomes its name here too"
    )]
    NoName(String),
    /// A secret on the command line, where every user of the machine can read it.
    #[error(
        "model {0:?} has a user name or a password in its URL, which every user of this machine can read: put the server's key into a file and give --model-key NAME=FILE"
    )]
    Secret(String),
    /// A key that no header can carry.
    #[error("the key in {place}: {reason}")]
    Key {
        /// The file or the variable.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ServerSpec {
    /// Whether a `--model` argument names a server; [`Self::parse`] is for those.
    pub fn names_server(text: &str) -> bool {
        is_url(split(text).1)
    }

    /// `NAME=URL#MODEL`, `NAME=URL` or `URL#MODEL`, where the model's name is its name here too.
    pub fn parse(text: &str) -> Result<Self, ServerSpecError> {
        let (name, written) = split(text);
        let mut url = Url::parse(written)
            .map_err(|error| ServerSpecError::Url { text: text.to_owned(), reason: error.to_string() })?;
        let has_secret = !url.username().is_empty() || url.password().is_some();
        let model = url.fragment().map(decoded).filter(|model| !model.is_empty());
        // From here on, what is repeated in messages holds no secret.
        let shown = shown(&url);
        if has_secret {
            return Err(ServerSpecError::Secret(shown));
        }
        if url.query().is_some() {
            return Err(ServerSpecError::Url { text: shown, reason: "a server's URL has no query".to_owned() });
        }
        url.set_fragment(None);
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(if path.is_empty() { DEFAULT_PATH } else { &path });
        let name = match (name, &model) {
            (Some(name), _) if !name.is_empty() => name.to_owned(),
            (None, Some(model)) => model.clone(),
            _ => return Err(ServerSpecError::NoName(shown)),
        };
        Ok(Self { name, url, model, key: None })
    }

    /// Whether what is sent to the server can be read on the way: plain text to another machine.
    pub fn is_exposed(&self) -> bool {
        self.url.scheme() == "http" && !is_loopback(&self.url)
    }

    /// The server's address, as far as it tells where a key may be used: scheme, host and port.
    pub fn origin(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// Where the model comes from, for people: the URL and the model's name there.
    pub(super) fn source(&self) -> String {
        self.model.as_ref().map_or_else(|| self.url.to_string(), |model| format!("{}#{model}", self.url))
    }
}

/// A server's API key. `Debug` does not show it, and headers made of it are never logged.
#[derive(Clone, PartialEq)]
pub struct ApiKey(HeaderValue);

impl ApiKey {
    /// From a file that holds it and nothing else; blanks and line ends around it do not count.
    pub fn from_file(path: &Path) -> Result<Self, ServerSpecError> {
        let place = format!("{path:?}");
        let bytes = fs::read(path).map_err(|error| error.to_string());
        match bytes.and_then(|bytes| titan_files::text(&bytes).map_err(|is| format!("it is {is}"))) {
            Ok(text) => Self::from_text(&text, &place),
            Err(reason) => Err(ServerSpecError::Key { place, reason }),
        }
    }

    /// From a text out of `place`, which is what an error names.
    pub fn from_text(text: &str, place: &str) -> Result<Self, ServerSpecError> {
        let refused = |reason: &str| ServerSpecError::Key { place: place.to_owned(), reason: reason.to_owned() };
        let text = text.trim();
        if text.is_empty() {
            return Err(refused("it is empty"));
        }
        if text.len() > MAX_KEY_BYTES {
            return Err(refused("it is longer than 8 KiB, which is no key"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refused("it has blanks, several lines or characters that are not ASCII: give the key alone"));
        }
        let mut value =
            HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| refused("no header can carry it"))?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// The value of `authorization`.
    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ApiKey(…)")
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    host::is_loopback(host::host_of(url.host_str().unwrap_or_default()))
}

fn is_url(source: &str) -> bool {
    let scheme = source.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    matches!(scheme.as_deref(), Some("http" | "https"))
}

/// A URL may hold '=', a name holds no '/'.
fn split(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=').filter(|(name, _)| !name.contains('/')) {
        Some((name, source)) => (Some(name.trim()), source.trim()),
        None => (None, text.trim()),
    }
}

fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// The parser has written blanks and the like as `%20`.
fn decoded(fragment: &str) -> String {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| byte == b'%') {
            Some(code) => {
                bytes.push(code);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn servers_are_told_from_files_and_hub_names() {
        for text in ["a=http://h:1/v1#m", "HTTPS://h#m", "a:1b=http://127.0.0.1"] {
            assert!(ServerSpec::names_server(text), "{text}");
        }
        for text in ["a=./x.gguf", "org/name", "smollm2:135m", "a=ftp://h", "/dir/http://x", "a=smollm2:135m"] {
            assert!(!ServerSpec::names_server(text), "{text}");
        }
    }

    #[test]
    fn name_address_and_model_are_read() {
        let parse = |text| {
            let spec = ServerSpec::parse(text).unwrap();
            (spec.name, spec.url.to_string(), spec.model)
        };
        let model = |model: &str| Some(model.to_owned());
        assert_eq!(
            parse("q=http://127.0.0.1:8000/v1#Qwen/Qwen3-0.6B"),
            ("q".into(), "http://127.0.0.1:8000/v1".into(), model("Qwen/Qwen3-0.6B"))
        );
        assert_eq!(parse("small:1b = http://[::1]:1/ "), ("small:1b".into(), "http://[::1]:1/v1".into(), None));
        assert_eq!(parse("http://h/api/v1/#a b=c"), ("a b=c".into(), "http://h/api/v1".into(), model("a b=c")));
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is_repeated() {
        for (text, expected) in [
            ("http://h:1/v1", "NAME=http://h:1/v1"),
            ("=http://h:1/v1", "NAME=http://h:1/v1"),
            ("a=http://", "empty host"),
            ("a=http://h:99999999/v1", "invalid port"),
            ("a=http://h/v1?key=hidden", "no query"),
            ("a=http://user:hidden@h/v1", "--model-key"),
        ] {
            let message = ServerSpec::parse(text).unwrap_err().to_string();
            assert!(message.contains(expected) && !message.contains("hidden"), "{message}");
        }
    }

    #[test]
    fn only_plain_text_to_another_machine_is_exposed() {
        for (url, exposed) in [
            ("http://127.0.0.1:1", false),
            ("http://[::1]:1", false),
            ("http://localhost", false),
            ("https://gpu.example", false),
            ("http://gpu.example", true),
            ("http://localhost.example", true),
            ("http://192.0.2.1", true),
        ] {
            assert_eq!(ServerSpec::parse(&format!("a={url}")).unwrap().is_exposed(), exposed, "{url}");
        }
    }

    #[test]
    fn a_key_is_read_from_its_file_and_shown_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        fs::write(&file, "  sk-hidden\n").unwrap();
        let key = ApiKey::from_file(&file).unwrap();
        assert_eq!(key.header().to_str().unwrap(), "Bearer sk-hidden");
        assert!(key.header().is_sensitive());
        let spec = ServerSpec { key: Some(key), ..ServerSpec::parse("a=http://h").unwrap() };
        assert!(!format!("{spec:?}").contains("hidden"));
        for (text, expected) in [("", "empty"), ("a b", "blanks"), ("a\nb", "several lines"), ("ключ", "not ASCII")]
        {
            let message = ApiKey::from_text(text, "TITAN_MODEL_KEY").unwrap_err().to_string();
            assert!(message.contains("TITAN_MODEL_KEY") && message.contains(expected), "{message}");
        }
        assert!(ApiKey::from_text(&"x".repeat(9_000), "f").is_err());
        let message = ApiKey::from_file(&folder.path().join("none")).unwrap_err().to_string();
        assert!(message.contains("none"), "{message}");
    }
}
