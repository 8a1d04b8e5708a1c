//! Repeats the frames of responses until they are acknowledged.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::Connection;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    limits::ACK_DELAY,
    wire::{
        datagram::Datagram,
        losses::{Losses, Measure, repair_delay},
        window::Window,
    },
};

/// A packet has room for 1,200 bytes, and the message that a REPEAT travels with is to be in it too.
const PACKET_ROOM_BYTES: usize = 1_000;
/// How often a frame is sent again by itself when no acknowledgement comes; the pauses double. The stream brings it too.
const MAX_PROBES: u32 = 4;
/// HEADERS and the first message.
const FIRST_RIDES: u32 = 2;
/// After the first message and the last: behind the copies of the handshake.
const SECOND_REPAIR: Duration = Duration::from_millis(40);
/// For the peer's program and this one to be woken.
const PROBE_SLACK: Duration = Duration::from_millis(10);

/// The responses on one connection.
#[derive(Debug)]
pub(crate) struct Repeats {
    connection: Connection,
    /// Of a datagram, in bytes. A path's packets never become smaller than the handshake's.
    room: usize,
    /// Held for moments only.
    windows: Mutex<HashMap<u64, Arc<Mutex<Window>>>>,
    losses: Mutex<Losses>,
}

impl Repeats {
    /// None where the peer takes no datagrams.
    pub(crate) fn new(connection: &Connection) -> Option<Arc<Self>> {
        let room = connection.max_datagram_size()?.min(PACKET_ROOM_BYTES);
        let (windows, losses) = Default::default();
        Some(Arc::new(Self { connection: connection.clone(), room, windows, losses }))
    }

    /// Takes acknowledgements until the connection ends.
    pub(crate) async fn listen(self: Arc<Self>) {
        while let Ok(datagram) = self.connection.read_datagram().await {
            if let Some(Datagram::Ack { stream, next, repaired, again }) = Datagram::read(datagram) {
                self.acknowledged(stream, next, repaired, again);
            }
        }
    }

    fn acknowledged(&self, stream: u64, next: u64, repaired: u64, again: bool) {
        // That of a response that has ended is late, and says nothing new.
        let Some(window) = self.windows.lock().get(&stream).cloned() else { return };
        let (more, missing) = {
            let mut window = window.lock();
            let more = window.acknowledge(next, repaired, again);
            (more, window.take_wanted().then(|| window.oldest(self.room)).flatten())
        };
        self.losses.lock().acknowledged(more.0, more.1);
        self.send(missing);
    }

    fn measure(&self) -> Measure {
        self.losses.lock().measure()
    }

    fn send(&self, datagram: Option<Bytes>) {
        if let Some(datagram) = datagram {
            // It is a help only: whoever takes none is served by the stream.
            let _ = self.connection.send_datagram(datagram);
        }
    }
}

/// Repeats the frames of one response.
pub(crate) struct Repeater {
    repeats: Arc<Repeats>,
    stream: u64,
    window: Arc<Mutex<Window>>,
    /// Fires when something may be due. It is set anew only when it has fired, or for something sooner: at each message would cost too much.
    timer: Pin<Box<Sleep>>,
    armed: bool,
    written_at: Option<Instant>,
    /// Between messages; a moving average. None before the second one.
    interval: Option<Duration>,
    /// What was written so far: HEADERS, and the first message.
    rides: u32,
    /// The response ends with what is written next.
    ends: bool,
    repair_at: Option<Instant>,
    probe_at: Option<Instant>,
    probes: u32,
}

impl Repeater {
    /// For the response on `stream`.
    pub(crate) fn new(repeats: &Arc<Repeats>, stream: u64) -> Self {
        let window = Arc::new(Mutex::new(Window::new(stream)));
        repeats.windows.lock().insert(stream, window.clone());
        Self {
            repeats: repeats.clone(),
            stream,
            window,
            timer: Box::pin(sleep_until(Instant::now())),
            armed: false,
            written_at: None,
            interval: None,
            rides: 0,
            ends: false,
            repair_at: None,
            probe_at: None,
            probes: 0,
        }
    }

    /// The next frame of the response, which is about to be written to the stream: whole, or None if it is in pieces.
    pub(crate) fn push(&self, frame: Option<&Bytes>) {
        self.window.lock().push(frame.cloned());
    }

    /// The response ends with what is written next: nothing will follow to repeat it.
    pub(crate) fn ends(&mut self) {
        self.ends = true;
    }

    /// `bytes` of frames go out now, all pushed before: the newest frames travel in the same packet, in a datagram.
    pub(crate) fn ride(&mut self, bytes: usize) {
        let now = Instant::now();
        let measure = self.repeats.measure();
        let datagram = self.window.lock().newest(measure, self.repeats.room.saturating_sub(bytes));
        self.repeats.send(datagram);
        let before = self.written_at.replace(now);
        // The reader waits for the first message, which mostly has HEADERS before it, and the last has nothing that it could ride on.
        let alone = self.ends || self.rides < FIRST_RIDES;
        if self.rides < FIRST_RIDES {
            self.rides += 1;
        } else if let Some(before) = before {
            let last = now - before;
            self.interval = Some(self.interval.map_or(last, |interval| (interval * 7 + last) / 8));
        }
        self.repair_at = (measure.early || alone).then(|| now + repair_delay(self.interval.filter(|_| !alone)));
        self.probes = 0;
        // The first message overtakes the handshake where that is lost, and is dropped then: it goes again when the handshake's copy
        // has arrived. So does the last one, for which nobody would ask.
        self.probe_at = Some(now + if alone { SECOND_REPAIR } else { self.probe_timeout() });
        self.arm(self.repair_at.or(self.probe_at));
    }

    /// Sends what is due now, and sees to it that the task is woken for the next.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) {
        while self.armed && self.timer.as_mut().poll(cx) == Poll::Ready(()) {
            self.armed = false;
            self.due(Instant::now());
            self.arm(self.repair_at.or(self.probe_at));
        }
    }

    /// Goes on until everything is acknowledged or has been repeated often enough: the last frames have none after them to travel with.
    pub(crate) async fn finish(&mut self) {
        std::future::poll_fn(|cx| {
            self.poll(cx);
            if self.armed { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    fn due(&mut self, now: Instant) {
        if self.window.lock().is_empty() {
            (self.repair_at, self.probe_at) = (None, None);
        } else if self.repair_at.is_some_and(|at| at <= now) {
            self.repair_at = None;
            let datagram = self.window.lock().newest(Losses::repair(), self.repeats.room);
            self.repeats.send(datagram);
        } else if self.probe_at.is_some_and(|at| at <= now) {
            self.probes += 1;
            self.probe_at = (self.probes < MAX_PROBES).then(|| now + self.probe_timeout() * 2_u32.pow(self.probes));
            let datagram = self.window.lock().oldest(self.repeats.room);
            self.repeats.send(datagram);
        }
    }

    /// From a message to its acknowledgement, at most, if both arrive.
    fn probe_timeout(&self) -> Duration {
        self.repeats.connection.rtt() * 5 / 4 + ACK_DELAY + PROBE_SLACK
    }

    fn arm(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return };
        if !self.armed || at < self.timer.deadline() {
            self.timer.as_mut().reset(at);
            self.armed = true;
        }
    }
}

impl Drop for Repeater {
    fn drop(&mut self) {
        self.repeats.windows.lock().remove(&self.stream);
    }
}
