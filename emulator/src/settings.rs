//! What a path does to packets.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// What a lane does to packets, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PathSettings {
    /// From one host to the other, beside the time that the bits take on the link.
    pub one_way_delay: Duration,
    /// Packets that never arrive.
    pub loss: Loss,
    /// `None`: unlimited.
    pub rate_bits_per_s: Option<f64>,
    /// UDP packets are lost, all of them.
    pub udp_blocked: bool,
    /// Packets that are overtaken.
    pub reordering: Reordering,
    /// Of the packets that arrive, so many percent arrive twice; the copy is not held back by [`reordering`](Self::reordering).
    pub duplicated_percent: f64,
}

impl PathSettings {
    /// Packets arrive at once.
    pub const NOTHING: Self = Self {
        one_way_delay: Duration::ZERO,
        loss: Loss::None,
        rate_bits_per_s: None,
        udp_blocked: false,
        reordering: Reordering::NONE,
        duplicated_percent: 0.0,
    };
}

/// Packets that are held back, so that those behind them arrive before them. As with [`Loss::Iid`] each is chosen by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reordering {
    /// Of all packets.
    pub percent: f64,
    /// Beside the delay of the path. A packet is overtaken by those that are sent within this time after it.
    pub held_back: Duration,
}

impl Reordering {
    /// Packets arrive in the order in which they were sent.
    pub const NONE: Self = Self { percent: 0.0, held_back: Duration::ZERO };
}

/// Packets that never arrive, in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model", rename_all = "snake_case")]
pub enum Loss {
    /// All arrive.
    None,
    /// Each packet with the same probability.
    Iid {
        /// Of all packets.
        percent: f64,
    },
    /// Gilbert-Elliott: as many in all, but in bursts of so many packets on average.
    Burst {
        /// Of all packets.
        percent: f64,
        /// Lost one after the other.
        mean_packets: f64,
    },
}

impl fmt::Display for Loss {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => out.write_str("0 %"),
            Self::Iid { percent } => write!(out, "{percent} %"),
            Self::Burst { percent, mean_packets } => write!(out, "{percent} % in bursts of {mean_packets}"),
        }
    }
}

/// As command lines write it.
impl FromStr for Loss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no loss: percent from 0 to 50, as 1 or 0.5, or with the length of bursts, as 5x3");
        let (percent, burst) = match text.split_once('x') {
            Some((percent, burst)) => (percent, Some(burst)),
            None => (text, None),
        };
        let percent: f64 = percent.parse().ok().filter(|percent| (0.0..=50.0).contains(percent)).ok_or_else(wrong)?;
        match burst {
            None if percent == 0.0 => Ok(Self::None),
            None => Ok(Self::Iid { percent }),
            Some(burst) => {
                let mean_packets = burst.parse().ok().filter(|mean| (1.0..=100.0).contains(mean)).ok_or_else(wrong)?;
                if percent == 0.0 { Err(wrong()) } else { Ok(Self::Burst { percent, mean_packets }) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn losses_are_read() {
        assert_eq!("0".parse(), Ok(Loss::None));
        assert_eq!("0.1".parse(), Ok(Loss::Iid { percent: 0.1 }));
        assert_eq!("5x3".parse(), Ok(Loss::Burst { percent: 5.0, mean_packets: 3.0 }));
        for wrong in ["", "x", "-1", "51", "5x", "5x0", "0x3", "NaN", "1%"] {
            assert!(wrong.parse::<Loss>().unwrap_err().contains("5x3"), "{wrong}");
        }
    }
}
