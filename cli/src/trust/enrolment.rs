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

/// What is left of a certificate's life when it is replaced: a third, so that a coordinator may be away for hours.
const RENEW_AT: f64 = 1.0 / 3.0;
/// A certificate of a day; one that says that it lives longer is replaced at least so often.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two tries to renew.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// A client's material as its flags name it, or else as the coordinator at `url` gives it to whoever has this API key.
pub(crate) async fn client_with_key(
    args: &IdentityArgs,
    api_key: Option<&str>,
    url: &str,
) -> anyhow::Result<Option<TlsMaterial>> {
    let material = client(args)?;
    match api_key {
        Some(key) if is_wanted(args, material.as_ref(), key)? => enrolled(key, url, material).await,
        _ => Ok(material),
    }
}

/// The same for a client that runs on: its certificate is renewed. Must run inside a Tokio runtime.
pub(crate) async fn renewed_client_with_key(
    args: &IdentityArgs,
    api_key: Option<&str>,
    url: &str,
    every: Duration,
    reloads: watch::Receiver<u64>,
) -> anyhow::Result<Option<(TlsMaterial, Renewals)>> {
    let material = client(args)?;
    let Some(key) = api_key.filter(|key| is_wanted(args, material.as_ref(), key).unwrap_or(true)) else {
        return super::renewed_client(args, every, reloads);
    };
    let Some(first) = enrolled(key, url, material.clone()).await? else { return Ok(None) };
    if first.chain.is_empty() {
        return super::renewed_client(args, every, reloads);
    }
    let (sender, renewals) = watch::channel(Identities { private: first.clone(), public: None });
    let (key, url) = (key.to_owned(), url.to_owned());
    tokio::spawn(async move {
        while !sender.is_closed() {
            tokio::time::sleep(TRY_AGAIN).await;
            if kept(&key, &url).is_some() {
                continue;
            }
            match ask(&key, &url, material.as_ref()).await {
                Ok(enrolled) => sender.send_modify(|identities| identities.private = enrolled.tls),
                Err(error) => tracing::warn!(%error, "this client's certificate is not renewed yet"),
            }
        }
    });
    Ok(Some((first, renewals)))
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

/// One that is kept and good, or a new one. A coordinator that issues none leaves the client with what it has.
async fn enrolled(key: &str, url: &str, material: Option<TlsMaterial>) -> anyhow::Result<Option<TlsMaterial>> {
    if let Some(kept) = kept(key, url) {
        return Ok(Some(kept));
    }
    // A CA of another cluster, which lies where this user's own is, is no help.
    let ca = material.filter(|material| material.chain.is_empty());
    match ask(key, url, ca.as_ref()).await {
        Ok(enrolled) => Ok(Some(enrolled.tls)),
        Err(EnrolError::Refused { code_word, message, .. }) if code_word == "enrolment_off" => {
            tracing::info!(reason = message, "without a client certificate: over gRPC");
            Ok(ca)
        }
        Err(error) => Err(error).context("this client has no certificate, and asked for one with its API key"),
    }
}

async fn ask(key: &str, url: &str, ca: Option<&TlsMaterial>) -> Result<Enrolled, EnrolError> {
    let enrolled = enrol(url, key, ca).await?;
    tracing::info!(url, "enrolled: a client certificate for a day");
    if let Err(error) = keep(key, url, &enrolled) {
        // It is good all the same, and the next process asks again.
        tracing::debug!(%error, "the certificate cannot be kept");
    }
    Ok(enrolled)
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

fn kept(key: &str, url: &str) -> Option<TlsMaterial> {
    let kept: Kept = serde_json::from_slice(&fs::read(file(url)?).ok()?).ok()?;
    let now = unix_seconds(SystemTime::now());
    let life = kept.expires_at.saturating_sub(kept.issued_at).min(LIFE.as_secs());
    let left = kept.expires_at.min(kept.issued_at + life).saturating_sub(now);
    if kept.key_id != key_id(key) || (left as f64) < life as f64 * RENEW_AT {
        return None;
    }
    TlsMaterial::from_pem(&kept.ca, &kept.certificate, &kept.key).ok()
}

fn keep(key: &str, url: &str, enrolled: &Enrolled) -> anyhow::Result<()> {
    let EnrolledPem { ca, certificate, key: private } = enrolled.pem.clone();
    let kept = Kept {
        key_id: key_id(key).to_owned(),
        issued_at: unix_seconds(SystemTime::now()),
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
