//! Getting a prompt answered: one agent after another is asked until one begins. What is done about a fault is `policy`'s word; here it
//! is carried out.
//!
//! A run whose connection was lost goes on at its agent, which keeps it for a while (PROTOCOL.md §15). Beside that, a moment later, another
//! agent is looked for (§16). Whichever begins first has it, and the other is cancelled.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use titan_proto::rest::Outcome;
use titan_transport::Wire;
use tokio::time::{sleep, timeout, timeout_at};
use tonic::Code;

use crate::{
    ClientError, Feature, Processed, TitanClient,
    connections::AgentConnections,
    dial::Started,
    job::{Job, SoFar},
    outcome,
    policy::{Fault, KEPT_TIME, Next, Then, Tries, Turn},
    resume::{LostRun, Resuming, resume, until_resumed},
    route::{Lease, Route},
    tried::Tried,
};

/// An agent has begun with the answer.
pub(crate) struct Found {
    pub(crate) started: Started,
    pub(crate) agent: Arc<AgentConnections>,
    pub(crate) lease: Lease,
    /// What it was asked.
    pub(crate) job: Arc<Job>,
    /// How long the coordinator took to name it; None where it was not asked.
    pub(crate) routing: Option<Duration>,
    /// It goes on with the run that was lost.
    pub(crate) same_run: bool,
}

/// An answer that broke off.
pub(crate) struct BrokenAnswer {
    pub(crate) run: LostRun,
    /// What has come of the answer, also from agents before this one.
    pub(crate) so_far: SoFar,
    /// What it has met before.
    pub(crate) tries: Tries,
    pub(crate) wire: Wire,
    pub(crate) error: ClientError,
}

/// One request, from one fault to the next.
pub(crate) struct Search {
    client: TitanClient,
    /// What the next agent is asked.
    job: Arc<Job>,
    /// Of the model that has to go on; empty where any may begin.
    model_digest: String,
    has_begun: bool,
    within: Duration,
    deadline: Instant,
    tries: Tries,
    /// How the run was lost that another agent shall go on with.
    broken: Option<ClientError>,
    /// The newest fault.
    last: Option<ClientError>,
    tried: Tried,
    /// What it waits for.
    doing: String,
    /// Where a model may have the prompt now.
    asking: Option<Arc<Route>>,
    /// A connection that was lost, and not yet held against its agent: it may have been this side's network.
    unreported: Option<(Arc<Route>, Option<Wire>, ClientError)>,
}

/// What comes next.
enum Step {
    /// Another agent, or the one that this route leads to.
    Elsewhere(Option<Lease>),
    /// The agent of a lost run, if `here`, and another one so much later.
    GoOn { run: LostRun, here: bool, another_after: Option<Duration> },
}

/// Why an agent that was asked has not begun.
enum Stop {
    Then(Step),
    Tell(ClientError),
    TooLate,
}

impl Search {
    /// For a prompt that no agent has seen, asked at `asked_at`.
    pub(crate) fn new(client: &TitanClient, job: Arc<Job>, asked_at: Instant, within: Duration) -> Self {
        let features = client.features();
        let deadline = asked_at + within;
        let tries = Tries::new(deadline, features.has(Feature::Resume), features.has(Feature::Move));
        let (model_digest, has_begun, broken, last, tried, doing, asking, unreported) = Default::default();
        let client = client.clone();
        Self {
            client,
            job,
            model_digest,
            has_begun,
            within,
            deadline,
            tries,
            broken,
            last,
            tried,
            doing,
            asking,
            unreported,
        }
    }

    /// Has the prompt answered, rather over the route that is kept.
    pub(crate) async fn run(self, kept: Option<Lease>) -> Result<(Found, Tries), ClientError> {
        self.in_time(Step::Elsewhere(kept)).await
    }

    /// Has an answer that broke off go on, within the time that is left for its first text or, where text has come, within the time for
    /// which agents keep answers.
    ///
    /// # Errors
    /// Why it broke off, and why it does not go on.
    pub(crate) async fn go_on(mut self, answer: BrokenAnswer) -> Result<(Found, Tries), ClientError> {
        let BrokenAnswer { run, so_far, tries, wire, error } = answer;
        let (now, fault) = (Instant::now(), Fault::of(&error));
        let (route, features) = (run.lease.route().clone(), self.client.features());
        if self.client.is_closed() {
            return Err(error);
        }
        self.agent_failed(&route, fault, &error, false, Some(wire));
        self.has_begun = so_far.has_come();
        if self.has_begun {
            self.within = self.within.min(KEPT_TIME);
            self.deadline = now + self.within;
            // What has begun goes on with the same weights, or not at all.
            self.model_digest.clone_from(&so_far.model_digest);
        }
        let obstacle = so_far.obstacle(&self.job.prompt);
        let may_move = features.has(Feature::Move) && obstacle.is_none();
        self.tries = tries.going_on(self.deadline, may_move, self.has_begun);
        self.job = Arc::new(run.job.after(so_far));
        let why = obstacle.map(|why| format!("; it cannot go on at another agent: {why}")).unwrap_or_default();
        let next = self.tries.agent_failed(&route.place.agent_id, fault, false, now, luck());
        let step = match next {
            Next::Ask(_) => Step::Elsewhere(None),
            Next::GoOn { here, another_after } => Step::GoOn { run, here, another_after },
            Next::GiveUp | Next::TooLate => {
                self.report();
                return Err(error.and_also(&why));
            }
        };
        tracing::debug!(%error, ?next, "the answer broke off");
        self.broken = Some(error.and_also(&why));
        self.in_time(step).await
    }

    async fn in_time(mut self, step: Step) -> Result<(Found, Tries), ClientError> {
        let result = timeout_at(self.deadline.into(), self.until_begun(step)).await;
        match &result {
            Ok(Ok(found)) if found.same_run => {
                self.client.agent_is_back(found.lease.route());
                self.tries.goes_on(&found.agent.place.agent_id);
            }
            _ => self.report(),
        }
        match result {
            Ok(Ok(found)) => Ok((found, self.tries)),
            Ok(Err(Stop::Tell(error))) => Err(match self.broken {
                Some(broken) => broken.and_also(&format!("; it could not go on at another agent: {error}")),
                None => error,
            }),
            Ok(Err(Stop::TooLate | Stop::Then(_))) | Err(_) => Err(self.too_late()),
        }
    }

    async fn until_begun(&mut self, mut step: Step) -> Result<Found, Stop> {
        loop {
            let (kept, mut beside) = match step {
                Step::Elsewhere(kept) => (kept, None),
                Step::GoOn { run, here, another_after } => {
                    let mut resuming = here.then(|| resume(&self.client, run, self.deadline));
                    self.doing = "asking the agent to go on".to_owned();
                    match another_after {
                        // Nobody else may: its end is the end.
                        None => return self.only(resuming).await,
                        Some(head_start) => {
                            if let Ok(resumed) = timeout(head_start, until_resumed(&mut resuming)).await {
                                match resumed {
                                    Ok(found) => return Ok(found),
                                    Err(error) => self.not_resumed(&error),
                                }
                            }
                        }
                    }
                    (None, resuming)
                }
            };
            let mut not_resumed = None;
            let result = {
                let mut elsewhere = pin!(self.elsewhere(kept));
                loop {
                    tokio::select! {
                        biased;
                        resumed = until_resumed(&mut beside) => match resumed {
                            Ok(found) => return Ok(found),
                            Err(error) => not_resumed = Some(error),
                        },
                        result = &mut elsewhere => break result,
                    }
                }
            };
            if let Some(error) = not_resumed {
                self.not_resumed(&error);
            }
            step = match result {
                Ok(found) => return Ok(found),
                Err(Stop::Then(next)) => next,
                // Nobody else does it, and its own agent may still.
                Err(stop) if beside.is_some() => match until_resumed(&mut beside).await {
                    Ok(found) => return Ok(found),
                    Err(error) => {
                        self.not_resumed(&error);
                        return Err(stop);
                    }
                },
                Err(stop) => return Err(stop),
            };
        }
    }

    async fn only(&mut self, mut resuming: Option<Resuming>) -> Result<Found, Stop> {
        let error = match until_resumed(&mut resuming).await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        self.not_resumed(&error);
        // What broke it off says it all.
        Err(Stop::Tell(self.broken.take().unwrap_or(error)))
    }

    /// Asks one agent after another.
    async fn elsewhere(&mut self, mut kept: Option<Lease>) -> Result<Found, Stop> {
        loop {
            let (lease, routing) = match kept.take() {
                Some(lease) => {
                    tracing::debug!(agent = %lease.route().place.agent_id, "route kept from an earlier request");
                    (lease, None)
                }
                None => self.route().await?,
            };
            if let Some(found) = self.ask(lease, routing).await? {
                return Ok(found);
            }
        }
    }

    /// Asks the coordinator, or takes a route that is held where it is away.
    async fn route(&mut self) -> Result<(Lease, Option<Duration>), Stop> {
        loop {
            let asked_at = Instant::now();
            let excluded = self.tries.excluded(asked_at);
            if self.client.does_without_coordinator()
                && let Some(lease) = self.held_route(&excluded)
            {
                self.client.renew(self.job.clone());
                return Ok((lease, None));
            }
            self.doing = "asking the coordinator".to_owned();
            let patience = self.tries.patience(asked_at);
            let answer = self.client.ask_route(&self.job.prompt, &excluded, &self.model_digest, patience).await;
            let error = match answer {
                Ok(route) => return Ok((self.client.keep_route(&route), Some(asked_at.elapsed()))),
                Err(error) => error,
            };
            let fault = Fault::of_coordinator(&error);
            self.tried.note(&error);
            if fault.rule().then == Then::HeldRoute
                && let Some(lease) = self.held_route(&excluded)
            {
                tracing::debug!(%error, agent = %lease.route().place.agent_id, "a route that is held bridges it");
                self.client.coordinator_is_away();
                return Ok((lease, None));
            }
            let next = self.tries.coordinator_failed(fault, Instant::now(), luck());
            tracing::debug!(%error, ?next, "no route");
            let error = ClientError::Coordinator(error);
            match next {
                Next::Ask(wait) if !self.client.is_closed() => {
                    self.last = Some(error);
                    self.doing = "waiting to ask the coordinator again".to_owned();
                    sleep(wait).await;
                }
                Next::TooLate => {
                    self.last = Some(error);
                    return Err(Stop::TooLate);
                }
                _ => return Err(Stop::Tell(error)),
            }
        }
    }

    /// Rather to an agent that has not failed.
    fn held_route(&self, excluded: &[String]) -> Option<Lease> {
        let same_model = |route: &Route| {
            self.model_digest.is_empty() || route.model_digest.is_empty() || route.model_digest == self.model_digest
        };
        let failed = |route: &Route| excluded.contains(&route.place.agent_id);
        let model = &self.job.prompt.model;
        self.client.held_route(model, |route| same_model(route) && !failed(route)).or_else(|| {
            self.client.held_route(model, |route| same_model(route) && self.tries.may_ask(&route.place.agent_id))
        })
    }

    /// Asks the agent that a route leads to. None where another one is to be asked.
    async fn ask(&mut self, lease: Lease, routing: Option<Duration>) -> Result<Option<Found>, Stop> {
        let route = lease.route().clone();
        let agent_id = &route.place.agent_id;
        if let Some(error) = self.other_model(&route) {
            return Err(Stop::Tell(error));
        }
        match self.tries.named(agent_id, Instant::now()) {
            Turn::After(wait) => {
                self.doing = format!("waiting for the turn of the agent {agent_id}");
                sleep(wait).await;
            }
            Turn::GiveUp => return Err(Stop::Tell(self.nobody_else(agent_id))),
            Turn::TooLate => return Err(Stop::TooLate),
        }
        let agent = self.client.agent_at(&route);
        self.doing = format!("waiting for the agent {agent_id}");
        self.asking = Some(route.clone());
        let request = self.job.request(&route.token, self.client.features());
        let result = self.client.dialer().start(&agent, request).await;
        self.asking = None;
        let error = match result {
            Ok(started) => {
                let (wire, early_data) = (started.wire.as_str(), started.early);
                tracing::debug!(agent = %agent_id, wire, early_data, "the answer begins");
                let job = self.job.clone();
                return Ok(Some(Found { started, agent, lease, job, routing, same_run: false }));
            }
            Err(error) => error,
        };
        let fault = Fault::of(&error);
        self.agent_failed(&route, fault, &error, routing.is_none(), None);
        let next = self.tries.agent_failed(agent_id, fault, routing.is_none(), Instant::now(), luck());
        tracing::debug!(%error, ?next, "the agent has not begun");
        self.tried.note(&error);
        if self.client.is_closed() {
            return Err(Stop::Tell(error));
        }
        if matches!(next, Next::GiveUp) {
            return Err(Stop::Tell(error));
        }
        if error.processed() != Processed::No {
            self.broken.get_or_insert_with(|| error.clone());
        }
        // Whether it has the request is not known, unless it says that it has run it.
        let from = (fault == Fault::AlreadyRan).then_some(0);
        self.last = Some(error);
        match next {
            Next::GoOn { here, another_after } => {
                let run = LostRun { agent, lease, job: self.job.clone(), routing, from };
                Err(Stop::Then(Step::GoOn { run, here, another_after }))
            }
            Next::TooLate => Err(Stop::TooLate),
            Next::Ask(wait) => {
                sleep(wait).await;
                Ok(None)
            }
            Next::GiveUp => Ok(None),
        }
    }

    fn agent_failed(&mut self, route: &Arc<Route>, fault: Fault, error: &ClientError, kept: bool, wire: Option<Wire>) {
        self.client.route_failed(route, fault);
        if matches!(fault.rule().then, Then::GoOn(_)) {
            self.report();
            self.unreported = Some((route.clone(), wire, error.clone()));
        } else if let Some(outcome) = fault.report(kept) {
            self.client.tell(route, outcome, wire, outcome::message(error));
        }
    }

    /// The agent of a lost run has not gone on with it.
    fn report(&mut self) {
        let Some((route, wire, error)) = self.unreported.take() else { return };
        if let Some(outcome) = Fault::of(&error).report(false) {
            self.client.tell(&route, outcome, wire, outcome::message(&error));
        }
    }

    fn not_resumed(&mut self, error: &ClientError) {
        let why = format!("; it could not be resumed: {error}");
        self.broken = self.broken.take().map(|broken| broken.and_also(&why));
    }

    fn other_model(&self, route: &Route) -> Option<ClientError> {
        let (begun_with, here) = (&self.model_digest, &route.model_digest);
        if begun_with.is_empty() || here.is_empty() || begun_with == here {
            return None;
        }
        let message = format!("its model has the digest {here}, and the answer began with {begun_with}: another model");
        Some(failed_precondition(&route.place.agent_id, message))
    }

    /// The coordinator names an agent that has failed for good, or for too long.
    fn nobody_else(&self, agent_id: &str) -> ClientError {
        match (&self.broken, &self.last) {
            (None, Some(last)) => last.clone(),
            _ => {
                let message = "the coordinator knows no other agent than the one that failed".to_owned();
                failed_precondition(agent_id, message)
            }
        }
    }

    fn too_late(mut self) -> ClientError {
        let within = self.within;
        let tried = match self.doing.as_str() {
            "" => self.tried.to_string(),
            doing => format!("{}at last {doing}", self.tried),
        };
        if self.has_begun
            && let Some(broken) = self.broken.take()
        {
            return broken.and_also(&format!("; it did not go on within {within:?}: {tried}"));
        }
        let seen = self.broken.as_ref().map_or(Processed::No, ClientError::processed);
        let processed = if self.asking.is_some() && seen == Processed::No { Processed::Maybe } else { seen };
        let last = self.broken.or(self.last).map(Box::new);
        let error = ClientError::TimedOut { within, tried, processed, last };
        if let Some(route) = self.asking {
            self.client.tell(&route, Outcome::TimedOut, None, outcome::message(&error));
        }
        error
    }
}

fn failed_precondition(agent_id: &str, message: String) -> ClientError {
    let (agent_id, code) = (agent_id.to_owned(), Code::FailedPrecondition);
    ClientError::Refused { agent_id, code, message, retry_after: None, reason: None }
}

/// Spreads out those that wait for the same.
pub(crate) fn luck() -> f64 {
    rand::random_range(0.0..1.0)
}
