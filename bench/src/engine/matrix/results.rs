//! Medians over rounds and ratios within them, pure.

use std::{collections::BTreeSet, time::Instant};

use serde::Serialize;

use super::{Contender, Timing, Tokens};
use crate::{report::Table, stats::median};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Measure {
    /// Tokens/s of an answer to a short prompt.
    ShortPrompt,
    /// Tokens/s behind a prompt of so many tokens.
    Generation { context: u32 },
    /// Tokens/s of two answers to short prompts together.
    TwoAtOnce,
    /// Seconds to the first token of a prompt of so many tokens that nobody has seen before.
    FirstToken { context: u32 },
    /// Seconds to the first token of turn 2, behind a turn with a prompt of so many tokens.
    NextTurn { context: u32 },
}

impl Measure {
    /// In the table's order.
    pub(super) fn all(contexts: &[u32]) -> Vec<Self> {
        let of = |measure: fn(u32) -> Self| contexts.iter().map(move |&context| measure(context));
        let mut all = vec![Self::ShortPrompt];
        all.extend(of(|context| Self::Generation { context }));
        all.push(Self::TwoAtOnce);
        all.extend(of(|context| Self::FirstToken { context }));
        all.extend(of(|context| Self::NextTurn { context }));
        all
    }

    fn label(self) -> String {
        match self {
            Self::ShortPrompt => "tokens/s, short prompt".to_owned(),
            Self::Generation { context } => format!("tokens/s behind {context}"),
            Self::TwoAtOnce => "tokens/s, two at once".to_owned(),
            Self::FirstToken { context } => format!("first token s, {context} new"),
            Self::NextTurn { context } => format!("first token s, turn 2 behind {context}"),
        }
    }
}

/// One value of one round.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Reading {
    pub(super) round: u32,
    pub(super) contender: Contender,
    pub(super) measure: Measure,
    pub(super) value: f64,
    /// Of the answer, or of the first of two.
    pub(super) tokens: Tokens,
}

/// One measure over the rounds that have all contenders.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Comparison {
    pub(super) measure: Measure,
    pub(super) rounds: usize,
    pub(super) results: Vec<ContenderResult>,
}

/// One contender's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ContenderResult {
    pub(super) contender: Contender,
    pub(super) median: f64,
    /// Those of the last round.
    pub(super) tokens: Tokens,
    /// The median of its value by llama.cpp's in the same round; `None` where llama.cpp was not measured.
    pub(super) to_llama: Option<f64>,
}

impl Comparison {
    fn of(&self, contender: Contender) -> Option<&ContenderResult> {
        self.results.iter().find(|result| result.contender == contender)
    }

    /// `300`, or `300 to 304` where the engines count differently.
    fn prompt_tokens(&self) -> String {
        let counts: BTreeSet<u32> = self.results.iter().map(|result| result.tokens.prompt).collect();
        match (counts.first(), counts.last()) {
            (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
            (Some(one), _) => one.to_string(),
            _ => String::new(),
        }
    }
}

/// Each measure of `contexts` that was measured, by all of `contenders`, in at least one round.
pub(super) fn compare(readings: &[Reading], contexts: &[u32], contenders: &[Contender]) -> Vec<Comparison> {
    let compared = Measure::all(contexts).into_iter().filter_map(|measure| {
        let find = |contender, round| {
            readings
                .iter()
                .find(|reading| reading.measure == measure && reading.contender == contender && reading.round == round)
        };
        let rounds: BTreeSet<u32> = readings.iter().map(|reading| reading.round).collect();
        let complete = |round: &u32| contenders.iter().all(|&contender| find(contender, *round).is_some());
        let rounds: Vec<u32> = rounds.into_iter().filter(complete).collect();
        let results = contenders.iter().filter_map(|&contender| {
            let own: Vec<&Reading> = rounds.iter().filter_map(|&round| find(contender, round)).collect();
            let values: Vec<f64> = own.iter().map(|reading| reading.value).collect();
            let llama = rounds.iter().filter_map(|&round| find(Contender::Llama, round));
            let ratios: Vec<f64> = values.iter().zip(llama).map(|(own, llama)| own / llama.value).collect();
            Some(ContenderResult {
                contender,
                median: median(&values),
                tokens: own.last()?.tokens,
                to_llama: (!ratios.is_empty()).then(|| median(&ratios)),
            })
        });
        let results: Vec<ContenderResult> = results.collect();
        (!results.is_empty()).then_some(Comparison { measure, rounds: rounds.len(), results })
    });
    compared.collect()
}

/// One row for each measure.
pub(super) fn table(comparisons: &[Comparison], contenders: &[Contender]) -> Table {
    let rounds = comparisons.iter().map(|comparison| comparison.rounds).min().unwrap_or(0);
    let mut header = vec![format!("median of {rounds} rounds"), "prompt tokens".to_owned()];
    header.extend(contenders.iter().map(|contender| contender.label().to_owned()));
    let others = || contenders.iter().copied().filter(|&contender| contender != Contender::Llama);
    if contenders.contains(&Contender::Llama) {
        header.extend(others().map(|contender| format!("{}, to llama.cpp", contender.label())));
    }
    let mut table = Table::new(header);
    for comparison in comparisons {
        let mut row = vec![comparison.measure.label(), comparison.prompt_tokens()];
        let median = |contender| comparison.of(contender).map(|result| format!("{:.2}", result.median));
        row.extend(contenders.iter().map(|&contender| median(contender).unwrap_or_default()));
        let ratio = |contender| comparison.of(contender).and_then(|result| result.to_llama);
        row.extend(others().filter_map(ratio).map(|ratio| format!("{ratio:.2}")));
        table.row(row);
    }
    table
}

/// Tokens/s of answers that came at the same time: from the first text of any to the last text of any. The first text of each is no
/// step of that time.
pub(super) fn tokens_per_second_together(answers: &[(Timing, Tokens)]) -> f64 {
    let times = |at: fn(&Timing) -> Instant| answers.iter().map(move |(timing, _)| at(timing));
    let (Some(first), Some(last)) = (times(|timing| timing.first).min(), times(|timing| timing.last).max()) else {
        return f64::NAN;
    };
    let tokens: u32 = answers.iter().map(|(_, tokens)| tokens.completion.saturating_sub(1)).sum();
    f64::from(tokens) / (last - first).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ALL: [Contender; 3] = [Contender::MistralAlone, Contender::Agent, Contender::Llama];
    const TOKENS: Tokens = Tokens { prompt: 300, cached: None, completion: 64 };

    fn reading(round: u32, contender: Contender, measure: Measure, value: f64) -> Reading {
        Reading { round, contender, measure, value, tokens: TOKENS }
    }

    /// mistral.rs has half of llama.cpp's speed, the agent a little less, on a machine that is slower in some rounds.
    fn readings(rounds: u32) -> Vec<Reading> {
        let of_round = |round: u32| {
            let speed = 60.0 / f64::from(1 + round % 3);
            let measures = [Measure::ShortPrompt, Measure::Generation { context: 300 }];
            measures.into_iter().flat_map(move |measure| {
                let values = [speed * 0.5, speed * 0.49, speed];
                ALL.into_iter().zip(values).map(move |(contender, value)| reading(round, contender, measure, value))
            })
        };
        (1..=rounds).flat_map(of_round).collect()
    }

    #[test]
    fn contenders_are_compared_within_their_round() {
        let comparisons = compare(&readings(5), &[300, 1000], &ALL);
        assert_eq!(comparisons.len(), 2, "what was not measured is left out");
        for comparison in &comparisons {
            let ratios: Vec<Option<f64>> = comparison.results.iter().map(|result| result.to_llama).collect();
            assert_eq!((comparison.rounds, ratios), (5, vec![Some(0.5), Some(0.49), Some(1.0)]));
        }
    }

    #[test]
    fn a_round_that_was_broken_off_is_left_out() {
        let mut readings = readings(3);
        readings.pop();
        let rounds: Vec<usize> = compare(&readings, &[300], &ALL).iter().map(|comparison| comparison.rounds).collect();
        assert_eq!(rounds, [3, 2]);
        assert!(compare(&readings[..2], &[300], &ALL).is_empty());
    }

    #[test]
    fn the_table_has_medians_and_ratios() {
        let table = table(&compare(&readings(3), &[300], &ALL), &ALL).markdown();
        for part in ["median of 3 rounds", "tokens/s behind 300", "through the agent, to llama.cpp", " 0.49 |"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }

    #[test]
    fn without_llama_there_are_no_columns_of_it() {
        let two = &ALL[..2];
        let table = table(&compare(&readings(3), &[300], two), two).markdown();
        assert!(table.contains("mistral.rs alone"), "{table}");
        assert!(!table.contains("llama"), "{table}");
    }

    #[test]
    fn every_context_has_its_rows() {
        let labels: Vec<String> = Measure::all(&[300, 1000]).into_iter().map(Measure::label).collect();
        assert_eq!(labels.len(), 8);
        assert_eq!(labels.iter().collect::<BTreeSet<_>>().len(), 8);
    }

    #[test]
    fn two_answers_at_once_count_together() {
        let start = Instant::now();
        let answer = |first_ms, last_ms, completion| {
            let at = |ms| start + Duration::from_millis(ms);
            let timing = Timing { start, first: at(first_ms), last: at(last_ms), text: String::new() };
            (timing, Tokens { completion, ..TOKENS })
        };
        let speed = tokens_per_second_together(&[answer(100, 1000, 11), answer(200, 1100, 11)]);
        assert!((speed - 20.0).abs() < 1e-9, "{speed}");
    }
}
