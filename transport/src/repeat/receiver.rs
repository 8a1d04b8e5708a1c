//! Takes repeated frames to the responses that wait for them, and acknowledges.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Waker},
    time::Instant,
};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::Connection;

use crate::wire::{
    arrivals::{Acks, Arrivals, InStream},
    datagram::{Datagram, Frame},
};

/// A datagram that fills a packet.
const FULL_PACKET_BYTES: usize = 1_100;

/// The responses on one connection that may be repeated.
#[derive(Debug)]
pub(crate) struct Inboxes {
    connection: Connection,
    /// Frames of all responses that a datagram brought first.
    repaired: Arc<AtomicU64>,
    /// Held for moments only.
    inboxes: Mutex<HashMap<u64, Arc<Mutex<Inbox>>>>,
}

#[derive(Debug)]
struct Inbox {
    arrivals: Arrivals,
    /// Of the task that waits for the next frame.
    waker: Option<Waker>,
    acks: Acks,
}

impl Inboxes {
    /// `repaired` counts what a datagram brought first.
    pub(crate) fn new(connection: &Connection, repaired: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self { connection: connection.clone(), repaired, inboxes: Mutex::default() })
    }

    /// Takes repeated frames until the connection ends.
    pub(crate) async fn listen(&self) {
        while let Ok(datagram) = self.connection.read_datagram().await {
            let Some(Datagram::Repeat { stream, first, frames }) = Datagram::read(datagram) else { continue };
            let Some(inbox) = self.inboxes.lock().get(&stream).cloned() else { continue };
            let waker = {
                let mut inbox = inbox.lock();
                if inbox.arrivals.repeated(first, frames) { inbox.waker.take() } else { None }
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Asks for what is missing in every response: the server may have to learn of a new address, or what it sent last is lost and no
    /// later packet tells of that. False where no response waits.
    pub(crate) fn ask_again(&self) -> bool {
        let room = self.connection.max_datagram_size().unwrap_or(0).min(FULL_PACKET_BYTES);
        let mut asked = false;
        for (stream, inbox) in &*self.inboxes.lock() {
            let inbox = inbox.lock();
            let ack = Datagram::ack(*stream, inbox.arrivals.next(), inbox.arrivals.repaired(), true);
            // To an address that it has not validated, a server sends at most three times what came from there (RFC 9000 §9.3): one
            // full packet makes room for what is missing.
            let ack = if asked { ack } else { padded(&ack, room) };
            asked = true;
            let _ = self.connection.send_datagram(ack);
        }
        asked
    }

    fn send_ack(&self, stream: u64, arrivals: &Arrivals) {
        // A lost connection has nobody to tell.
        let _ = self.connection.send_datagram(Datagram::ack(stream, arrivals.next(), arrivals.repaired(), false));
    }
}

/// An ACK with zeroes behind it: PROTOCOL.md §10.2 lets anything follow.
fn padded(ack: &[u8], bytes: usize) -> Bytes {
    let mut padded = ack.to_vec();
    padded.resize(bytes.max(ack.len()), 0);
    padded.into()
}

/// One response's part of it.
pub(crate) struct Repeated {
    inboxes: Arc<Inboxes>,
    stream: u64,
    inbox: Arc<Mutex<Inbox>>,
}

impl Repeated {
    /// For the response on `stream`.
    pub(crate) fn new(inboxes: &Arc<Inboxes>, stream: u64) -> Self {
        let inbox = Inbox { arrivals: Arrivals::default(), waker: None, acks: Acks::default() };
        let inbox = Arc::new(Mutex::new(inbox));
        inboxes.inboxes.lock().insert(stream, inbox.clone());
        Self { inboxes: inboxes.clone(), stream, inbox }
    }

    /// The next frame, if a datagram has brought it; otherwise the task is woken when one does.
    pub(crate) fn take_early(&self, cx: &mut Context<'_>) -> Option<Frame> {
        let mut inbox = self.inbox.lock();
        let frame = inbox.arrivals.take_early();
        match &frame {
            Some(frame) => {
                self.inboxes.repaired.fetch_add(1, Relaxed);
                self.acknowledge(&mut inbox, matches!(frame, Frame::Trailers(_)));
            }
            None if inbox.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) => {}
            None => inbox.waker = Some(cx.waker().clone()),
        }
        frame
    }

    /// The stream has brought a frame.
    pub(crate) fn stream_brings(&self, ended: bool) -> InStream {
        let mut inbox = self.inbox.lock();
        let what = inbox.arrivals.stream_brings();
        if what == InStream::Deliver {
            self.acknowledge(&mut inbox, ended);
        }
        what
    }

    fn acknowledge(&self, inbox: &mut Inbox, ended: bool) {
        let Inbox { arrivals, acks, .. } = inbox;
        if acks.take_due(arrivals, ended, Instant::now()) {
            self.inboxes.send_ack(self.stream, arrivals);
        }
    }
}

impl Drop for Repeated {
    fn drop(&mut self) {
        self.inboxes.inboxes.lock().remove(&self.stream);
    }
}
