//! `POST /api/v1/certificates`: a client certificate for whoever shows an API key, so that a new client needs nothing else.
//!
//! It lives a day, is of the role client, and names the key's id: `titan keys revoke` ends what it is good for at the coordinator at once, and it
//! runs out by itself.

use std::sync::Arc;

use axum::{Json, body::Body, extract::State};
use http::{HeaderMap, StatusCode};
use titan_certs::{CertIssuer, LeafRequest, MakeError, Role};
use titan_proto::rest::{CertificateRequest, IssuedCertificate};
use titan_transport::token::unix_seconds;
use tracing::{error, info};

use super::{body, error::ApiError};
use crate::{
    access::{AccessError, Caller},
    keys::certificate_name,
    routing::{Dispatcher, RouteError},
};

/// Renewed by itself long before: short, since nobody keeps a list of those that were revoked.
const LIFE_DAYS: u32 = 1;
/// A signing request has some 400 bytes.
const MAX_CSR_BYTES: usize = 16 * 1024;

/// Certifies keys of clients, where this coordinator has the CA's key.
pub(super) async fn issue(
    issuer: Option<Arc<CertIssuer>>,
    State(dispatcher): State<Arc<Dispatcher>>,
    caller: Caller,
    headers: HeaderMap,
    request: Body,
) -> Result<(StatusCode, Json<IssuedCertificate>), ApiError> {
    let Some(issuer) = issuer else {
        return Err(ApiError::enrolment_off(
            "this coordinator does not have the CA's key, so it issues no certificates: `titan certs issue --role client` does, where the CA is",
        ));
    };
    if !dispatcher.access.asks() {
        return Err(ApiError::enrolment_off(
            "nobody needs an API key here, and certificates are for those who show one: `titan keys add NAME` makes the first",
        ));
    }
    // Another certificate is not enough, or one could be had with the other for ever.
    let key = caller.key.ok_or(RouteError::Access(AccessError::MissingKey))?;
    let request: CertificateRequest = serde_json::from_slice(&body::read(&headers, request).await?)
        .map_err(|error| ApiError::invalid_json(format!("give {{\"csr\": \"PKCS#10 in PEM\"}}: {error}")))?;
    if request.csr.len() > MAX_CSR_BYTES {
        return Err(ApiError::invalid_csr(format!(
            "it has {} bytes, at most {MAX_CSR_BYTES} are read",
            request.csr.len()
        )));
    }
    let leaf = LeafRequest::new(Role::Client, certificate_name(&key.id)).days(LIFE_DAYS);
    let signed = issuer.sign(&leaf, &request.csr).map_err(|cause| match cause {
        MakeError::Request(_) | MakeError::TooLarge { .. } => ApiError::invalid_csr(cause.to_string()),
        cause => {
            error!(%cause, "a client's certificate could not be made");
            ApiError::internal("the certificate could not be made: the coordinator's log says why")
        }
    })?;
    info!(key = key.name, id = key.id, "client certificate issued");
    let issued = IssuedCertificate {
        certificate: signed.certificate,
        ca: issuer.ca_pem().to_owned(),
        expires_at: unix_seconds(signed.not_after),
    };
    Ok((StatusCode::CREATED, Json(issued)))
}
