//! The coordinator's answers, kept while their tokens are good. No clock here: `now` is an argument, in Unix seconds.

use std::{collections::HashMap, sync::Arc};

use titan_certs::agent_server_name;
use titan_proto::{
    ALPN,
    rest::{GrpcEndpoint, GrpcTls, InferenceResponse, QuicEndpoint},
};

use crate::names::Names;

/// A token is not used in its last seconds: the request has to reach the agent first, and clocks differ.
const EXPIRY_MARGIN_S: i64 = 5;
/// Models whose routes are kept; a program uses a handful. One more throws out the route that expires first.
const MAX_ROUTES: usize = 64;

/// Where requests for a model go, and the token to show there.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) model: String,
    pub(crate) job_id: String,
    pub(crate) token: String,
    /// Unix seconds.
    pub(crate) expires_at: i64,
    /// Of the model at this agent; empty where it is not known.
    pub(crate) model_digest: String,
    pub(crate) place: Place,
}

/// An agent and how to reach it. Equal places share their connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) agent_id: String,
    /// `host:port`.
    pub(crate) grpc: String,
    pub(crate) grpc_tls: GrpcTls,
    /// `host:port`.
    pub(crate) quic: Option<String>,
    /// The name in the agent's certificate.
    pub(crate) server_name: String,
}

impl Route {
    /// What the coordinator answered for `model`, with the addresses that `names` gives.
    ///
    /// # Errors
    /// Says what is missing in the answer.
    pub(crate) fn new(model: &str, answer: InferenceResponse, names: &Names) -> Result<Self, String> {
        let GrpcEndpoint { address: grpc, tls: grpc_tls } = answer
            .endpoints
            .grpc
            // A coordinator that only speaks the basic contract.
            .unwrap_or_else(|| GrpcEndpoint { address: answer.agent_endpoint.clone(), tls: GrpcTls::None });
        for (field, value) in [("agent_endpoint", &grpc), ("session_token", &answer.session_token)] {
            if value.is_empty() {
                return Err(format!("{field} is empty"));
            }
        }
        let quic = answer.endpoints.quic.filter(|quic: &QuicEndpoint| quic.alpn == ALPN);
        let (quic, name) = quic.map(|quic| (quic.address, quic.server_name)).unzip();
        let server_name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| agent_server_name(&answer.agent_id));
        Ok(Self {
            model: model.to_owned(),
            job_id: answer.job_id,
            token: answer.session_token,
            expires_at: answer.expires_at,
            model_digest: answer.model_digest.unwrap_or_default(),
            place: Place {
                agent_id: answer.agent_id,
                grpc: names.resolve(grpc),
                grpc_tls,
                quic: quic.map(|quic| names.resolve(quic)),
                server_name,
            },
        })
    }

    fn usable(&self, now: i64) -> bool {
        now < self.expires_at.saturating_sub(EXPIRY_MARGIN_S)
    }
}

/// One route for each model.
#[derive(Debug, Default)]
pub(crate) struct Routes(HashMap<String, Arc<Route>>);

impl Routes {
    /// The route to `model`, if its token is still good.
    pub(crate) fn get(&self, model: &str, now: i64) -> Option<Arc<Route>> {
        self.0.get(model).filter(|route| route.usable(now)).cloned()
    }

    /// Keeps a route, in place of an older one to the same model.
    pub(crate) fn put(&mut self, route: Arc<Route>, now: i64) {
        if !route.usable(now) {
            return;
        }
        if self.0.len() >= MAX_ROUTES && !self.0.contains_key(&route.model) {
            self.0.retain(|_, route| route.usable(now));
            let first = self.0.values().min_by_key(|route| route.expires_at).map(|route| route.model.clone());
            if let Some(model) = first.filter(|_| self.0.len() >= MAX_ROUTES) {
                self.0.remove(&model);
            }
        }
        self.0.insert(route.model.clone(), route);
    }

    /// Drops a route that turned out wrong, unless another request has replaced it since.
    pub(crate) fn forget(&mut self, wrong: &Arc<Route>) {
        if self.0.get(&wrong.model).is_some_and(|kept| Arc::ptr_eq(kept, wrong)) {
            self.0.remove(&wrong.model);
        }
    }

    /// Drops all routes.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn route(model: &str, expires_at: i64) -> Arc<Route> {
        let answer = json!({
            "agent_endpoint": "localhost:50052", "session_token": "t", "expires_at": expires_at, "job_id": "job_1",
            "estimated_rtt_ms": 0.0, "agent_id": "agent-1",
        });
        Arc::new(Route::new(model, serde_json::from_value(answer).unwrap(), &Names::default()).unwrap())
    }

    #[test]
    fn an_answer_of_the_basic_contract_means_plain_grpc() {
        let place = route("m", 100).place.clone();
        assert_eq!((place.grpc.as_str(), place.grpc_tls, place.quic), ("localhost:50052", GrpcTls::None, None));
        assert_eq!(place.server_name, agent_server_name("agent-1"));
    }

    #[test]
    fn a_quic_endpoint_of_another_version_is_not_used() {
        let answer = |alpn| {
            serde_json::from_value(json!({
                "agent_endpoint": "h:1", "session_token": "t", "expires_at": 1, "job_id": "j", "estimated_rtt_ms": 0,
                "agent_id": "a", "endpoints": {"quic": {"address": "h:1", "alpn": alpn, "server_name": "a.test"}},
            }))
            .unwrap()
        };
        assert_eq!(Route::new("m", answer("titan/9"), &Names::default()).unwrap().place.quic, None);
        let place = Route::new("m", answer(ALPN), &Names::default()).unwrap().place;
        assert_eq!((place.quic.as_deref(), place.server_name.as_str()), (Some("h:1"), "a.test"));
    }

    #[test]
    fn a_route_is_kept_until_shortly_before_its_token_expires() {
        let mut routes = Routes::default();
        routes.put(route("m", 100), 0);
        assert!(routes.get("m", 100 - EXPIRY_MARGIN_S - 1).is_some());
        assert!(routes.get("m", 100 - EXPIRY_MARGIN_S).is_none());
        assert!(routes.get("other", 0).is_none());
    }

    #[test]
    fn only_the_route_that_was_wrong_is_dropped() {
        let mut routes = Routes::default();
        let (old, new) = (route("m", 100), route("m", 200));
        routes.put(old.clone(), 0);
        routes.put(new.clone(), 0);
        routes.forget(&old);
        assert!(Arc::ptr_eq(&routes.get("m", 0).unwrap(), &new));
        routes.forget(&new);
        assert!(routes.get("m", 0).is_none());
    }

    #[test]
    fn the_number_of_routes_is_bounded() {
        let mut routes = Routes::default();
        for n in 0..MAX_ROUTES as i64 * 2 {
            routes.put(route(&n.to_string(), 1000 + n), 0);
        }
        assert_eq!(routes.0.len(), MAX_ROUTES);
        assert!(routes.get(&(MAX_ROUTES * 2 - 1).to_string(), 0).is_some(), "the newest is there");
        assert!(routes.get("0", 0).is_none(), "the one that expires first is not");
    }
}
