//! The page: one file, nothing from elsewhere, no script.

use super::{
    aggregate::Data,
    fairness,
    format::{self, DASH, escape, grouped, median_of, more, number, plain, spread_of},
    glance::{Behind, Glance},
    goals::{Goal, Verdict},
    notes, palette,
    plots::Figure,
    tables::Grid,
    twins::Twin,
};
use crate::net::{
    record::{CheckRecord, Loss},
    subject::Subject,
};

const STYLE: &str = include_str!("page.css");

/// Everything that is shown, computed once for all pages.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) data: Data,
    pub(super) glance: Glance,
    pub(super) behind: Vec<Behind>,
    pub(super) goals: Vec<Goal>,
    pub(super) figures: Vec<Figure>,
    pub(super) grids: Vec<Grid>,
    pub(super) twins: Vec<Twin>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn page(contents: &Contents) -> String {
    let data = &contents.data;
    let begun = data.runs.first().map(|run| format::date(run.environment.started_at)).unwrap_or_default();
    let place = data.runs.first().map(|run| run.environment.summary()).unwrap_or_default();
    let warnings: String = contents.warnings.iter().map(|text| tag("p", "class=\"warning\"", &escape(text))).collect();
    let figures: String = contents.figures.iter().map(figure).collect();
    let grids: String = contents.grids.iter().map(grid).collect();
    let sections = [
        section("At a glance", "", &glance(&contents.glance)),
        section("Where Titan loses", "", &behind(contents)),
        section("Goals", "", &goals(&contents.goals)),
        shares(data),
        tag("div", "class=\"figures\"", &figures),
        if grids.is_empty() {
            String::new()
        } else {
            section("One dimension at a time", "", &tag("div", "class=\"grids\"", &grids))
        },
        section("The self-test", notes::self_test(&contents.twins), &self_test(&contents.twins)),
        section("The emulated path, checked", checks_said(data), &checks(data)),
        section("Tokens", "Lost and duplicated must be 0.", &tokens(data)),
        section("What failed", failed_said(data), &failures(data)),
        skipped(data),
        section("How it was measured", "", &method()),
        section(
            "Whom",
            "",
            &definitions(notes::settings(data).into_iter().map(|(subject, note)| (subject.label(), note))),
        ),
        section("Where it was measured", "", &places(data)),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\" />\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\" />\
         <meta name=\"color-scheme\" content=\"light dark\" /><title>TitanCompute: what the wire costs</title>\
         <style>{}{STYLE}</style></head><body><main>\n<header><h1>What the wire costs</h1>\
         <p>Tokens of a language model on their way to a reader: TitanCompute beside what users would pick instead, over emulated \
         networks.</p><p class=\"faint\">{} · {}</p></header>\n{warnings}\n{}\n\
         <footer>Written by <code>titan-bench report</code>. All figures as CSV: <code>summary.csv</code>.</footer>\n\
         </main></body></html>\n",
        palette::page_style(),
        escape(&begun),
        escape(&place),
        sections.concat()
    )
}

fn tag(name: &str, attributes: &str, inside: &str) -> String {
    let space = if attributes.is_empty() { "" } else { " " };
    format!("<{name}{space}{attributes}>{inside}</{name}>")
}

fn section(title: &str, lead: &str, inside: &str) -> String {
    let lead = if lead.is_empty() { String::new() } else { tag("p", "", &escape(lead)) };
    format!("<section><h2>{}</h2>{lead}{inside}</section>\n", escape(title))
}

/// Cells are HTML; the first of each row names it. `of` is the subject of a row.
fn table(head: &str, rows: impl IntoIterator<Item = (Option<Subject>, Vec<String>)>) -> String {
    let row = |(of, cells): (Option<Subject>, Vec<String>)| {
        let class = if of == Some(Subject::TitanQuic) { "class=\"ours\"" } else { "" };
        tag("tr", class, &cells.concat())
    };
    let body: String = rows.into_iter().map(row).collect();
    tag("div", "class=\"scroll\" tabindex=\"0\"", &format!("<table><thead>{head}</thead><tbody>{body}</tbody></table>"))
}

fn head(names: &[&str]) -> String {
    head_with(names, &[])
}

/// `words`: the columns that hold text.
fn head_with(names: &[&str], words: &[usize]) -> String {
    let name =
        |(at, name): (usize, &&str)| tag("th", if words.contains(&at) { "class=\"text\"" } else { "" }, &escape(name));
    tag("tr", "", &names.iter().enumerate().map(name).collect::<String>())
}

fn cell(text: &str) -> String {
    tag("td", "", &escape(text))
}

fn words(text: &str) -> String {
    tag("td", "class=\"text\"", &escape(text))
}

fn name(subject: Subject) -> String {
    tag("td", "class=\"first\"", &escape(subject.label()))
}

/// A figure, and smaller below it what it is to be read with.
fn with_small(class: &str, main: &str, small: &str) -> String {
    let small = if small.is_empty() { String::new() } else { tag("small", "", &escape(small)) };
    tag("td", class, &format!("{}{small}", escape(main)))
}

fn glance(glance: &Glance) -> String {
    let mut groups: Vec<(&str, usize)> = Vec::new();
    for column in &glance.columns {
        match groups.last_mut() {
            Some((group, columns)) if *group == column.group => *columns += 1,
            _ => groups.push((column.group, 1)),
        }
    }
    let group =
        |(name, columns): &(&str, usize)| tag("th", &format!("class=\"group\" colspan=\"{columns}\""), &escape(name));
    let titles: Vec<&str> = std::iter::once("").chain(glance.columns.iter().map(|column| column.title)).collect();
    let first = format!("<tr><th></th>{}</tr>", groups.iter().map(group).collect::<String>());
    let rows = glance.subjects.iter().enumerate().map(|(at, subject)| {
        let figures = glance.columns.iter().map(|column| {
            let Some(estimate) = column.cells.get(at).copied().flatten() else { return cell(DASH) };
            let least = column.cells.iter().flatten().map(|other| other.median).fold(f64::INFINITY, f64::min);
            // As printed: what is told apart by digits that nobody sees is not better.
            let class = if number(estimate.median) == number(least) { "class=\"best\"" } else { "" };
            with_small(class, &number(estimate.median), &spread_of(&estimate))
        });
        (Some(*subject), std::iter::once(name(*subject)).chain(figures).collect())
    });
    let note = "Less is better everywhere; the best of each column is bold. Below each median is its 95 % interval; where there are fewer than \
                six repetitions, the smallest and the largest value, marked min–max. A dash: not measured.";
    let settings = tag("p", "class=\"faint\"", &escape(&format!("{} {}", glance.networks, glance.costs)));
    format!("{}{}{settings}", tag("p", "class=\"faint\"", note), table(&format!("{first}{}", head(&titles)), rows))
}

fn behind(contents: &Contents) -> String {
    if contents.behind.is_empty() {
        let has_titan = contents.glance.subjects.contains(&Subject::TitanQuic);
        return tag("p", "", notes::behind_nowhere(has_titan));
    }
    let rows = contents.behind.iter().map(|row| {
        let (best, theirs) = row
            .better
            .first()
            .map_or((String::new(), None), |(subject, theirs)| (subject.label().to_owned(), Some(theirs)));
        let others: Vec<String> = row
            .better
            .iter()
            .skip(1)
            .map(|(subject, theirs)| format!("{} {}", subject.label(), number(theirs.median)))
            .collect();
        let cells = vec![
            words(row.figure),
            tag(
                "td",
                "class=\"mark\"",
                &escape(&theirs.map(|theirs| more(row.ours.median, theirs.median)).unwrap_or_default()),
            ),
            with_small("", &number(row.ours.median), &spread_of(&row.ours)),
            with_small("", &median_of(theirs), &theirs.map(spread_of).unwrap_or_default()),
            words(&best),
            with_small("class=\"text long\"", &others.join(" · "), if row.is_sure() { "" } else { notes::DOUBT }),
        ];
        (None, cells)
    });
    let names = ["figure", "Titan needs", "Titan QUIC", "best", "which is", "also better"];
    format!("{}{}", tag("p", "class=\"faint\"", notes::BEHIND), table(&head_with(&names, &[4, 5]), rows))
}

fn goals(goals: &[Goal]) -> String {
    let rows = goals.iter().map(|goal| {
        let verdict = match goal.verdict() {
            Verdict::Short => tag("td", "class=\"text mark\"", Verdict::Short.said()),
            verdict => words(verdict.said()),
        };
        let shown = |figure: &super::goals::Figure| {
            let [main, small] = figure.shown();
            with_small("", &main, &small)
        };
        let cells = vec![
            words(&goal.name),
            words(goal.goal),
            shown(&goal.titan),
            shown(&goal.beside),
            verdict,
            tag("td", "class=\"text long\"", &escape(goal.note())),
        ];
        (None, cells)
    });
    let names = ["", "goal", "Titan QUIC", "beside", "", "what was tried"];
    format!("{}{}", tag("p", "class=\"faint\"", super::goals::CAPTION), table(&head_with(&names, &[0, 1, 4, 5]), rows))
}

fn shares(data: &Data) -> String {
    let shown = |estimate: &super::estimate::Estimate| with_small("", &number(estimate.median), &spread_of(estimate));
    let rows: Vec<_> = fairness::shares(data)
        .iter()
        .map(|share| {
            let gaps = share.gap_p99_ms.as_ref().map_or_else(|| cell(DASH), shown);
            (share.beside, vec![words(&share.name()), shown(&share.bulk_mbit), gaps])
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    section("A bulk flow beside", &fairness::caption(data), &table(&head_with(&fairness::HEAD, &[0]), rows))
}

fn figure(figure: &Figure) -> String {
    let panels: String = figure.panels.iter().map(|panel| panel.inline(figure.title)).collect();
    let inside = format!(
        "<figure><figcaption>{}</figcaption><div class=\"panels\">{panels}</div></figure>",
        escape(&figure.caption)
    );
    // Beside each other as far as they fit.
    let class = match figure.panels.len() {
        1 => "",
        2 => "class=\"two\"",
        _ => "class=\"wide\"",
    };
    tag("section", class, &format!("<h2>{}</h2>{inside}", escape(figure.title)))
}

fn grid(grid: &Grid) -> String {
    let names: Vec<&str> = std::iter::once("").chain(grid.columns.iter().map(String::as_str)).collect();
    let rows = grid.rows.iter().map(|(subject, cells)| {
        let cells = cells.iter().map(|cell| with_small("", &cell.main, &cell.minor));
        (Some(*subject), std::iter::once(name(*subject)).chain(cells).collect())
    });
    format!(
        "<div><h3>{}</h3><p class=\"faint\">{}</p>{}</div>",
        escape(&grid.title),
        escape(&grid.caption),
        table(&head(&names), rows)
    )
}

fn self_test(twins: &[Twin]) -> String {
    let rows = twins.iter().map(|twin| {
        let ratio = &twin.ratio;
        let said = if twin.differs() { tag("td", "class=\"mark\"", "differs") } else { cell("no difference") };
        let (low, high) = (three(ratio.low), three(ratio.high));
        let around = match ratio.spread {
            super::estimate::Spread::Interval => format!("{low}–{high}"),
            super::estimate::Spread::Range => format!("min–max {low}–{high}"),
        };
        let cells = vec![
            words(twin.measure.title()),
            with_small("", &three(ratio.median), &around),
            cell(&grouped(&ratio.n.to_string())),
            said,
        ];
        (None, cells)
    });
    let table =
        if twins.is_empty() { String::new() } else { table(&head(&["", "second by first", "pairs", ""]), rows) };
    format!("{}{table}", tag("p", "class=\"faint\"", notes::SELF_TEST_METHOD))
}

/// A ratio near one.
fn three(value: f64) -> String {
    format!("{value:.3}")
}

fn checks_said(data: &Data) -> &'static str {
    match (data.checks.len(), data.checks.iter().all(|check| check.marked.is_none())) {
        (0, _) => "Not checked.",
        (_, true) => "Every check found the delay and the loss that were set.",
        (_, false) => "Some checks found something else than what was set: they are marked.",
    }
}

/// Those that were off, and all to unfold.
fn checks(data: &Data) -> String {
    let loss = |check: &CheckRecord| match check.conditions.loss {
        Loss::None => 0.0,
        Loss::Iid { percent } | Loss::Burst { percent, .. } => percent,
    };
    let mut sorted: Vec<&CheckRecord> = data.checks.iter().collect();
    sorted.sort_by(|left, right| {
        let by_rtt = left.conditions.rtt_ms.total_cmp(&right.conditions.rtt_ms);
        by_rtt.then(loss(left).total_cmp(&loss(right)))
    });
    let row = |check: &&CheckRecord| {
        let rate = check.conditions.rate_mbit;
        let rate = rate.map_or_else(|| "unlimited".to_owned(), |rate| format!("{} Mbit/s", plain(rate)));
        let percent = |value: f64| format!("{} %", number(value));
        let model = if matches!(check.conditions.loss, Loss::Burst { .. }) { " in bursts" } else { "" };
        let mark = match check.marked.as_deref() {
            None => words("as set"),
            Some(marked) => tag("td", "class=\"text mark\"", &escape(marked)),
        };
        let cells = vec![
            cell(&format!("{} ms", plain(check.conditions.rtt_ms))),
            cell(&format!("{} ms", number(check.ping_rtt_ms))),
            cell(&format!("{} %{model}", plain(loss(check)))),
            cell(&percent(check.lost_to_server_percent)),
            cell(&percent(check.lost_to_client_percent)),
            cell(&format!("{} ms", number(check.emulator_late_p99_ms))),
            cell(&grouped(&check.sent_packets.to_string())),
            cell(&rate),
            mark,
        ];
        (None, cells)
    };
    let names =
        ["RTT set", "RTT by ping", "loss set", "to server", "to client", "late, p99", "packets sent", "rate", ""];
    let some = |checks: &[&CheckRecord]| table(&head(&names), checks.iter().map(row));
    let marked: Vec<&CheckRecord> = sorted.iter().copied().filter(|check| check.marked.is_some()).collect();
    let off = if marked.is_empty() { String::new() } else { some(&marked) };
    match sorted.len() {
        0 => String::new(),
        all => format!("{off}<details><summary>All {all} checks</summary>{}</details>", some(&sorted)),
    }
}

fn tokens(data: &Data) -> String {
    let count = |count: u64| cell(&grouped(&count.to_string()));
    let must_be_zero = |number: u64| {
        if number == 0 { count(0) } else { tag("td", "class=\"mark\"", &escape(&grouped(&number.to_string()))) }
    };
    let rows = data.tokens.iter().map(|(subject, tokens)| {
        let cells = vec![
            name(*subject),
            count(tokens.expected),
            must_be_zero(tokens.lost),
            must_be_zero(tokens.duplicated),
            count(tokens.cut_off),
        ];
        (Some(*subject), cells)
    });
    table(&head(&["", "expected", "lost", "duplicated", "not delivered by streams that broke off"]), rows)
}

fn failed_said(data: &Data) -> &'static str {
    if data.outcomes.values().all(|outcome| outcome.failed == 0) { "Nothing." } else { "" }
}

fn failures(data: &Data) -> String {
    let failed = data.outcomes.iter().filter(|(_, outcome)| outcome.failed > 0);
    let rows: Vec<_> = failed
        .map(|((subject, tried, at), outcome)| {
            let setting = data.settings.get(*at).map(super::aggregate::Setting::describe).unwrap_or_default();
            let cells = vec![
                name(*subject),
                words(tried),
                cell(&format!("{} of {}", outcome.failed, outcome.tried)),
                words(&setting),
                words(outcome.reason.as_deref().unwrap_or_default()),
            ];
            (Some(*subject), cells)
        })
        .collect();
    if rows.is_empty() {
        String::new()
    } else {
        table(&head_with(&["", "what", "failed", "where", "the first reason"], &[1, 3, 4]), rows)
    }
}

fn skipped(data: &Data) -> String {
    let skipped = notes::skipped(data);
    if skipped.is_empty() {
        return String::new();
    }
    let rows = skipped.iter().map(|(subject, why)| (None, vec![name(*subject), words(why)]));
    section("Not measured", "", &table(&head_with(&["", "why"], &[1]), rows))
}

fn method() -> String {
    definitions(notes::METHOD.iter().map(|(term, text)| (*term, (*text).to_owned())))
}

fn places(data: &Data) -> String {
    data.runs.iter().map(|run| definitions(notes::facts(run).into_iter())).collect()
}

fn definitions<'a>(terms: impl Iterator<Item = (&'a str, String)>) -> String {
    let one = |(term, text): (&str, String)| format!("<dt>{}</dt><dd>{}</dd>", escape(term), escape(&text));
    tag("dl", "", &terms.map(one).collect::<String>())
}
