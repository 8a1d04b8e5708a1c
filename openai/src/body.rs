//! Reads a request's body.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::time::timeout;

use crate::{error::ApiError, fields::Fields};

/// A body of 1 MiB takes 8 s at 1 Mbit/s; slower than that is somebody holding a connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// The fields of a JSON object of at most `max_bytes`.
pub(crate) async fn read(headers: &HeaderMap, body: Body, max_bytes: usize) -> Result<Fields, ApiError> {
    check_content_type(headers)?;
    let gathered = timeout(BODY_TIMEOUT, Limited::new(body, max_bytes).collect()).await;
    let slow = || format!("the body did not arrive within {} s: send it again", BODY_TIMEOUT.as_secs());
    let gathered = gathered.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, None, slow()))?;
    let bytes = gathered.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => {
            let message = format!("the body is larger than {max_bytes} bytes: shorten the conversation");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, None, message)
        }
        None => ApiError::not_json("the body broke off"),
    })?;
    Fields::parse(&bytes.to_bytes())
}

/// Refuses a body that says that it is no JSON.
///
/// # Errors
/// 415.
pub fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(header::CONTENT_TYPE) {
        Some(kind) if !is_json(kind.to_str().unwrap_or_default()) => {
            let message = "the body has to be JSON: set the header content-type to application/json";
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, None, message))
        }
        _ => Ok(()),
    }
}

/// `application/json`, with or without parameters, and its relatives; curl's `-d` says that it is a form, and means JSON all the same.
fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.ends_with("+json") || kind == "application/x-www-form-urlencoded"
}
