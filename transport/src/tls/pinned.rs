//! A server that is known by its CA's fingerprint, before its CA is.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{TlsError, provider};

/// Nobody makes a second CA with the same 128 bits, and 22 characters can be handed on with a key.
const BYTES: usize = 16;

/// The first half of the SHA-256 of a CA's certificate in DER; as text in base64url (RFC 4648 §5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CaPin([u8; BYTES]);

/// A text that is no [`CaPin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the fingerprint of a CA has 22 characters of base64url")]
pub struct PinError;

impl CaPin {
    /// Of a CA's certificate.
    pub fn of(ca: &CertificateDer<'_>) -> Self {
        let mut pin = [0; BYTES];
        pin.iter_mut().zip(digest(&SHA256, ca).as_ref()).for_each(|(byte, &of)| *byte = of);
        Self(pin)
    }
}

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaPin({self})")
    }
}

impl FromStr for CaPin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| PinError)?;
        bytes.try_into().map(Self).map_err(|_| PinError)
    }
}

/// For an HTTPS client of a server whose CA it does not have yet: the server sends its CA along ([`HttpTls`](super::HttpTls) does), and that is believed if it is the one of
/// the pin. All else is checked as ever: that the CA has signed the server's certificate, for the name that is asked for, and that it is valid now.
///
/// # Errors
/// [`TlsError`], where the crypto provider cannot be used.
pub fn pinned_client_config(pin: CaPin) -> Result<rustls::ClientConfig, TlsError> {
    let builder = rustls::ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let verifier = builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { pin }));
    Ok(verifier.with_no_client_auth())
}

#[derive(Debug)]
struct Pinned {
    pin: CaPin,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates.iter().find(|ca| CaPin::of(ca) == self.pin);
        let ca = ca.ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        webpki.verify_server_cert(leaf, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    const NAME: &str = "coordinator.test";

    /// A CA, and a leaf that it has signed for [`NAME`].
    struct Server {
        ca: CertificateDer<'static>,
        leaf: CertificateDer<'static>,
    }

    fn server() -> Server {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        let leaf = CertificateParams::new([NAME.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone();
        Server { ca, leaf }
    }

    fn verify(pin: CaPin, shown: &Server, sent: &[CertificateDer<'_>], name: &str) -> Result<(), rustls::Error> {
        let name = ServerName::try_from(name).unwrap();
        Pinned { pin }.verify_server_cert(&shown.leaf, sent, &name, &[], UnixTime::now()).map(drop)
    }

    #[test]
    fn a_pin_is_read_as_it_is_written() {
        let pin = CaPin::of(&server().ca);
        assert_eq!(pin.to_string().len(), 22);
        assert_eq!(pin.to_string().parse(), Ok(pin));
        for wrong in ["", "AAAA", "not base64url, surely!", &"A".repeat(43)] {
            assert_eq!(wrong.parse::<CaPin>(), Err(PinError), "{wrong}");
        }
    }

    #[test]
    fn only_the_pinned_ca_is_believed_and_only_for_what_it_has_signed() {
        let (ours, other) = (server(), server());
        let pin = CaPin::of(&ours.ca);
        let sent = std::slice::from_ref(&ours.ca);
        verify(pin, &ours, sent, NAME).unwrap();
        assert!(verify(pin, &ours, &[], NAME).is_err(), "the CA is not sent");
        assert!(verify(pin, &other, std::slice::from_ref(&other.ca), NAME).is_err(), "another CA");
        assert!(verify(pin, &other, sent, NAME).is_err(), "it has not signed this");
        assert!(verify(pin, &ours, sent, "other.example").is_err(), "another name");
    }
}
