//! What a token says.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::verify::TokenError;

/// How far apart the clocks of coordinator and agent may be. NTP keeps machines within milliseconds, whole seconds cost up
/// to one more; five are enough for a machine that just woke up, and little beside a token's life of five minutes.
///
/// A token is accepted this long after its `exp`: whoever remembers tokens until they end has to remember that much longer.
pub const CLOCK_LEEWAY: Duration = Duration::from_secs(5);

/// The claims of a session token. Times are Unix seconds (RFC 7519 §4.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who signed it: [`titan_proto::COORDINATOR_NAME`].
    pub iss: String,
    /// The only agent that may accept it.
    pub agent_id: String,
    /// Whom it was given to.
    pub client_id: String,
    /// The only model it may be used with.
    pub model: String,
    /// The job that the coordinator booked.
    pub job_id: String,
    /// Unique per token: [`new_jti`].
    pub jti: String,
    /// Issued at.
    pub iat: i64,
    /// Not valid before.
    pub nbf: i64,
    /// Not valid from here on.
    pub exp: i64,
    /// The only request over HTTP that it may be used for, and once: it stands in the address then. `None` for all other tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The id of the API key that it was asked for with. `None` where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How many generations it may start. `None` for any number. What goes on in a generation that was begun, over another connection say, starts none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generations: Option<u32>,
}

impl Claims {
    /// Whether the token may be used with the model that a request names. A request that names none means the token's.
    pub fn allows_model(&self, requested: &str) -> bool {
        requested.is_empty() || requested == self.model
    }

    /// The same as an error that says what to do.
    ///
    /// # Errors
    /// [`TokenError::WrongModel`].
    pub fn check_model(&self, requested: &str) -> Result<(), TokenError> {
        if self.allows_model(requested) {
            return Ok(());
        }
        Err(TokenError::WrongModel { token: self.model.clone(), requested: requested.to_owned() })
    }

    /// A request as [`request`](Self::request) has it: `GET /v1/models`. The path is without the token and without a query.
    pub fn request_line(method: &str, path: &str) -> String {
        format!("{method} {path}")
    }

    /// Whether the token may be used where it was shown: `request` is the one in whose address it stands, `None` where it is in none.
    ///
    /// # Errors
    /// [`TokenError::OtherRequest`].
    pub fn check_request(&self, request: Option<&str>) -> Result<(), TokenError> {
        match self.request.as_deref() == request {
            true => Ok(()),
            false => Err(TokenError::OtherRequest { token: self.request.clone() }),
        }
    }

    /// The time from which on no verifier accepts the token, [`CLOCK_LEEWAY`] included.
    pub fn dead_at(&self) -> SystemTime {
        let exp = Duration::from_secs(self.exp.try_into().unwrap_or(0));
        (UNIX_EPOCH + CLOCK_LEEWAY).checked_add(exp).unwrap_or(UNIX_EPOCH + CLOCK_LEEWAY)
    }
}

/// A new token id: 128 random bits in hexadecimal.
pub fn new_jti() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A time as claims hold it. Times before 1970 are 0.
pub fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
