//! What keeps a stream flowing, part by part: each can be switched off by name, so that its effect can be measured.

use std::{fmt, str::FromStr};

/// A part of the client that makes text start sooner or flow smoother. PROTOCOL.md has a section for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// Messages that the other end may not have yet travel again with the next ones.
    Redundancy,
    /// QUIC tuned for a thin stream: a floor under the congestion window, the path's round-trip time known from the start.
    ThinStream,
    /// Requests travel as early data (0-RTT) where a session can be resumed.
    EarlyData,
    /// Sessions are kept on disk, so that a new process starts with 0-RTT too. Needs [`Builder::sessions`](crate::Builder::sessions).
    StoredSessions,
    /// The client notices that the network has changed and moves its connections there.
    Migration,
    /// An answer whose connection is lost goes on over a new one.
    Resume,
    /// An answer whose agent is lost goes on at another agent.
    Move,
    /// The prompt goes to the coordinator too, which lets the agent begin with it before the client has connected. Off by default.
    PrefillAhead,
    /// The first packets of a connection and of a request are sent twice.
    RepeatFirst,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Redundancy,
        Self::ThinStream,
        Self::EarlyData,
        Self::StoredSessions,
        Self::Migration,
        Self::Resume,
        Self::Move,
        Self::PrefillAhead,
        Self::RepeatFirst,
    ];

    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redundancy => "redundancy",
            Self::ThinStream => "thin-stream",
            Self::EarlyData => "early-data",
            Self::StoredSessions => "stored-sessions",
            Self::Migration => "migration",
            Self::Resume => "resume",
            Self::Move => "move",
            Self::PrefillAhead => "prefill-ahead",
            Self::RepeatFirst => "repeat-first",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|feature| feature.as_str() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.into_iter().map(Self::as_str).collect();
            format!("no feature is called {name:?}; there are {}", names.join(", "))
        })
    }
}

/// Which features are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features(u16);

impl Default for Features {
    fn default() -> Self {
        let mut features = Self(0);
        Feature::ALL
            .into_iter()
            .filter(|&feature| feature != Feature::PrefillAhead)
            .for_each(|f| features.set(f, true));
        features
    }
}

impl Features {
    pub(crate) fn has(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u16 != 0
    }

    pub(crate) fn set(&mut self, feature: Feature, on: bool) {
        let bit = 1 << feature as u16;
        if on { self.0 |= bit } else { self.0 &= !bit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_found_by_its_name() {
        for feature in Feature::ALL {
            assert_eq!(feature.as_str().parse(), Ok(feature));
        }
        assert!("redundanc".parse::<Feature>().is_err_and(|error| error.contains("redundancy, thin-stream")));
    }

    #[test]
    fn features_are_switched_one_by_one() {
        let mut features = Features::default();
        features.set(Feature::Move, false);
        assert!(!features.has(Feature::Move) && features.has(Feature::Resume) && !features.has(Feature::PrefillAhead));
        features.set(Feature::Move, true);
        assert_eq!(features, Features::default());
    }
}
