//! Prefill ahead: hints from the coordinator, and the requests that follow them or do not. PROTOCOL.md §17.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use titan_agent::engine::{Engine, Generate, GenerateFuture, synthetic::SyntheticEngine};
use titan_proto::v1::{Continuation, Message, Prefill, StreamRequest, StreamResponse, Tool};
use titan_transport::token::Claims;
use tokio::sync::mpsc;
use tonic::Code;

use crate::{
    coordinator::Coordinator,
    fixture::{Running, WIRES, claims, eventually, jwks, request, soon, token},
};

/// Longer than a test, and short enough for those that wait for it.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);
/// Tokens of an answer that does not end during a test.
const ENDLESS: i32 = 1_000_000;

/// Tokens, and how many generations were begun and are alive.
#[derive(Clone)]
struct Counted {
    engine: SyntheticEngine,
    /// Generations that run at once; more wait.
    sequences: usize,
    begun: Arc<AtomicUsize>,
    alive: Arc<AtomicUsize>,
}

impl Counted {
    fn new() -> Self {
        let engine = SyntheticEngine::new(50.0);
        Self { engine, sequences: usize::MAX, begun: Arc::default(), alive: Arc::default() }
    }

    fn begun(&self) -> usize {
        self.begun.load(SeqCst)
    }

    async fn alive(&self, count: usize) {
        eventually(&format!("{count} live generations"), || async { self.alive.load(SeqCst) == count }).await;
    }
}

impl Engine for Counted {
    fn models(&self) -> Vec<String> {
        Engine::models(&self.engine)
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        Box::pin(async move {
            let mut tokens = self.engine.generate(request).await?;
            while self.alive.load(SeqCst) >= self.sequences {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            self.begun.fetch_add(1, SeqCst);
            self.alive.fetch_add(1, SeqCst);
            let (sender, stream) = mpsc::channel(8);
            let alive = Arc::clone(&self.alive);
            tokio::spawn(async move {
                loop {
                    let event = tokio::select! {
                        () = sender.closed() => break,
                        event = tokens.recv() => event,
                    };
                    let Some(event) = event else { break };
                    if sender.send(event).await.is_err() {
                        break;
                    }
                }
                alive.fetch_sub(1, SeqCst);
            });
            Ok(stream)
        })
    }

    fn idle(&self, _model: &str) -> bool {
        self.alive.load(SeqCst) < self.sequences
    }
}

struct World {
    agent: Running,
    coordinator: Coordinator,
    engine: Counted,
}

impl World {
    async fn new(engine: Counted, max_jobs: usize, wait: Duration) -> Self {
        let mut coordinator = Coordinator::start(jwks()).await;
        let endpoint = coordinator.endpoint.clone();
        let agent = Running::start_with(engine.clone(), |config| {
            config.keys = None;
            config.coordinator = Some(endpoint);
            config.heartbeat_interval = Duration::from_secs(3600);
            config.max_jobs = max_jobs;
            config.prefill_wait = wait;
        })
        .await;
        coordinator.registered().await;
        Self { agent, coordinator, engine }
    }

    /// Tells the agent of a request of this job, and waits until it has begun.
    async fn begin(&self, job_id: &str, max_tokens: i32) {
        let before = self.engine.begun();
        self.coordinator.hint(hint(job_id, max_tokens));
        eventually("the beginning of the prompt", || async { self.engine.begun() == before + 1 }).await;
    }
}

fn hint(job_id: &str, max_tokens: i32) -> Prefill {
    let StreamRequest { prompt, options, temperature, .. } = request(max_tokens);
    Prefill {
        job_id: job_id.into(),
        model: "synthetic".into(),
        prompt,
        max_tokens,
        temperature,
        options,
        client_id: claims().client_id,
        ..Prefill::default()
    }
}

/// The request that [`hint`] tells of.
fn of_job(job_id: &str, max_tokens: i32) -> StreamRequest {
    let session_token = token(&Claims { job_id: job_id.into(), ..claims() });
    StreamRequest { session_token, ..request(max_tokens) }
}

fn prefilled(messages: &[StreamResponse]) -> bool {
    messages.last().unwrap().metadata.contains_key("prefilled")
}

#[tokio::test]
async fn a_conversation_that_was_told_of_is_taken_over_on_both_wires() {
    let world = World::new(Counted::new(), 4, LONG).await;
    for (number, wire) in WIRES.into_iter().enumerate() {
        let job = format!("job_{number}");
        let messages = vec![Message::system("Be brief."), Message::user("Hello")];
        let tools = vec![Tool { name: "f".into(), ..Tool::default() }];
        let (prompt, told) = (String::new(), hint(&job, 5));
        world.coordinator.hint(Prefill {
            prompt: prompt.clone(),
            messages: messages.clone(),
            tools: tools.clone(),
            ..told
        });
        eventually("the beginning of the prompt", || async { world.engine.begun() == number + 1 }).await;
        let request = StreamRequest { prompt, messages, tools, ..of_job(&job, 5) };
        let messages = world.agent.client(wire).await.all(request).await.unwrap();
        assert!(prefilled(&messages));
        assert_eq!(world.engine.begun(), number + 1);
    }
}

#[tokio::test]
async fn the_request_that_was_told_of_takes_over_what_was_begun_on_both_wires() {
    let world = World::new(Counted::new(), 4, LONG).await;
    for (number, wire) in WIRES.into_iter().enumerate() {
        let job = format!("job_{number}");
        world.begin(&job, 5).await;
        let messages = world.agent.client(wire).await.all(of_job(&job, 5)).await.unwrap();
        assert_eq!((messages.len(), prefilled(&messages)), (6, true), "{}", wire.as_str());
        assert_eq!(messages.last().unwrap().metadata["completion_tokens"], "5");
        assert_eq!(world.engine.begun(), number + 1, "one generation for hint and request");
        world.engine.alive(0).await;

        let again = world.agent.client(wire).await.all(of_job(&job, 5)).await.unwrap();
        assert!(!prefilled(&again), "what was begun is there once");
        world.engine.begun.fetch_sub(1, SeqCst);
    }
}

#[tokio::test]
async fn what_no_client_asks_for_ends_and_was_never_a_job() {
    let mut world = World::new(Counted::new(), 1, SHORT).await;
    for number in 0..3 {
        world.begin(&format!("job_{number}"), ENDLESS).await;
        assert_eq!(world.agent.status().await.active_sessions, 0);
        world.engine.alive(0).await;
    }
    // The only slot is free, and the coordinator hears of the job that ran, and of no other.
    let mut client = world.agent.client(WIRES[1]).await;
    assert_eq!(client.all(of_job("job_9", 1)).await.unwrap().len(), 2);
    let update = world.coordinator.update_with(|update| !update.claimed_job_ids.is_empty()).await;
    assert_eq!(update.claimed_job_ids, ["job_9"]);
    assert_eq!(world.agent.status().await.total_requests_processed, 1);
}

#[tokio::test]
async fn a_job_is_claimed_when_its_client_comes_and_not_before() {
    let mut world = World::new(Counted::new(), 4, LONG).await;
    world.begin("job_1", ENDLESS).await;
    let stream = world.agent.client(WIRES[1]).await.stream(of_job("job_1", ENDLESS)).await.unwrap();
    let update = world.coordinator.update_with(|update| !update.claimed_job_ids.is_empty()).await;
    assert_eq!((update.claimed_job_ids, update.running_jobs), (vec!["job_1".to_owned()], 1));
    drop(stream);
    world.engine.alive(0).await;
    world.agent.running(0).await;
}

#[tokio::test]
async fn a_request_that_differs_runs_as_if_nothing_had_been_begun() {
    let world = World::new(Counted::new(), 4, LONG).await;
    type Change = fn(&mut StreamRequest);
    let differing: [(&str, Change); 5] = [
        ("prompt", |request| request.prompt.push('!')),
        ("max_tokens", |request| request.max_tokens = 6),
        ("temperature", |request| request.temperature = 0.5),
        ("options", |request| {
            request.options.insert("seed".into(), "1".into());
        }),
        ("continuation", |request| {
            request.continuation =
                Some(Continuation { text: "00000000 tok ".into(), completion_tokens: 1, ..Default::default() });
        }),
    ];
    for (name, change) in differing {
        for wire in WIRES {
            let job = format!("{name}_{}", wire.as_str());
            world.begin(&job, 5).await;
            let mut request = of_job(&job, 5);
            change(&mut request);
            let messages = world.agent.client(wire).await.all(request).await.unwrap();
            assert!(!prefilled(&messages), "{name} over {}", wire.as_str());
            world.engine.alive(0).await;
        }
    }
    assert_eq!(world.engine.begun(), 2 * 2 * differing.len());
}

#[tokio::test]
async fn a_request_without_a_slot_of_its_own_puts_a_prefill_out() {
    let world = World::new(Counted::new(), 1, LONG).await;
    for wire in WIRES {
        world.begin(&format!("absent_{}", wire.as_str()), ENDLESS).await;
        let mut client = world.agent.client(wire).await;
        let stream = soon("the answer", client.stream(of_job("other", ENDLESS))).await.unwrap();
        world.engine.alive(1).await;
        drop(stream);
        world.engine.alive(0).await;
        world.agent.running(0).await;
    }
}

#[tokio::test]
async fn a_request_that_would_wait_for_a_prefill_puts_it_out() {
    let world = World::new(Counted { sequences: 1, ..Counted::new() }, 4, LONG).await;
    for wire in WIRES {
        world.begin(&format!("absent_{}", wire.as_str()), ENDLESS).await;
        let messages = soon("the answer", world.agent.client(wire).await.all(of_job("other", 2))).await.unwrap();
        assert_eq!(messages.len(), 3);
        world.engine.alive(0).await;
    }
}

#[tokio::test]
async fn a_busy_agent_begins_nothing() {
    for (max_jobs, sequences) in [(1, usize::MAX), (4, 1)] {
        let mut world = World::new(Counted { sequences, ..Counted::new() }, max_jobs, LONG).await;
        let mut client = world.agent.client(WIRES[1]).await;
        let running = client.stream(of_job("running", ENDLESS)).await.unwrap();
        world.engine.alive(1).await;
        world.coordinator.hint(hint("told", 1));
        world.coordinator.hints_read().await;
        drop(running);
        world.engine.alive(0).await;
        world.agent.running(0).await;
        assert!(!prefilled(&client.all(of_job("told", 1)).await.unwrap()), "{max_jobs} jobs, {sequences} sequences");
    }
}

#[tokio::test]
async fn a_hint_that_comes_after_its_client_begins_nothing() {
    let mut world = World::new(Counted::new(), 4, LONG).await;
    world.agent.client(WIRES[0]).await.all(of_job("fast", 1)).await.unwrap();
    world.coordinator.hint(hint("fast", 1));
    world.coordinator.hints_read().await;
    assert_eq!(world.engine.begun(), 1);
}

#[tokio::test]
async fn hints_that_make_no_sense_are_passed_over() {
    let mut world = World::new(Counted::new(), 4, LONG).await;
    for wrong in [
        Prefill { model: "other".into(), ..hint("job_1", 1) },
        Prefill { prompt: String::new(), ..hint("job_1", 1) },
        Prefill { temperature: f32::NAN, ..hint("job_1", 1) },
        Prefill { options: [("colour".to_owned(), "red".to_owned())].into(), ..hint("job_1", 1) },
    ] {
        world.coordinator.hint(wrong);
    }
    world.coordinator.hints_read().await;
    assert_eq!(world.engine.begun(), 0);
}

#[tokio::test]
async fn a_drain_ends_what_waits_for_a_client() {
    let mut world = World::new(Counted::new(), 4, LONG).await;
    world.begin("job_1", ENDLESS).await;
    let mut client = world.agent.client(WIRES[0]).await;
    client.all(of_job("job_2", 1)).await.unwrap();
    world.agent.shutdown.cancel();
    world.engine.alive(0).await;
    assert_eq!(client.refused(of_job("job_1", ENDLESS)).await.code(), Code::Unavailable);
    drop(client);
    soon("the end", &mut world.agent.task).await.unwrap().unwrap();
}
