//! A certificate for whoever has an API key: one secret is all that a new client needs.
//!
//! The key's last part is the fingerprint of the cluster's CA. By that the coordinator is known before there is a CA to check it by, and the key goes to nobody else.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use reqwest::{
    StatusCode, Url,
    header::{CONTENT_TYPE, HeaderValue},
    redirect,
};
use titan_certs::{COORDINATOR_SERVER_NAME, MakeError, signing_request};
use titan_proto::rest::{CertificateRequest, Error as Refusal, IssuedCertificate};
use titan_transport::tls::{CaPin, TlsError, TlsMaterial, https_client_config, pinned_client_config};

use crate::error::chain;

const PATH: &str = "/api/v1/certificates";
/// A connection, and a signature: what takes longer is broken.
const TIMEOUT: Duration = Duration::from_secs(10);
/// An answer has two certificates, 2 kB.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// RFC 3986 §3.2.3, where a URL names no port.
const HTTPS_PORT: u16 = 443;

/// Who this client is from now on, until `expires_at`.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// For [`Builder::tls`](crate::Builder::tls).
    pub tls: TlsMaterial,
    /// The same as PEM, to be kept.
    pub pem: EnrolledPem,
    /// End of the certificate's life.
    pub expires_at: SystemTime,
}

/// What [`Enrolled`] is made of, in PEM.
#[derive(Clone)]
pub struct EnrolledPem {
    /// The CA's certificate.
    pub ca: String,
    /// The client's certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for EnrolledPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("EnrolledPem").finish_non_exhaustive()
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// The coordinator's URL is none.
    #[error("{url:?} is not the URL of a coordinator ({reason}): give one such as https://coord.example:8080")]
    Url {
        /// What was given.
        url: String,
        /// The reason.
        reason: String,
    },
    /// The key does not say by which CA the coordinator is known, and no CA was given.
    #[error(
        "the API key does not end with the fingerprint of a CA, so {url} cannot be told from an impostor: give the CA's certificate (--ca), or have a key made by `titan keys add` beside it"
    )]
    NoPin {
        /// Who would have been asked.
        url: String,
    },
    /// The key's last part is no fingerprint.
    #[error("what follows the full stop in the API key is no fingerprint of a CA: was it copied whole?")]
    BadPin,
    /// Nobody answers. Trying again may help.
    #[error("no coordinator answers at {url}: {reason}")]
    Unreachable {
        /// Who was asked.
        url: String,
        /// What happened.
        reason: String,
    },
    /// Whoever answers is not known by the CA of the key.
    #[error("the coordinator at {url} does not belong to the CA that the API key names: {reason}")]
    Untrusted {
        /// Who was asked.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The coordinator does not want to.
    #[error("the coordinator issues no certificate, {status} {code_word}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What programs compare, such as `invalid_api_key` or `enrolment_off`.
        code_word: String,
        /// One sentence for a person.
        message: String,
    },
    /// Whoever answered is no coordinator.
    #[error("{url} did not answer as a coordinator does: {reason}")]
    NotACoordinator {
        /// Who was asked.
        url: String,
        /// What came instead.
        reason: String,
    },
    /// The key pair could not be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Has a new key certified by the coordinator at `url`, for whoever has this API key. `ca`: the cluster's CA where it is known already; without it the key has to end with
/// its fingerprint.
///
/// # Errors
/// [`EnrolError`]. The API key goes to nobody who is not of the CA; over `http://` it goes as it is, which is for this machine alone.
pub async fn enrol(url: &str, api_key: &str, ca: Option<&TlsMaterial>) -> Result<Enrolled, EnrolError> {
    let bad = |reason: String| EnrolError::Url { url: url.to_owned(), reason };
    let parsed = Url::parse(url).map_err(|error| bad(error.to_string()))?;
    let pin = ca_pin(api_key)?;
    let (http, target) = connect(&parsed, pin, ca, url).await?;
    let request = signing_request()?;
    let body = serde_json::to_vec(&CertificateRequest { csr: request.csr }).map_err(|error| bad(error.to_string()))?;
    let post =
        http.post(target).bearer_auth(api_key).header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let response = post.body(body).send().await.map_err(|error| failed(url, &error))?;
    let issued = answer(url, response).await?;
    let tls = TlsMaterial::from_pem(&issued.ca, &issued.certificate, &request.key)?;
    // Over plain text anybody may have answered.
    if let Some(pin) = pin
        && !tls.roots.iter().any(|root| CaPin::of(root) == pin)
    {
        let reason = "it sent another CA's certificate".to_owned();
        return Err(EnrolError::Untrusted { url: url.to_owned(), reason });
    }
    let expires_at = UNIX_EPOCH + Duration::from_secs(issued.expires_at.try_into().unwrap_or(0));
    let pem = EnrolledPem { ca: issued.ca, certificate: issued.certificate, key: request.key };
    Ok(Enrolled { tls, pem, expires_at })
}

/// By which CA an API key says that its coordinator is known.
///
/// # Errors
/// [`EnrolError::BadPin`].
pub fn ca_pin(api_key: &str) -> Result<Option<CaPin>, EnrolError> {
    match api_key.split_once('.') {
        Some((_, pin)) => pin.parse().map(Some).map_err(|_| EnrolError::BadPin),
        None => Ok(None),
    }
}

/// A client that speaks to the cluster's coordinator alone, and the address to ask.
async fn connect(
    parsed: &Url,
    pin: Option<CaPin>,
    ca: Option<&TlsMaterial>,
    url: &str,
) -> Result<(reqwest::Client, Url), EnrolError> {
    let bad = |reason: &str| EnrolError::Url { url: url.to_owned(), reason: reason.to_owned() };
    let host = parsed.host_str().ok_or_else(|| bad("it names no host"))?;
    let mut target = parsed.clone();
    target.set_path(&format!("{}{PATH}", parsed.path().trim_end_matches('/')));
    let builder = reqwest::Client::builder().timeout(TIMEOUT).redirect(redirect::Policy::none()).no_proxy();
    let builder = match (parsed.scheme(), ca, pin) {
        ("http", ..) => builder.tls_backend_preconfigured(https_client_config(None, false)?),
        ("https", Some(ca), _) => builder.tls_backend_preconfigured(https_client_config(Some(ca), false)?),
        ("https", None, Some(pin)) => {
            // The name that every coordinator's certificate has, wherever it is: so it is found out of the CA alone, and not of the host's name.
            let addresses = resolve(host, parsed.port().unwrap_or(HTTPS_PORT)).await;
            let addresses = addresses
                .map_err(|error| EnrolError::Unreachable { url: url.to_owned(), reason: error.to_string() })?;
            target.set_host(Some(COORDINATOR_SERVER_NAME)).map_err(|error| bad(&error.to_string()))?;
            builder
                .tls_backend_preconfigured(pinned_client_config(pin)?)
                .resolve_to_addrs(COORDINATOR_SERVER_NAME, &addresses)
        }
        ("https", None, None) => return Err(EnrolError::NoPin { url: url.to_owned() }),
        _ => return Err(bad("it does not begin with http:// or https://")),
    };
    let http = builder.build().map_err(|error| bad(&chain(&error)))?;
    Ok((http, target))
}

async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    // A URL has brackets around an IPv6 address, the resolver has none.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

async fn answer(url: &str, response: reqwest::Response) -> Result<IssuedCertificate, EnrolError> {
    let status = response.status();
    let odd = |reason: String| EnrolError::NotACoordinator { url: url.to_owned(), reason };
    if response.content_length().is_some_and(|bytes| bytes > MAX_ANSWER_BYTES as u64) {
        return Err(odd("its answer is too long".to_owned()));
    }
    let body = response.bytes().await.map_err(|error| failed(url, &error))?;
    if status == StatusCode::CREATED {
        return serde_json::from_slice(&body).map_err(|error| odd(error.to_string()));
    }
    match serde_json::from_slice(&body) {
        Ok(Refusal { error, message, .. }) => {
            Err(EnrolError::Refused { status: status.as_u16(), code_word: error, message })
        }
        Err(_) => Err(odd(format!("it answered {status}"))),
    }
}

fn failed(url: &str, error: &reqwest::Error) -> EnrolError {
    let (url, reason) = (url.to_owned(), chain(error));
    match crate::error::is_tls(error) {
        true => EnrolError::Untrusted { url, reason },
        false => EnrolError::Unreachable { url, reason },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_key_says_by_which_ca_the_coordinator_is_known() {
        let pin = format!("titan-01234567-secret.{}", "A".repeat(22));
        assert!(ca_pin(&pin).unwrap().is_some());
        assert!(ca_pin("titan-01234567-secret").unwrap().is_none());
        for cut in ["titan-01234567-secret.", "titan-01234567-secret.AAAA"] {
            assert!(matches!(ca_pin(cut), Err(EnrolError::BadPin)), "{cut}");
        }
    }

    #[tokio::test]
    async fn a_key_without_a_ca_goes_to_nobody_over_tls() {
        let refused = enrol("https://coord.example:8080", "titan-01234567-secret", None).await.unwrap_err();
        assert!(matches!(refused, EnrolError::NoPin { .. }) && refused.to_string().contains("--ca"), "{refused}");
        for url in ["coord.example", "ftp://coord.example"] {
            let refused = enrol(url, "titan-01234567-secret", None).await.unwrap_err();
            assert!(matches!(refused, EnrolError::Url { .. }), "{refused}");
        }
    }
}
