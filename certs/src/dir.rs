//! A directory with one CA and the leaves it signed.
//!
//! ```text
//! ca.pem  ca.key                      the CA; ca.key stays on the machine that issues
//! agent-agent-1.pem  agent-agent-1.key    <role>-<name>: one certificate (the CA is not repeated in it) and its key, PKCS#8
//! .lock                               held while something is written
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use titan_files::{Access, Lock, make_dir, make_dir_whole, without_bom, write_pair};

use crate::identity::Role;
use crate::info::{CaInfo, InfoError, LeafInfo};
use crate::leaf::{Ca, LeafRequest, MakeError, Pair, SigningRequest, make_ca, make_request};
use crate::lifetime::Lifetime;
use crate::names::NameError;

/// A directory of certificates. Creating this value touches nothing; see the methods.
#[derive(Clone, Debug)]
pub struct CertDir {
    path: PathBuf,
}

impl CertDir {
    /// A directory that may or may not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The CA's certificate: what every machine trusts.
    pub fn ca_pem(&self) -> PathBuf {
        self.path.join("ca.pem")
    }

    /// The CA's private key.
    pub fn ca_key(&self) -> PathBuf {
        self.path.join("ca.key")
    }

    /// A leaf's certificate.
    pub fn leaf_pem(&self, role: Role, name: &str) -> PathBuf {
        self.path.join(format!("{role}-{name}.pem"))
    }

    /// A leaf's private key.
    pub fn leaf_key(&self, role: Role, name: &str) -> PathBuf {
        self.path.join(format!("{role}-{name}.key"))
    }

    /// Makes the directory and a CA in it, unless there is one. Returns whether it made one. Safe to call from several
    /// processes at once.
    ///
    /// # Errors
    /// [`CertsError::HalfCa`] when only one of the CA's two files is there: overwriting it could destroy the only copy.
    pub fn init(&self) -> Result<bool, CertsError> {
        self.init_at(OffsetDateTime::now_utc())
    }

    /// Makes a new key and a certificate for it, replacing those of this role and name. The CA stays.
    ///
    /// # Errors
    /// [`CertsError`] when the request is not acceptable, there is no CA, or a file cannot be read or written.
    pub fn issue(&self, request: &LeafRequest) -> Result<LeafInfo, CertsError> {
        self.issue_at(request, OffsetDateTime::now_utc())
    }

    /// Issues the leaf only where the one that is there will not do: see [`Reason`]. A machine without the CA's key may
    /// call this as long as its leaf is good.
    ///
    /// # Errors
    /// As [`issue`](Self::issue).
    pub fn ensure(&self, request: &LeafRequest) -> Result<Ensured, CertsError> {
        self.ensure_at(request, OffsetDateTime::now_utc())
    }

    /// Every leaf in the directory, by role and name.
    ///
    /// # Errors
    /// [`CertsError::BadCertificate`] names the first file that is none of ours.
    pub fn list(&self) -> Result<Vec<LeafInfo>, CertsError> {
        let ca = self.ca()?;
        let mut leaves = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|e| CertsError::io("read", &self.path, e))? {
            let path = entry.map_err(|e| CertsError::io("read", &self.path, e))?.path();
            let is_leaf = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                let of_role = |role: Role| name.strip_prefix(role.as_str()).is_some_and(|rest| rest.starts_with('-'));
                name.ends_with(".pem") && Role::ALL.into_iter().any(of_role)
            });
            if is_leaf {
                leaves.push(read_leaf(&path, &ca)?);
            }
        }
        leaves.sort_by(|a, b| (a.role, &a.name).cmp(&(b.role, &b.name)));
        Ok(leaves)
    }

    /// The CA's certificate.
    ///
    /// # Errors
    /// [`CertsError::NoCa`] before [`init`](Self::init).
    pub fn ca(&self) -> Result<CaInfo, CertsError> {
        let path = self.ca_pem();
        if !exists(&path)? {
            return Err(CertsError::NoCa { dir: self.path.clone() });
        }
        CaInfo::from_der(&read_certificate(&path)?).map_err(|source| CertsError::BadCertificate { path, source })
    }

    /// The CA, ready to certify keys that others have made. It is read once: a CA that takes its place later is not seen.
    ///
    /// # Errors
    /// [`CertsError::NoCa`], or [`CertsError::HalfCa`] where its key is on another machine.
    pub fn issuer(&self) -> Result<CertIssuer, CertsError> {
        let path = self.ca_pem();
        let ca_pem = read(&path)?;
        Ok(CertIssuer { ca: self.load_ca()?, ca_pem })
    }

    fn init_at(&self, now: OffsetDateTime) -> Result<bool, CertsError> {
        if !exists(&self.path)? && self.make_whole(now)? {
            return Ok(true);
        }
        make_dir(&self.path).map_err(|e| CertsError::io("create", &self.path, e))?;
        let (pem, key) = (self.ca_pem(), self.ca_key());
        let _lock = self.lock()?;
        match (exists(&pem)?, exists(&key)?) {
            (true, true) => self.load_ca().map(|_| false),
            (true, false) => Err(CertsError::HalfCa { present: pem, missing: key }),
            (false, true) => Err(CertsError::HalfCa { present: key, missing: pem }),
            (false, false) => self.write_pair(&pem, &key, &make_ca(now)?).map(|()| true),
        }
    }

    /// A directory that is not there yet appears with the CA in it, or not at all. False where another process was faster.
    fn make_whole(&self, now: OffsetDateTime) -> Result<bool, CertsError> {
        let ca = make_ca(now)?;
        let failed = |error| CertsError::io("create", &self.path, error);
        make_dir_whole(
            &self.path,
            |dir| {
                let made = Self::new(dir);
                // Named as they will be.
                made.write_pair(&made.ca_pem(), &made.ca_key(), &ca).map_err(|error| match error {
                    CertsError::Io { source, .. } => CertsError::io("write the CA into", &self.path, source),
                    other => other,
                })
            },
            failed,
        )
    }

    fn issue_at(&self, request: &LeafRequest, now: OffsetDateTime) -> Result<LeafInfo, CertsError> {
        // Before the name becomes a path.
        request.sans()?;
        let ca = self.load_ca()?;
        let _lock = self.lock()?;
        self.issue_locked(&ca, request, now)
    }

    fn ensure_at(&self, request: &LeafRequest, now: OffsetDateTime) -> Result<Ensured, CertsError> {
        request.sans()?;
        if self.reason_to_issue(request, now)?.is_none() {
            // Without the lock: this also works where the directory is read-only.
            return Ok(Ensured::Kept);
        }
        let ca = self.load_ca()?;
        let _lock = self.lock()?;
        // Another process may have issued it while this one waited.
        let Some(reason) = self.reason_to_issue(request, now)? else { return Ok(Ensured::Kept) };
        self.issue_locked(&ca, request, now)?;
        Ok(Ensured::Issued(reason))
    }

    fn issue_locked(&self, ca: &Ca, request: &LeafRequest, now: OffsetDateTime) -> Result<LeafInfo, CertsError> {
        let pair = ca.issue(request, now)?;
        let pem = self.leaf_pem(request.role, &request.name);
        self.write_pair(&pem, &self.leaf_key(request.role, &request.name), &pair)?;
        read_leaf(&pem, &ca.info)
    }

    fn reason_to_issue(&self, request: &LeafRequest, now: OffsetDateTime) -> Result<Option<Reason>, CertsError> {
        let pem = self.leaf_pem(request.role, &request.name);
        let key = self.leaf_key(request.role, &request.name);
        let ca = self.ca()?;
        if !exists(&pem)? || !exists(&key)? {
            return Ok(Some(Reason::Absent));
        }
        let leaf = match read_leaf(&pem, &ca) {
            Ok(leaf) => leaf,
            Err(CertsError::BadCertificate { .. }) => return Ok(Some(Reason::Damaged)),
            Err(other) => return Err(other),
        };
        Ok(if !leaf.signed_by_this_ca {
            Some(Reason::OtherCa)
        } else if leaf.not_after - now <= leaf.lifetime().renew_before() {
            Some(Reason::Expiring)
        } else if request.sans()? != leaf.parsed_sans {
            Some(Reason::NamesChanged)
        } else if !key_belongs(&read(&key)?, &leaf) {
            // The two files are replaced one after the other; a crash between them leaves this.
            Some(Reason::Damaged)
        } else {
            None
        })
    }

    fn load_ca(&self) -> Result<Ca, CertsError> {
        let (pem, key) = (self.ca_pem(), self.ca_key());
        match (exists(&pem)?, exists(&key)?) {
            (true, true) => Ok(Ca::load(&read_certificate(&pem)?, &read(&key)?)?),
            (false, false) => Err(CertsError::NoCa { dir: self.path.clone() }),
            (true, false) => Err(CertsError::HalfCa { present: pem, missing: key }),
            (false, true) => Err(CertsError::HalfCa { present: key, missing: pem }),
        }
    }

    fn lock(&self) -> Result<Lock, CertsError> {
        Lock::acquire(&self.path).map_err(|e| CertsError::io("lock", &self.path, e))
    }

    fn write_pair(&self, pem: &Path, key: &Path, pair: &Pair) -> Result<(), CertsError> {
        let key = (key, pair.key.as_bytes(), Access::Private);
        let certificate = (pem, pair.certificate.as_bytes(), Access::Public);
        write_pair(key, certificate).map_err(|(path, error)| CertsError::io("write", path, error))
    }
}

/// What [`CertDir::ensure`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// The leaf that was there is good.
    Kept,
    /// A new one was issued.
    Issued(Reason),
}

/// A CA that certifies keys of others.
pub struct CertIssuer {
    ca: Ca,
    ca_pem: String,
}

/// A certificate that was just made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// PEM.
    pub certificate: String,
    /// End of its life.
    pub not_after: std::time::SystemTime,
}

impl CertIssuer {
    /// Certifies the key of a signing request (PKCS#10 in PEM) for what `request` says; what the signing request says itself does not count.
    ///
    /// # Errors
    /// [`MakeError`].
    pub fn sign(&self, request: &LeafRequest, csr_pem: &str) -> Result<Signed, MakeError> {
        let certificate = self.ca.sign_request(request, csr_pem, OffsetDateTime::now_utc())?;
        let life = Lifetime::of(certificate.der())
            .map_err(|error| MakeError::Ca { part: "certificate", detail: error.to_string() })?;
        Ok(Signed { certificate: certificate.pem(), not_after: life.not_after.into() })
    }

    /// The CA's certificate in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }
}

impl std::fmt::Debug for CertIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("CertIssuer").field("ca", &self.ca.info.subject).finish()
    }
}

/// Makes a new P-256 key and a request to have it certified.
///
/// # Errors
/// [`MakeError::Crypto`].
pub fn signing_request() -> Result<SigningRequest, MakeError> {
    make_request()
}

/// Why [`CertDir::ensure`] issued a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Certificate or key was not there.
    Absent,
    /// The certificate could not be read, or the key was not its own.
    Damaged,
    /// It was within [`RENEW_DAYS`](crate::RENEW_DAYS) of its end, or in the last third of a shorter life.
    Expiring,
    /// Another CA had signed it.
    OtherCa,
    /// It named other hosts than were asked for.
    NamesChanged,
}

/// Why the directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file could not be read or written. Trying again helps only after its cause is gone.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no CA yet.
    #[error("there is no CA in {}; make one with `titan certs init`, or copy ca.pem and this machine's leaf from where it is", dir.display())]
    NoCa {
        /// The directory.
        dir: PathBuf,
    },
    /// One of the CA's two files is missing.
    #[error("{} is there, but {} is not; issue on the machine that has both (others need only ca.pem and their leaf), \
             or move the directory away and start anew", present.display(), missing.display())]
    HalfCa {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// The certificate cannot be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// A file with a certificate's name holds none of ours.
    #[error("{}: {source}", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: InfoError,
    },
}

impl CertsError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

impl From<NameError> for CertsError {
    fn from(error: NameError) -> Self {
        Self::Make(error.into())
    }
}

fn key_belongs(key_pem: &str, leaf: &LeafInfo) -> bool {
    KeyPair::from_pem(key_pem).is_ok_and(|key| key.der_bytes() == leaf.public_key)
}

fn read_leaf(path: &Path, ca: &CaInfo) -> Result<LeafInfo, CertsError> {
    LeafInfo::from_der(&read_certificate(path)?, ca)
        .map_err(|source| CertsError::BadCertificate { path: path.to_owned(), source })
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, CertsError> {
    let malformed = || crate::identity::IdentityError::Malformed.into();
    CertificateDer::from_pem_slice(read(path)?.as_bytes())
        .map_err(|_| CertsError::BadCertificate { path: path.to_owned(), source: malformed() })
}

fn read(path: &Path) -> Result<String, CertsError> {
    // Bytes that are no text are no PEM either: the parser says so, naming the file.
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(without_bom(&bytes)).into_owned())
        .map_err(|e| CertsError::io("read", path, e))
}

fn exists(path: &Path) -> Result<bool, CertsError> {
    path.try_exists().map_err(|e| CertsError::io("read", path, e))
}

#[cfg(test)]
mod tests;
