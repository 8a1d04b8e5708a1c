//! Tells the coordinator that this agent is there, what it can do, and how busy it is.
//!
//! One long-lived `ReportHealth` stream. Its first update registers the agent; each is acknowledged at once, which measures the
//! round-trip time. An update goes out every interval, and promptly when a job begins or ends, so that the coordinator's bookings
//! become real numbers before the next request is routed; and soon after the engine's state has changed.

mod backoff;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use titan_proto::{
    MAX_CLOCK_SKEW, REASON, REPLACED,
    digest::MAX_CACHED_PREFIXES,
    v1::{AgentRegistration, DeregistrationRequest, HealthAck, HealthUpdate},
};
use titan_transport::token::new_jti;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use self::backoff::{Backoff, RoundTrip};
use crate::{
    auth::{Clocks, KeySource as _},
    coordinator::{Coordinator, describe},
    engine::Engine,
    service::{Core, count, health_words},
};

/// Changes within this time share an update: a burst of requests is one message, and a booking waits no longer than this.
const COALESCE: Duration = Duration::from_millis(20);
/// How often the engine is looked at: what it computes after its request was cancelled, how it is, and what it holds change by themselves. The
/// coordinator routes past what it has not heard of for so long.
const LOOK: Duration = Duration::from_millis(250);
/// Characters of the reason for which an engine is not healthy: a sentence, as long as the coordinator takes.
const MAX_REASON_CHARS: usize = 200;
/// An acknowledgement that takes longer means a lost coordinator: it answers at once.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the coordinator's keys, connecting included.
const KEYS_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the answer to the farewell: the lease ends by itself a little later.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// Updates on their way to the wire: more than one means that the coordinator does not read.
const OUTBOX: usize = 4;

/// Reports until it is stopped.
pub(crate) struct Heartbeat {
    pub(crate) core: Arc<Core>,
    pub(crate) coordinator: Coordinator,
    pub(crate) registration: AgentRegistration,
    pub(crate) interval: Duration,
}

/// Why a session with the coordinator ended. Another one is begun after a pause.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("no keys: {0}")]
    Keys(String),
    #[error("{}", describe(.0))]
    Refused(tonic::Status),
    /// Not begun again.
    #[error("{}", .0.message())]
    Replaced(tonic::Status),
    #[error("the coordinator closed the stream")]
    Closed,
    #[error("no acknowledgement within {ACK_TIMEOUT:?}")]
    Silent,
}

impl From<tonic::Status> for Lost {
    fn from(status: tonic::Status) -> Self {
        let replaced = status.metadata().get(REASON).is_some_and(|reason| reason == REPLACED);
        if replaced { Self::Replaced(status) } else { Self::Refused(status) }
    }
}

/// How the reports ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was told to stop, and has said goodbye.
    Stopped,
    /// A newer process has registered under this agent's name. It has the lease, so this one said no goodbye.
    Replaced,
}

impl Heartbeat {
    /// Runs until `stop`, then says goodbye; or until another process has taken this one's place.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> End {
        // The same as long as this process runs, and no other's.
        self.registration.instance = new_jti();
        let mut backoff = Backoff::default();
        let mut complained = false;
        loop {
            let mut session = Session::new(&mut self);
            let lost = tokio::select! {
                lost = session.run() => lost,
                () = stop.cancelled() => break,
            };
            let registered = session.registered;
            if let Lost::Replaced(_) = lost {
                let agent_id = &self.registration.agent_id;
                tracing::error!(agent_id, reason = %lost, "this process reports no more and gets no new requests; what it runs goes on");
                return End::Replaced;
            }
            if registered {
                backoff = Backoff::default();
                complained = false;
            }
            // Once per outage: the attempts that follow say nothing new.
            if complained {
                tracing::debug!(reason = %lost, "still no coordinator");
            } else {
                tracing::warn!(reason = %lost, "lost the coordinator; trying again until it answers");
                complained = true;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                () = stop.cancelled() => break,
            }
        }
        self.farewell().await;
        End::Stopped
    }

    async fn farewell(self) {
        let AgentRegistration { agent_id, instance, .. } = self.registration;
        let request = DeregistrationRequest { agent_id, instance, reason: "shutting down".to_owned() };
        match timeout(FAREWELL_TIMEOUT, self.coordinator.client().deregister_agent(request)).await {
            Ok(Ok(_)) => tracing::info!("left the coordinator"),
            Ok(Err(status)) => tracing::debug!(reason = %describe(&status), "could not leave; the lease will end"),
            Err(_) => tracing::debug!("no answer to the farewell; the lease will end"),
        }
    }
}

/// One `ReportHealth` stream from its beginning to its end.
struct Session<'a> {
    heartbeat: &'a mut Heartbeat,
    round_trip: RoundTrip,
    registered: bool,
    /// The next update carries the registration.
    register: bool,
    interval: Duration,
    /// What the last update said of the engine.
    told: EngineState,
    /// The number of the next account ([`Admission::finished`](crate::admission::Admission::finished)) that this session has to tell.
    next_account: u64,
    /// Accounts on their way: with the acknowledgement of the update of this time, those before this number are known.
    accounts: VecDeque<(i64, u64)>,
    /// Whether the clocks were too far apart when they were last compared.
    clocks_apart: bool,
}

/// What changes in an engine without a request beginning or ending.
#[derive(Debug, Default, PartialEq)]
struct EngineState {
    computing: usize,
    health: &'static str,
    reason: String,
    /// The most recent first.
    prefixes: Vec<u64>,
}

impl EngineState {
    fn of(engine: &dyn Engine) -> Self {
        let (health, reason) = health_words(engine.health());
        let mut prefixes = engine.cached_prefixes();
        prefixes.truncate(MAX_CACHED_PREFIXES);
        let reason = reason.chars().take(MAX_REASON_CHARS).collect();
        Self { computing: engine.computing(), health, reason, prefixes }
    }
}

impl<'a> Session<'a> {
    fn new(heartbeat: &'a mut Heartbeat) -> Self {
        let interval = heartbeat.interval;
        let (round_trip, told, accounts) = Default::default();
        Self {
            heartbeat,
            round_trip,
            registered: false,
            register: true,
            interval,
            told,
            // What an earlier session told and nobody acknowledged is told again.
            next_account: 0,
            accounts,
            clocks_apart: false,
        }
    }

    async fn run(&mut self) -> Lost {
        match self.report().await {
            Ok(()) => Lost::Closed,
            Err(lost) => lost,
        }
    }

    async fn report(&mut self) -> Result<(), Lost> {
        self.fetch_keys().await?;
        let mut changed = self.heartbeat.core.admission.changed();
        let (outbox, updates) = mpsc::channel(OUTBOX);
        // The first update goes in before the call: a server may answer only when it has read one.
        self.send(&outbox).await?;
        let mut client = self.heartbeat.coordinator.client();
        let call = client.report_health(ReceiverStream::new(updates));
        let mut acks = timeout(ACK_TIMEOUT, call).await.map_err(|_| Lost::Silent)??.into_inner();
        let mut next = Instant::now() + self.interval;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.round_trip.oldest_unanswered().map(|sent_at| Instant::from_std(sent_at) + ACK_TIMEOUT);
            tokio::select! {
                ack = acks.next() => {
                    let Some(mut ack) = ack.transpose()? else { return Ok(()) };
                    // No acknowledgement, but a hint: PROTOCOL.md §17.
                    if let Some(prefill) = ack.prefill.take() {
                        self.heartbeat.core.prefills.begin(prefill);
                        continue;
                    }
                    self.round_trip.acknowledged(ack.timestamp, std::time::Instant::now());
                    self.accounted(ack.timestamp);
                    self.compare_clocks(&ack);
                    if self.acknowledge(&ack.status, &ack.message, ack.heartbeat_interval_seconds) {
                        next = Instant::now();
                    }
                }
                () = sleep_until(deadline.unwrap_or(next)), if deadline.is_some() => return Err(Lost::Silent),
                Ok(()) = changed.changed() => next = next.min(Instant::now() + COALESCE),
                _ = look.tick() => {
                    if EngineState::of(&*self.heartbeat.core.engine) != self.told {
                        next = next.min(Instant::now() + COALESCE);
                    }
                }
                () = sleep_until(next) => {
                    changed.mark_unchanged();
                    self.send(&outbox).await?;
                    next = Instant::now() + self.interval;
                }
            }
        }
    }

    async fn fetch_keys(&self) -> Result<(), Lost> {
        let fetched = timeout(KEYS_TIMEOUT, self.heartbeat.coordinator.fetch()).await;
        let jwks =
            fetched.map_err(|_| Lost::Keys(format!("no answer within {KEYS_TIMEOUT:?}")))?.map_err(Lost::Keys)?;
        self.heartbeat.core.auth.set_keys(&jwks).map_err(|error| Lost::Keys(error.to_string()))
    }

    fn accounted(&mut self, timestamp: i64) {
        while let Some(&(sent_at, before)) = self.accounts.front()
            && sent_at <= timestamp
        {
            self.heartbeat.core.admission.accounted(before);
            self.accounts.pop_front();
        }
    }

    /// What the coordinator's clock shows is what session tokens go by. A coordinator of old does not tell.
    fn compare_clocks(&mut self, ack: &HealthAck) {
        if ack.clock_unix_ms == 0 {
            return;
        }
        let clocks = Clocks { coordinator_unix_ms: ack.clock_unix_ms, ahead_ms: ack.clock_skew_ms };
        let apart = clocks.too_far_apart();
        if apart && !self.clocks_apart {
            tracing::warn!(
                "{clocks}: session tokens allow {} s, so requests will be refused; set the clocks (NTP)",
                MAX_CLOCK_SKEW.as_secs()
            );
        } else if self.clocks_apart && !apart {
            tracing::info!("{clocks}: that is near enough");
        }
        self.clocks_apart = apart;
        self.heartbeat.core.auth.set_clocks(clocks);
    }

    /// Takes the coordinator's word. Says whether an update has to go out at once.
    fn acknowledge(&mut self, status: &str, message: &str, interval_seconds: i32) -> bool {
        if let Ok(seconds @ 1..) = u64::try_from(interval_seconds) {
            self.interval = self.heartbeat.interval.min(Duration::from_secs(seconds));
        }
        match status {
            "ok" if self.registered => false,
            "ok" => {
                self.registered = true;
                tracing::info!(agent_id = %self.heartbeat.registration.agent_id, "registered with the coordinator");
                // This acknowledgement measured the round-trip time: tell the coordinator now.
                true
            }
            "unregistered" if self.register => false,
            "unregistered" => {
                tracing::info!("the coordinator does not know this agent; registering again");
                self.registered = false;
                self.register = true;
                true
            }
            other => {
                tracing::warn!(status = other, message, "the coordinator does not accept this agent's report");
                false
            }
        }
    }

    async fn send(&mut self, outbox: &mpsc::Sender<HealthUpdate>) -> Result<(), Lost> {
        let core = &self.heartbeat.core;
        let machine = core.telemetry.sample().await;
        // In this order: a job that begins in between is counted twice for a moment, never not at all.
        let claimed_job_ids = core.admission.take_claimed();
        let load = core.admission.load();
        let running_by_key = core.admission.running_by_key();
        let (finished, next_account) = core.admission.finished(self.next_account);
        let queued = core.engine.queued().min(load.running);
        let mut registration = None;
        let state = EngineState::of(&*core.engine);
        // Whoever registers anew may be known with what it held before.
        let caches = self.register || state.prefixes != self.told.prefixes;
        if std::mem::take(&mut self.register) {
            let machine_totals = AgentRegistration {
                total_ram_mb: machine.total_ram_mb,
                total_vram_mb: machine.total_vram_mb,
                // What a server's models are is known when the server is there.
                model_info: core.engine.model_info(),
                ..self.heartbeat.registration.clone()
            };
            registration = Some(machine_totals);
        }
        let timestamp = unix_nanoseconds();
        let clock_unix_ms = timestamp / NANOSECONDS_IN_MILLISECOND;
        let update = HealthUpdate {
            agent_id: core.agent_id.clone(),
            free_vram_mb: machine.free_vram_mb,
            free_ram_mb: machine.free_ram_mb,
            // Admitted jobs are one or the other, and the coordinator adds the two up.
            running_jobs: count(load.running - queued),
            queued_jobs: count(queued),
            cpu_percent: machine.cpu_percent,
            rtt_ms: self.round_trip.smallest().map_or(0.0, |rtt| rtt.as_secs_f64() * 1e3),
            timestamp,
            tokens_per_second: load.tokens_per_second.unwrap_or(0.0),
            claimed_job_ids,
            registration,
            draining: load.draining,
            computing: count(state.computing),
            health: state.health.to_owned(),
            health_reason: state.reason.clone(),
            cached_prefixes: if caches { state.prefixes.clone() } else { Vec::new() },
            caches,
            finished,
            running_by_key,
            clock_unix_ms,
        };
        if next_account != self.next_account {
            self.accounts.push_back((timestamp, next_account));
            self.next_account = next_account;
        }
        self.told = state;
        self.round_trip.sent(timestamp, std::time::Instant::now());
        timeout(ACK_TIMEOUT, outbox.send(update)).await.map_err(|_| Lost::Silent)?.map_err(|_| Lost::Closed)
    }
}

const NANOSECONDS_IN_MILLISECOND: i64 = 1_000_000;

fn unix_nanoseconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
