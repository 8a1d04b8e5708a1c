//! The client that requests go by, which another one may take the place of.

use std::sync::Arc;

use parking_lot::RwLock;
use titan_client::TitanClient;

/// Answers that run go on with the client that they began with.
#[derive(Clone)]
pub struct Clients(Arc<RwLock<TitanClient>>);

impl Clients {
    /// Requests go by this one.
    pub fn new(client: TitanClient) -> Self {
        Self(Arc::new(RwLock::new(client)))
    }

    /// From the next request on, by another one: with a renewed certificate, say.
    pub fn replace(&self, client: TitanClient) {
        // Whoever drops the last of a client closes connections: not under the lock.
        let old = std::mem::replace(&mut *self.0.write(), client);
        drop(old);
    }

    /// The one for the next request.
    pub fn get(&self) -> TitanClient {
        self.0.read().clone()
    }
}
