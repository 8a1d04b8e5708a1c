//! Whose certificate was refused, and why, in words.

use rustls::{AlertDescription, CertificateError, Error};

/// What a TLS error says of certificates: of `theirs`, which this side refused, or of `ours`, which the other side did. Both as the beginning
/// of a sentence, such as "the coordinator" and "this agent". `None` for errors that are about something else.
///
/// `trusts`: whether this side was given a CA to trust at all.
pub fn trouble(error: &Error, theirs: &str, ours: &str, trusts: bool) -> Option<String> {
    let said = match error {
        Error::InvalidCertificate(reason) => of_theirs(reason, theirs, ours, trusts),
        Error::AlertReceived(alert) => {
            let reason = of_ours(*alert)?;
            format!("{theirs} refuses the certificate of {ours}: {reason}")
        }
        Error::NoCertificatesPresented => format!("{theirs} shows no certificate"),
        _ => return None,
    };
    Some(said)
}

fn of_theirs(reason: &CertificateError, theirs: &str, ours: &str, trusts: bool) -> String {
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature if !trusts => format!(
            "{theirs} shows a certificate of a private CA, and {ours} was given none to trust: give --certs DIR (TITAN_CERTS) or --ca FILE"
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the certificate of {theirs} is of another CA than the one that {ours} trusts: copy ca.pem from where it was issued (--certs, --ca)"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
            "the certificate of {theirs} has ended, if the clock here is right: issue it anew there (`titan certs issue`)"
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => format!(
            "the certificate of {theirs} begins later than the time that the clock here shows: set this machine's clock"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "the certificate of {theirs} is for other names than the one that was dialled: dial one that is in it, or issue it anew with --host (`titan certs show` lists them)"
        ),
        other => format!("the certificate of {theirs} cannot be used: {other}"),
    }
}

/// RFC 8446 §6.2.
fn of_ours(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateExpired => {
            "it has ended, or the clocks of the two machines differ: `titan certs show` says when it ends"
        }
        AlertDescription::UnknownCA => "it is of another CA",
        AlertDescription::CertificateRevoked => "it was revoked",
        AlertDescription::CertificateRequired => "there is none",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => "it is of no use there",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn it_is_said_whose_certificate_is_wrong_and_what_to_do() {
        let theirs = |reason, trusts| {
            trouble(&Error::InvalidCertificate(reason), "the coordinator", "this client", trusts).unwrap()
        };
        for (said, parts) in [
            (theirs(CertificateError::UnknownIssuer, false), ["this client was given none to trust", "--certs"]),
            (theirs(CertificateError::UnknownIssuer, true), ["the coordinator is of another CA", "ca.pem"]),
            (theirs(CertificateError::Expired, true), ["the coordinator has ended", "titan certs issue"]),
            (theirs(CertificateError::NotValidYet, true), ["the coordinator begins later", "clock"]),
            (theirs(CertificateError::NotValidForName, true), ["other names", "--host"]),
        ] {
            for part in parts {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
        for (alert, part) in [
            (AlertDescription::CertificateExpired, "has ended"),
            (AlertDescription::UnknownCA, "another CA"),
            (AlertDescription::BadCertificate, "no use"),
        ] {
            let said = trouble(&Error::AlertReceived(alert), "the coordinator", "this agent", true).unwrap();
            assert!(said.starts_with("the coordinator refuses the certificate of this agent: "), "{said}");
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn what_is_no_matter_of_certificates_is_left_to_others() {
        for error in [Error::DecryptError, Error::AlertReceived(AlertDescription::HandshakeFailure)] {
            assert_eq!(trouble(&error, "a", "b", true), None);
        }
    }
}
