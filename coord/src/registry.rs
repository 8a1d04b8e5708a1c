//! Which agents there are: plain data with a lease per agent, changed by a handful of methods that take `now`.
//!
//! No socket, no clock, no lock in here. A lease is renewed by registering and by every heartbeat; it is judged against `now`
//! at each use, so an agent is gone the moment its lease ends, and [`Registry::expire`] only tidies up.

mod agent;
mod breaker;
mod choice;
mod error;
mod health;
mod report;
mod serving;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use self::{
    agent::Agent,
    choice::{Look, Places},
    serving::Serving,
};
pub(crate) use self::{
    breaker::Fault,
    error::{BookError, HeartbeatError, MAX_MODELS_NAMED, RegisterError},
    health::{AgentView, Status},
    report::{Condition, Load, Profile, QuicProfile, StreamId},
};
use crate::{caller::Who, scheduler::Weights};

/// The times and bounds a [`Registry`] works with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// How long a lease lasts after registration or heartbeat.
    pub(crate) lease: Duration,
    /// How long a booked slot waits for the agent to claim the job.
    pub(crate) booking: Duration,
    /// How long an agent that is gone stays visible.
    pub(crate) remember: Duration,
    /// The most agents, gone ones included.
    pub(crate) max_agents: usize,
    /// Normalized.
    pub(crate) weights: Weights,
    /// How long a session token lives.
    pub(crate) token_ttl: Duration,
}

/// The agents.
#[derive(Debug)]
pub(crate) struct Registry {
    policy: Policy,
    /// An agent keeps its place as long as it is remembered, so that the index below can hold numbers.
    slots: Vec<Option<Agent>>,
    free_slots: Vec<usize>,
    ids: HashMap<Arc<str>, usize>,
    /// Who serves a model, so that a request looks at nobody else.
    models: BTreeMap<Arc<str>, Serving>,
    /// Where conversations went.
    places: Places,
    /// Counts bookings: the scheduler's tie-break.
    bookings: u64,
    /// Agents that were there before a restart and have not come back yet, and until when they may.
    expected: HashSet<Arc<str>>,
    expected_until: Option<Instant>,
    /// Changes whenever an agent comes or goes.
    membership: u64,
}

/// A booked slot.
#[derive(Clone, Debug)]
pub(crate) struct Booked {
    pub(crate) profile: Arc<Profile>,
    pub(crate) rtt_ms: Option<f64>,
}

/// What an agent is wanted for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) model: &'a str,
    /// The model has to have this digest; empty for any.
    pub(crate) model_digest: &'a str,
    /// Agents that are chosen only where no other one has room.
    pub(crate) except: &'a [&'a str],
    /// The digests of the conversation's beginnings, the shortest first.
    pub(crate) conversation: &'a [u64],
    /// Whom it is for.
    pub(crate) who: Option<&'a Who>,
}

/// A job that a client reports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReportedJob<'a> {
    pub(crate) job_id: &'a str,
    /// Whom it was for.
    pub(crate) who: &'a Who,
    /// How long ago it was routed, at least.
    pub(crate) age: Duration,
}

/// What a client met at the agent that it was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    Answer,
    Fault(Fault),
    /// It did not want to know.
    Nothing,
}

/// What a heartbeat says beside the load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report<'a> {
    /// Jobs that began: their bookings end, because the load counts them from now on.
    pub(crate) claimed: &'a [String],
    pub(crate) condition: Condition,
    /// What the engines hold of conversations; `None` where that has not changed.
    pub(crate) prefixes: Option<Vec<u64>>,
    /// The process that reports, if it tells.
    pub(crate) instance: &'a str,
    /// How far its clock is ahead of ours, if it tells.
    pub(crate) clock_ahead_ms: Option<i64>,
}

/// What [`Registry::expire`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    /// Agents whose lease ended since the last call.
    pub(crate) offline: Vec<Arc<str>>,
    /// Agents no longer remembered.
    pub(crate) forgotten: Vec<Arc<str>>,
    /// Agents that were there before a restart and have not come back in time.
    pub(crate) missing: Vec<Arc<str>>,
}

/// The whole in three numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) agents: usize,
    pub(crate) healthy: usize,
    pub(crate) running_jobs: u64,
}

impl Registry {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            slots: Vec::new(),
            free_slots: Vec::new(),
            ids: HashMap::new(),
            models: BTreeMap::new(),
            places: Places::default(),
            bookings: 0,
            expected: HashSet::new(),
            expected_until: None,
            membership: 0,
        }
    }

    /// These agents were there before a restart, and may take until then to come back. A model that nobody serves meanwhile may be one of theirs.
    pub(crate) fn expect(&mut self, ids: impl IntoIterator<Item = Arc<str>>, until: Instant) {
        self.expected = ids.into_iter().collect();
        self.expected_until = Some(until);
    }

    /// Whether agents are still expected back.
    pub(crate) fn starting(&self, now: Instant) -> bool {
        !self.expected.is_empty() && self.expected_until.is_some_and(|until| now < until)
    }

    /// Changes whenever [`members`](Self::members) may have.
    pub(crate) fn membership(&self) -> u64 {
        self.membership
    }

    /// Who is there, or expected back.
    pub(crate) fn members(&self, now: Instant) -> BTreeSet<Arc<str>> {
        let here = self.slots.iter().flatten().filter(|agent| agent.alive(now)).map(|agent| &agent.profile.id);
        here.chain(&self.expected).cloned().collect()
    }

    /// Begins (or renews) the lease of an agent, by its health stream or (`None`) by a call of its own.
    /// What the agent said before is replaced; bookings on a running lease stay.
    pub(crate) fn register(
        &mut self,
        profile: Profile,
        stream: Option<StreamId>,
        now: Instant,
    ) -> Result<(), RegisterError> {
        let until = now + self.policy.lease;
        let Some(&slot) = self.ids.get(&profile.id) else {
            let slot = self.add(profile, stream, now, until)?;
            self.touch(slot, now);
            return Ok(());
        };
        self.membership += 1;
        let agent = self.agent_mut(&profile.id);
        if let Some(agent) = agent {
            let id = || profile.id.to_string();
            if agent.was_replaced(&profile.instance) {
                return Err(RegisterError::OtherProcess { id: id() });
            }
            if stream.is_some_and(|stream| agent.replaced(stream)) {
                return Err(RegisterError::Replaced { id: id() });
            }
        }
        self.unindex(slot);
        if let Some(agent) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            agent.register_again(Arc::new(profile), stream, now, until);
        }
        self.index(slot);
        self.touch(slot, now);
        Ok(())
    }

    /// Renews the lease and notes what the agent reports.
    ///
    /// A lease that ran out is taken up again: what the agent registered is still known and still true.
    pub(crate) fn heartbeat(
        &mut self,
        id: &str,
        stream: StreamId,
        load: Load,
        report: Report<'_>,
        now: Instant,
    ) -> Result<(), HeartbeatError> {
        let (until, token_ttl) = (now + self.policy.lease, self.policy.token_ttl);
        let Some(agent) = self.agent_mut(id).filter(|agent| !agent.deregistered()) else {
            return Err(HeartbeatError::Unregistered { id: id.to_owned() });
        };
        if agent.other_process(report.instance) {
            return Err(HeartbeatError::OtherProcess { id: id.to_owned() });
        }
        if agent.replaced(stream) {
            return Err(HeartbeatError::Replaced { id: id.to_owned() });
        }
        let revived = !agent.alive(now);
        agent.renew(Some(stream), now, until);
        agent.set_load(load, now);
        agent.claim(report.claimed);
        agent.set_clock(report.clock_ahead_ms, token_ttl, now);
        agent.set_engine(report.condition, report.prefixes, now);
        self.membership += u64::from(revived);
        self.touch_id(id, now);
        Ok(())
    }

    /// The stream closed. If it still is the agent's (`true`), the agent gets no more requests until it reports again; its
    /// lease runs on.
    pub(crate) fn stream_closed(&mut self, id: &str, stream: StreamId, now: Instant) -> bool {
        let closed = self.agent_mut(id).is_some_and(|agent| agent.stream_closed(stream, now));
        self.touch_id(id, now);
        closed
    }

    /// Notes what a client met there, and gives the slot back where the job never began. Says whether nobody else is sent there for a while.
    pub(crate) fn met(&mut self, id: &str, job: &ReportedJob<'_>, met: Met, now: Instant) -> bool {
        let ReportedJob { job_id, who, age } = *job;
        let lease = self.policy.lease;
        let Some(agent) = self.agent_mut(id) else { return false };
        let mut opened = false;
        match met {
            Met::Answer => agent.breaker.succeeded(job_id, who, now),
            Met::Nothing => agent.withdraw(job_id),
            Met::Fault(fault) => {
                // First its own slot, which is no reason for having none.
                agent.release(job_id);
                if agent.answers_for(fault, age, now) {
                    let silent = agent.silent(lease, now);
                    opened = agent.breaker.failed(job_id, who.clone(), fault, silent, now);
                } else {
                    agent.withdraw(job_id);
                }
            }
        }
        self.touch_id(id, now);
        opened
    }

    /// The models of an agent that would take another request.
    pub(crate) fn models_with_room(&mut self, id: &str, now: Instant) -> Vec<Arc<str>> {
        let Some(agent) = self.agent_mut(id) else { return Vec::new() };
        agent.settle(now);
        if agent.takes_requests(now) { agent.profile.models.clone() } else { Vec::new() }
    }

    /// Whether a newer process than this one has the lease.
    pub(crate) fn other_process(&self, id: &str, instance: &str) -> bool {
        let agent = self.ids.get(id).and_then(|&slot| self.slots.get(slot)?.as_ref());
        agent.is_some_and(|agent| agent.other_process(instance))
    }

    /// Ends the lease at once. `false` if there was none.
    pub(crate) fn deregister(&mut self, id: &str, now: Instant) -> bool {
        let Some(agent) = self.agent_mut(id) else { return false };
        let was_alive = agent.alive(now);
        agent.end(now, true);
        self.membership += 1;
        self.touch_id(id, now);
        was_alive
    }

    /// Marks the agents whose lease ended and forgets those that have been gone for long.
    pub(crate) fn expire(&mut self, now: Instant) -> Expired {
        let mut expired = Expired::default();
        let mut forget = Vec::new();
        for (slot, agent) in self.slots.iter_mut().enumerate() {
            let Some(agent) = agent else { continue };
            agent.settle(now);
            if agent.expire(now) {
                expired.offline.push(Arc::clone(&agent.profile.id));
            }
            if agent.gone_since(now).is_some_and(|since| now.saturating_duration_since(since) >= self.policy.remember) {
                forget.push(slot);
            }
        }
        self.membership += u64::from(!expired.offline.is_empty());
        if !self.expected.is_empty() && !self.starting(now) {
            expired.missing = mem::take(&mut self.expected).into_iter().collect();
            self.membership += 1;
        }
        for slot in 0..self.slots.len() {
            self.touch(slot, now);
        }
        expired.forgotten = forget.into_iter().filter_map(|slot| self.forget(slot)).collect();
        expired
    }

    /// Chooses an agent for the model and books one of its slots for `job_id`.
    #[cfg(test)]
    pub(crate) fn book(&mut self, model: &str, job_id: &str, now: Instant) -> Result<Booked, BookError> {
        self.book_for(&Wanted { model, ..Wanted::default() }, job_id, now)
    }

    /// Chooses an agent and books one of its slots for `job_id`.
    pub(crate) fn book_for(&mut self, wanted: &Wanted<'_>, job_id: &str, now: Instant) -> Result<Booked, BookError> {
        let booked = self.book_known(wanted, job_id, now);
        booked.map_err(|error| match error {
            BookError::NoCapacity => error,
            _ if self.starting(now) => BookError::Starting,
            _ => error,
        })
    }

    fn book_known(&mut self, wanted: &Wanted<'_>, job_id: &str, now: Instant) -> Result<Booked, BookError> {
        let Some(serving) = self.models.get(wanted.model) else {
            let available = self.models_served(now);
            return Err(if available.is_empty() {
                BookError::NoAgents
            } else {
                BookError::ModelNotFound { available }
            });
        };
        let except: Vec<usize> = wanted.except.iter().filter_map(|id| self.ids.get(*id).copied()).collect();
        let look = Look { wanted, except: &except, weights: &self.policy.weights, now };
        let slot = look.choose(&mut self.slots, serving, &self.places, self.bookings)?;
        let Some(agent) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return Err(BookError::NoAgents) };
        self.bookings += 1;
        agent.book(job_id, now, now + self.policy.booking, self.bookings);
        let booked = Booked { profile: Arc::clone(&agent.profile), rtt_ms: agent.load.rtt_ms };
        self.places.note(wanted.conversation, slot);
        self.touch(slot, now);
        Ok(booked)
    }

    /// Gives a booked slot back, because its job will not come.
    pub(crate) fn release(&mut self, id: &str, job_id: &str, now: Instant) {
        if let Some(agent) = self.agent_mut(id) {
            agent.withdraw(job_id);
        }
        self.touch_id(id, now);
    }

    pub(crate) fn totals(&self, now: Instant) -> Totals {
        let mut totals = Totals::default();
        for agent in self.slots.iter().flatten() {
            totals.agents += 1;
            totals.healthy += usize::from(agent.status(now) == Status::Healthy);
            totals.running_jobs += u64::from(agent.load.running_jobs);
        }
        totals
    }

    /// Every agent, in no particular order.
    pub(crate) fn agents(&self, now: Instant) -> Vec<AgentView> {
        self.slots.iter().flatten().map(|agent| agent.view(now)).collect()
    }

    /// The agent with this word for it ([`titan_proto::digest::origin`]), and whether it is there. One that drains still answers for what it keeps.
    pub(crate) fn by_origin(&self, origin: &str, now: Instant) -> Option<(Arc<Profile>, bool)> {
        let agent = self.slots.iter().flatten().find(|agent| agent.profile.origin == origin)?;
        Some((Arc::clone(&agent.profile), agent.alive(now)))
    }

    /// Each model with the number of agents that serve it and take requests, by name; models without any are left out.
    pub(crate) fn models(&self, now: Instant) -> Vec<(Arc<str>, usize)> {
        let count = |serving: &Serving| serving.slots().iter().filter(|&&slot| self.reachable(slot, now)).count();
        let counted = self.models.iter().map(|(model, serving)| (Arc::clone(model), count(serving)));
        counted.filter(|&(_, agents)| agents > 0).collect()
    }

    fn models_served(&self, now: Instant) -> Vec<Arc<str>> {
        let served =
            self.models.iter().filter(|(_, serving)| serving.slots().iter().any(|&slot| self.reachable(slot, now)));
        served.map(|(model, _)| Arc::clone(model)).take(MAX_MODELS_NAMED).collect()
    }

    fn reachable(&self, slot: usize, now: Instant) -> bool {
        self.slots.get(slot).and_then(Option::as_ref).is_some_and(|agent| agent.reachable(now))
    }

    fn agent_mut(&mut self, id: &str) -> Option<&mut Agent> {
        self.slots.get_mut(*self.ids.get(id)?)?.as_mut()
    }

    fn add(
        &mut self,
        profile: Profile,
        stream: Option<StreamId>,
        now: Instant,
        until: Instant,
    ) -> Result<usize, RegisterError> {
        if self.ids.len() >= self.policy.max_agents {
            self.forget_longest_gone(now)?;
        }
        let slot = self.free_slots.pop().unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.membership += 1;
        self.expected.remove(&profile.id);
        self.ids.insert(Arc::clone(&profile.id), slot);
        self.slots[slot] = Some(Agent::new(Arc::new(profile), stream, now, until));
        self.index(slot);
        Ok(slot)
    }

    /// Whether an agent has room may have changed: that is noted where its models are looked up.
    fn touch(&mut self, slot: usize, now: Instant) {
        let Some(agent) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let Some(open) = agent.opened_or_closed(now) else { return };
        for model in &agent.profile.models {
            if let Some(serving) = self.models.get_mut(model) {
                serving.set_open(slot, open);
            }
        }
    }

    fn touch_id(&mut self, id: &str, now: Instant) {
        if let Some(&slot) = self.ids.get(id) {
            self.touch(slot, now);
        }
    }

    fn index(&mut self, slot: usize) {
        let Some(agent) = self.slots.get(slot).and_then(Option::as_ref) else { return };
        for model in &agent.profile.models {
            self.models.entry(Arc::clone(model)).or_default().insert(slot);
        }
    }

    fn unindex(&mut self, slot: usize) {
        let Some(agent) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        agent.unindexed();
        for model in &agent.profile.models {
            if let Some(serving) = self.models.get_mut(model) {
                serving.remove(slot);
                if serving.slots().is_empty() {
                    self.models.remove(model);
                }
            }
        }
    }

    fn forget(&mut self, slot: usize) -> Option<Arc<str>> {
        self.unindex(slot);
        let agent = self.slots.get_mut(slot)?.take()?;
        self.ids.remove(&agent.profile.id);
        self.free_slots.push(slot);
        Some(Arc::clone(&agent.profile.id))
    }

    /// Makes room for a new agent: whoever left first is forgotten early.
    fn forget_longest_gone(&mut self, now: Instant) -> Result<(), RegisterError> {
        let gone = |(slot, agent): (usize, &Option<Agent>)| Some((agent.as_ref()?.gone_since(now)?, slot));
        let Some((_, slot)) = self.slots.iter().enumerate().filter_map(gone).min() else {
            return Err(RegisterError::Full { max: self.policy.max_agents });
        };
        self.forget(slot);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
