//! `titan usage`: what was generated, and for whom.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::Path,
    time::SystemTime,
};

use anyhow::Context as _;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use titan_coord::usage::{self, Line, Outcome};

use super::status::table;
use crate::{
    args::keys::{By, UsageArgs},
    places,
};

/// What stands for requests that showed no key.
const NO_KEY: &str = "-";

/// What was used together.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Total {
    requests: u64,
    completed: u64,
    cancelled: u64,
    failed: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
}

impl Total {
    fn add(&mut self, line: &Line) {
        self.requests += 1;
        *match line.outcome {
            Outcome::Completed => &mut self.completed,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::Failed => &mut self.failed,
        } += 1;
        self.prompt_tokens += line.prompt_tokens;
        self.cached_tokens += line.cached_tokens;
        self.completion_tokens += line.completion_tokens;
    }
}

pub(super) fn usage(args: &UsageArgs) -> anyhow::Result<()> {
    let path = args.log.clone().map_or_else(places::usage_log, Ok)?;
    let since = args.since.and_then(|time| SystemTime::now().checked_sub(time)).map(OffsetDateTime::from);
    let (totals, spoilt) = add_up(&path, since, args.by)?;
    if spoilt > 0 {
        tracing::warn!(lines = spoilt, path = %path.display(), "lines that are none of a usage log were left out");
    }
    let text = if args.json { serde_json::to_string(&totals)? + "\n" } else { rows(&totals, args.by) };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn add_up(path: &Path, since: Option<OffsetDateTime>, by: By) -> anyhow::Result<(BTreeMap<String, Total>, usize)> {
    let mut totals = BTreeMap::<String, Total>::new();
    let spoilt = usage::read(path, |line| {
        let at = OffsetDateTime::parse(&line.at, &Rfc3339).ok();
        // A time that cannot be read is left in: better once too much than a bill that lacks something.
        if since.zip(at).is_none_or(|(since, at)| at >= since) {
            totals.entry(name(&line, by)).or_default().add(&line);
        }
    });
    let spoilt = spoilt.with_context(|| {
        format!(
            "cannot read the usage log {}: --log names another one; it is where the coordinator runs",
            path.display()
        )
    })?;
    Ok((totals, spoilt))
}

fn name(line: &Line, by: By) -> String {
    match by {
        By::Key => line.key_name.clone().or_else(|| line.key.clone()).unwrap_or_else(|| NO_KEY.to_owned()),
        By::Model => line.model.clone(),
        By::Agent => line.agent.clone(),
        By::Client => line.client_id.clone(),
    }
}

fn rows(totals: &BTreeMap<String, Total>, by: By) -> String {
    if totals.is_empty() {
        return "Nothing was generated in that time.\n".to_owned();
    }
    let what = match by {
        By::Key => "KEY",
        By::Model => "MODEL",
        By::Agent => "AGENT",
        By::Client => "CLIENT",
    };
    let head = [what, "REQUESTS", "COMPLETED", "CANCELLED", "FAILED", "PROMPT", "CACHED", "COMPLETION"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(totals.iter().map(|(name, total)| {
        let Total { requests, completed, cancelled, failed, prompt_tokens, cached_tokens, completion_tokens } = total;
        let numbers = [requests, completed, cancelled, failed, prompt_tokens, cached_tokens, completion_tokens];
        std::iter::once(name.clone()).chain(numbers.map(|number| number.to_string())).collect()
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn line(id: &str, at: &str, key: Option<&str>, outcome: Outcome) -> String {
        let line = Line {
            at: at.to_owned(),
            id: id.to_owned(),
            key: key.map(|_| "01234567".to_owned()),
            key_name: key.map(str::to_owned),
            client_id: "me".to_owned(),
            model: "m".to_owned(),
            agent: "agent-1".to_owned(),
            job: "job".to_owned(),
            prompt_tokens: 10,
            cached_tokens: 4,
            completion_tokens: 5,
            ttft_ms: 1,
            duration_ms: 2,
            outcome,
        };
        serde_json::to_string(&line).unwrap()
    }

    #[test]
    fn it_is_added_up_by_what_was_asked_for_and_since_when() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("usage.jsonl");
        let lines = [
            line("1", "2026-01-01T00:00:00Z", Some("alice"), Outcome::Completed),
            line("1", "2026-01-01T00:00:00Z", Some("alice"), Outcome::Completed),
            line("2", "2026-01-03T00:00:00Z", Some("alice"), Outcome::Cancelled),
            line("3", "2026-01-03T00:00:00Z", None, Outcome::Failed),
            "no line".to_owned(),
        ];
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        let (totals, spoilt) = add_up(&path, None, By::Key).unwrap();
        assert_eq!((totals["alice"].requests, totals["alice"].cancelled, totals["-"].failed, spoilt), (2, 1, 1, 1));
        assert_eq!((totals["alice"].prompt_tokens, totals["alice"].completion_tokens), (20, 10));
        let since = OffsetDateTime::parse("2026-01-02T00:00:00Z", &Rfc3339).unwrap();
        let (totals, _) = add_up(&path, Some(since), By::Model).unwrap();
        assert_eq!(totals["m"].requests, 2);
        assert!(rows(&totals, By::Model).starts_with("MODEL  REQUESTS"));
        let error = add_up(&dir.path().join("none"), None, By::Key).unwrap_err().to_string();
        assert!(error.contains("--log"), "{error}");
    }
}
