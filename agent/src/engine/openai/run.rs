//! One answer: from the bytes of its event stream to events of the engine.

use std::time::Duration;

use reqwest::Response;
use titan_openai::SseParser;
use tokio::{sync::mpsc, time::Instant};

use super::{
    answer::{Answer, DONE},
    http::reason,
    monitor::{InFlight, Server},
};
use crate::engine::{EngineError, Event, Usage};

/// Events that wait for a slow reader. Beyond that the server waits, as far as its own buffers allow.
pub(super) const BUFFERED_EVENTS: usize = 64;
/// Longest time to the first event, queueing in the server included: a long prompt on a slow CPU takes many minutes.
pub(super) const FIRST_EVENT: Duration = Duration::from_secs(30 * 60);
/// Longest time from one event to the next: many times what a token takes on the slowest machine.
const NEXT_EVENT: Duration = Duration::from_secs(5 * 60);
/// How long the end of a finished stream may take: then its connection serves the next request.
const TAIL: Duration = Duration::from_millis(100);

type Events = mpsc::Sender<Result<Event, EngineError>>;

/// Passes the answer on until it ends or its reader is gone. Then the connection is dropped, which is how servers learn that nobody
/// wants the rest, and the generation is no longer counted.
pub(super) async fn pass_on(
    mut response: Response,
    mut answer: Answer,
    server: &Server,
    events: Events,
    _counted: InFlight,
) {
    let outcome = tokio::select! {
        biased;
        () = events.closed() => return,
        outcome = read(&mut response, &mut answer, &events) => outcome,
    };
    let finished = outcome.is_ok();
    if let Err(Broken::Connection(_) | Broken::Ended) = outcome {
        server.suspect();
    }
    let last = outcome.map(Event::Done).map_err(|broken| broken.told(&server.spec.name));
    // A reader who went away needs no end.
    let _ = events.send(last).await;
    drop(events);
    if finished {
        // Without its end, the connection could not be used again.
        let _ = tokio::time::timeout(TAIL, response.chunk()).await;
    }
}

/// Why an answer is not whole.
enum Broken {
    Connection(String),
    /// The stream ended before the answer did.
    Ended,
    /// No event for so many seconds.
    Silent(u64),
    /// What came is no answer, or a refusal.
    Server(EngineError),
    /// What came is no event stream.
    NoEvents(titan_openai::SseError),
}

impl Broken {
    fn told(self, model: &str) -> EngineError {
        EngineError::Failed(match self {
            Self::Server(error) => return error,
            Self::Connection(reason) => format!("the server of {model} was lost: {reason}"),
            Self::Ended => format!("the server of {model} ended the stream before the answer was complete"),
            Self::Silent(seconds) => format!("the server of {model} sent nothing for {seconds} s"),
            Self::NoEvents(error) => format!("the server of {model} sent {error}"),
        })
    }
}

async fn read(response: &mut Response, answer: &mut Answer, events: &Events) -> Result<Usage, Broken> {
    let mut parser = SseParser::default();
    let mut patience = FIRST_EVENT;
    let mut deadline = Instant::now() + patience;
    loop {
        // Comments are no news: llama.cpp sends them also where it has nothing to say for ever.
        let chunk = tokio::time::timeout_at(deadline, response.chunk()).await;
        let chunk = chunk.map_err(|_| Broken::Silent(patience.as_secs()))?;
        let Some(bytes) = chunk.map_err(|error| Broken::Connection(reason(&error)))? else { return Err(Broken::Ended) };
        parser.push(&bytes).map_err(Broken::NoEvents)?;
        while let Some(event) = parser.event() {
            if event.data.trim() == DONE {
                return answer.end().map_err(Broken::Server);
            }
            if let Some(piece) = answer.chunk(&event.data).map_err(Broken::Server)? {
                // A reader who went away is seen by the caller.
                let _ = events.send(Ok(Event::Piece(piece))).await;
            }
            patience = NEXT_EVENT;
            deadline = Instant::now() + patience;
        }
    }
}
