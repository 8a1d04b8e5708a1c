//! One direction of a path, as a machine without clock or packets: told when a packet of so many bytes enters, it says when it
//! arrives and whether it does so twice, or that it does not.
//!
//! A packet waits behind those before it, takes the time that its bits need at the link's rate, and then the delay. Whether it is
//! lost, held back or duplicated depends on the seed and on how many packets entered before it, and on nothing else: neither on
//! the clock nor on the queue, and none of the three on the others. A lost packet has taken its time on the link, as one that noise
//! destroyed; holding back and duplicating come after the link, and take none of its time.

use std::time::{Duration, Instant};

use crate::settings::{Loss, PathSettings, Reordering};

/// The queue before the link, in time at its rate: 100 ms is what home routers without queue management have at least, and the
/// bandwidth-delay product of a path across a continent.
const QUEUE: Duration = Duration::from_millis(100);
/// The queue at the least, in bytes: 16 full packets, so that slow links pass the ten packets of a first window (RFC 6928).
const LEAST_QUEUE_BYTES: f64 = 16.0 * 1500.0;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Arrives {
        at: Instant,
        /// When its copy does, if it has one.
        copy_at: Option<Instant>,
    },
    Lost,
    QueueFull,
}

/// One direction of a path.
#[derive(Debug)]
pub(super) struct Link {
    delay: Duration,
    bytes_per_s: Option<f64>,
    queue: Duration,
    /// When the last bit of what has been sent so far is on its way.
    free_at: Option<Instant>,
    loss: Losses,
    detours: Detours,
}

impl Link {
    /// With `seed`, the same packets are lost each time.
    pub(super) fn new(path: &PathSettings, seed: u64) -> Self {
        let bytes_per_s = path.rate_bits_per_s.map(|rate| rate / 8.0);
        let queue = bytes_per_s.map_or(Duration::ZERO, |rate| seconds(LEAST_QUEUE_BYTES / rate).max(QUEUE));
        let (loss, detours) = (Losses::new(path.loss, seed), Detours::new(path, seed));
        Self { delay: path.one_way_delay, bytes_per_s, queue, free_at: None, loss, detours }
    }

    /// A packet of so many bytes, its IP header included, enters at `now`.
    pub(super) fn send(&mut self, now: Instant, bytes: usize) -> Fate {
        // Drawn for every packet, so that the queue has no say in which are lost.
        let lost = self.loss.takes_next();
        let Detour { held_back, doubled } = self.detours.of_next();
        let sent_at = match self.bytes_per_s {
            None => now,
            Some(rate) => {
                let start = self.free_at.map_or(now, |free_at| free_at.max(now));
                let takes = seconds(bytes as f64 / rate);
                if start.duration_since(now) + takes > self.queue {
                    return Fate::QueueFull;
                }
                *self.free_at.insert(start + takes)
            }
        };
        if lost {
            return Fate::Lost;
        }
        let undisturbed = sent_at + self.delay;
        Fate::Arrives { at: undisturbed + held_back, copy_at: doubled.then_some(undisturbed) }
    }
}

/// Which packets are lost, one after the other.
#[derive(Debug)]
struct Losses {
    random: Random,
    process: Process,
}

#[derive(Debug)]
enum Process {
    Never,
    /// Each with this probability.
    Iid(f64),
    /// Gilbert-Elliott: in a burst, every packet is lost, outside of it none.
    Burst {
        begins: f64,
        ends: f64,
        lost: bool,
    },
}

impl Losses {
    fn new(loss: Loss, seed: u64) -> Self {
        let mut random = Random(seed);
        let process = match loss {
            Loss::None => Process::Never,
            Loss::Iid { percent } => Process::Iid(share(percent)),
            Loss::Burst { percent, mean_packets } => {
                let share = share(percent);
                let kept = 1.0 - share;
                // A burst of a mean of n packets ends after each with probability 1/n, and the share lost is
                // begins / (begins + ends). Where that wants more than a certain beginning, bursts are longer.
                let ends = 1.0 / mean_packets.max(1.0);
                let begins = share / kept * ends;
                let (begins, ends) = if begins > 1.0 { (1.0, kept / share) } else { (begins, ends) };
                Process::Burst { begins, ends, lost: random.share() < share }
            }
        };
        Self { random, process }
    }

    fn takes_next(&mut self) -> bool {
        let drawn = self.random.share();
        match &mut self.process {
            Process::Never => false,
            Process::Iid(share) => drawn < *share,
            Process::Burst { begins, ends, lost } => {
                let this = *lost;
                *lost = if this { drawn >= *ends } else { drawn < *begins };
                this
            }
        }
    }
}

/// What becomes of packets that are not lost, one after the other.
#[derive(Debug)]
struct Detours {
    random: Random,
    reordered: f64,
    by: Duration,
    doubled: f64,
}

struct Detour {
    held_back: Duration,
    doubled: bool,
}

impl Detours {
    /// Luck of its own: the same packets are lost with and without it.
    const SALT: u64 = 0x7265_6f72_6465_7221;

    fn new(path: &PathSettings, seed: u64) -> Self {
        let Reordering { percent, held_back } = path.reordering;
        let random = Random(seed ^ Self::SALT);
        Self { random, reordered: share(percent), by: held_back, doubled: share(path.duplicated_percent) }
    }

    fn of_next(&mut self) -> Detour {
        let (reordered, doubled) = (self.random.share() < self.reordered, self.random.share() < self.doubled);
        Detour { held_back: if reordered { self.by } else { Duration::ZERO }, doubled }
    }
}

/// SplitMix64. Written here since the packets that a seed loses may not change with the version of a crate.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// Of [0, 1), in steps of 2^-53.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn share(percent: f64) -> f64 {
    (percent / 100.0).clamp(0.0, 1.0)
}

/// Zero for what is no time, an hour for what is too much of it.
fn seconds(seconds: f64) -> Duration {
    const MOST: Duration = Duration::from_secs(3600);
    if seconds > 0.0 {
        Duration::try_from_secs_f64(seconds).map_or(MOST, |time| time.min(MOST))
    } else {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const NONE: PathSettings = PathSettings::NOTHING;

    /// Once.
    fn arrives(at: Instant) -> Fate {
        Fate::Arrives { at, copy_at: None }
    }

    fn lost(loss: Loss, seed: u64, packets: usize) -> Vec<bool> {
        let mut link = Link::new(&PathSettings { loss, ..NONE }, seed);
        let now = Instant::now();
        (0..packets).map(|_| link.send(now, 100) == Fate::Lost).collect()
    }

    fn share_of(lost: &[bool]) -> f64 {
        lost.iter().filter(|&&lost| lost).count() as f64 / lost.len() as f64
    }

    fn mean_burst(lost: &[bool]) -> f64 {
        let bursts = lost.split(|&lost| !lost).filter(|burst| !burst.is_empty());
        let (count, packets) = bursts.fold((0, 0), |(count, packets), burst| (count + 1, packets + burst.len()));
        packets as f64 / f64::from(count)
    }

    #[test]
    fn a_clean_path_only_delays() {
        let delay = Duration::from_millis(25);
        let mut link = Link::new(&PathSettings { one_way_delay: delay, ..NONE }, 1);
        let now = Instant::now();
        for at in [now, now, now + Duration::from_micros(3)] {
            assert_eq!(link.send(at, 1500), arrives(at + delay));
        }
    }

    #[test]
    fn the_share_asked_for_is_lost() {
        const PACKETS: usize = 200_000;
        for (percent, seed) in [(0.1, 1), (1.0, 2), (2.0, 3), (5.0, 4), (50.0, 5)] {
            let expected = percent / 100.0;
            let deviation = (expected * (1.0 - expected) / PACKETS as f64).sqrt();
            let iid = share_of(&lost(Loss::Iid { percent }, seed, PACKETS));
            assert!((iid - expected).abs() < 4.0 * deviation, "{percent} % asked for, {iid} lost");
            // Bursts of 3 spread the count by a factor of the root of five.
            let burst = share_of(&lost(Loss::Burst { percent, mean_packets: 3.0 }, seed, PACKETS));
            assert!((burst - expected).abs() < 4.0 * deviation * 5_f64.sqrt(), "{percent} % asked for, {burst} lost");
        }
        assert!(lost(Loss::Iid { percent: 100.0 }, 1, 1000).into_iter().all(|lost| lost));
        assert!(lost(Loss::Burst { percent: 100.0, mean_packets: 3.0 }, 1, 1000).into_iter().all(|lost| lost));
    }

    #[test]
    fn bursts_are_as_long_as_asked_for() {
        for mean_packets in [1.0, 3.0, 8.0] {
            let mean = mean_burst(&lost(Loss::Burst { percent: 2.0, mean_packets }, 7, 400_000));
            assert!((mean / mean_packets - 1.0).abs() < 0.05, "{mean_packets} asked for, {mean} found");
        }
        let alone = mean_burst(&lost(Loss::Iid { percent: 2.0 }, 7, 400_000));
        assert!((alone - 1.0 / 0.98).abs() < 0.02, "{alone}");
    }

    #[test]
    fn another_seed_loses_others() {
        let loss = Loss::Iid { percent: 5.0 };
        assert_ne!(lost(loss, 1, 1000), lost(loss, 2, 1000));
    }

    #[test]
    fn a_seed_loses_the_same_in_every_version() {
        let lost = lost(Loss::Iid { percent: 5.0 }, 1, 100);
        let numbers: Vec<usize> = (0..100).filter(|&at| lost[at]).collect();
        // By SplitMix64 written in another language.
        assert_eq!(numbers, [25, 28, 66, 67, 98]);
    }

    #[test]
    fn the_share_asked_for_is_held_back_and_the_share_asked_for_doubled() {
        const PACKETS: usize = 100_000;
        let held_back = Duration::from_millis(7);
        let (reordering, duplicated_percent) = (Reordering { percent: 20.0, held_back }, 5.0);
        let path = PathSettings { reordering, duplicated_percent, one_way_delay: Duration::from_millis(10), ..NONE };
        let mut link = Link::new(&path, 9);
        let now = Instant::now();
        let due = now + path.one_way_delay;
        let (mut late, mut copies, mut both) = (0_u32, 0_u32, 0_u32);
        for _ in 0..PACKETS {
            let Fate::Arrives { at, copy_at } = link.send(now, 100) else { panic!("nothing is lost") };
            assert!(at == due || at == due + held_back);
            assert!(copy_at.is_none_or(|copy| copy == due), "a copy is not held back");
            late += u32::from(at > due);
            copies += u32::from(copy_at.is_some());
            both += u32::from(at > due && copy_at.is_some());
        }
        let of_all = |count: u32| f64::from(count) / PACKETS as f64;
        // Four standard deviations.
        assert!((of_all(late) - 0.2).abs() < 0.0051, "{late}");
        assert!((of_all(copies) - 0.05).abs() < 0.0028, "{copies}");
        assert!((of_all(both) - 0.01).abs() < 0.0013, "each by itself: {both}");
    }

    #[test]
    fn what_the_queue_cannot_hold_is_dropped() {
        // 1 Mbit/s: 16 packets of 1500 bytes are the queue, and more than 100 ms.
        let mut link = Link::new(&PathSettings { rate_bits_per_s: Some(1e6), ..NONE }, 1);
        let now = Instant::now();
        let fates: Vec<Fate> = (0..18).map(|_| link.send(now, 1500)).collect();
        assert_eq!(fates[15], arrives(now + Duration::from_millis(16 * 12)));
        assert_eq!(fates[16..], [Fate::QueueFull; 2]);
        assert!(matches!(link.send(now + Duration::from_millis(12), 1500), Fate::Arrives { .. }));
    }

    fn loss() -> impl Strategy<Value = Loss> {
        let (percent, mean_packets) = (0.0..100.0, 0.0..20.0);
        prop_oneof![
            Just(Loss::None),
            percent.clone().prop_map(|percent| Loss::Iid { percent }),
            (percent, mean_packets).prop_map(|(percent, mean_packets)| Loss::Burst { percent, mean_packets }),
        ]
    }

    proptest! {
        #[test]
        fn neither_holding_back_nor_doubling_changes_which_are_lost(
            (loss, seed) in (loss(), any::<u64>()),
            (percent, duplicated_percent, held_us) in (0.0..=100.0, 0.0..=100.0, 0_u64..100_000),
        ) {
            let reordering = Reordering { percent, held_back: Duration::from_micros(held_us) };
            let mut link = Link::new(&PathSettings { loss, reordering, duplicated_percent, ..NONE }, seed);
            let mut twin = Link::new(&PathSettings { loss, ..NONE }, seed);
            let now = Instant::now();
            for _ in 0..300 {
                prop_assert_eq!(link.send(now, 100) == Fate::Lost, twin.send(now, 100) == Fate::Lost);
            }
        }

        #[test]
        fn order_and_rate_are_held_and_the_queue_has_no_say_in_losses(
            packets in proptest::collection::vec((0_u64..2_000, 20_usize..1500), 1..200),
            (loss, seed) in (loss(), any::<u64>()),
            (delay_us, rate) in (0_u64..300_000, proptest::option::of(1e4..1e9)),
        ) {
            let one_way_delay = Duration::from_micros(delay_us);
            let mut link = Link::new(&PathSettings { one_way_delay, loss, rate_bits_per_s: rate, ..NONE }, seed);
            let mut twin = Link::new(&PathSettings { loss, ..NONE }, seed);
            let begin = Instant::now();
            let (mut now, mut last, mut bytes_through) = (begin, begin, 0);
            for (gap_us, bytes) in packets {
                now += Duration::from_micros(gap_us);
                let lost_by_twin = twin.send(begin, 1) == Fate::Lost;
                match link.send(now, bytes) {
                    Fate::Arrives { at, copy_at } => {
                        prop_assert!(!lost_by_twin && copy_at.is_none());
                        prop_assert!(at >= last && at >= now + one_way_delay);
                        last = at;
                        bytes_through += bytes;
                        if let Some(rate) = rate {
                            // A nanosecond a packet is what the clock rounds off.
                            let took = (at - one_way_delay - begin).as_secs_f64() + 200e-9;
                            prop_assert!(bytes_through as f64 * 8.0 <= rate * took);
                        }
                    }
                    Fate::Lost => {
                        prop_assert!(lost_by_twin);
                        bytes_through += bytes;
                    }
                    Fate::QueueFull => prop_assert!(rate.is_some()),
                }
            }
        }
    }
}
