//! What came of the trials, as a table.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    plan::Trial,
    verdict::{Ended, Heard, Verdict, verdict},
};
use crate::report::Table;

/// One row.
#[derive(Clone, Debug, Serialize)]
pub(super) struct TrialResult {
    trial: Trial,
    whole: usize,
    /// Of those that are whole, the ones that came from more than one agent.
    moved: usize,
    /// How many ended with which kind of error.
    failed: BTreeMap<&'static str, usize>,
    /// How long after their last text they did, the quickest and the slowest of each kind, in seconds.
    failed_after_s: BTreeMap<&'static str, [f64; 2]>,
    /// What the first of each kind said.
    errors: BTreeMap<&'static str, String>,
    lost: u32,
    repeated: u32,
    /// What is wrong with each stream that is.
    wrong: Vec<String>,
    /// From the first token of the last stream to the end of all.
    seconds: f64,
}

impl TrialResult {
    /// Of streams that had so many tokens each.
    pub(super) fn new(trial: &Trial, tokens: u32, took: Duration, streams: &[Heard]) -> Self {
        let mut result = Self {
            trial: trial.clone(),
            whole: 0,
            moved: 0,
            failed: BTreeMap::new(),
            failed_after_s: BTreeMap::new(),
            errors: BTreeMap::new(),
            lost: 0,
            repeated: 0,
            wrong: Vec::new(),
            seconds: took.as_secs_f64(),
        };
        for heard in streams {
            match verdict(heard, tokens) {
                Verdict::Whole => {
                    result.whole += 1;
                    result.moved += usize::from(heard.agents.len() > 1);
                }
                Verdict::Failed(kind) => *result.failed.entry(kind).or_default() += 1,
                Verdict::Wrong(fault) => {
                    result.lost += fault.lost;
                    result.repeated += fault.repeated;
                    let what = fault.what.unwrap_or_default();
                    let (lost, repeated, agents) = (fault.lost, fault.repeated, heard.agents.join(", then "));
                    result.wrong.push(format!("{trial}: {lost} lost, {repeated} repeated {what} (from {agents})"));
                }
            }
            if let Ended::Failed { kind, message } = &heard.ended {
                result.errors.entry(kind).or_insert_with(|| message.clone());
                let silence = heard.silence.as_secs_f64();
                let [quickest, slowest] = result.failed_after_s.entry(kind).or_insert([silence; 2]);
                (*quickest, *slowest) = (quickest.min(silence), slowest.max(silence));
            }
        }
        result
    }

    /// What is wrong with each stream that is.
    pub(super) fn wrong(&self) -> impl Iterator<Item = &str> {
        self.wrong.iter().map(String::as_str)
    }
}

/// For people.
pub(super) fn table(results: &[TrialResult]) -> Table {
    let mut table =
        Table::new(["combination", "streams", "whole", "of them moved", "lost", "repeated", "wrong", "s", "errors"]);
    for result in results {
        let errors = result.failed.iter().map(|(kind, count)| match result.failed_after_s.get(kind) {
            Some([quickest, slowest]) => format!("{count} {kind} after {quickest:.1} to {slowest:.1} s"),
            None => format!("{count} {kind}"),
        });
        table.row([
            result.trial.to_string(),
            result.trial.streams.to_string(),
            result.whole.to_string(),
            result.moved.to_string(),
            result.lost.to_string(),
            result.repeated.to_string(),
            result.wrong.len().to_string(),
            format!("{:.1}", result.seconds),
            errors.collect::<Vec<_>>().join(", "),
        ]);
    }
    table
}
