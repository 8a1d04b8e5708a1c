//! The coordinator's answers, kept while their tokens are good. No clock here: `now` is an argument, in Unix seconds.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use titan_certs::agent_server_name;
use titan_proto::{
    ALPN,
    rest::{GrpcEndpoint, GrpcTls, InferenceResponse, QuicEndpoint},
};

use crate::names::Names;

/// A token is not used in its last seconds: the request has to reach the agent first, and clocks differ.
const EXPIRY_MARGIN_S: i64 = 5;
/// Routes that are kept, for all models: as many as a busy program has requests at once. One more throws out the route that expires first.
const MAX_ROUTES: usize = 256;

/// Where requests for a model go, and the token to show there.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) model: String,
    pub(crate) job_id: String,
    pub(crate) token: String,
    /// Unix seconds.
    pub(crate) expires_at: i64,
    /// When half of its time is over, in Unix seconds. Whoever uses it then asks for the next one, so that a coordinator that is away for
    /// less than the other half is not missed.
    renew_at: i64,
    /// Of the model at this agent; empty where it is not known.
    pub(crate) model_digest: String,
    /// How many generations the token may start, if not any number.
    pub(crate) generations: Option<u32>,
    pub(crate) place: Place,
    /// Requests that use it now.
    running: AtomicU32,
}

/// The use of a route by one request, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease(Arc<Route>);

impl Lease {
    pub(crate) fn of(route: &Arc<Route>) -> Self {
        route.running.fetch_add(1, Relaxed);
        Self(route.clone())
    }

    pub(crate) fn route(&self) -> &Arc<Route> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
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
    /// What the coordinator answered for `model` at `now`, with the addresses that `names` gives.
    ///
    /// # Errors
    /// Says what is missing in the answer.
    pub(crate) fn new(model: &str, answer: InferenceResponse, names: &Names, now: i64) -> Result<Self, String> {
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
            renew_at: now.saturating_add(answer.expires_at.saturating_sub(now) / 2),
            model_digest: answer.model_digest.unwrap_or_default(),
            generations: answer.generations,
            place: Place {
                agent_id: answer.agent_id,
                grpc: names.resolve(grpc),
                grpc_tls,
                quic: quic.map(|quic| names.resolve(quic)),
                server_name,
            },
            running: AtomicU32::new(0),
        })
    }

    /// Whether it is time to ask for the next one.
    pub(crate) fn is_due(&self, now: i64) -> bool {
        now >= self.renew_at
    }

    /// Whether `other` leads to the same model at the same agent.
    fn leads_as(&self, other: &Self) -> bool {
        self.model == other.model && self.place == other.place
    }

    fn is_idle(&self) -> bool {
        self.running.load(Relaxed) == 0
    }

    /// Whether another request may use it.
    fn usable(&self, now: i64) -> bool {
        // Whoever has a limit asks for each generation: one is what such tokens are good for.
        self.generations.is_none() && now < self.expires_at.saturating_sub(EXPIRY_MARGIN_S)
    }
}

/// The routes to all models, the newest last. One that is in use is left alone: a request beside it asks the coordinator, which knows who has room,
/// and keeps what it gets. So one route that was first does not draw everything to its agent.
#[derive(Debug, Default)]
pub(crate) struct Routes(Vec<Kept>);

#[derive(Debug)]
struct Kept {
    route: Arc<Route>,
    /// Its agent failed. It is used only while the coordinator cannot name another.
    aside: bool,
}

impl Routes {
    /// The newest route to `model` that nobody uses and whose token is still good.
    pub(crate) fn get(&self, model: &str, now: i64) -> Option<Lease> {
        self.find(|kept| !kept.aside && kept.route.model == model && kept.route.is_idle() && kept.route.usable(now))
    }

    /// Any route to `model` whose token is still good and that `suits`, for when the coordinator is away: rather one that was not put aside.
    pub(crate) fn held(&self, model: &str, now: i64, suits: impl Fn(&Route) -> bool) -> Option<Lease> {
        let good = |kept: &Kept| kept.route.model == model && kept.route.usable(now) && suits(&kept.route);
        self.find(|kept| !kept.aside && good(kept)).or_else(|| self.find(good))
    }

    /// Keeps a route.
    pub(crate) fn put(&mut self, route: Arc<Route>, now: i64) {
        self.0.retain(|kept| kept.route.usable(now) && !(kept.aside && kept.route.leads_as(&route)));
        if !route.usable(now) {
            return;
        }
        if self.0.len() >= MAX_ROUTES {
            let first = self.0.iter().enumerate().min_by_key(|(_, kept)| kept.route.expires_at).map(|(at, _)| at);
            first.map(|at| self.0.remove(at));
        }
        self.0.push(Kept { route, aside: false });
    }

    /// Puts a route aside whose agent failed, with all others to that model at the same agent.
    pub(crate) fn put_aside(&mut self, failed: &Route) {
        self.0.iter_mut().filter(|kept| kept.route.leads_as(failed)).for_each(|kept| kept.aside = true);
    }

    /// The agent of a route that was put aside is there after all.
    pub(crate) fn put_back(&mut self, route: &Route) {
        self.0.iter_mut().filter(|kept| kept.route.leads_as(route)).for_each(|kept| kept.aside = false);
    }

    /// Drops a route that turned out wrong, and all others to that model at the same agent.
    pub(crate) fn forget(&mut self, wrong: &Route) {
        self.0.retain(|kept| !kept.route.leads_as(wrong));
    }

    /// Drops all routes.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    fn find(&self, wanted: impl Fn(&Kept) -> bool) -> Option<Lease> {
        self.0.iter().rev().find(|kept| wanted(kept)).map(|kept| Lease::of(&kept.route))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn route(model: &str, expires_at: i64) -> Arc<Route> {
        route_to("agent-1", model, expires_at)
    }

    fn route_to(agent_id: &str, model: &str, expires_at: i64) -> Arc<Route> {
        let answer = json!({
            "agent_endpoint": "localhost:50052", "session_token": "t", "expires_at": expires_at, "job_id": "job_1",
            "estimated_rtt_ms": 0.0, "agent_id": agent_id,
        });
        Arc::new(Route::new(model, serde_json::from_value(answer).unwrap(), &Names::default(), 0).unwrap())
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
        assert_eq!(Route::new("m", answer("titan/9"), &Names::default(), 0).unwrap().place.quic, None);
        let place = Route::new("m", answer(ALPN), &Names::default(), 0).unwrap().place;
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
    fn a_route_that_is_in_use_is_left_alone() {
        let mut routes = Routes::default();
        routes.put(route_to("a", "m", 100), 0);
        routes.put(route_to("b", "m", 100), 0);
        let first = routes.get("m", 0).unwrap();
        let second = routes.get("m", 0).unwrap();
        assert_eq!((&*first.route().place.agent_id, &*second.route().place.agent_id), ("b", "a"));
        assert!(routes.get("m", 0).is_none());
        drop(second);
        assert_eq!(routes.get("m", 0).unwrap().route().place.agent_id, "a");
    }

    #[test]
    fn the_next_route_is_due_when_half_of_the_time_is_over() {
        let route = route("m", 300);
        assert!(!route.is_due(149) && route.is_due(150));
    }

    #[test]
    fn while_the_coordinator_is_away_a_route_in_use_and_one_put_aside_are_better_than_none() {
        let mut routes = Routes::default();
        let held =
            |routes: &Routes, now| routes.held("m", now, |_| true).map(|lease| lease.route().place.agent_id.clone());
        routes.put(route_to("a", "m", 100), 0);
        let in_use = routes.get("m", 0).unwrap();
        assert_eq!(held(&routes, 0).as_deref(), Some("a"));
        let failed = route_to("b", "m", 100);
        routes.put(failed.clone(), 0);
        routes.put_aside(&failed);
        assert!(routes.get("m", 0).is_none());
        assert_eq!(held(&routes, 0).as_deref(), Some("a"), "rather one that works");
        routes.forget(in_use.route());
        assert_eq!(held(&routes, 0).as_deref(), Some("b"));
        assert!(routes.held("m", 0, |route| route.place.agent_id != "b").is_none());
        assert_eq!(held(&routes, 100), None, "its token has expired");
        routes.put_back(&failed);
        assert!(routes.get("m", 0).is_some());
        routes.put_aside(&failed);
        routes.put(route_to("b", "m", 200), 0);
        assert_eq!(routes.0.len(), 1, "the agent is back");
    }

    #[test]
    fn what_turned_out_wrong_is_dropped_with_all_that_leads_there() {
        let mut routes = Routes::default();
        let wrong = route_to("a", "m", 200);
        for kept in [route_to("a", "m", 100), route_to("b", "m", 100), route_to("a", "other", 100), wrong.clone()] {
            routes.put(kept, 0);
        }
        routes.forget(&wrong);
        assert_eq!(routes.get("m", 0).unwrap().route().place.agent_id, "b");
        assert!(routes.get("other", 0).is_some());
        assert_eq!(routes.0.len(), 2);
    }

    #[test]
    fn a_token_for_so_many_generations_is_asked_for_each_time() {
        let answer = json!({
            "agent_endpoint": "localhost:50052", "session_token": "t", "expires_at": 100, "job_id": "job_1",
            "estimated_rtt_ms": 0.0, "agent_id": "agent-1", "generations": 1,
        });
        let route = Route::new("m", serde_json::from_value(answer).unwrap(), &Names::default(), 0).unwrap();
        let mut routes = Routes::default();
        routes.put(Arc::new(route), 0);
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
