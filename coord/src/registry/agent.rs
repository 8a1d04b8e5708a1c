//! One agent's record.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Instant, SystemTime},
};

use titan_proto::rest::GrpcTls;

use crate::scheduler::Candidate;

/// What the registry keeps of an agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) profile: Arc<Profile>,
    pub(super) load: Load,
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
    pub(crate) endpoint: String,
    pub(crate) grpc_tls: GrpcTls,
    pub(crate) quic: Option<QuicProfile>,
    pub(crate) total_vram_mb: i64,
    pub(crate) total_ram_mb: i64,
    pub(crate) max_jobs: u32,
    /// No name twice.
    pub(crate) models: Vec<Arc<str>>,
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
}

/// How an agent is.
///
/// The contract's fourth word, `half_open`, belongs to a circuit breaker that does not exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Gets requests.
    Healthy,
    /// Its lease runs, but it gets no requests: its health stream broke, or it is draining.
    Degraded,
    /// Its lease ended.
    Offline,
}

impl Status {
    /// The contract's word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
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
            Status::Healthy
        }
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
    }

    /// `None` without room.
    pub(super) fn candidate(&self, key: usize) -> Option<Candidate> {
        let Load { running_jobs, queued_jobs, rtt_ms, tokens_per_second, .. } = self.load;
        let taken = u64::from(running_jobs) + u64::from(queued_jobs) + self.bookings.len() as u64;
        if taken >= u64::from(self.max_jobs) {
            return None;
        }
        Some(Candidate {
            key,
            free_memory: self.free_memory,
            load: taken as f64 / f64::from(self.max_jobs),
            rtt_ms,
            tokens_per_second,
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
            last_heartbeat: self.last_heartbeat,
        }
    }
}
