//! Responses over HTTP/2 of which the peer takes nothing.
//!
//! Over HTTP/1.1 a response has the socket for itself, and that notices ([`Watched`](super::watched::Watched)). Over HTTP/2 a peer may take what
//! belongs to other streams, answer every ping, and leave this stream's window at 0. hyper then holds the piece of the response that it took
//! last and asks for no other, so the time since it took that piece is the time for which the peer has taken nothing.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::{
    activity::Running,
    traffic::{Cut, Traffic},
};

tokio::task_local! {
    /// Of the stream whose task this is.
    static WRITES: Arc<Writes>;
}

/// Since when hyper has held a piece of a response. None while it waits for one.
#[derive(Debug, Default)]
struct Writes(Mutex<Option<Instant>>);

impl Writes {
    /// Resolves when a piece has been held for `limit`.
    async fn stalled(&self, limit: Duration) {
        loop {
            // Nothing that is not held yet can be due sooner than in one limit.
            let held = *self.0.lock();
            sleep_until(held.unwrap_or_else(Instant::now) + limit).await;
            if self.0.lock().is_some_and(|since| since + limit <= Instant::now()) {
                return;
            }
        }
    }
}

/// Runs hyper's HTTP/2 streams, each in a task of its own, and drops those whose peer takes nothing: h2 resets them then, and what
/// the handler held is free.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    pub(super) limit: Duration,
    pub(super) traffic: Arc<Traffic>,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let Self { limit, traffic } = self.clone();
        let writes = Arc::new(Writes::default());
        tokio::spawn(WRITES.scope(Arc::clone(&writes), async move {
            tokio::select! {
                biased;
                _ = stream => {}
                () = writes.stalled(limit) => {
                    traffic.count_cut(Cut::SlowReader);
                    tracing::debug!(?limit, "a response ended: the peer has taken nothing");
                }
            }
        }));
    }
}

/// A response's body on its way to hyper.
pub(super) struct Answering {
    body: Body,
    /// Over HTTP/2 only.
    writes: Option<Arc<Writes>>,
    _running: Running,
}

impl Answering {
    /// To be made where the request is served: over HTTP/2 that is its stream's task.
    pub(super) fn new(body: Body, running: Running) -> Self {
        Self { body, writes: WRITES.try_with(Arc::clone).ok(), _running: running }
    }

    fn hold(&self, since: Option<Instant>) {
        if let Some(writes) = &self.writes {
            *writes.0.lock() = since;
        }
    }
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.hold(None);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.hold(Some(Instant::now()));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn what_is_held_too_long_is_a_stall_and_waiting_for_the_handler_is_none() {
        let writes = Writes::default();
        let mut stalled = Box::pin(writes.stalled(LIMIT));
        assert!(timeout(LIMIT * 10, &mut stalled).await.is_err(), "the handler has nothing to say");
        for _ in 0..10 {
            *writes.0.lock() = Some(Instant::now());
            assert!(timeout(LIMIT * 9 / 10, &mut stalled).await.is_err(), "a reader that takes something now and then");
        }
        let held = Instant::now();
        *writes.0.lock() = Some(held);
        stalled.await;
        assert_eq!(held.elapsed().as_secs(), LIMIT.as_secs());
    }
}
