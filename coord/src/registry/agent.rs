//! One agent's record.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Instant, SystemTime},
};

use titan_proto::{rest::GrpcTls, v1::ModelInfo};

use crate::scheduler::Candidate;

/// What the registry keeps of an agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) profile: Arc<Profile>,
    pub(super) load: Load,
    condition: Condition,
    /// What its engines hold of conversations.
    prefixes: Prefixes,
    last_heartbeat: Instant,
    lease: Lease,
    /// The stream that reports for it, and whether that broke.
    stream: Option<StreamId>,
    stream_broke: bool,
    /// Booked and not yet claimed, the oldest first.
    bookings: VecDeque<Booking>,
    last_chosen: u64,
    /// What the scheduler compares, kept here because it looks at every agent, and following `profile` is a cache miss each time.
    max_jobs: u32,
    free_memory: f64,
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

/// What an agent says about itself when it registers. Checked: see `agent_input`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Profile {
    pub(crate) id: Arc<str>,
    /// The id in ids of responses: [`titan_proto::digest::origin`].
    pub(crate) origin: String,
    pub(crate) endpoint: String,
    pub(crate) grpc_tls: GrpcTls,
    pub(crate) quic: Option<QuicProfile>,
    pub(crate) total_vram_mb: i64,
    pub(crate) total_ram_mb: i64,
    pub(crate) max_jobs: u32,
    /// No name twice.
    pub(crate) models: Vec<Arc<str>>,
    /// What some of them are, or all.
    pub(crate) model_info: Vec<ModelInfo>,
}

impl Profile {
    /// The digest of a model, if the agent tells.
    pub(crate) fn digest(&self, model: &str) -> Option<&str> {
        let info = self.model_info.iter().find(|info| info.name == model)?;
        Some(info.digest.as_str()).filter(|digest| !digest.is_empty())
    }
}

/// Where an agent's QUIC endpoint is, and the name in its certificate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct QuicProfile {
    pub(crate) address: String,
    pub(crate) server_name: String,
}

/// What an agent's last heartbeat said. Zero and `None` until the first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    pub(crate) free_vram_mb: i64,
    pub(crate) free_ram_mb: i64,
    pub(crate) running_jobs: u32,
    pub(crate) queued_jobs: u32,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) tokens_per_second: Option<f64>,
    pub(crate) draining: bool,
    /// Sequences that its engines compute: more than `running_jobs` while a cancelled prompt is still computed.
    pub(crate) computing: u32,
}

/// How an agent sees itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Condition {
    #[default]
    Healthy,
    /// Its engine has failed several times in a row.
    Degraded { reason: Arc<str> },
    /// Its engine was built anew and is tried.
    HalfOpen { reason: Arc<str> },
}

impl Condition {
    /// Why it is not healthy.
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Self::Healthy => None,
            Self::Degraded { reason } | Self::HalfOpen { reason } => Some(reason),
        }
    }
}

/// The digests of what an agent's engines hold (PROTOCOL.md §19), as its last report listed them: at most
/// [`MAX_CACHED_PREFIXES`](titan_proto::digest::MAX_CACHED_PREFIXES). Sorted, since each request looks for some of them.
#[derive(Debug, Default)]
pub(super) struct Prefixes(Box<[u64]>);

impl Prefixes {
    fn of(mut digests: Vec<u64>) -> Self {
        digests.sort_unstable();
        digests.dedup();
        Self(digests.into_boxed_slice())
    }

    /// How many messages of a conversation are held, whose beginnings have these digests, the shortest first.
    fn messages_of(&self, conversation: &[u64]) -> usize {
        if self.0.is_empty() {
            return 0;
        }
        let held = |digest: &u64| self.0.binary_search(digest).is_ok();
        conversation.iter().rposition(held).map_or(0, |longest| longest + 1)
    }
}

/// How an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Gets requests.
    Healthy,
    /// Its lease runs, but it gets no requests: its health stream broke, or it is draining. Or its engine fails: then it gets those for
    /// which no healthy agent has room.
    Degraded,
    /// Its engine was built anew and is tried: it gets requests as a degraded one does.
    HalfOpen,
    /// Its lease ended.
    Offline,
}

impl Status {
    /// The contract's word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::HalfOpen => "half_open",
            Self::Offline => "offline",
        }
    }
}

/// One health stream. A later stream has a larger number; that is how the newest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) u64);

/// An agent as others may see it.
#[derive(Clone, Debug)]
pub(crate) struct AgentView {
    pub(crate) profile: Arc<Profile>,
    pub(crate) load: Load,
    pub(crate) status: Status,
    pub(crate) condition: Condition,
    pub(super) last_heartbeat: Instant,
}

impl AgentView {
    /// The last heartbeat on the wall clock, given what that shows `now`.
    pub(crate) fn last_heartbeat_at(&self, now: Instant, wall_clock: SystemTime) -> SystemTime {
        wall_clock.checked_sub(now.saturating_duration_since(self.last_heartbeat)).unwrap_or(wall_clock)
    }
}

impl Agent {
    pub(super) fn new(profile: Arc<Profile>, stream: Option<StreamId>, now: Instant, until: Instant) -> Self {
        Self {
            max_jobs: profile.max_jobs,
            free_memory: 0.0,
            profile,
            load: Load::default(),
            condition: Condition::default(),
            prefixes: Prefixes::default(),
            last_heartbeat: now,
            lease: Lease::Until(until),
            stream,
            stream_broke: false,
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
            self.condition = Condition::default();
            self.prefixes = Prefixes::default();
        }
        self.max_jobs = profile.max_jobs;
        self.profile = profile;
        self.set_load(load);
        self.renew(stream, now, until);
    }

    pub(super) fn set_load(&mut self, load: Load) {
        let Profile { total_vram_mb, total_ram_mb, .. } = *self.profile;
        let (free, total) = if total_vram_mb > 0 {
            (load.free_vram_mb, total_vram_mb)
        } else {
            (load.free_ram_mb, total_ram_mb.max(1))
        };
        // An agent may register one total and report more free than that; it gains nothing by it.
        self.free_memory = (free as f64 / total as f64).min(1.0);
        self.load = load;
    }

    /// `prefixes`: what its engines hold now; `None` where that has not changed.
    pub(super) fn set_engine(&mut self, condition: Condition, prefixes: Option<Vec<u64>>) {
        self.condition = condition;
        if let Some(digests) = prefixes {
            self.prefixes = Prefixes::of(digests);
        }
    }

    /// `stream`: what renews it; `None` for a call of its own, which leaves the stream as it is.
    pub(super) fn renew(&mut self, stream: Option<StreamId>, now: Instant, until: Instant) {
        self.stream = stream.or(self.stream);
        self.stream_broke = false;
        self.last_heartbeat = now;
        self.lease = Lease::Until(until);
    }

    /// Does a newer stream report for this agent?
    pub(super) fn replaced(&self, stream: StreamId) -> bool {
        self.stream.is_some_and(|newest| stream < newest)
    }

    pub(super) fn stream_closed(&mut self, stream: StreamId) -> bool {
        let current = self.stream == Some(stream) && !self.deregistered();
        self.stream_broke |= current;
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

    pub(super) fn book(&mut self, job_id: &str, expires: Instant, order: u64) {
        self.last_chosen = order;
        self.bookings.push_back(Booking { job_id: job_id.to_owned(), expires });
    }

    pub(super) fn release(&mut self, job_id: &str) {
        self.bookings.retain(|booking| booking.job_id != job_id);
    }

    pub(super) fn alive(&self, now: Instant) -> bool {
        matches!(self.lease, Lease::Until(until) if until > now)
    }

    pub(super) fn status(&self, now: Instant) -> Status {
        if !self.alive(now) {
            Status::Offline
        } else if self.stream_broke || self.load.draining {
            Status::Degraded
        } else {
            match self.condition {
                Condition::Healthy => Status::Healthy,
                Condition::Degraded { .. } => Status::Degraded,
                Condition::HalfOpen { .. } => Status::HalfOpen,
            }
        }
    }

    /// Whether it takes requests, be it only because nobody else does.
    pub(super) fn reachable(&self, now: Instant) -> bool {
        self.alive(now) && !self.stream_broke && !self.load.draining
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

    /// `None` without room. `conversation`: the digests of its beginnings. `excluded`: it has failed this client.
    pub(super) fn candidate(&self, key: usize, conversation: &[u64], excluded: bool) -> Option<Candidate> {
        let Load { running_jobs, queued_jobs, computing, rtt_ms, tokens_per_second, .. } = self.load;
        // What is still computed for a request that has gone takes its place all the same.
        let taken = u64::from(running_jobs.max(computing)) + u64::from(queued_jobs) + self.bookings.len() as u64;
        if taken >= u64::from(self.max_jobs) {
            return None;
        }
        Some(Candidate {
            key,
            free_memory: self.free_memory,
            load: taken as f64 / f64::from(self.max_jobs),
            rtt_ms,
            tokens_per_second,
            prefix_messages: self.prefixes.messages_of(conversation),
            reserve: 2 * u8::from(excluded) + u8::from(self.condition != Condition::Healthy),
            last_chosen: self.last_chosen,
        })
    }

    pub(super) fn claim(&mut self, claimed: &[String]) {
        if claimed.is_empty() || self.bookings.is_empty() {
            return;
        }
        let claimed: HashSet<&str> = claimed.iter().map(String::as_str).collect();
        self.bookings.retain(|booking| !claimed.contains(booking.job_id.as_str()));
    }

    pub(super) fn drop_expired_bookings(&mut self, now: Instant) {
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
            condition: self.condition.clone(),
            last_heartbeat: self.last_heartbeat,
        }
    }
}
