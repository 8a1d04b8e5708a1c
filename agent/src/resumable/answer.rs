//! One answer that can change its reader, and the reader.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker, ready},
};

use futures_util::Stream;
use parking_lot::Mutex;
use prost::Message as _;
use titan_proto::v1::StreamResponse;
use titan_transport::{CallEnd, PeerConnection};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};
use tonic::Status;

use super::{
    Kept, RequestId,
    log::{Log, Next, PositionError},
};
use crate::response::ResponseStream;

/// An answer and what is kept of it.
pub(super) struct Answer {
    kept: Kept,
    id: RequestId,
    state: Mutex<State>,
}

struct State {
    /// None when the answer is complete, has failed, or was stopped.
    source: Option<ResponseStream>,
    log: Log<Result<(), Status>>,
    /// Counts the readers; the last one is the reader.
    reader: u64,
    /// It has gone away.
    reader_left: bool,
    /// Who waits for the next message.
    waker: Option<Waker>,
    /// What this log adds to [`Kept`]'s count of bytes.
    counted: usize,
    /// When it is forgotten, once its reader has got everything.
    due: Option<Instant>,
    scratch: Vec<u8>,
}

/// An answer as its reader sees it: the response to one call.
pub(crate) struct Reader {
    answer: Arc<Answer>,
    number: u64,
    connection: Option<PeerConnection>,
    done: bool,
}

impl Answer {
    pub(super) fn start(
        kept: Kept,
        id: RequestId,
        source: ResponseStream,
        connection: Option<PeerConnection>,
    ) -> (Arc<Self>, Reader) {
        kept.0.count.fetch_add(1, Relaxed);
        let state = State {
            source: Some(source),
            log: Log::new(),
            reader: 0,
            reader_left: false,
            waker: None,
            counted: 0,
            due: None,
            scratch: Vec::new(),
        };
        let answer = Arc::new(Self { kept, id, state: Mutex::new(state) });
        (answer.clone(), Reader { answer, number: 0, connection, done: false })
    }

    pub(super) fn resume(
        answer: Arc<Self>,
        from: u64,
        connection: Option<PeerConnection>,
    ) -> Result<Reader, PositionError> {
        let mut state = answer.state.lock();
        state.log.seek(from)?;
        state.reader += 1;
        state.reader_left = false;
        state.due = None;
        let (number, former) = (state.reader, state.waker.take());
        drop(state);
        if let Some(former) = former {
            former.wake();
        }
        tracing::debug!(nonce = %answer.id.nonce, from, "answer resumed");
        Ok(Reader { answer, number, connection, done: false })
    }

    pub(super) fn id(&self) -> &RequestId {
        &self.id
    }

    pub(super) fn has_reader(&self) -> bool {
        !self.state.lock().reader_left
    }

    pub(super) fn set_due(&self, due: Option<Instant>) {
        self.state.lock().due = due;
    }

    pub(super) fn is_due(&self, due: Instant) -> bool {
        self.state.lock().due == Some(due)
    }

    fn is_read_by(&self, reader: u64) -> bool {
        self.state.lock().reader == reader
    }

    /// Makes messages while `reader`, who has gone, may come back; ready when another has taken over.
    fn poll_without(&self, reader: u64, cx: &mut Context<'_>) -> Poll<()> {
        let state = &mut *self.state.lock();
        if state.reader != reader {
            return Poll::Ready(());
        }
        while state.source.is_some() && state.log.waiting_bytes() < self.kept.allowance() {
            let Poll::Ready(message) = state.poll_source(cx) else { return Poll::Pending };
            if message.is_some() {
                state.log.push(&state.scratch);
                self.count(state);
            }
        }
        state.wait(cx);
        Poll::Pending
    }

    fn poll_message(&self, reader: u64, cx: &mut Context<'_>) -> Poll<Option<Result<StreamResponse, Status>>> {
        let state = &mut *self.state.lock();
        if state.reader != reader {
            let why = "this answer was taken over by a later request with the same token and nonce";
            return Poll::Ready(Some(Err(Status::aborted(why))));
        }
        match state.log.take() {
            Next::Message(message) => {
                let message = StreamResponse::decode(&*message);
                return Poll::Ready(Some(message.map_err(|error| Status::internal(error.to_string()))));
            }
            Next::End(end) => return Poll::Ready(end.err().map(Err)),
            Next::Nothing => {}
        }
        let message = ready!(state.poll_source(cx));
        if message.is_some() {
            state.log.pass(&state.scratch);
        }
        state.log.trim(self.kept.allowance());
        self.count(state);
        match (message, state.log.take()) {
            (Some(message), _) => Poll::Ready(Some(Ok(message))),
            (None, Next::End(Err(status))) => Poll::Ready(Some(Err(status))),
            (None, _) => Poll::Ready(None),
        }
    }

    fn count(&self, state: &mut State) {
        let (before, now) = (std::mem::replace(&mut state.counted, state.log.bytes()), state.log.bytes());
        // Wraps around where it shrinks, and back again.
        self.kept.0.bytes.fetch_add(now.wrapping_sub(before), Relaxed);
    }

    /// After `reader` has gone: what becomes of the rest.
    async fn without_reader(self: Arc<Self>, reader: u64, end: impl Future<Output = CallEnd>) {
        if end.await == CallEnd::Cancelled {
            if self.is_read_by(reader) {
                self.kept.forget(&self);
                self.stop();
            }
            return;
        }
        let keep_time = self.kept.0.keep_time;
        tracing::debug!(nonce = %self.id.nonce, keep_time_s = keep_time.as_secs_f64(), "connection lost: the answer is kept");
        tokio::select! {
            () = std::future::poll_fn(|cx| self.poll_without(reader, cx)) => return,
            () = sleep(keep_time) => {}
        }
        if self.is_read_by(reader) {
            self.kept.forget(&self);
            self.stop();
        }
    }

    /// Ends the generation.
    fn stop(&self) {
        let source = self.state.lock().source.take();
        drop(source);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.kept.0.bytes.fetch_sub(self.state.get_mut().counted, Relaxed);
        self.kept.0.count.fetch_sub(1, Relaxed);
    }
}

impl State {
    /// The next message, which is then also in `scratch`, encoded; None at the end, which is then in the log.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<StreamResponse>> {
        let Some(source) = &mut self.source else { return Poll::Ready(None) };
        let Poll::Ready(item) = Pin::new(source).poll_next(cx) else {
            self.wait(cx);
            return Poll::Pending;
        };
        let end = match item {
            Some(Ok(message)) => {
                self.scratch.clear();
                // A Vec has room for everything.
                let _ = message.encode(&mut self.scratch);
                return Poll::Ready(Some(message));
            }
            Some(Err(status)) => Err(status),
            None => Ok(()),
        };
        self.source = None;
        self.log.end(end);
        Poll::Ready(None)
    }

    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }
}

impl Stream for Reader {
    type Item = Result<StreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        let item = ready!(self.answer.poll_message(self.number, cx));
        self.done = !matches!(item, Some(Ok(_)));
        Poll::Ready(item)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let answer = self.answer.clone();
        {
            let mut state = answer.state.lock();
            if state.reader != self.number {
                return;
            }
            state.reader_left = true;
            if state.log.is_read() {
                state.log.shrink();
                drop(state);
                // Without a runtime the agent is on its way down.
                if Handle::try_current().is_ok() {
                    answer.kept.clone().complete(answer);
                }
                return;
            }
        }
        let end = self.connection.as_ref().map(PeerConnection::call_end);
        match (end, Handle::try_current()) {
            (Some(end), Ok(runtime)) => drop(runtime.spawn(answer.without_reader(self.number, end))),
            _ => {
                answer.kept.forget(&answer);
                answer.stop();
            }
        }
    }
}
