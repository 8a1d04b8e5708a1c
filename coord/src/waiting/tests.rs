#![allow(clippy::unwrap_used)]

use std::pin::Pin;

use futures_util::{FutureExt as _, poll};
use titan_transport::token::{Algorithm, TokenIssuer};

use super::*;
use crate::{
    access::{Access, Caller},
    config::Config,
    registry::{Fault, Load, Met, Profile, Report, ReportedJob, StreamId},
};

const STREAM: StreamId = StreamId(1);
const PATIENCE: Duration = Duration::from_secs(60);

struct Fixture {
    dispatcher: Dispatcher,
    _keys: tempfile::TempDir,
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<(Booked, Option<Queued>), NoRoom>> + 'a>>;

/// Agents `a0`, `a1`, … that serve the model `m`, each with so many slots.
fn fixture(slots: &[u32]) -> Fixture {
    let keys = tempfile::tempdir().unwrap();
    let issuer = TokenIssuer::open(keys.path(), Algorithm::ES256).unwrap();
    let config = Config { booking_timeout: Duration::from_secs(600), ..Config::default() };
    let fixture = Fixture { dispatcher: Dispatcher::new(&config, issuer, Access::open(), None).unwrap(), _keys: keys };
    for (n, &max_jobs) in slots.iter().enumerate() {
        fixture.register(&format!("a{n}"), max_jobs);
    }
    fixture
}

impl Fixture {
    fn register(&self, id: &str, max_jobs: u32) {
        let profile = Profile {
            id: id.into(),
            origin: String::new(),
            instance: "".into(),
            endpoint: format!("{id}:1"),
            grpc_tls: Default::default(),
            quic: None,
            total_vram_mb: 0,
            total_ram_mb: 1000,
            max_jobs,
            models: vec!["m".into()],
            model_info: Vec::new(),
        };
        self.dispatcher.registry.lock().register(profile, Some(STREAM), Instant::now()).unwrap();
        self.dispatcher.room_at(id);
    }

    /// The agent's heartbeat, with the jobs that began and the number of those that run.
    fn heartbeat(&self, id: &str, claimed: &[String], running_jobs: u32) {
        let (load, report) = (Load { running_jobs, ..Load::default() }, Report { claimed, ..Report::default() });
        self.dispatcher.registry.lock().heartbeat(id, STREAM, load, report, Instant::now()).unwrap();
        self.dispatcher.room_at(id);
    }

    /// A request of this client, not begun yet.
    fn ask(&self, priority: u8, client: &str, job_id: &str, patience: Duration) -> Answer<'_> {
        let asker = Asker { caller: Caller::with_priority(client, priority), ..Asker::default() };
        let (client, job_id) = (client.to_owned(), job_id.to_owned());
        Box::pin(async move {
            let who = asker.who(&client);
            let wanted = Wanted { model: "m", who: Some(&who), ..Wanted::default() };
            self.dispatcher.book_or_wait(&wanted, &job_id, &asker, patience).await
        })
    }

    /// A request that is in the queue.
    async fn queued(&self, priority: u8, client: &str, job_id: &str) -> Answer<'_> {
        let mut answer = self.ask(priority, client, job_id, PATIENCE);
        assert!(poll!(&mut answer).is_pending(), "{job_id}");
        answer
    }

    fn waiting(&self) -> usize {
        self.dispatcher.waiting.queue.lock().len()
    }
}

/// Which of these have their slot now, in the order in which they are given.
fn answered(answers: &mut Vec<(String, Answer<'_>)>) -> Vec<String> {
    let mut done = Vec::new();
    answers.retain_mut(|(job_id, answer)| match answer.now_or_never() {
        Some(answer) => {
            answer.unwrap();
            done.push(job_id.clone());
            false
        }
        None => true,
    });
    done
}

#[tokio::test]
async fn sixty_four_clients_on_four_slots_are_all_served_by_priority_and_arrival() {
    let fixture = fixture(&[4]);
    let mut running: Vec<String> = Vec::new();
    for n in 0..4 {
        let job = format!("j{n}");
        fixture.ask(1, &job, &job, PATIENCE).await.unwrap();
        running.push(job);
    }
    let mut answers = Vec::new();
    for n in 4..64 {
        // The last ten are important.
        let priority = if n >= 54 { 2 } else { 1 };
        let job = format!("j{n}");
        answers.push((job.clone(), fixture.queued(priority, &job, &job).await));
    }
    let mut order = Vec::new();
    while !answers.is_empty() {
        // All four are done, and began before that.
        fixture.heartbeat("a0", &running, 0);
        running = answered(&mut answers);
        assert!(running.len() == 4 || answers.is_empty(), "{running:?}");
        order.extend(running.clone());
    }
    let expected: Vec<String> = (54..64).chain(4..54).map(|n| format!("j{n}")).collect();
    // Four at a time; within one heartbeat nobody can tell who was first.
    let sorted = |jobs: &[String]| {
        let mut jobs: Vec<usize> = jobs.iter().map(|job| job[1..].parse().unwrap()).collect();
        jobs.sort_unstable();
        jobs
    };
    for (served, expected) in order.chunks(4).zip(expected.chunks(4)) {
        assert_eq!(sorted(served), sorted(expected));
    }
    assert_eq!((order.len(), fixture.waiting()), (60, 0));
}

#[tokio::test]
async fn a_newcomer_does_not_overtake_those_who_wait() {
    let fixture = fixture(&[1]);
    fixture.ask(1, "a", "j0", PATIENCE).await.unwrap();
    let mut first = fixture.queued(1, "a", "j1").await;
    let second = fixture.queued(1, "b", "j2").await;
    fixture.heartbeat("a0", &["j0".into()], 0);
    let (booked, queued) = first.as_mut().now_or_never().unwrap().unwrap();
    assert_eq!((&*booked.profile.id, queued.unwrap().position), ("a0", 1));
    drop(second);
    // Nobody waits now, so the next one is served at once.
    fixture.heartbeat("a0", &["j1".into()], 0);
    assert_eq!(fixture.ask(1, "c", "j3", PATIENCE).await.unwrap().1, None);
}

#[tokio::test]
async fn whoever_hangs_up_leaves_and_its_slot_is_the_next_ones() {
    let fixture = fixture(&[1]);
    fixture.ask(1, "a", "j0", PATIENCE).await.unwrap();
    let first = fixture.queued(1, "a", "j1").await;
    let second = fixture.queued(1, "b", "j2").await;
    let mut third = fixture.queued(1, "c", "j3").await;
    drop(second);
    assert_eq!(fixture.waiting(), 2);
    // The slot is booked for the first, which has gone before it heard of it.
    fixture.heartbeat("a0", &["j0".into()], 0);
    assert!(third.as_mut().now_or_never().is_none());
    drop(first);
    assert!(third.as_mut().now_or_never().unwrap().is_ok());
    assert_eq!(fixture.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn patience_ends_with_where_it_was_and_how_long() {
    let fixture = fixture(&[1]);
    fixture.ask(1, "a", "j0", PATIENCE).await.unwrap();
    let _first = fixture.queued(1, "a", "j1").await;
    let refused = fixture.ask(1, "b", "j2", Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(refused, NoRoom::InTime(Queued { position: 2, wait: Duration::from_secs(3) }));
    assert_eq!(fixture.waiting(), 1);
    assert_eq!(fixture.ask(1, "b", "j2", Duration::ZERO).await.unwrap_err(), NoRoom::AtOnce);
    let forever = fixture.ask(1, "b", "j2", Duration::MAX).await.unwrap_err();
    assert_eq!(forever, NoRoom::InTime(Queued { position: 2, wait: MAX_PATIENCE }));
}

#[tokio::test]
async fn an_agent_that_comes_and_a_slot_that_is_given_back_serve_those_who_wait() {
    let fixture = fixture(&[1]);
    fixture.ask(1, "a", "j0", PATIENCE).await.unwrap();
    let mut first = fixture.queued(1, "a", "j1").await;
    let mut second = fixture.queued(1, "a", "j2").await;
    fixture.register("a1", 1);
    assert_eq!(&*first.as_mut().now_or_never().unwrap().unwrap().0.profile.id, "a1");
    fixture.dispatcher.registry.lock().release("a0", "j0", Instant::now());
    fixture.dispatcher.room_at("a0");
    assert_eq!(&*second.as_mut().now_or_never().unwrap().unwrap().0.profile.id, "a0");
}

#[tokio::test]
async fn when_the_last_agent_leaves_those_who_wait_are_told() {
    let fixture = fixture(&[1]);
    fixture.ask(1, "a", "j0", PATIENCE).await.unwrap();
    let mut first = fixture.queued(1, "a", "j1").await;
    fixture.dispatcher.registry.lock().deregister("a0", Instant::now());
    fixture.dispatcher.serve_all(Instant::now());
    assert_eq!(first.as_mut().now_or_never().unwrap().unwrap_err(), NoRoom::Never(BookError::NoAgents));
}

#[tokio::test]
async fn whom_no_agent_may_serve_is_told_at_once() {
    let fixture = fixture(&[1]);
    fixture.ask(1, "a", "j0", PATIENCE).await.unwrap();
    for client in ["a", "b", "c"] {
        let job = ReportedJob { job_id: "j", who: &Asker::default().who(client), age: Duration::ZERO };
        fixture.dispatcher.registry.lock().met("a0", &job, Met::Fault(Fault::Broken), Instant::now());
    }
    // Its breaker is open: nobody is sent there, and nobody is there else.
    let refused = fixture.ask(1, "d", "j1", PATIENCE).await.unwrap_err();
    assert_eq!(refused, NoRoom::Never(BookError::NoAgents));
}

#[tokio::test]
async fn a_full_queue_says_so_and_makes_room_for_what_counts_more() {
    let fixture = fixture(&[1]);
    fixture.ask(1, "a", "j0", PATIENCE).await.unwrap();
    let mut answers = Vec::new();
    for n in 0..MAX_WAITING {
        answers.push(fixture.queued(1, "a", &format!("w{n}")).await);
    }
    assert_eq!(fixture.ask(1, "a", "x", PATIENCE).await.unwrap_err(), NoRoom::QueueFull);
    let _other = fixture.queued(1, "b", "y").await;
    let last = answers.last_mut().unwrap();
    assert_eq!(last.as_mut().now_or_never().unwrap().unwrap_err(), NoRoom::QueueFull);
    assert_eq!(fixture.waiting(), MAX_WAITING);
}
