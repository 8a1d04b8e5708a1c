//! `titan status` and `titan models`: what a coordinator knows.

use std::{collections::BTreeMap, fmt::Write as _, io::Write as _, time::Duration};

use anyhow::Context as _;
use titan_proto::{
    rest::{ModelInfo, OFFLINE, Status},
    v1,
};

use super::Outcome;
use crate::{
    args::{AskArgs, StatusArgs},
    rest::Rest,
    terminal::one_line,
    trust,
};

/// Between two looks with `--watch`: agents report every 10 s, and at once when something changes.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Home, and all behind it cleared: what was there is written over without a flicker.
const CLEAR: &str = "\x1b[H\x1b[J";

pub(super) async fn status(args: StatusArgs) -> anyhow::Result<Outcome> {
    let rest = open(&args.ask).await?;
    loop {
        let status = rest.status().await?;
        let text = if args.ask.json { json(&status)? } else { agents(&status) };
        let clear = if args.watch && !args.ask.json { CLEAR } else { "" };
        print(&format!("{clear}{text}"))?;
        if !args.watch {
            return Ok(Outcome::Done);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

pub(super) async fn models(args: AskArgs) -> anyhow::Result<Outcome> {
    let served = served(&open(&args).await?.status().await?);
    let text = if args.json { json(&served.values().collect::<Vec<_>>())? } else { table(&model_rows(&served)) };
    print(&text)?;
    Ok(Outcome::Done)
}

async fn open(args: &AskArgs) -> anyhow::Result<Rest> {
    let key = args.key.api_key.as_deref();
    let tls = trust::client_with_key(&args.identity, key, &args.coordinator).await?;
    let rest = Rest::new(&args.coordinator, tls.as_ref(), key)?;
    rest.require().await?;
    Ok(rest)
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

/// A model, and how many agents that are there serve it.
#[derive(Debug, serde::Serialize)]
struct Served {
    agents: usize,
    #[serde(flatten)]
    info: ModelInfo,
}

fn served(status: &Status) -> BTreeMap<String, Served> {
    let mut served = BTreeMap::<String, Served>::new();
    for agent in status.agents.iter().flatten().filter(|agent| agent.status != OFFLINE) {
        for name in &agent.supported_models {
            let known = agent.model_info.iter().find(|info| info.name == *name).cloned();
            let unknown = || v1::ModelInfo { name: name.clone(), ..v1::ModelInfo::default() }.into();
            let model =
                served.entry(name.clone()).or_insert_with(|| Served { agents: 0, info: known.unwrap_or_else(unknown) });
            model.agents += 1;
        }
    }
    served
}

fn model_rows(served: &BTreeMap<String, Served>) -> Vec<Vec<String>> {
    let mut rows =
        vec![words(&["MODEL", "AGENTS", "ARCHITECTURE", "PARAMETERS", "TYPE", "CONTEXT", "TOOLS", "REASONING"])];
    for (name, Served { agents, info }) in served {
        let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
        rows.push(vec![
            name.clone(),
            agents.to_string(),
            known(&info.architecture),
            millions(info.parameters),
            known(&info.quantization),
            if info.context_tokens > 0 { info.context_tokens.to_string() } else { "?".to_owned() },
            yes(info.tools),
            yes(info.reasoning),
        ]);
    }
    rows
}

fn agents(status: &Status) -> String {
    let mut text = format!("{} agents, {} of them healthy\n", status.total_agents, status.healthy_agents);
    let mut rows = vec![words(&["AGENT", "STATUS", "JOBS", "QUEUED", "FREE VRAM", "FREE RAM", "RTT", "MODELS"])];
    for agent in status.agents.iter().flatten() {
        rows.push(vec![
            agent.id.clone(),
            agent.status.clone(),
            format!("{}/{}", agent.running_jobs, agent.max_jobs),
            agent.queued_jobs.to_string(),
            gibibytes(agent.free_vram_mb, agent.total_vram_mb),
            gibibytes(agent.free_ram_mb, agent.total_ram_mb),
            format!("{:.1} ms", agent.rtt_ms),
            agent.supported_models.join(" "),
        ]);
    }
    if rows.len() > 1 {
        text.push_str(&table(&rows));
    }
    for agent in status.agents.iter().flatten() {
        if let Some(reason) = &agent.health_reason {
            // Writing into a string does not fail.
            let _ = writeln!(text, "{}: {}", one_line(&agent.id), one_line(reason));
        }
    }
    text
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn known(text: &str) -> String {
    if text.is_empty() { "?".to_owned() } else { text.to_owned() }
}

fn millions(parameters: i64) -> String {
    match parameters {
        ..=0 => "?".to_owned(),
        1..1_000_000_000 => format!("{:.0}M", parameters as f64 / 1e6),
        _ => format!("{:.1}B", parameters as f64 / 1e9),
    }
}

fn gibibytes(free_mb: i64, total_mb: i64) -> String {
    if total_mb <= 0 {
        "-".to_owned()
    } else {
        format!("{:.1}/{:.1} GiB", free_mb as f64 / 1024.0, total_mb as f64 / 1024.0)
    }
}

/// Columns as wide as their widest cell.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    // What agents say of themselves is not for the terminal to obey.
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(at, cell)| format!("{cell:<width$}", width = width(at).unwrap_or(0)));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [words(&["A", "LONG"]), words(&["äöü", "b"])];
        assert_eq!(table(&rows), "A    LONG\näöü  b\n");
        assert_eq!(table(&[words(&["a\x1b[2J\nb", "c"])]), "a\\u{1b}[2J\\nb  c\n");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!([0, 134_515_008, 7_600_000_000].map(millions), ["?", "135M", "7.6B"]);
        assert_eq!(gibibytes(512, 2048), "0.5/2.0 GiB");
        assert_eq!(gibibytes(0, 0), "-");
    }
}
