//! The same as Markdown: the summary, docs/BENCHMARKS.md, and the few figures of the README.

use super::{
    Table,
    estimate::Estimate,
    fairness,
    format::{DASH, median_of, more, number, spread_of},
    glance::{Column, Glance},
    goals,
    html::Contents,
    notes,
    tables::Grid,
};
use crate::net::subject::Subject;

/// Of figures, beside the names.
const TABLE_COLUMNS: usize = 7;

/// For the screen and `summary.md`.
pub(super) fn summary(contents: &Contents) -> String {
    let mut parts = warnings(contents);
    // Two tables: one of all figures is wider than a terminal, and than a page.
    let all: Vec<&Column> = contents.glance.columns.iter().collect();
    for part in all.chunks(TABLE_COLUMNS) {
        parts.push(figures(&contents.glance, part, |column| column.short).markdown());
    }
    parts.push(format!("{}\n{}", contents.glance.networks, contents.glance.costs));
    parts.push("Where Titan loses:".to_owned());
    parts.push(behind(contents, false));
    parts.push("Goals:".to_owned());
    parts.push(goals_of(contents, false));
    parts.extend(shares(contents));
    parts.push(format!("Self-test: {}", notes::self_test(&contents.twins)));
    parts.extend(skipped(contents));
    parts.extend(contents.data.runs.iter().map(|run| run.environment.summary()));
    parts.join("\n\n") + "\n"
}

/// `docs/BENCHMARKS.md`; `plots` is where the plots lie, from there.
pub(super) fn document(contents: &Contents, plots: &str) -> String {
    let all: Vec<&Column> = contents.glance.columns.iter().collect();
    let mut parts = vec![
        "# Benchmarks".to_owned(),
        "Tokens of a language model on their way to a reader: TitanCompute beside what users would pick instead, over emulated networks. \
         Written by `titan-bench net --publish`; nothing here is typed by hand. What routing a request costs: [ROUTING.md](ROUTING.md)."
            .to_owned(),
    ];
    parts.extend(warnings(contents).into_iter().map(|warning| format!("> **{warning}**")));
    parts.push("## At a glance".to_owned());
    parts.push(
        "Medians; less is better everywhere. Intervals are in the [CSV](benchmarks/summary.csv) and in the plots. A dash: not measured."
            .to_owned(),
    );
    for part in all.chunks(TABLE_COLUMNS) {
        parts.push(figures(&contents.glance, part, |column| column.name).markdown());
    }
    parts.push(format!("{}\n{}", contents.glance.networks, contents.glance.costs));
    parts.push("## Where Titan loses".to_owned());
    parts.push(behind(contents, true));
    parts.push("## Goals".to_owned());
    parts.push(goals::CAPTION.to_owned());
    parts.push(goals_of(contents, true));
    parts.extend(shares(contents).map(|shares| format!("## A bulk flow beside\n\n{shares}")));
    for figure in &contents.figures {
        parts.push(format!("## {}", figure.title));
        parts.push(escape(&figure.caption));
        parts.push(format!("![{}]({plots}/{}.svg)", figure.title, figure.name));
    }
    if !contents.grids.is_empty() {
        parts.push("## One dimension at a time".to_owned());
        parts.extend(contents.grids.iter().flat_map(grid));
    }
    parts.push("## Trust".to_owned());
    parts.push(format!("Self-test: {} {}", notes::self_test(&contents.twins), notes::SELF_TEST_METHOD));
    if !contents.twins.is_empty() {
        let mut table = Table::new(["second by first", "median", "low", "high", "pairs"]);
        for twin in &contents.twins {
            let ratio = &twin.ratio;
            let digits = |value: f64| format!("{value:.3}");
            table.row([
                twin.measure.title().to_owned(),
                digits(ratio.median),
                digits(ratio.low),
                digits(ratio.high),
                ratio.n.to_string(),
            ]);
        }
        parts.push(table.markdown());
    }
    let marked: Vec<String> = contents
        .data
        .checks
        .iter()
        .filter_map(|check| {
            Some(format!("- {}: {}", super::format::network(&check.conditions), escape(check.marked.as_deref()?)))
        })
        .collect();
    parts.push(format!(
        "The emulated path was checked {} times by ping and a UDP flow; {} checks were off.",
        contents.data.checks.len(),
        marked.len()
    ));
    if !marked.is_empty() {
        parts.push(marked.join("\n"));
    }
    parts.extend(failures(contents));
    parts.extend(skipped(contents));
    parts.push("## How and where it was measured".to_owned());
    parts.push(notes::METHOD.map(|(term, text)| format!("- **{term}**: {text}")).join("\n"));
    let settings = notes::settings(&contents.data);
    parts.push(
        settings
            .iter()
            .map(|(who, note)| format!("- {}: {}", who.label(), escape(note)))
            .collect::<Vec<_>>()
            .join("\n"),
    );
    for run in &contents.data.runs {
        parts.push(
            notes::facts(run)
                .iter()
                .map(|(name, value)| format!("- {name}: {}", escape(value)))
                .collect::<Vec<_>>()
                .join("\n"),
        );
    }
    parts.join("\n\n") + "\n"
}

/// For the README: whole columns of figures that answer "is it faster".
pub(super) fn headline(contents: &Contents) -> String {
    const COLUMNS: [&str; 6] = [
        "RTTs to first token, cold",
        "RTTs to first token, resumed",
        "RTTs to first token, warm",
        "p99 gap at 1 % loss, token intervals",
        "p99 gap at 5 % loss, token intervals",
        "stalled at 5 % loss, % of time",
    ];
    let columns: Vec<&Column> =
        contents.glance.columns.iter().filter(|column| COLUMNS.contains(&column.name)).collect();
    figures(&contents.glance, &columns, |column| column.name).markdown()
}

fn warnings(contents: &Contents) -> Vec<String> {
    contents.warnings.iter().map(|warning| escape(warning)).collect()
}

/// What would end a cell or become markup.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ")
}

fn figures(glance: &Glance, columns: &[&Column], name: impl Fn(&Column) -> &'static str) -> Table {
    let mut table = Table::new(std::iter::once("").chain(columns.iter().map(|column| name(column))));
    for (at, subject) in glance.subjects.iter().enumerate() {
        let figures = columns.iter().map(|column| median_of(column.cells.get(at).and_then(Option::as_ref)));
        table.row(std::iter::once(subject.label().to_owned()).chain(figures));
    }
    table
}

/// `everyone`: with all that are better, beside the best.
fn behind(contents: &Contents, everyone: bool) -> String {
    if contents.behind.is_empty() {
        return notes::behind_nowhere(contents.glance.subjects.contains(&Subject::TitanQuic)).to_owned();
    }
    let mut head = vec!["figure", "Titan needs", "Titan QUIC", "the best", "which is"];
    if everyone {
        head.push("also better");
    }
    let mut table = Table::new(head);
    let mut doubts = false;
    for row in &contents.behind {
        let Some((best, theirs)) = row.better.first() else { continue };
        doubts |= !row.is_sure();
        let value = |estimate: &Estimate| format!("{} ({})", number(estimate.median), spread_of(estimate));
        let doubt = if row.is_sure() { "" } else { "\\*" };
        let mut cells = vec![
            row.figure.to_owned(),
            format!("{}{doubt}", more(row.ours.median, theirs.median)),
            value(&row.ours),
            value(theirs),
            best.label().to_owned(),
        ];
        if everyone {
            let others: Vec<&str> = row.better.iter().skip(1).map(|(subject, _)| subject.label()).collect();
            cells.push(if others.is_empty() { DASH.to_owned() } else { others.join(" · ") });
        }
        table.row(cells);
    }
    let doubt = if doubts { format!("\n\n\\* {}.", notes::DOUBT) } else { String::new() };
    format!("{}\n\n{}{doubt}", notes::BEHIND, table.markdown())
}

/// `notes`: with what was tried where a goal is not met.
fn goals_of(contents: &Contents, notes: bool) -> String {
    let mut head = vec!["", "goal", "Titan QUIC", "beside", "met"];
    if notes {
        head.push("what was tried");
    }
    let mut table = Table::new(head);
    for goal in &contents.goals {
        let shown = |figure: &goals::Figure| match figure.shown() {
            [main, small] if small.is_empty() => main,
            [main, small] => format!("{main} ({small})"),
        };
        let mut cells = vec![
            goal.name.clone(),
            goal.goal.to_owned(),
            escape(&shown(&goal.titan)),
            escape(&shown(&goal.beside)),
            goal.verdict().said().to_owned(),
        ];
        if notes {
            cells.push(escape(goal.note()));
        }
        table.row(cells);
    }
    table.markdown()
}

/// What streams leave of a link, if it was measured.
fn shares(contents: &Contents) -> Option<String> {
    let shares = fairness::shares(&contents.data);
    let mut table = Table::new(fairness::HEAD);
    let shown = |estimate: &Estimate| format!("{} ({})", number(estimate.median), spread_of(estimate));
    for share in &shares {
        let gaps = share.gap_p99_ms.as_ref().map_or_else(|| DASH.to_owned(), shown);
        table.row([share.name(), shown(&share.bulk_mbit), gaps]);
    }
    (!shares.is_empty()).then(|| format!("{}\n\n{}", fairness::caption(&contents.data), table.markdown()))
}

fn grid(grid: &Grid) -> Vec<String> {
    let mut table = Table::new(std::iter::once("").chain(grid.columns.iter().map(String::as_str)));
    for (subject, cells) in &grid.rows {
        let cells = cells.iter().map(|cell| match cell.minor.as_str() {
            "" => cell.main.clone(),
            minor => format!("{} ({minor})", cell.main),
        });
        table.row(std::iter::once(subject.label().to_owned()).chain(cells));
    }
    vec![format!("### {}", grid.title), grid.caption.clone(), table.markdown()]
}

fn failures(contents: &Contents) -> Option<String> {
    let mut table = Table::new(["failed", "what", "how often", "where", "the first reason"]);
    let mut any = false;
    for ((subject, tried, at), outcome) in contents.data.outcomes.iter().filter(|(_, outcome)| outcome.failed > 0) {
        any = true;
        let setting = contents.data.settings.get(*at).map(super::aggregate::Setting::describe).unwrap_or_default();
        table.row([
            subject.label().to_owned(),
            (*tried).to_owned(),
            format!("{} of {}", outcome.failed, outcome.tried),
            setting,
            escape(outcome.reason.as_deref().unwrap_or_default()),
        ]);
    }
    any.then(|| table.markdown())
}

fn skipped(contents: &Contents) -> Option<String> {
    let skipped = notes::skipped(&contents.data);
    let lines: Vec<String> =
        skipped.iter().map(|(subject, why)| format!("- {}: {}", subject.label(), escape(why))).collect();
    if lines.is_empty() { None } else { Some(format!("Not measured:\n\n{}", lines.join("\n"))) }
}
