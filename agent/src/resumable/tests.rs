#![allow(clippy::unwrap_used)]

use futures_util::{FutureExt as _, StreamExt as _};
use titan_proto::v1::StreamResponse;
use tokio::{sync::mpsc, task::yield_now};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::*;
use crate::{
    admission::Admission,
    engine::{EngineError, Event, FinishReason, Usage},
    response::Shape,
};

type Sender = mpsc::Sender<Result<Event, EngineError>>;

/// Events of a source that a test has not taken yet.
const ROOM: usize = 8;
const DONE: Event =
    Event::Done(Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2, finish_reason: FinishReason::Stop });

struct Fixture {
    kept: Kept,
    admission: Admission,
}

fn id() -> RequestId {
    RequestId { jti: "token".into(), nonce: "nonce".into() }
}

fn lost() -> Option<PeerConnection> {
    Some(PeerConnection::lost())
}

impl Fixture {
    fn new() -> Self {
        Self { kept: Kept::new(KEEP_TIME), admission: Admission::new(100) }
    }

    fn source(&self) -> (Sender, ResponseStream) {
        let (sender, tokens) = mpsc::channel(ROOM);
        let slot = self.admission.admit("job").unwrap();
        let now = std::time::Instant::now();
        (sender, ResponseStream::new(tokens, slot, now, None, CancellationToken::new(), Shape::default()))
    }

    /// An answer whose reader's connection will turn out lost, or, without one, cancelled.
    fn start(&self, connection: Option<PeerConnection>) -> (Sender, Reader) {
        let (sender, source) = self.source();
        (sender, self.kept.start(id(), source, connection))
    }

    fn resume(&self, from: u64) -> Result<Reader, ResumeError> {
        self.kept.resume(&id(), from, lost())
    }

    fn not_kept(&self) -> bool {
        matches!(self.resume(0), Err(ResumeError::NotKept { .. }))
    }

    fn running(&self) -> usize {
        self.admission.load().running
    }
}

fn send(sender: &Sender, text: &str) {
    sender.try_send(Ok(Event::Piece(text.into()))).unwrap();
}

async fn texts(reader: &mut Reader, count: usize) -> Vec<String> {
    reader.take(count).map(|message| message.unwrap().content).collect().await
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_goes_on_and_is_read_from_where_the_client_wants() {
    let fixture = Fixture::new();
    let (sender, mut reader) = fixture.start(lost());
    ["a", "b", "c"].iter().for_each(|text| send(&sender, text));
    assert_eq!(texts(&mut reader, 3).await, ["a", "b", "c"]);
    drop(reader);
    for text in ["d", "e"] {
        sender.send(Ok(Event::Piece(text.into()))).await.unwrap();
    }
    tokio::time::sleep(KEEP_TIME / 2).await;
    assert_eq!((sender.capacity(), fixture.running()), (ROOM, 1), "the generation went on");
    let mut reader = fixture.resume(1).unwrap();
    assert_eq!(texts(&mut reader, 4).await, ["b", "c", "d", "e"]);
    sender.try_send(Ok(DONE)).unwrap();
    assert!(reader.next().await.unwrap().unwrap().done);
    assert!(reader.next().await.is_none());
    assert_eq!(fixture.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_answer_ends_at_once() {
    let fixture = Fixture::new();
    let (sender, reader) = fixture.start(None);
    drop(reader);
    assert!(sender.is_closed());
    assert_eq!(fixture.running(), 0);
    assert!(fixture.not_kept());
}

#[tokio::test(start_paused = true)]
async fn nobody_comes_back_and_the_answer_is_dropped() {
    let fixture = Fixture::new();
    let (sender, reader) = fixture.start(lost());
    drop(reader);
    tokio::time::sleep(KEEP_TIME - Duration::from_secs(1)).await;
    assert_eq!(fixture.running(), 1);
    sender.closed().await;
    assert_eq!(fixture.running(), 0);
    assert!(fixture.not_kept());
    assert_eq!((fixture.kept.0.bytes.load(Relaxed), fixture.kept.0.count.load(Relaxed)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_complete_answer_can_be_read_again_for_a_while_without_a_slot() {
    let fixture = Fixture::new();
    let (sender, mut reader) = fixture.start(lost());
    send(&sender, "a");
    sender.try_send(Ok(DONE)).unwrap();
    assert_eq!((&mut reader).count().await, 2);
    drop(reader);
    assert_eq!(fixture.running(), 0);
    for from in [0, 1, 2] {
        let again: Vec<StreamResponse> = fixture.resume(from).unwrap().map(Result::unwrap).collect().await;
        assert_eq!(again.len() as u64, 2 - from);
        assert_eq!(
            again.last().map(|message| message.metadata["finish_reason"].as_str()),
            (from < 2).then_some("stop")
        );
        tokio::time::sleep(KEEP_TIME / 2).await;
    }
    tokio::time::sleep(KEEP_TIME).await;
    assert!(fixture.not_kept());
    assert_eq!(fixture.kept.0.bytes.load(Relaxed), 0);
    assert!(!fixture.kept.0.answers.lock().tidied, "nothing is left to wait for");
}

#[tokio::test(start_paused = true)]
async fn a_reader_not_noticed_dead_is_replaced() {
    let fixture = Fixture::new();
    let (sender, mut old) = fixture.start(lost());
    send(&sender, "a");
    assert_eq!(texts(&mut old, 1).await, ["a"]);
    assert!(old.next().now_or_never().is_none());
    let mut new = fixture.resume(1).unwrap();
    send(&sender, "b");
    assert_eq!(old.next().await.unwrap().unwrap_err().code(), Code::Aborted);
    drop(old);
    assert_eq!(texts(&mut new, 1).await, ["b"]);
    assert!(!sender.is_closed(), "the old reader's end means nothing any more");
    drop(new);
    yield_now().await;
    assert_eq!(texts(&mut fixture.resume(2).unwrap(), 0).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_whoever_comes_back() {
    let fixture = Fixture::new();
    let (sender, mut reader) = fixture.start(lost());
    send(&sender, "a");
    assert_eq!(texts(&mut reader, 1).await, ["a"]);
    drop(reader);
    sender.try_send(Err(EngineError::Failed("boom".into()))).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fixture.running(), 0, "it has ended");
    let mut reader = fixture.resume(1).unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap_err().code(), Code::Internal);
    assert!(reader.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_generation_waits_when_nobody_takes_what_it_makes() {
    let fixture = Fixture::new();
    let (sender, reader) = fixture.start(lost());
    drop(reader);
    let text = "x".repeat(1000);
    let mut sent = 0;
    while sender.send_timeout(Ok(Event::Piece(text.clone().into())), Duration::from_secs(1)).await.is_ok() {
        sent += 1;
    }
    let bytes = fixture.kept.0.bytes.load(Relaxed);
    assert!((MAX_ANSWER_BYTES..MAX_ANSWER_BYTES + 2000).contains(&bytes), "{bytes}");
    let mut reader = fixture.resume(0).unwrap();
    assert_eq!(texts(&mut reader, sent).await.len(), sent, "and nothing is lost");
    assert!(matches!(fixture.resume(0), Err(ResumeError::Position(PositionError::Dropped { .. }))));
}

#[tokio::test(start_paused = true)]
async fn all_answers_together_are_bounded() {
    let fixture = Fixture::new();
    let mut answers = Vec::new();
    for number in 0..100 {
        let (sender, source) = fixture.source();
        let reader = fixture.kept.start(RequestId { jti: number.to_string(), ..id() }, source, lost());
        answers.push((sender, reader));
    }
    // As if others kept all that may be kept.
    fixture.kept.0.bytes.fetch_add(MAX_TOTAL_BYTES, Relaxed);
    fixture.kept.0.count.fetch_add(99_900, Relaxed);
    let share = MAX_TOTAL_BYTES / 100_000;
    let (sender, reader) = &mut answers[0];
    for _ in 0..100 {
        send(sender, &"x".repeat(50));
        assert_eq!(texts(reader, 1).await.len(), 1);
    }
    let bytes = fixture.kept.0.bytes.load(Relaxed) - MAX_TOTAL_BYTES;
    assert!(bytes <= share && bytes + 100 > share, "{bytes} of {share}");

    // A complete one goes first.
    let (sender, mut reader) = answers.pop().unwrap();
    sender.try_send(Ok(DONE)).unwrap();
    assert_eq!((&mut reader).count().await, 1);
    drop(reader);
    let complete = RequestId { jti: "99".into(), ..id() };
    assert!(matches!(fixture.kept.resume(&complete, 0, None), Err(ResumeError::NotKept { .. })));
}
