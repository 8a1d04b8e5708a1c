//! The self-test: Titan over QUIC measured twice under two names must show no difference.

use std::collections::BTreeMap;

use super::{
    aggregate::{Data, Value},
    estimate::{CONFIDENCE, Estimate, Spread},
    measure::Measure,
};
use crate::{net::subject::Subject, stats::median};

/// One measure of the second against the first.
#[derive(Clone, Debug)]
pub(super) struct Twin {
    pub(super) measure: Measure,
    /// Second by first, of each pair; `n` is the number of pairs.
    pub(super) ratio: Estimate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    NotMeasured,
    /// Every interval holds 1.
    Alike,
    /// As far as can be seen: some measures have too few pairs for an interval.
    TooFew,
    Differ,
}

/// Those that are compared: one of each kind, since those of a kind go together.
const COMPARED: [Measure; 9] = [
    Measure::TtftCold,
    Measure::TtftResumed,
    Measure::TtftWarm,
    Measure::GapP99,
    Measure::LatenessP50,
    Measure::BytesPerToken,
    Measure::PacketsPerToken,
    Measure::CpuServer,
    Measure::CpuClient,
];

/// Pairs are the two of the same run, repetition and setting.
pub(super) fn compare(data: &Data) -> Vec<Twin> {
    let pairs = COMPARED.map(|measure| (measure, ratios(data, measure)));
    let measured = pairs.iter().filter(|(_, ratios)| !ratios.is_empty()).count();
    // One verdict over all: with 95 % for each, every third run of nine measures would find a difference where there is none.
    let confidence = 1.0 - (1.0 - CONFIDENCE) / measured.max(1) as f64;
    let twin = |(measure, ratios): (Measure, Vec<f64>)| {
        Some(Twin { measure, ratio: Estimate::with_confidence(&ratios, confidence)? })
    };
    pairs.into_iter().filter_map(twin).collect()
}

pub(super) fn verdict(twins: &[Twin]) -> Verdict {
    match twins {
        [] => Verdict::NotMeasured,
        twins if twins.iter().any(Twin::differs) => Verdict::Differ,
        twins if twins.iter().all(|twin| twin.ratio.spread == Spread::Interval) => Verdict::Alike,
        _ => Verdict::TooFew,
    }
}

impl Twin {
    /// With the confidence that the verdict has.
    pub(super) fn differs(&self) -> bool {
        self.ratio.spread == Spread::Interval && !self.holds_one()
    }

    fn holds_one(&self) -> bool {
        (self.ratio.low..=self.ratio.high).contains(&1.0)
    }
}

fn ratios(data: &Data, measure: Measure) -> Vec<f64> {
    let of = |subject, at: usize| data.values.get(&(subject, at, measure)).map(|values| by_repetition(values));
    let mut ratios = Vec::new();
    for at in 0..data.settings.len() {
        let (Some(first), Some(second)) = (of(Subject::TitanQuic, at), of(Subject::TitanQuicAgain, at)) else {
            continue;
        };
        for (repetition, first) in &first {
            let ratio = second.get(repetition).map_or(f64::NAN, |second| second / first);
            if ratio.is_finite() {
                ratios.push(ratio);
            }
        }
    }
    ratios
}

/// The median of each run and repetition.
pub(super) fn by_repetition(values: &[Value]) -> BTreeMap<(usize, u32), f64> {
    let mut by_repetition: BTreeMap<(usize, u32), Vec<f64>> = BTreeMap::new();
    for value in values {
        by_repetition.entry((value.run, value.repetition)).or_default().push(value.value);
    }
    by_repetition.into_iter().map(|(repetition, values)| (repetition, median(&values))).collect()
}
