//! Reading certificates back: what people want to see of them, and what renewal is decided by.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{Identity, IdentityError, Role};
use crate::lifetime::Lifetime;
use crate::names::{San, sans_of};

/// A leaf certificate, as `titan certs show` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeafInfo {
    /// What its holder may act as.
    pub role: Role,
    /// Its holder's name.
    pub name: String,
    /// What it names, sorted: `DNS:…`, `IP:…`, `URI:…`.
    pub sans: Vec<String>,
    /// Start of its life, UTC.
    #[serde(serialize_with = "rfc3339")]
    pub not_before: OffsetDateTime,
    /// End of its life, UTC.
    #[serde(serialize_with = "rfc3339")]
    pub not_after: OffsetDateTime,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the DER in lower-case hexadecimal.
    pub fingerprint_sha256: String,
    /// Whether the CA beside it signed it.
    pub signed_by_this_ca: bool,
    /// The subject's public key: an uncompressed P-256 point.
    #[serde(skip)]
    pub(crate) public_key: Vec<u8>,
    #[serde(skip)]
    pub(crate) parsed_sans: Vec<San>,
}

/// A CA certificate, as `titan certs show` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaInfo {
    /// Its distinguished name.
    pub subject: String,
    /// Start of its life, UTC.
    #[serde(serialize_with = "rfc3339")]
    pub not_before: OffsetDateTime,
    /// End of its life, UTC.
    #[serde(serialize_with = "rfc3339")]
    pub not_after: OffsetDateTime,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the DER in lower-case hexadecimal: what to compare after copying `ca.pem` to another machine.
    pub fingerprint_sha256: String,
    /// An uncompressed P-256 point.
    #[serde(skip)]
    pub(crate) public_key: Vec<u8>,
}

/// Why a certificate in the directory cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    /// It names no holder.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It is a leaf where a CA is needed.
    #[error("not a CA certificate")]
    NotCa,
}

impl LeafInfo {
    /// From when to when it is valid.
    pub fn lifetime(&self) -> Lifetime {
        Lifetime { not_before: self.not_before, not_after: self.not_after }
    }

    pub(crate) fn from_der(der: &CertificateDer<'_>, ca: &CaInfo) -> Result<Self, InfoError> {
        let certificate = parse(der)?;
        let Identity { role, name } = Identity::from_x509(&certificate)?;
        let signed_by_this_ca = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &ca.public_key)
            .verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
            .is_ok();
        let parsed_sans = sans_of(&certificate);
        Ok(Self {
            role,
            name,
            sans: parsed_sans.iter().map(San::to_string).collect(),
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            serial: hex(certificate.raw_serial()),
            fingerprint_sha256: fingerprint(der),
            signed_by_this_ca,
            public_key: public_key(&certificate),
            parsed_sans,
        })
    }
}

impl CaInfo {
    /// From when to when it is valid.
    pub fn lifetime(&self) -> Lifetime {
        Lifetime { not_before: self.not_before, not_after: self.not_after }
    }

    pub(crate) fn from_der(der: &CertificateDer<'_>) -> Result<Self, InfoError> {
        let certificate = parse(der)?;
        if !certificate.is_ca() {
            return Err(InfoError::NotCa);
        }
        Ok(Self {
            subject: certificate.subject().to_string(),
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            serial: hex(certificate.raw_serial()),
            fingerprint_sha256: fingerprint(der),
            public_key: public_key(&certificate),
        })
    }
}

pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(IdentityError::Malformed),
    }
}

fn public_key(certificate: &X509Certificate<'_>) -> Vec<u8> {
    certificate.public_key().subject_public_key.data.to_vec()
}

fn fingerprint(der: &[u8]) -> String {
    hex(digest(&SHA256, der).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn rfc3339<S: Serializer>(time: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.format(&Rfc3339).map_err(serde::ser::Error::custom)?)
}
