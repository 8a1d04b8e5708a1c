//! The two sides of redundant messages against a path that loses, doubles and reorders.

#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};

use super::{
    arrivals::{Arrivals, InStream},
    datagram::{Datagram, Frame},
    frame::{put_message_header, trailers_frame},
    losses::Losses,
    window::{MAX_REPEATED_FRAME_BYTES, Window},
};

fn message(number: usize, size: usize) -> (Bytes, Bytes) {
    let mut payload = format!("{number}:").into_bytes();
    payload.resize(payload.len() + size, b'.');
    let mut frame = BytesMut::new();
    put_message_header(&mut frame, payload.len() as u32, false);
    frame.extend_from_slice(&payload);
    (frame.freeze(), payload.into())
}

/// What a step of the model does.
#[derive(Clone, Debug)]
enum Step {
    /// The sender writes a message of this size; a datagram goes with it.
    Write(usize),
    /// An early repair.
    Repair,
    /// The peer's wish, or the end's.
    Oldest,
    /// One of the datagrams on their way arrives; it stays on its way if it is doubled.
    Arrive { which: usize, doubled: bool },
    /// One is lost.
    Lose { which: usize },
    /// The stream brings its next frame.
    Stream,
    /// The receiver takes what it can, and acknowledges; the acknowledgement may be lost.
    Take { lost: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![8 => 0_usize..60, 1 => Just(MAX_REPEATED_FRAME_BYTES + 1)].prop_map(Step::Write),
        1 => Just(Step::Repair),
        1 => Just(Step::Oldest),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(which, doubled)| Step::Arrive { which, doubled }),
        2 => any::<usize>().prop_map(|which| Step::Lose { which }),
        2 => Just(Step::Stream),
        3 => any::<bool>().prop_map(|lost| Step::Take { lost }),
    ]
}

#[derive(Default)]
struct Model {
    window: Option<Window>,
    losses: Losses,
    arrivals: Arrivals,
    written: Vec<Bytes>,
    on_the_way: Vec<Bytes>,
    streamed: usize,
    received: Vec<Bytes>,
}

const STREAM: u64 = 8;
const ROOM: usize = 1100;

impl Model {
    fn run(&mut self, step: Step) {
        let window = self.window.get_or_insert_with(|| Window::new(STREAM));
        match step {
            Step::Write(size) => {
                let (frame, payload) = message(self.written.len(), size);
                self.written.push(payload);
                window.push(Some(frame));
                self.on_the_way.extend(window.newest(self.losses.measure(), ROOM));
            }
            Step::Repair => self.on_the_way.extend(window.newest(self.losses.measure(), ROOM)),
            Step::Oldest => self.on_the_way.extend(window.oldest(ROOM)),
            Step::Arrive { which, doubled } if !self.on_the_way.is_empty() => {
                let which = which % self.on_the_way.len();
                let sent = if doubled { self.on_the_way[which].clone() } else { self.on_the_way.remove(which) };
                assert!(sent.len() <= ROOM);
                let Some(Datagram::Repeat { stream: STREAM, first, frames }) = Datagram::read(sent) else { panic!() };
                self.arrivals.repeated(first, frames);
            }
            Step::Lose { which } if !self.on_the_way.is_empty() => {
                let which = which % self.on_the_way.len();
                self.on_the_way.remove(which);
            }
            Step::Stream if self.streamed < self.written.len() => {
                if self.arrivals.stream_brings() == InStream::Deliver {
                    self.received.push(self.written[self.streamed].clone());
                }
                self.streamed += 1;
            }
            Step::Take { lost } => self.take(lost),
            _ => {}
        }
    }

    fn take(&mut self, lost: bool) {
        while let Some(frame) = self.arrivals.take_early() {
            let Frame::Message { payload, compressed: false } = frame else { panic!("{frame:?}") };
            self.received.push(payload);
        }
        if let (Some(window), false) = (&mut self.window, lost) {
            let (frames, repaired) = window.acknowledge(self.arrivals.next(), self.arrivals.repaired(), false);
            self.losses.acknowledged(frames, repaired);
        }
    }
}

proptest! {
    #[test]
    fn each_message_leaves_once_and_in_order(steps in vec(step(), 0..400)) {
        let mut model = Model::default();
        for step in steps {
            model.run(step);
            prop_assert!(model.written.starts_with(&model.received));
        }
        // The stream brings everything in the end.
        for _ in 0..model.written.len() {
            model.run(Step::Stream);
        }
        model.take(false);
        prop_assert_eq!(&model.received, &model.written);
        prop_assert!(model.window.is_none_or(|window| window.is_empty()));
    }

    #[test]
    fn noise_in_datagrams_never_panics(datagrams in vec((0_u64..1 << 62, vec(0_u8..8, 0..80)), 0..40)) {
        let mut arrivals = Arrivals::default();
        for (first, frames) in datagrams {
            arrivals.repeated(first, frames.into());
            while arrivals.take_early().is_some() {}
            arrivals.stream_brings();
        }
    }
}

#[test]
fn a_lost_message_arrives_with_the_next_one() {
    let (mut window, losses, mut arrivals) = (Window::new(STREAM), Losses::default(), Arrivals::default());
    let read = |sent| match Datagram::read(sent) {
        Some(Datagram::Repeat { first, frames, .. }) => (first, frames),
        other => panic!("{other:?}"),
    };
    window.push(Some(message(0, 10).0));
    drop(window.newest(losses.measure(), ROOM));
    window.push(Some(message(1, 10).0));
    let (first, frames) = read(window.newest(losses.measure(), ROOM).unwrap());
    assert!(arrivals.repeated(first, frames), "the next one can leave now");
    for number in 0..2 {
        assert_eq!(arrivals.take_early(), Some(Frame::Message { payload: message(number, 10).1, compressed: false }));
    }
    assert_eq!((arrivals.next(), arrivals.repaired()), (2, 2));
}

#[test]
fn trailers_are_repeated_like_messages() {
    let mut window = Window::new(STREAM);
    window.push(Some(trailers_frame(&titan_proto::wire::Trailers::default())));
    let mut arrivals = Arrivals::default();
    let Some(Datagram::Repeat { first, frames, .. }) = Datagram::read(window.oldest(ROOM).unwrap()) else { panic!() };
    arrivals.repeated(first, frames);
    assert_eq!(arrivals.take_early(), Some(Frame::Trailers(Bytes::new())));
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_ignored() {
    let mut window = Window::new(STREAM);
    window.push(Some(message(0, 1).0));
    assert_eq!(window.acknowledge(2, 0, false), (0, 0));
    assert_eq!(window.acknowledge(1, u64::MAX, false), (1, 1));
    assert!(window.is_empty());
    assert_eq!(window.acknowledge(0, 0, true), (0, 0), "an older one came late");
    assert!(!window.take_wanted());
}

#[test]
fn what_is_kept_is_bounded_at_both_ends() {
    let (mut window, mut arrivals) = (Window::new(STREAM), Arrivals::default());
    for number in 0..10_000 {
        window.push(Some(message(number, 500).0));
        let Some(Datagram::Repeat { first, frames, .. }) = Datagram::read(window.oldest(ROOM).unwrap()) else {
            panic!()
        };
        arrivals.repeated(first, frames);
    }
    assert!(format!("{window:?}").len() < 200_000 && format!("{arrivals:?}").len() < 200_000);
}
