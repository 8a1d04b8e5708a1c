//! Subjects against mistral.rs alone, round by round, pure.

use serde::Serialize;

use super::{Sample, Subject};
use crate::{
    report::Table,
    stats::{Interval, median, median_interval},
};

/// The orders of three subjects, so that none always follows the same one.
pub(super) const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 2, 1], [1, 0, 2]];
/// Share of mistral.rs' speed that the agent keeps at least.
const WITHIN: f64 = 0.98;
const CONFIDENCE: f64 = 0.95;

/// One subject over all rounds that are complete.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Comparison {
    pub(super) subject: Subject,
    pub(super) rounds: usize,
    pub(super) tokens: u32,
    // Medians.
    pub(super) decode_tokens_per_second: f64,
    /// The fastest round: others on the machine only ever slow a run down, so this is the least disturbed one.
    pub(super) best_decode_tokens_per_second: f64,
    pub(super) total_tokens_per_second: f64,
    pub(super) first_token_s: f64,
    pub(super) cpu_s_per_thousand_tokens: f64,
    /// Decoding speed by that of mistral.rs alone in the same round. `None` for mistral.rs itself.
    pub(super) ratio: Option<Ratio>,
}

/// Ratios of pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Ratio {
    pub(super) decode: f64,
    /// `None` where there are too few rounds to say.
    pub(super) decode_interval: Option<Interval>,
    pub(super) total: f64,
    pub(super) cpu: f64,
    pub(super) verdict: Verdict,
}

/// Whether the decoding speed is within 2 % of mistral.rs alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The whole interval is.
    Within,
    /// The median is, the interval reaches below: more rounds, or a quieter machine, would tell.
    ProbablyWithin,
    /// The median is not, the interval reaches above.
    ProbablyNot,
    /// None of the interval is.
    Not,
}

impl Comparison {
    pub(super) fn label(&self) -> &'static str {
        match self.subject {
            Subject::MistralAlone => "mistral.rs alone",
            Subject::MistralAgain => "mistral.rs again (self-test)",
            Subject::AgentGrpc => "agent, gRPC",
            Subject::AgentQuic => "agent, QUIC",
        }
    }

    /// Nothing speaks against its being within 2 %, and the rounds suffice to say so.
    pub(super) fn is_within(&self) -> bool {
        self.ratio.as_ref().is_none_or(|ratio| ratio.verdict == Verdict::Within)
    }
}

impl Verdict {
    fn of(decode: f64, interval: Option<Interval>) -> Self {
        match (decode >= WITHIN, interval) {
            (true, Some(interval)) if interval.low >= WITHIN => Self::Within,
            (true, _) => Self::ProbablyWithin,
            (false, Some(interval)) if interval.high < WITHIN => Self::Not,
            (false, _) => Self::ProbablyNot,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Within => "yes",
            Self::ProbablyWithin => "probably",
            Self::ProbablyNot => "probably not",
            Self::Not => "no",
        }
    }
}

/// One comparison for each subject, mistral.rs alone first. Rounds that lack a subject are left out.
pub(super) fn compare(samples: &[Sample]) -> Vec<Comparison> {
    let of = |subject: Subject| samples.iter().filter(move |sample| sample.subject == subject);
    let all = [Subject::MistralAlone, Subject::AgentGrpc, Subject::AgentQuic, Subject::MistralAgain];
    let subjects: Vec<Subject> = all.into_iter().filter(|&subject| of(subject).next().is_some()).collect();
    let find = |subject, round| of(subject).find(|sample| sample.round == round);
    let rounds: Vec<u32> = of(Subject::MistralAlone)
        .map(|sample| sample.round)
        .filter(|&round| subjects.iter().all(|&subject| find(subject, round).is_some()))
        .collect();
    if rounds.is_empty() {
        return Vec::new();
    }
    let base: Vec<&Sample> = rounds.iter().filter_map(|&round| find(Subject::MistralAlone, round)).collect();
    let compared = subjects.into_iter().map(|subject| {
        let own: Vec<&Sample> = rounds.iter().filter_map(|&round| find(subject, round)).collect();
        let of_own = |value: fn(&Sample) -> f64| median(&own.iter().map(|sample| value(sample)).collect::<Vec<_>>());
        let ratios = |value: fn(&Sample) -> f64| -> Vec<f64> {
            own.iter().zip(&base).map(|(own, base)| value(own) / value(base)).collect()
        };
        let decode = ratios(|sample| sample.decode_tokens_per_second);
        let ratio = (subject != Subject::MistralAlone).then(|| {
            let interval = median_interval(&decode, CONFIDENCE);
            Ratio {
                decode: median(&decode),
                decode_interval: interval,
                total: median(&ratios(|sample| sample.total_tokens_per_second)),
                cpu: median(&ratios(|sample| sample.cpu_s / f64::from(sample.tokens.max(1)))),
                verdict: Verdict::of(median(&decode), interval),
            }
        });
        Comparison {
            subject,
            rounds: rounds.len(),
            tokens: own.iter().map(|sample| sample.tokens).max().unwrap_or(0),
            decode_tokens_per_second: of_own(|sample| sample.decode_tokens_per_second),
            best_decode_tokens_per_second: own.iter().map(|own| own.decode_tokens_per_second).fold(0.0, f64::max),
            total_tokens_per_second: of_own(|sample| sample.total_tokens_per_second),
            first_token_s: of_own(|sample| sample.first_token_s),
            cpu_s_per_thousand_tokens: of_own(|sample| sample.cpu_s * 1000.0 / f64::from(sample.tokens.max(1))),
            ratio,
        }
    });
    compared.collect()
}

/// One row for each subject.
pub(super) fn table(comparisons: &[Comparison]) -> Table {
    let rounds = comparisons.first().map_or(0, |comparison| comparison.rounds);
    let mut table = Table::new([
        &format!("median of {rounds} rounds"),
        "decode tokens/s",
        "best round",
        "total tokens/s",
        "first token ms",
        "CPU s/1000 tokens",
        "decode, to alone",
        "95 %",
        "total, to alone",
        "CPU, to alone",
        "within 2 %",
    ]);
    for comparison in comparisons {
        let ratio = |value: fn(&Ratio) -> f64| {
            comparison.ratio.as_ref().map_or_else(|| "1".to_owned(), |ratio| format!("{:.4}", value(ratio)))
        };
        let interval = match &comparison.ratio {
            None => String::new(),
            Some(Ratio { decode_interval: Some(interval), .. }) => {
                format!("{:.4} to {:.4}", interval.low, interval.high)
            }
            Some(_) => "too few rounds".to_owned(),
        };
        table.row([
            comparison.label().to_owned(),
            format!("{:.2}", comparison.decode_tokens_per_second),
            format!("{:.2}", comparison.best_decode_tokens_per_second),
            format!("{:.2}", comparison.total_tokens_per_second),
            format!("{:.1}", comparison.first_token_s * 1e3),
            format!("{:.1}", comparison.cpu_s_per_thousand_tokens),
            ratio(|ratio| ratio.decode),
            interval,
            ratio(|ratio| ratio.total),
            ratio(|ratio| ratio.cpu),
            comparison.ratio.as_ref().map_or("", |ratio| ratio.verdict.words()).to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sample(subject: Subject, round: u32, decode_tokens_per_second: f64) -> Sample {
        Sample {
            round,
            subject,
            tokens: 64,
            first_token_s: 0.5,
            total_s: 2.5,
            decode_tokens_per_second,
            total_tokens_per_second: decode_tokens_per_second * 0.8,
            cpu_s: 4.0,
            text: String::new(),
        }
    }

    fn samples(rounds: u32, share: f64) -> Vec<Sample> {
        let of_round = |round| {
            // The machine is up to three times slower in some rounds: pairs do not mind.
            let speed = 30.0 / f64::from(1 + round % 3);
            [
                sample(Subject::MistralAlone, round, speed),
                sample(Subject::AgentGrpc, round, speed),
                sample(Subject::AgentQuic, round, speed * share),
            ]
        };
        (1..=rounds).flat_map(of_round).collect()
    }

    fn verdict(samples: &[Sample]) -> Verdict {
        let comparison =
            compare(samples).into_iter().find(|comparison| comparison.subject == Subject::AgentQuic).unwrap();
        comparison.ratio.unwrap().verdict
    }

    #[test]
    fn subjects_are_compared_within_their_round() {
        assert_eq!(verdict(&samples(9, 0.99)), Verdict::Within);
        assert_eq!(verdict(&samples(9, 0.97)), Verdict::Not);
    }

    #[test]
    fn few_rounds_leave_a_doubt() {
        assert_eq!(verdict(&samples(3, 0.99)), Verdict::ProbablyWithin);
        assert_eq!(verdict(&samples(3, 0.97)), Verdict::ProbablyNot);
        assert!(!compare(&samples(3, 0.99))[2].is_within());
    }

    #[test]
    fn a_round_that_was_broken_off_is_left_out() {
        let mut samples = samples(7, 1.0);
        samples.pop();
        assert!(compare(&samples).iter().all(|comparison| comparison.rounds == 6));
        assert!(compare(&samples[..2]).iter().all(|comparison| comparison.rounds == 1), "no QUIC at all");
        assert!(compare(&[]).is_empty());
    }

    #[test]
    fn the_table_has_a_row_for_each_subject() {
        let table = table(&compare(&samples(9, 0.99))).markdown();
        for part in ["mistral.rs alone", "agent, gRPC", "agent, QUIC", "0.9900", "yes"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }
}
