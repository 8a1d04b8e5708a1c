//! Making certificates: the CA, and leaves signed by it. No files and no clock here; randomness comes from the provider.

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use crate::identity::Role;
use crate::info::{CaInfo, InfoError};
use crate::names::{NameError, San, sans_for};

/// Life of a CA. Replacing it means visiting every machine, so it outlives the hardware it is made for.
pub const CA_DAYS: u32 = 3650;

/// Life of a leaf where a request does not say. Renewal is automatic ([`crate::CertDir::ensure`]) or one command.
pub const LEAF_DAYS: u32 = 365;

/// Longest life of a leaf that can be asked for: that of the CA.
pub const MAX_LEAF_DAYS: u32 = CA_DAYS;

/// [`crate::CertDir::ensure`] renews a leaf this long before it expires: a machine that restarts once a month never serves
/// an expired one.
pub const RENEW_DAYS: u32 = 30;

/// Certificates are valid from this long before they are made, because the verifying machine's clock may be behind.
pub const CLOCK_SKEW: Duration = Duration::hours(1);

/// Most bytes that a leaf and its CA may have together, in DER.
///
/// A QUIC server may send three times what it received before the client's address is proven (RFC 9000 §8.1): 3600 bytes for
/// a client's first 1200. Of these the ServerHello takes 1210 (X25519MLKEM768 key share), the other TLS messages about 450
/// (transport parameters, certificate request, signature, Finished), packet headers and padding about 200.
pub const CHAIN_BUDGET_BYTES: usize = 1700;

/// What a leaf certificate shall say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafRequest {
    /// What its holder may act as.
    pub role: Role,
    /// Its holder's name; for an agent, the agent id. See [`crate::validate_name`].
    pub name: String,
    /// Host names and IP addresses under which the holder is dialled, beside the name that its role gives it.
    pub hosts: Vec<String>,
    /// Its life in days, 1 to [`MAX_LEAF_DAYS`]; it never outlives the CA.
    pub days: u32,
}

impl LeafRequest {
    /// A request without hosts, for [`LEAF_DAYS`].
    pub fn new(role: Role, name: impl Into<String>) -> Self {
        Self { role, name: name.into(), hosts: Vec::new(), days: LEAF_DAYS }
    }

    /// Sets the host names and IP addresses. Defaults to none.
    #[must_use]
    pub fn hosts<H: Into<String>>(mut self, hosts: impl IntoIterator<Item = H>) -> Self {
        self.hosts = hosts.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the life in days. Defaults to [`LEAF_DAYS`].
    #[must_use]
    pub fn days(mut self, days: u32) -> Self {
        self.days = days;
        self
    }

    /// Everything that the certificate will name.
    pub(crate) fn sans(&self) -> Result<Vec<San>, NameError> {
        sans_for(self.role, &self.name, &self.hosts)
    }
}

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The name or a host is not acceptable.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The life asked for is 0 or longer than [`MAX_LEAF_DAYS`].
    #[error("{0} days; a certificate lives 1 to {MAX_LEAF_DAYS} days")]
    Days(u32),
    /// The CA's own life is over.
    #[error("the CA expired on {0}; move its directory away and make a new one with `titan certs init`")]
    CaExpired(time::Date),
    /// The CA's certificate or key cannot be read.
    #[error(
        "the CA's {part} is damaged: {detail}; restore it from a backup, or move the directory away and start anew"
    )]
    Ca {
        /// `certificate` or `key`.
        part: &'static str,
        /// What the parser said.
        detail: String,
    },
    /// The CA's key is another one than its certificate names.
    #[error(
        "ca.key does not belong to ca.pem; restore the pair from a backup, or move the directory away and start anew"
    )]
    CaMismatch,
    /// The names asked for make the certificate too large for QUIC's first flight.
    #[error(
        "leaf and CA have {bytes} bytes, more than {CHAIN_BUDGET_BYTES}, which would cost every QUIC connection one \
             more round trip; ask for fewer or shorter hosts"
    )]
    TooLarge {
        /// Leaf and CA in DER.
        bytes: usize,
    },
    /// What was sent is no signing request, or its signature is not that of its key.
    #[error("the certificate signing request cannot be used ({0}): send PKCS#10 in PEM, signed with a P-256 key")]
    Request(rcgen::Error),
    /// The cryptographic library refused.
    #[error("cannot make a key or certificate: {0}")]
    Crypto(#[from] rcgen::Error),
    /// The system gave no randomness. Trying again may help.
    #[error("the system's random number generator failed")]
    Random,
}

/// A request to have a key certified, and the key, each as PEM.
pub struct SigningRequest {
    /// For whoever issues.
    pub csr: String,
    /// PKCS#8, for nobody else.
    pub key: String,
}

/// A certificate and its private key, each as PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Makes a new CA that is valid from about `now` for [`CA_DAYS`].
pub(crate) fn make_ca(now: OffsetDateTime) -> Result<Pair, MakeError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    // Two CAs never share a subject: a peer of another cluster is then refused as "unknown issuer", not as "bad signature".
    let mut tag = [0; 4];
    rand::fill(&mut tag).map_err(|_| MakeError::Random)?;
    let mut params = base_params(&format!("TitanCompute CA {:08x}", u32::from_be_bytes(tag)), now, CA_DAYS)?;
    // Path length 0: it signs leaves, and no leaf's holder can become a CA.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// The CA, ready to sign.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der_len: usize,
    pub(crate) info: CaInfo,
}

impl Ca {
    pub(crate) fn load(certificate: &CertificateDer<'_>, key_pem: &str) -> Result<Self, MakeError> {
        let info = CaInfo::from_der(certificate)
            .map_err(|e: InfoError| MakeError::Ca { part: "certificate", detail: e.to_string() })?;
        let damaged = |part| move |e: rcgen::Error| MakeError::Ca { part, detail: e.to_string() };
        let key = KeyPair::from_pem(key_pem).map_err(damaged("key"))?;
        if key.public_key_raw() != info.public_key {
            return Err(MakeError::CaMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(damaged("certificate"))?;
        Ok(Self { issuer, der_len: certificate.len(), info })
    }

    /// Makes a new key and a certificate for it. The life begins at about `now` and ends with the CA's at the latest.
    pub(crate) fn issue(&self, request: &LeafRequest, now: OffsetDateTime) -> Result<Pair, MakeError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = self.sign(request, &key, now)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Makes a certificate for the key of a signing request (RFC 2986) in PEM. What else that asks for does not count: `request` says what the certificate is
    /// for.
    pub(crate) fn sign_request(
        &self,
        request: &LeafRequest,
        csr_pem: &str,
        now: OffsetDateTime,
    ) -> Result<Certificate, MakeError> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(MakeError::Request)?;
        self.sign(request, &csr.public_key, now)
    }

    fn sign(
        &self,
        request: &LeafRequest,
        key: &impl PublicKeyData,
        now: OffsetDateTime,
    ) -> Result<Certificate, MakeError> {
        if !(1..=MAX_LEAF_DAYS).contains(&request.days) {
            return Err(MakeError::Days(request.days));
        }
        if self.info.not_after <= now {
            return Err(MakeError::CaExpired(self.info.not_after.date()));
        }
        let sans = request.sans()?;
        let mut params = base_params(&request.name, now, request.days)?;
        params.not_after = params.not_after.min(self.info.not_after);
        params.subject_alt_names = sans.into_iter().map(rcgen_san).collect::<Result<_, _>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages(request.role);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?;
        let bytes = certificate.der().len() + self.der_len;
        if bytes > CHAIN_BUDGET_BYTES {
            return Err(MakeError::TooLarge { bytes });
        }
        Ok(certificate)
    }
}

/// Makes a new key and a request to have it certified (RFC 2986). Who its holder is, the issuer says.
pub(crate) fn make_request() -> Result<SigningRequest, MakeError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let csr = CertificateParams::default().serialize_request(&key)?;
    Ok(SigningRequest { csr: csr.pem()?, key: key.serialize_pem() })
}

/// Agents and coordinators are servers, and clients of each other; a client is never a server.
fn usages(role: Role) -> Vec<ExtendedKeyUsagePurpose> {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    match role {
        Role::Coordinator | Role::Agent => vec![ServerAuth, ClientAuth],
        Role::Client => vec![ClientAuth],
    }
}

fn base_params(common_name: &str, now: OffsetDateTime, days: u32) -> Result<CertificateParams, MakeError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(i64::from(days));
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// 126 random bits: unique without a counter to keep, and positive and of fixed length (RFC 5280 §4.1.2.2).
fn random_serial() -> Result<SerialNumber, MakeError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| MakeError::Random)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn rcgen_san(san: San) -> Result<SanType, rcgen::Error> {
    Ok(match san {
        San::Dns(name) => SanType::DnsName(name.try_into()?),
        San::Ip(address) => SanType::IpAddress(address),
        San::Uri(uri) => SanType::URI(uri.try_into()?),
    })
}
