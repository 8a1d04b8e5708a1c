//! A private certificate authority for a TitanCompute cluster, and leaf certificates by role.
//!
//! - [`CertDir`] is where to start: a directory with one CA and the leaves it signed. [`CertDir::init`] makes the CA once,
//!   [`CertDir::ensure`] keeps a leaf fresh, [`CertDir::list`] says what is there.
//! - [`Identity`] is what a certificate says about its holder: a [`Role`] and a name, in the URI subject alternative name
//!   `spiffe://titancompute/<role>/<name>`. [`Identity::from_der`] reads it from a peer's certificate *after* TLS has verified
//!   the chain; it verifies nothing itself.
//! - [`server_name`], [`agent_server_name`] and [`COORDINATOR_SERVER_NAME`] are the names that TLS clients verify. They do not
//!   depend on where a machine is, so an agent can move to another address with the certificate it has.
//!
//! Certificates are ECDSA P-256 and small, because a QUIC server may send only three times what it received before the
//! client's address is proven: a larger first flight costs a round trip (see [`CHAIN_BUDGET_BYTES`]).
//!
//! Not here: TLS configurations (`titan-transport`), the command line (`titan certs`), revocation. A leaf that must not be
//! trusted any more is dealt with by a new CA: docs/CERTIFICATES.md.

mod dir;
mod identity;
mod info;
mod leaf;
mod lifetime;
mod names;

pub use dir::{CertDir, CertIssuer, CertsError, Ensured, Reason, Signed, signing_request};
pub use identity::{
    COORDINATOR_SERVER_NAME, Identity, IdentityError, Role, UnknownRole, agent_server_name, server_name,
};
pub use info::{CaInfo, InfoError, LeafInfo};
pub use leaf::{
    CA_DAYS, CHAIN_BUDGET_BYTES, CLOCK_SKEW, LEAF_DAYS, LeafRequest, MAX_LEAF_DAYS, MakeError, RENEW_DAYS,
    SigningRequest,
};
pub use lifetime::{Life, Lifetime};
pub use names::{MAX_HOSTS, MAX_NAME_LEN, NameError, validate_name};
