//! The two loads: as fast as it goes, and at a rate.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use super::{connection::Connection, fleet::Claims};
use crate::stats::Durations;

/// What a load did.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Load {
    /// Until the last answer.
    pub(super) seconds: f64,
    pub(super) requests: u64,
    /// From the moment a request was due (at a rate), or was sent (as fast as it goes), to its answer.
    pub(super) latency: Durations,
    /// From the moment a request was due until a connection had it: the generator's own lateness, and the wait for a free connection.
    pub(super) waited: Durations,
}

impl Load {
    pub(super) fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    fn new() -> Self {
        Self { seconds: 0.0, requests: 0, latency: Durations::new(), waited: Durations::new() }
    }

    fn record(&mut self, due: Instant, sent: Instant) {
        self.requests += 1;
        self.latency.record_ns(ns(due.elapsed()));
        self.waited.record_ns(ns(sent - due));
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.latency.add(&other.latency);
        self.waited.add(&other.waited);
    }
}

/// Opens connections, each of which has had one answer whose token was verified.
pub(super) async fn connect(port: u16, connections: u32, claims: Option<&Claims>) -> anyhow::Result<Vec<Connection>> {
    let mut opened = Vec::new();
    for _ in 0..connections {
        let mut connection = Connection::open(port, claims.cloned()).await?;
        connection.route_verified().await?;
        opened.push(connection);
    }
    Ok(opened)
}

/// Every connection asks again as soon as it has its answer.
pub(super) async fn closed(connections: Vec<Connection>, length: Duration) -> anyhow::Result<Load> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for connection in connections {
        tasks.spawn(ask_until(connection, start + length));
    }
    gather(tasks, start).await
}

/// Each request goes out on the first connection that is free from the moment it is due. One that is late counts from that moment
/// too: a slow answer does not hide what it did to the requests behind it ("coordinated omission").
pub(super) async fn open(connections: Vec<Connection>, due: Due) -> anyhow::Result<Load> {
    let queue = Arc::new(Mutex::new(due.queue));
    let mut tasks = JoinSet::new();
    for connection in connections {
        tasks.spawn(ask_when_due(connection, Arc::clone(&queue)));
    }
    gather(tasks, due.start).await
}

async fn ask_until(mut connection: Connection, end: Instant) -> anyhow::Result<Load> {
    let mut load = Load::new();
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(load);
        }
        connection.route().await?;
        load.record(sent, sent);
    }
}

type Queue = Arc<Mutex<mpsc::UnboundedReceiver<Instant>>>;

async fn ask_when_due(mut connection: Connection, queue: Queue) -> anyhow::Result<Load> {
    let mut load = Load::new();
    loop {
        let next = queue.lock().await.recv().await;
        let Some(due) = next else { return Ok(load) };
        let sent = Instant::now();
        connection.route().await?;
        load.record(due, sent);
    }
}

/// The first failure ends it all: a coordinator that refuses is not measured.
async fn gather(mut tasks: JoinSet<anyhow::Result<Load>>, start: Instant) -> anyhow::Result<Load> {
    let mut sum = Load::new();
    while let Some(task) = tasks.join_next().await {
        sum.add(&task??);
    }
    sum.seconds = start.elapsed().as_secs_f64();
    Ok(sum)
}

/// Requests as they come due.
pub(super) struct Due {
    start: Instant,
    queue: mpsc::UnboundedReceiver<Instant>,
}

impl Due {
    /// A thread that sleeps until each moment: the runtime's timers count whole milliseconds, as long as some answers take.
    /// It ends with the last moment, or when nobody listens any more.
    pub(super) fn start(arrivals: Vec<Duration>) -> Self {
        let start = Instant::now() + LEAD;
        let (sender, queue) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            sleep_exactly();
            for arrival in arrivals {
                let due = start + arrival;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if sender.send(due).is_err() {
                    return;
                }
            }
        });
        Self { start, queue }
    }
}

/// Until the first request is due: the connections listen by then.
const LEAD: Duration = Duration::from_millis(10);
/// By default Linux lets a thread sleep 50 us longer, to wake several at once; an answer may take no longer than that.
const TIMER_SLACK_NS: libc::c_ulong = 1;

fn sleep_exactly() {
    // SAFETY: it takes no pointer, and concerns this thread's timers alone. Where it fails, requests are sent a little later.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK_NS) };
}

/// Random moments at this mean rate, as from many clients who do not know of each other (a Poisson process): the same for one seed.
pub(super) fn arrivals(rate: f64, length: Duration, seed: u64) -> Vec<Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut at = 0.0;
    std::iter::from_fn(|| {
        // random() is below 1, so that the logarithm is finite.
        at -= (1.0 - random.random::<f64>()).ln() / rate;
        (at < length.as_secs_f64()).then(|| Duration::from_secs_f64(at))
    })
    .collect()
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_in_order_at_the_rate_and_are_the_same_for_one_seed() {
        let length = Duration::from_secs(10);
        let some = arrivals(1000.0, length, 1);
        assert!(some.is_sorted() && some.iter().all(|at| *at < length));
        // A Poisson process' count has the square root of its mean as its deviation: 100.
        assert!((9_500..=10_500).contains(&some.len()), "{}", some.len());
        // Exponential gaps: one in e is longer than the mean.
        let long = some.windows(2).filter(|pair| pair[1] - pair[0] > Duration::from_millis(1)).count();
        assert!((long as f64 / some.len() as f64 - (-1.0_f64).exp()).abs() < 0.03, "{long}");
        assert_eq!(some, arrivals(1000.0, length, 1));
        assert_ne!(some, arrivals(1000.0, length, 2));
    }

    #[tokio::test]
    async fn requests_come_when_they_are_due_and_not_before() {
        let mut due = Due::start(vec![Duration::ZERO, Duration::from_millis(2)]);
        for expected in [Duration::ZERO, Duration::from_millis(2)] {
            let next = due.queue.recv().await;
            assert_eq!(next, Some(due.start + expected));
            assert!(next.is_some_and(|due| due <= Instant::now()));
        }
        assert_eq!(due.queue.recv().await, None);
    }

    #[test]
    fn latency_counts_from_the_moment_a_request_was_due() {
        let mut load = Load::new();
        let due = Instant::now() - Duration::from_secs(2);
        load.record(due, due + Duration::from_secs(1));
        assert!(load.latency.max_ns() >= 2_000_000_000);
        assert!((990_000_000..=1_010_000_000).contains(&load.waited.max_ns()));
    }
}
