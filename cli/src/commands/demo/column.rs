//! What one of the two clients has shown so far: pure.

use std::time::{Duration, Instant};

use super::{
    account::{Account, account},
    player::What,
};

/// A silence of so many intervals between two tokens is called a stall: shorter ones nobody notices.
const STALL_INTERVALS: u32 = 5;

/// One client's answer.
#[derive(Debug)]
pub(super) struct Column {
    interval: Duration,
    pieces: Vec<String>,
    gaps: Vec<Duration>,
    last_at: Option<Instant>,
    agent: Option<String>,
    ended: Option<Ended>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its last token came.
    Complete,
    /// The client got an error.
    Broke(String),
    /// Nothing came any more, and nobody said why.
    Silent,
}

impl Column {
    /// Of an answer with a token every `interval`.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, pieces: Vec::new(), gaps: Vec::new(), last_at: None, agent: None, ended: None }
    }

    /// The client heard something.
    pub(super) fn hears(&mut self, what: What, at: Instant) {
        match what {
            What::Begins { agent } | What::GoesOn { agent } => self.agent = Some(agent),
            What::Text(text) => {
                self.gaps.extend(self.last_at.map(|last| at.saturating_duration_since(last)));
                self.last_at = Some(at);
                self.pieces.push(text);
            }
            What::Ends(Ok(())) => self.ended = Some(Ended::Complete),
            What::Ends(Err(error)) => self.ended = Some(Ended::Broke(error)),
        }
    }

    /// Nobody waits for it any longer. Its silence counts as a gap.
    pub(super) fn give_up(&mut self, now: Instant) {
        if self.ended.is_none() {
            self.gaps.extend(self.last_at.map(|last| now.saturating_duration_since(last)));
            self.ended = Some(Ended::Silent);
        }
    }

    /// The agent that it comes from, once it does.
    pub(super) fn agent(&self) -> Option<&str> {
        self.agent.as_deref()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// All of its text.
    pub(super) fn text(&self) -> String {
        self.pieces.concat()
    }

    /// Pieces that came.
    pub(super) fn received(&self) -> usize {
        self.pieces.len()
    }

    /// When the last one came.
    pub(super) fn last_at(&self) -> Option<Instant> {
        self.last_at
    }

    /// How long nothing has come, where that is long and more is to come.
    pub(super) fn stalled(&self, now: Instant) -> Option<Duration> {
        let silent = now.saturating_duration_since(self.last_at?);
        (self.ended.is_none() && silent > self.interval * STALL_INTERVALS).then_some(silent)
    }

    /// Between two tokens, or since the last one, if that is longer already.
    pub(super) fn longest_gap(&self, now: Instant) -> Option<Duration> {
        self.gaps.iter().copied().chain(self.stalled(now)).max()
    }

    /// 99 of 100 gaps are not longer.
    pub(super) fn p99_gap(&self) -> Option<Duration> {
        let mut sorted = self.gaps.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * 99).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied()
    }

    /// Compared with the whole answer.
    pub(super) fn account(&self, answer: &[&str]) -> Account {
        account(&self.pieces, answer)
    }

    /// Whether it is the whole answer, each token once.
    pub(super) fn is_whole(&self, answer: &[&str]) -> bool {
        self.ended == Some(Ended::Complete) && self.text() == answer.concat()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(50);

    fn heard(moments_ms: impl IntoIterator<Item = u64>) -> (Column, Instant) {
        let (mut column, start) = (Column::new(INTERVAL), Instant::now());
        for (index, ms) in moments_ms.into_iter().enumerate() {
            column.hears(What::Text(format!("{index} ")), start + Duration::from_millis(ms));
        }
        (column, start)
    }

    #[test]
    fn gaps_are_between_tokens() {
        let (column, start) = heard((0..200).map(|index| index * 50 + if index >= 100 { 950 } else { 0 }));
        assert_eq!(column.longest_gap(start), Some(Duration::from_millis(1000)));
        assert_eq!(column.p99_gap(), Some(INTERVAL));
        assert_eq!(heard([7]).0.longest_gap(start), None);
        assert_eq!(heard([]).0.p99_gap(), None);
        assert_eq!(heard([0, 30]).0.p99_gap(), Some(Duration::from_millis(30)));
    }

    #[test]
    fn a_silence_is_a_stall_until_the_end() {
        let (mut column, start) = heard([0, 50]);
        assert_eq!(column.stalled(start + Duration::from_millis(250)), None);
        let later = start + Duration::from_millis(1050);
        assert_eq!(column.stalled(later), Some(Duration::from_secs(1)));
        assert_eq!(column.longest_gap(later), Some(Duration::from_secs(1)));
        let mut given_up = heard([0, 50]).0;
        given_up.give_up(given_up.last_at().unwrap() + Duration::from_secs(8));
        assert_eq!(given_up.longest_gap(later), Some(Duration::from_secs(8)));
        column.hears(What::Ends(Err("lost".to_owned())), start + Duration::from_secs(2));
        assert_eq!(column.stalled(start + Duration::from_secs(3)), None);
        column.give_up(start + Duration::from_secs(9));
        assert_eq!(column.ended(), Some(&Ended::Broke("lost".to_owned())), "it had ended already");
    }

    #[test]
    fn an_answer_is_whole_when_it_has_ended_and_is_the_same() {
        let answer = ["0 ", "1 ", "2 "];
        let (mut column, start) = heard([0, 50, 100]);
        assert!(!column.is_whole(&answer));
        column.hears(What::Ends(Ok(())), start);
        assert!(column.is_whole(&answer) && !column.is_whole(&["0 ", "1 "]));
    }
}
