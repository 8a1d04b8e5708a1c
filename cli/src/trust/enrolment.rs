//! A client that has an API key and no certificate: it asks the coordinator for one, keeps it for a day, and asks again in time.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use titan_client::{EnrolError, Enrolled, EnrolledPem, ca_pin, enrol};
use titan_files::{Access, make_dir, write};
use titan_transport::tls::{CaPin, Identities, Renewals, TlsMaterial};
use tokio::sync::watch;

use super::{IdentityArgs, client};
use crate::places;

/// A certificate of a day; one that says that it lives longer is replaced at least so often.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two looks at whether it is time, and between two tries.
const CHECK: Duration = Duration::from_secs(60);
/// Between two questions of a client that starts before its coordinator.
const WAIT_FOR_COORDINATOR: Duration = Duration::from_secs(1);
/// What was tried, where it failed.
const ASKED: &str = "this client has no certificate, and asked for one with its API key";

/// A client's material as its flags name it, or else as the coordinator at `url` gives it to whoever has this API key.
pub(crate) async fn client_with_key(
    args: &IdentityArgs,
    api_key: Option<&str>,
    url: &str,
) -> anyhow::Result<Option<TlsMaterial>> {
    let material = client(args)?;
    match api_key {
        Some(key) if is_wanted(args, material.as_ref(), key)? => {
            // A CA of another cluster, which lies where this user's own is, is no help.
            let ca = material.filter(|material| material.chain.is_empty());
            let enrolled = enrolled(key, url, ca.as_ref()).await.context(ASKED)?;
            Ok(enrolled.map(|enrolled| enrolled.tls).or(ca))
        }
        _ => Ok(material),
    }
}

/// The same for a client that runs on: its certificate is renewed. Must run inside a Tokio runtime.
pub(crate) async fn renewed_client_with_key(
    args: &IdentityArgs,
    api_key: Option<&str>,
    url: &str,
    every: Duration,
    mut reloads: watch::Receiver<u64>,
) -> anyhow::Result<Option<(TlsMaterial, Renewals)>> {
    let material = client(args)?;
    let Some(key) = api_key.filter(|key| is_wanted(args, material.as_ref(), key).unwrap_or(true)) else {
        return super::renewed_client(args, every, reloads);
    };
    // A CA of another cluster, which lies where this user's own is, is no help.
    let ca = material.filter(|material| material.chain.is_empty());
    let first = loop {
        match enrolled(key, url, ca.as_ref()).await {
            Ok(Some(first)) => break first,
            // The coordinator issues none.
            Ok(None) if ca.is_some() => return super::renewed_client(args, every, reloads),
            Ok(None) => return Ok(None),
            Err(EnrolError::Unreachable { url, reason }) => {
                tracing::warn!(url, reason, "no certificate yet: waiting for the coordinator");
                tokio::time::sleep(WAIT_FOR_COORDINATOR).await;
            }
            Err(error) => return Err(error).context(ASKED),
        }
    };
    let (sender, renewals) = watch::channel(Identities { private: first.tls.clone(), public: None });
    let (key, url, tls) = (key.to_owned(), url.to_owned(), first.tls.clone());
    tokio::spawn(async move {
        let mut renew_at = first.renew_at;
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK) => {}
                Ok(()) = reloads.changed() => {}
                () = sender.closed() => return,
            }
            if SystemTime::now() < renew_at {
                continue;
            }
            match enrolled(&key, &url, ca.as_ref()).await {
                Ok(Some(new)) => {
                    renew_at = new.renew_at;
                    sender.send_modify(|identities| identities.private = new.tls);
                }
                Ok(None) => tracing::warn!("the coordinator issues no certificates any more: this client's ends soon"),
                Err(error) => tracing::warn!(%error, "this client's certificate is not renewed yet"),
            }
        }
    });
    Ok(Some((tls, renewals)))
}

/// Whether a certificate is to be asked for: there is none, or it is of another CA than the key's and nobody named it.
fn is_wanted(args: &IdentityArgs, material: Option<&TlsMaterial>, key: &str) -> anyhow::Result<bool> {
    let Some(material) = material else { return Ok(true) };
    if material.chain.is_empty() {
        return Ok(true);
    }
    let named = args.certs.is_some() || args.cert.is_some();
    let of_this_ca = |pin| material.roots.iter().any(|root| CaPin::of(root) == pin);
    Ok(!named && ca_pin(key)?.is_some_and(|pin| !of_this_ca(pin)))
}

/// A certificate, and when it is to be replaced.
struct Certificate {
    tls: TlsMaterial,
    renew_at: SystemTime,
}

/// One that is kept and good, or a new one. `None` where the coordinator issues none.
async fn enrolled(key: &str, url: &str, ca: Option<&TlsMaterial>) -> Result<Option<Certificate>, EnrolError> {
    if let Some(kept) = kept(key, url) {
        return Ok(Some(kept));
    }
    let issued_at = SystemTime::now();
    let enrolled = match enrol(url, key, ca).await {
        Err(EnrolError::Refused { code_word, message, .. }) if code_word == "enrolment_off" => {
            tracing::info!(reason = message, "without a client certificate: over gRPC");
            return Ok(None);
        }
        enrolled => enrolled?,
    };
    tracing::info!(url, "enrolled: a client certificate for a day");
    if let Err(error) = keep(key, url, issued_at, &enrolled) {
        // It is good all the same, and the next process asks again.
        tracing::debug!(%error, "the certificate cannot be kept");
    }
    Ok(Some(Certificate { tls: enrolled.tls, renew_at: renew_at(issued_at, enrolled.expires_at) }))
}

/// When a third of its life is left, so that a coordinator may be away for hours.
fn renew_at(issued_at: SystemTime, expires_at: SystemTime) -> SystemTime {
    let life = expires_at.duration_since(issued_at).unwrap_or_default().min(LIFE);
    issued_at + life * 2 / 3
}

/// A certificate that was had with a key, as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// What the API key begins with, its id included: another key gets another certificate.
    key_id: String,
    /// Unix seconds.
    issued_at: u64,
    expires_at: u64,
    ca: String,
    certificate: String,
    key: String,
}

fn kept(key: &str, url: &str) -> Option<Certificate> {
    let kept: Kept = serde_json::from_slice(&fs::read(file(url)?).ok()?).ok()?;
    let time = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let renew_at = renew_at(time(kept.issued_at)?, time(kept.expires_at)?);
    if kept.key_id != key_id(key) || SystemTime::now() >= renew_at {
        return None;
    }
    let tls = TlsMaterial::from_pem(&kept.ca, &kept.certificate, &kept.key).ok()?;
    Some(Certificate { tls, renew_at })
}

fn keep(key: &str, url: &str, issued_at: SystemTime, enrolled: &Enrolled) -> anyhow::Result<()> {
    let EnrolledPem { ca, certificate, key: private } = enrolled.pem.clone();
    let kept = Kept {
        key_id: key_id(key).to_owned(),
        issued_at: unix_seconds(issued_at),
        expires_at: unix_seconds(enrolled.expires_at),
        ca,
        certificate,
        key: private,
    };
    let file = file(url).context("this user has no home directory")?;
    make_dir(file.parent().context("no directory")?)?;
    Ok(write(&file, &serde_json::to_vec(&kept)?, Access::Private)?)
}

/// One for each coordinator.
fn file(url: &str) -> Option<PathBuf> {
    let name: String = url.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect();
    Some(places::enrolled()?.join(format!("{name}.json")))
}

/// Everything before the secret.
fn key_id(key: &str) -> &str {
    key.match_indices('-').nth(1).map_or(key, |(at, _)| &key[..at])
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_replaced_when_a_third_of_its_life_is_left() {
        let hours = |hours: u64| UNIX_EPOCH + Duration::from_secs(hours * 60 * 60);
        assert_eq!(renew_at(hours(0), hours(24)), hours(16));
        assert_eq!(renew_at(hours(0), hours(1000)), hours(16), "one that says that it lives longer, too");
        assert_eq!(renew_at(hours(5), hours(4)), hours(5), "one that has ended, at once");
    }

    #[test]
    fn what_stands_before_the_secret_tells_keys_apart() {
        assert_eq!(key_id("titan-01234567-a-b_c.pin"), "titan-01234567");
        assert_eq!(key_id("something else"), "something else");
    }
}
