//! What came of it, in figures.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    account::Account,
    column::{Column, Ended},
    lines::ms,
    player::Side,
    screen::time,
};
use crate::args::demo::RoamingArgs;

/// The figures of both clients.
pub(super) struct Summary {
    args: RoamingArgs,
    /// As in [`Side::pair`].
    sides: [Figures; 2],
}

struct Figures {
    account: Account,
    whole: bool,
    ended: Option<Ended>,
    longest_gap: Option<Duration>,
    p99_gap: Option<Duration>,
}

impl Summary {
    pub(super) fn new(args: &RoamingArgs, columns: &[Column; 2], answer: &[&str]) -> Self {
        let sides = [0, 1].map(|at| {
            let column = &columns[at];
            Figures {
                account: column.account(answer),
                whole: column.is_whole(answer),
                ended: column.ended().cloned(),
                longest_gap: column.longest_gap(Instant::now()),
                p99_gap: column.p99_gap(),
            }
        });
        Self { args: args.clone(), sides }
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let [left, right] = Side::pair(self.args.openai).map(Side::label);
        let mut table = format!("{:<18}{left:<24}{right}\n", "");
        let mut row = |name: &str, cell: &dyn Fn(&Figures) -> String| {
            let [left, right] = self.sides.each_ref().map(cell);
            // Writing to a string cannot fail.
            let _ = writeln!(table, "{name:<18}{left:<24}{right}");
        };
        row("answer", &|figures| figures.outcome().to_owned());
        row("tokens", &|figures| format!("{} of {}", figures.account.received, self.args.tokens));
        row("lost, repeated", &|figures| format!("{}, {}", figures.account.lost, figures.account.repeated));
        let gap = |gap: Option<Duration>| gap.map_or_else(|| "–".to_owned(), time);
        row("longest gap", &|figures| gap(figures.longest_gap));
        row("p99 gap", &|figures| gap(figures.p99_gap));
        table.truncate(table.trim_end().len());
        table
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let RoamingArgs { rtt, loss, tokens, rate, seed, openai, client: _, json: _ } = &self.args;
        let mut all = json!({
            "done": true, "rtt_ms": rtt, "loss": loss.to_string(), "tokens": tokens, "tokens_per_second": rate, "seed": seed,
        });
        for (side, figures) in Side::pair(*openai).iter().zip(&self.sides) {
            all[side.name()] = figures.json();
        }
        all
    }

    /// An error where Titan did not do what is shown here.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        let ([_, titan], [_, side]) = (&self.sides, Side::pair(self.args.openai));
        match &titan.ended {
            _ if titan.whole => Ok(()),
            Some(Ended::Broke(error)) => anyhow::bail!("the answer {} broke off: {error}", side.way()),
            _ => anyhow::bail!("the answer {} is not what the agents said: {}", side.way(), titan.outcome()),
        }
    }
}

impl Figures {
    fn outcome(&self) -> &'static str {
        match self.ended {
            _ if self.whole => "whole, each token once",
            Some(Ended::Complete) => "complete, but not right",
            Some(Ended::Broke(_)) => "broke off",
            Some(Ended::Silent) | None => "silent, given up",
        }
    }

    fn json(&self) -> Value {
        let Account { received, lost, repeated } = self.account;
        let (ended, error) = match &self.ended {
            Some(Ended::Complete) => ("complete", None),
            Some(Ended::Broke(error)) => ("broke-off", Some(error)),
            Some(Ended::Silent) | None => ("silent", None),
        };
        json!({
            "whole": self.whole, "ended": ended, "error": error, "tokens": received, "lost": lost, "repeated": repeated,
            "longest_gap_ms": self.longest_gap.map(ms), "p99_gap_ms": self.p99_gap.map(ms),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use titan_agent::engine::synthetic::word;

    use super::*;
    use crate::{
        args::{Cli, Command, demo::DemoCommand},
        commands::demo::player::What,
    };

    /// gRPC that broke off after ten tokens, and QUIC with these tokens and this end.
    fn summary(quic: impl IntoIterator<Item = u32>, end: Result<(), String>) -> Summary {
        use clap::Parser as _;
        let cli = Cli::try_parse_from("titan demo roaming --tokens 40 --rate 20".split(' ')).unwrap();
        let Command::Demo(DemoCommand::Roaming(args)) = cli.command else { panic!("another command") };
        let (now, interval) = (Instant::now(), Duration::from_millis(50));
        let mut columns = [Column::new(interval), Column::new(interval)];
        (0..10).for_each(|index| columns[0].hears(What::Text(word(index).to_owned()), now + interval * index));
        columns[0].hears(What::Ends(Err("gone".to_owned())), now);
        quic.into_iter().for_each(|index| columns[1].hears(What::Text(word(index).to_owned()), now + interval * index));
        columns[1].hears(What::Ends(end), now);
        let answer: Vec<&str> = (0..args.tokens).map(word).collect();
        Summary::new(&args, &columns, &answer)
    }

    #[test]
    fn a_whole_answer_over_quic_is_a_success() {
        let summary = summary(0..40, Ok(()));
        summary.verdict().unwrap();
        let table = summary.table();
        for part in ["broke off", "whole, each token once", "10 of 40", "40 of 40", "50 ms"] {
            assert!(table.contains(part), "{part:?} is not in\n{table}");
        }
        let json = summary.json();
        assert_eq!((&json["grpc"]["error"], &json["quic"]["whole"]), (&json!("gone"), &json!(true)));
    }

    #[test]
    fn anything_else_over_quic_is_a_failure() {
        for (tokens, end, says) in [
            (0..39, Ok(()), "complete, but not right"),
            (1..40, Ok(()), "complete, but not right"),
            (0..20, Err("no agent".to_owned()), "broke off: no agent"),
        ] {
            let message = summary(tokens, end).verdict().unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }
}
