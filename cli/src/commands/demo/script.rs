//! What happens, and when: pure.

use std::time::Duration;

/// Something that happens to the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cue {
    /// Their host gets another address, and the old one is gone.
    AddressChanges,
    /// The agent that both stream from is killed.
    AgentDies,
}

impl Cue {
    /// For people.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::AddressChanges => "the client's address changes",
            Self::AgentDies => "the agent is killed",
        }
    }

    /// For programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AddressChanges => "address-changed",
            Self::AgentDies => "agent-killed",
        }
    }
}

/// What is still to come, in order, counted from the beginning of the answers.
#[derive(Debug)]
pub(super) struct Script(Vec<(Duration, Cue)>);

impl Script {
    /// For answers that take so long on a perfect network.
    pub(super) fn new(length: Duration) -> Self {
        // The last first.
        Self(vec![(length.mul_f64(0.8), Cue::AgentDies), (length.mul_f64(0.5), Cue::AddressChanges)])
    }

    /// When the next is due.
    pub(super) fn due(&self) -> Option<Duration> {
        self.0.last().map(|(due, _)| *due)
    }

    /// The next, which is then done.
    pub(super) fn next(&mut self) -> Option<Cue> {
        self.0.pop().map(|(_, cue)| cue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_changes_half_way_and_the_agent_dies_near_the_end() {
        let mut script = Script::new(Duration::from_secs(10));
        assert_eq!((script.due(), script.next()), (Some(Duration::from_secs(5)), Some(Cue::AddressChanges)));
        assert_eq!((script.due(), script.next()), (Some(Duration::from_secs(8)), Some(Cue::AgentDies)));
        assert_eq!((script.due(), script.next()), (None, None));
    }
}
