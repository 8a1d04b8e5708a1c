//! When certificates begin and end.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use crate::{RENEW_DAYS, identity::IdentityError, info::parse};

/// From when to when a certificate is valid, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Its first moment.
    pub not_before: OffsetDateTime,
    /// Its last moment.
    pub not_after: OffsetDateTime,
}

/// Where in its life a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It begins later: it was made by a clock that is ahead of this one.
    NotBegun,
    /// Good for a while.
    Good,
    /// Good, and to be replaced: it ends within [`RENEW_DAYS`], or is in the last third of a shorter life.
    Ending {
        /// Whole days that are left.
        days: i64,
    },
    /// Nobody takes it any more.
    Ended,
}

impl Lifetime {
    /// Of any certificate, one of another CA included.
    ///
    /// # Errors
    /// Where it is no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let certificate = parse(certificate)?;
        let validity = certificate.validity();
        Ok(Self { not_before: validity.not_before.to_datetime(), not_after: validity.not_after.to_datetime() })
    }

    /// Where in its life it is at this time.
    pub fn at(&self, now: SystemTime) -> Life {
        let now = OffsetDateTime::from(now);
        let left = self.not_after - now;
        if now < self.not_before {
            Life::NotBegun
        } else if left.is_negative() {
            Life::Ended
        } else if left <= self.renew_before() {
            Life::Ending { days: left.whole_days() }
        } else {
            Life::Good
        }
    }

    /// A certificate with a short life would be renewed at every start if [`RENEW_DAYS`] were all that counted.
    pub(crate) fn renew_before(&self) -> Duration {
        Duration::days(i64::from(RENEW_DAYS)).min((self.not_after - self.not_before) / 3)
    }
}

impl Life {
    /// Whether peers take it.
    pub fn is_valid(self) -> bool {
        matches!(self, Self::Good | Self::Ending { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn at(days: i64, after: Duration) -> Life {
        let life = Lifetime { not_before: BEGIN, not_after: BEGIN + Duration::days(days) };
        life.at((BEGIN + after).into())
    }

    #[test]
    fn a_life_has_a_beginning_a_last_month_and_an_end() {
        for (after, life) in [
            (Duration::seconds(-1), Life::NotBegun),
            (Duration::ZERO, Life::Good),
            (Duration::days(334), Life::Good),
            (Duration::days(335), Life::Ending { days: 30 }),
            (Duration::days(365) - Duration::HOUR, Life::Ending { days: 0 }),
            (Duration::days(365), Life::Ending { days: 0 }),
            (Duration::days(365) + Duration::SECOND, Life::Ended),
        ] {
            assert_eq!(at(365, after), life, "{after}");
            assert_eq!(life.is_valid(), matches!(life, Life::Good | Life::Ending { .. }));
        }
    }

    #[test]
    fn a_short_life_is_not_ending_from_the_beginning() {
        assert_eq!(at(3, Duration::HOUR), Life::Good);
        assert_eq!(at(3, Duration::days(2)), Life::Ending { days: 1 });
    }
}
