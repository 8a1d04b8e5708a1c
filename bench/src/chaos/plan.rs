//! What is tried: combinations, their paths and their moments. Pure.

use std::{fmt, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use titan_emulator::{Loss, PathSettings, Reordering};

use super::args::ChaosArgs;

/// Clients, each on a path of its own, that share the streams.
pub(super) const LANES: u8 = 10;
/// A continent. Short enough that much happens during a stream.
const ONE_WAY: Duration = Duration::from_millis(20);
const LOSS: Loss = Loss::Iid { percent: 3.0 };
/// Longer than two tokens are apart, so that whole messages overtake each other.
const REORDERING: Reordering = Reordering { percent: 10.0, held_back: Duration::from_millis(45) };
const DUPLICATED_PERCENT: f64 = 5.0;
/// Beside QUIC, gRPC is tried where it is hardest, with fewer streams: it has no redundancy, so that there is less to go wrong.
const GRPC_STREAMS_SHARE: u32 = 5;
/// The combinations of a quick run, by number: the worst path with nothing else, each event alone, and both.
const QUICK: [u32; 4] = [21, 22, 23, 24];

/// What a path does, beside taking time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Trouble {
    pub(super) loss: bool,
    pub(super) reordering: bool,
    pub(super) duplication: bool,
}

/// All but those that hardly differ: what loses or reorders seldom duplicates.
const TROUBLES: [Trouble; 6] = [
    Trouble { loss: false, reordering: false, duplication: false },
    Trouble { loss: true, reordering: false, duplication: false },
    Trouble { loss: false, reordering: true, duplication: false },
    Trouble { loss: false, reordering: false, duplication: true },
    Trouble { loss: true, reordering: true, duplication: false },
    Trouble { loss: true, reordering: true, duplication: true },
];

/// What happens in the middle of the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Happening {
    /// All clients have another address, and the one that they had is gone.
    AddressChange,
    /// The agent that most streams come from is killed; there is another.
    AgentDeath,
}

/// None, each alone, and both in turn.
const HAPPENINGS: [&[Happening]; 4] =
    [&[], &[Happening::AddressChange], &[Happening::AgentDeath], &[Happening::AddressChange, Happening::AgentDeath]];

/// What the streams go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Over {
    Quic,
    Grpc,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Trial {
    pub(super) number: u32,
    pub(super) over: Over,
    pub(super) trouble: Trouble,
    pub(super) happenings: &'static [Happening],
    pub(super) streams: u32,
    pub(super) seed: u64,
}

/// What was asked for.
pub(super) fn trials(args: &ChaosArgs) -> Vec<Trial> {
    let all = all(args.seed, args.streams);
    let wanted = |number| match (args.quick, args.only.as_slice()) {
        (true, _) => QUICK.contains(&number),
        (false, []) => true,
        (false, only) => only.contains(&number),
    };
    all.into_iter().filter(|trial| wanted(trial.number)).collect()
}

/// 24 over QUIC, and the worst four paths again over gRPC.
fn all(seed: u64, streams: u32) -> Vec<Trial> {
    let over_quic = TROUBLES.into_iter().flat_map(|trouble| HAPPENINGS.map(|happenings| (trouble, happenings)));
    let worst = TROUBLES[TROUBLES.len() - 1];
    let over_grpc = HAPPENINGS.map(|happenings| (worst, happenings));
    let trial = |number, over, (trouble, happenings), streams| {
        // Far enough apart that no lane of one has the luck of a lane of another.
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number) * 1009);
        Trial { number, over, trouble, happenings, streams, seed }
    };
    let quic = (1..).zip(over_quic).map(|(number, what)| trial(number, Over::Quic, what, streams));
    let fewer = (streams / GRPC_STREAMS_SHARE).max(1);
    let first = (TROUBLES.len() * HAPPENINGS.len()) as u32 + 1;
    let grpc = (first..).zip(over_grpc).map(|(number, what)| trial(number, Over::Grpc, what, fewer));
    quic.chain(grpc).collect()
}

impl Trial {
    /// Of every lane.
    pub(super) fn path(&self) -> PathSettings {
        let Trouble { loss, reordering, duplication } = self.trouble;
        PathSettings {
            one_way_delay: ONE_WAY,
            loss: if loss { LOSS } else { Loss::None },
            reordering: if reordering { REORDERING } else { Reordering::NONE },
            duplicated_percent: if duplication { DUPLICATED_PERCENT } else { 0.0 },
            ..PathSettings::NOTHING
        }
    }

    /// When things happen, as a share of a stream's length: somewhere in its middle, one well after the other.
    pub(super) fn script(&self) -> Vec<(f64, Happening)> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let moments = match self.happenings.len() {
            0 | 1 => [random.random_range(0.2..0.8), 1.0],
            _ => [random.random_range(0.2..0.4), random.random_range(0.55..0.8)],
        };
        moments.into_iter().zip(self.happenings.iter().copied()).collect()
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trouble { loss, reordering, duplication } = self.trouble;
        let over = match self.over {
            Over::Quic => "QUIC",
            Over::Grpc => "gRPC",
        };
        let mut parts = Vec::new();
        parts.extend(loss.then_some("loss"));
        parts.extend(reordering.then_some("reordering"));
        parts.extend(duplication.then_some("duplication"));
        parts.extend(self.happenings.iter().map(|happening| match happening {
            Happening::AddressChange => "address change",
            Happening::AgentDeath => "agent death",
        }));
        if parts.is_empty() {
            parts.push("nothing");
        }
        write!(out, "{} {over}: {}", self.number, parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn there_are_24_different_combinations_over_quic_and_four_over_grpc() {
        let all = all(1, 100);
        let quic: Vec<&Trial> = all.iter().filter(|trial| trial.over == Over::Quic).collect();
        assert_eq!((quic.len(), all.len()), (24, 28));
        for (at, trial) in all.iter().enumerate() {
            assert_eq!(trial.number as usize, at + 1);
            let twins = all.iter().filter(|other| {
                (other.over, other.trouble, other.happenings) == (trial.over, trial.trouble, trial.happenings)
            });
            assert_eq!(twins.count(), 1, "{trial}");
            assert_eq!(trial.streams, if trial.over == Over::Quic { 100 } else { 20 });
        }
        for part in ["loss", "reordering", "duplication", "address change", "agent death"] {
            let with = quic.iter().filter(|trial| trial.to_string().contains(part)).count();
            assert!((4..=12).contains(&with), "{part} is in {with} of 24");
        }
    }

    #[test]
    fn a_seed_fixes_paths_and_moments() {
        let (same, again, other) = (all(7, 10), all(7, 10), all(8, 10));
        assert_eq!(same, again);
        for (at, trial) in same.iter().enumerate() {
            assert_eq!(trial.script(), again[at].script());
            let script = trial.script();
            assert!(
                script.iter().all(|(share, _)| (0.2..0.8).contains(share))
                    && script.is_sorted_by_key(|(share, _)| *share)
            );
            assert_eq!(script.iter().map(|(_, what)| *what).collect::<Vec<_>>(), trial.happenings);
            if !trial.happenings.is_empty() {
                assert_ne!(script, other[at].script());
            }
        }
        let mut seeds: Vec<u64> =
            same.iter().flat_map(|trial| (0..u64::from(LANES)).map(|lane| trial.seed + lane)).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 28 * usize::from(LANES));
    }

    #[test]
    fn some_can_be_chosen() {
        use clap::Parser as _;
        let chosen = |line: &str| {
            let args = ChaosArgs::try_parse_from(line.split(' ')).unwrap();
            trials(&args).into_iter().map(|trial| trial.number).collect::<Vec<_>>()
        };
        assert_eq!(chosen("chaos --only 3,25"), [3, 25]);
        assert_eq!(chosen("chaos --quick"), QUICK);
        assert_eq!(chosen("chaos").len(), 28);
    }
}
