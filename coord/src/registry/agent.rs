//! One agent's record.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    breaker::{Breaker, Fault, Phase},
    health::{AgentView, ClockFault, Status, Trouble, clock_fault},
    report::{Condition, Load, Prefixes, Profile, StreamId},
};
use crate::{caller::Who, scheduler::Candidate};

/// What the registry keeps of an agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) profile: Arc<Profile>,
    pub(super) load: Load,
    condition: Condition,
    /// Since when it is in that condition, or drains.
    condition_since: Instant,
    /// What is wrong with its clock, and since when.
    clock: Option<(ClockFault, Instant)>,
    /// Processes that had this id before, the latest last.
    replaced: VecDeque<Arc<str>>,
    /// What clients met there.
    pub(super) breaker: Breaker,
    /// What its engines hold of conversations.
    prefixes: Prefixes,
    last_heartbeat: Instant,
    lease: Lease,
    /// Since when this process has it.
    process_since: Instant,
    /// The stream that reports for it, and since when that is broken.
    stream: Option<StreamId>,
    stream_broke: Option<Instant>,
    /// Booked and not yet claimed, the oldest first.
    bookings: VecDeque<Booking>,
    last_chosen: u64,
    /// What the scheduler compares, kept here because it looks at every agent, and following `profile` is a cache miss each time.
    max_jobs: u32,
    free_memory: f64,
    /// Whether its models' entries say that it has room.
    open: bool,
    /// Whether that is a GPU's: an agent reports one only where its engine computes on it.
    gpu: bool,
}

#[derive(Clone, Copy, Debug)]
enum Lease {
    Until(Instant),
    /// Ended, by deregistration or unrenewed.
    Ended {
        at: Instant,
        deregistered: bool,
    },
}

#[derive(Debug)]
struct Booking {
    job_id: String,
    expires: Instant,
}

/// Processes that are remembered to have been replaced: with more than two at a time under one id nothing is in order anyway.
const MAX_REPLACED: usize = 8;

impl Agent {
    pub(super) fn new(profile: Arc<Profile>, stream: Option<StreamId>, now: Instant, until: Instant) -> Self {
        Self {
            max_jobs: profile.max_jobs,
            free_memory: 0.0,
            gpu: profile.total_vram_mb > 0,
            open: false,
            profile,
            load: Load::default(),
            condition: Condition::default(),
            condition_since: now,
            clock: None,
            replaced: VecDeque::new(),
            breaker: Breaker::new(now),
            prefixes: Prefixes::default(),
            last_heartbeat: now,
            lease: Lease::Until(until),
            process_since: now,
            stream,
            stream_broke: None,
            bookings: VecDeque::new(),
            last_chosen: 0,
        }
    }

    pub(super) fn register_again(
        &mut self,
        profile: Arc<Profile>,
        stream: Option<StreamId>,
        now: Instant,
        until: Instant,
    ) {
        let load = if self.alive(now) { self.load } else { Load::default() };
        if !self.alive(now) {
            self.bookings.clear();
            self.set_condition(Condition::default(), now);
            self.prefixes = Prefixes::default();
        }
        if self.other_process(&profile.instance) {
            if self.replaced.len() == MAX_REPLACED {
                self.replaced.pop_front();
            }
            self.replaced.push_back(Arc::clone(&self.profile.instance));
            self.breaker.restarted(now);
            self.process_since = now;
        }
        self.max_jobs = profile.max_jobs;
        self.profile = profile;
        self.set_load(load, now);
        self.renew(stream, now, until);
    }

    pub(super) fn set_load(&mut self, load: Load, now: Instant) {
        let Profile { total_vram_mb, total_ram_mb, .. } = *self.profile;
        self.gpu = total_vram_mb > 0;
        let (free, total) =
            if self.gpu { (load.free_vram_mb, total_vram_mb) } else { (load.free_ram_mb, total_ram_mb.max(1)) };
        // An agent may register one total and report more free than that; it gains nothing by it.
        self.free_memory = (free as f64 / total as f64).min(1.0);
        if load.draining != self.load.draining {
            self.condition_since = now;
        }
        self.load = load;
    }

    fn set_condition(&mut self, condition: Condition, now: Instant) {
        if std::mem::discriminant(&condition) != std::mem::discriminant(&self.condition) {
            self.condition_since = now;
        }
        self.condition = condition;
    }

    /// `prefixes`: what its engines hold now; `None` where that has not changed.
    pub(super) fn set_engine(&mut self, condition: Condition, prefixes: Option<Vec<u64>>, now: Instant) {
        self.set_condition(condition, now);
        if let Some(digests) = prefixes {
            self.prefixes = Prefixes::of(digests);
        }
    }

    /// `stream`: what renews it; `None` for a call of its own, which leaves the stream as it is.
    pub(super) fn renew(&mut self, stream: Option<StreamId>, now: Instant, until: Instant) {
        self.stream = stream.or(self.stream);
        self.stream_broke = None;
        self.last_heartbeat = now;
        self.lease = Lease::Until(until);
    }

    /// Whether a process with this word for itself is another one than the one that has the lease. One that does not tell may be any.
    pub(super) fn other_process(&self, instance: &str) -> bool {
        let current = &*self.profile.instance;
        !instance.is_empty() && !current.is_empty() && instance != current
    }

    /// Whether another process has taken this one's place. The one that comes last is the newer one: what went on before a coordinator was
    /// restarted is not known, and processes that have heard of being replaced do not come again.
    pub(super) fn was_replaced(&self, instance: &str) -> bool {
        self.replaced.iter().any(|replaced| **replaced == *instance)
    }

    /// How far its clock is ahead of ours, if it tells.
    pub(super) fn set_clock(&mut self, ahead_ms: Option<i64>, token_ttl: Duration, now: Instant) {
        let since = self.clock.as_ref().map_or(now, |(_, since)| *since);
        self.clock = ahead_ms.and_then(|ahead| clock_fault(ahead, token_ttl)).map(|fault| (fault, since));
    }

    /// Does a newer stream report for this agent?
    pub(super) fn replaced(&self, stream: StreamId) -> bool {
        self.stream.is_some_and(|newest| stream < newest)
    }

    pub(super) fn stream_closed(&mut self, stream: StreamId, now: Instant) -> bool {
        let current = self.stream == Some(stream) && !self.deregistered();
        if current {
            self.stream_broke.get_or_insert(now);
        }
        current
    }

    pub(super) fn deregistered(&self) -> bool {
        matches!(self.lease, Lease::Ended { deregistered: true, .. })
    }

    /// Notes the end of a lease that ran out; `true` the first time.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        match self.lease {
            Lease::Until(until) if until <= now => {
                self.end(until, false);
                true
            }
            _ => false,
        }
    }

    pub(super) fn book(&mut self, job_id: &str, now: Instant, expires: Instant, order: u64) {
        self.last_chosen = order;
        self.breaker.booked(job_id, now);
        self.bookings.push_back(Booking { job_id: job_id.to_owned(), expires });
    }

    /// The job will not come, or not any more: nothing is learnt of the agent.
    pub(super) fn withdraw(&mut self, job_id: &str) {
        self.release(job_id);
        self.breaker.withdrawn(job_id);
    }

    pub(super) fn release(&mut self, job_id: &str) {
        self.bookings.retain(|booking| booking.job_id != job_id);
    }

    #[cfg(test)]
    pub(super) fn a_booked_job(&self) -> Option<String> {
        self.bookings.front().map(|booking| booking.job_id.clone())
    }

    #[cfg(test)]
    pub(super) fn is_booked(&self, job_id: &str) -> bool {
        self.bookings.iter().any(|booking| booking.job_id == job_id)
    }

    pub(super) fn alive(&self, now: Instant) -> bool {
        matches!(self.lease, Lease::Until(until) if until > now)
    }

    pub(super) fn status(&self, now: Instant) -> Status {
        if !self.alive(now) {
            return Status::Offline;
        }
        if self.stream_broke.is_some() || self.load.draining {
            return Status::Degraded;
        }
        if self.clock.is_some() {
            return Status::Degraded;
        }
        match (self.breaker.phase(now), &self.condition) {
            (Phase::Open, _) | (_, Condition::Degraded { .. }) => Status::Degraded,
            (Phase::HalfOpen, _) | (_, Condition::HalfOpen { .. }) => Status::HalfOpen,
            (Phase::Closed, Condition::Healthy) => Status::Healthy,
        }
    }

    /// What [`status`](Self::status) has to say for itself; the worst of several reasons.
    fn trouble(&self, now: Instant) -> Option<Trouble> {
        let because = |reason: &str, since| Some(Trouble { reason: reason.to_owned(), since });
        if let Some(since) = self.gone_since(now) {
            let left = if self.deregistered() { "it has left" } else { "no heartbeat came in time" };
            return because(left, since);
        }
        if let Some(since) = self.stream_broke {
            return because("its health stream broke: no requests until it reports again", since);
        }
        if self.load.draining {
            return because("it finishes what it runs and takes nothing new", self.condition_since);
        }
        if let Some((fault, since)) = &self.clock {
            return because(&fault.reason, *since);
        }
        let clients = self.breaker.reason(now).map(|(reason, since)| Trouble { reason, since });
        let own = self.condition.reason().and_then(|reason| because(reason, self.condition_since));
        match (self.breaker.phase(now), &self.condition) {
            (Phase::HalfOpen, Condition::Degraded { .. }) => own,
            _ => clients.or(own),
        }
    }

    /// Whether it takes requests, be it only because nobody else does.
    pub(super) fn reachable(&self, now: Instant) -> bool {
        let hopeless = self.clock.as_ref().is_some_and(|(fault, _)| fault.hopeless);
        let takes_requests = self.stream_broke.is_none() && !self.load.draining && !hopeless;
        self.alive(now) && takes_requests && self.breaker.phase(now) != Phase::Open
    }

    /// Whether it has missed a heartbeat: half of its lease is longer than one takes from the other.
    pub(super) fn silent(&self, lease: Duration, now: Instant) -> bool {
        self.stream_broke.is_some() || now.saturating_duration_since(self.last_heartbeat) > lease / 2
    }

    /// When its lease ended.
    pub(super) fn gone_since(&self, now: Instant) -> Option<Instant> {
        match self.lease {
            Lease::Until(until) => (until <= now).then_some(until),
            Lease::Ended { at, .. } => Some(at),
        }
    }

    pub(super) fn end(&mut self, at: Instant, deregistered: bool) {
        let at = self.gone_since(at).unwrap_or(at);
        self.lease = Lease::Ended { at, deregistered };
        self.bookings.clear();
        self.load.running_jobs = 0;
        self.load.queued_jobs = 0;
        self.load.computing = 0;
        self.prefixes = Prefixes::default();
    }

    /// Slots that are taken, or promised.
    fn taken(&self) -> u64 {
        let Load { running_jobs, queued_jobs, computing, .. } = self.load;
        // What is still computed for a request that has gone takes its place all the same.
        u64::from(running_jobs.max(computing)) + u64::from(queued_jobs) + self.bookings.len() as u64
    }

    /// Whether one more job would find a slot, as far as is known here.
    pub(super) fn has_room(&self) -> bool {
        self.taken() < u64::from(self.max_jobs)
    }

    /// Whether it would take a request of somebody.
    pub(super) fn takes_requests(&self, now: Instant) -> bool {
        self.reachable(now) && self.candidate(0, &[], false, None, now).is_some()
    }

    /// Whether that has changed, and to what.
    pub(super) fn opened_or_closed(&mut self, now: Instant) -> Option<bool> {
        let open = self.takes_requests(now);
        (std::mem::replace(&mut self.open, open) != open).then_some(open)
    }

    /// Its models' entries are gone.
    pub(super) fn unindexed(&mut self) {
        self.open = false;
    }

    /// Whether it is to blame for what a client met whose job was routed so long ago. Not for what became of an earlier process's jobs, nor while
    /// it goes, as it has said; and a refusal while it is full is what there is to expect.
    pub(super) fn answers_for(&self, fault: Fault, age: Duration, now: Instant) -> bool {
        let own = now.checked_sub(age).is_some_and(|routed| routed >= self.process_since);
        let expected = fault == Fault::Refused && !self.has_room();
        own && self.alive(now) && !self.load.draining && !expected
    }

    /// `None` without room. `conversation`: the digests of its beginnings. `excluded`: it has failed this client. `who`: the client.
    pub(super) fn candidate(
        &self,
        key: usize,
        conversation: &[u64],
        excluded: bool,
        who: Option<&Who>,
        now: Instant,
    ) -> Option<Candidate> {
        let Load { rtt_ms, tokens_per_second, .. } = self.load;
        let taken = self.taken();
        let one_at_a_time = matches!(self.condition, Condition::HalfOpen { .. });
        let room = if one_at_a_time { 1 } else { u64::from(self.max_jobs) };
        if taken >= room || !self.breaker.admits(who, now) {
            return None;
        }
        let unwell = self.condition != Condition::Healthy || self.clock.is_some();
        let failed_this_client = excluded || self.breaker.doubts(who, now);
        Some(Candidate {
            key,
            free_memory: self.free_memory,
            gpu: self.gpu,
            load: taken as f64 / f64::from(self.max_jobs),
            rtt_ms,
            tokens_per_second,
            prefix_messages: self.prefixes.messages_of(conversation),
            reserve: 2 * u8::from(failed_this_client) + u8::from(unwell),
            last_chosen: self.last_chosen,
        })
    }

    pub(super) fn claim(&mut self, claimed: &[String]) {
        for job_id in claimed {
            self.breaker.claimed(job_id);
        }
        if claimed.is_empty() || self.bookings.is_empty() {
            return;
        }
        let claimed: HashSet<&str> = claimed.iter().map(String::as_str).collect();
        self.bookings.retain(|booking| !claimed.contains(booking.job_id.as_str()));
    }

    /// What time alone changes. To be called before a choice.
    pub(super) fn settle(&mut self, now: Instant) {
        self.breaker.settle(now);
        // All last equally long, so the oldest expires first.
        while self.bookings.front().is_some_and(|booking| booking.expires <= now) {
            self.bookings.pop_front();
        }
    }

    pub(super) fn view(&self, now: Instant) -> AgentView {
        AgentView {
            profile: Arc::clone(&self.profile),
            load: self.load,
            status: self.status(now),
            trouble: self.trouble(now),
            last_heartbeat: self.last_heartbeat,
        }
    }
}
