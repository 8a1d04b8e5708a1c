//! What was measured, for machines and for people. [`Report`] and [`Table`] are what each measurement prints and writes itself;
//! [`write`] makes a page, Markdown and CSV of what `net` stored.
//!
//! `aggregate` reads and sorts, `glance`, `goals`, `twins` and `tables` compute from it, `plots` draws with `svg`; `html`, `markdown`, `csv` and
//! `publish` write.

mod aggregate;
mod csv;
mod estimate;
#[cfg(test)]
mod example;
mod fairness;
mod format;
mod glance;
mod goals;
mod html;
mod markdown;
mod measure;
mod notes;
mod palette;
mod plots;
mod publish;
mod svg;
mod tables;
#[cfg(test)]
mod tests;
mod twins;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Serialize;

use self::{aggregate::Data, html::Contents, twins::Verdict};
use crate::{args::ReportArgs, environment::Environment};

const PAGE: &str = "report.html";
const SUMMARY: &str = "summary.md";
const CSV: &str = "summary.csv";

/// `titan-bench report`.
pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let out = args.out.as_ref().or(args.directories.first()).context("no directory was given")?;
    let summary = write(&args.directories, out)?;
    summary.print();
    if args.publish {
        summary.publish(Path::new("."))?;
    }
    Ok(())
}

/// Reads what `net` stored in `dirs`, the later ones added to the earlier, and writes the page, the summary and the CSV to `out`.
pub(crate) fn write(dirs: &[PathBuf], out: &Path) -> anyhow::Result<Summary> {
    let contents = contents(Data::read(dirs)?);
    fs::create_dir_all(out).with_context(|| format!("cannot make the directory {}", out.display()))?;
    let markdown = markdown::summary(&contents);
    for (name, text) in [(PAGE, &html::page(&contents)), (SUMMARY, &markdown), (CSV, &csv::csv(&contents.data))] {
        fs::write(out.join(name), text).with_context(|| format!("cannot write {}", out.join(name).display()))?;
    }
    Ok(Summary { contents, markdown, page: out.join(PAGE) })
}

fn contents(data: Data) -> Contents {
    let glance = glance::glance(&data);
    let twins = twins::compare(&data);
    Contents {
        behind: glance::behind(&glance),
        goals: goals::goals(&data),
        figures: plots::figures(&data),
        grids: tables::grids(&data),
        warnings: notes::warnings(&data, &twins),
        glance,
        twins,
        data,
    }
}

/// A report that was written.
#[derive(Debug)]
pub(crate) struct Summary {
    contents: Contents,
    markdown: String,
    page: PathBuf,
}

impl Summary {
    /// The short table to the screen, and where the page is.
    pub(crate) fn print(&self) {
        // Whoever reads only the beginning, as `head` does, still gets the files.
        let _ = writeln!(std::io::stdout(), "{}", self.markdown);
        eprintln!("page: {}", self.page.display());
    }

    /// Fails if Titan over QUIC, measured twice under two names, is not alike.
    pub(crate) fn check_self_test(&self) -> anyhow::Result<()> {
        match twins::verdict(&self.contents.twins) {
            Verdict::Alike => Ok(()),
            Verdict::TooFew => anyhow::bail!("the self-test says nothing: six or more repetitions are needed"),
            Verdict::NotMeasured => anyhow::bail!("the self-test was not measured"),
            Verdict::Differ => anyhow::bail!(
                "the self-test found a difference between Titan over QUIC and Titan over QUIC: what this run says of others is not \
                 to be trusted either"
            ),
        }
    }

    /// Writes docs/BENCHMARKS.md with its plots and CSV, and the README's figures, in the repository `root`.
    pub(crate) fn publish(&self, root: &Path) -> anyhow::Result<()> {
        publish::publish(&self.contents, root)
    }
}

/// Writes a measurement's table between the markers of a document.
pub(crate) fn publish_into(document: &Path, figures: &str) -> anyhow::Result<()> {
    publish::replace(document, figures)
}

/// Changes when a reader of older files would misread a newer one.
const SCHEMA: u32 = 1;

/// What one command measured, where, and how it was set.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a, S, R> {
    schema: u32,
    /// The command: `engine`, `load`.
    bench: &'static str,
    environment: &'a Environment,
    settings: &'a S,
    /// Ctrl-C came before the end.
    interrupted: bool,
    results: &'a R,
}

impl<'a, S: Serialize, R: Serialize> Report<'a, S, R> {
    pub(crate) fn new(
        bench: &'static str,
        environment: &'a Environment,
        settings: &'a S,
        interrupted: bool,
        results: &'a R,
    ) -> Self {
        Self { schema: SCHEMA, bench, environment, settings, interrupted, results }
    }

    /// Writes it as JSON.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut json = serde_json::to_vec(self)?;
        json.push(b'\n');
        fs::write(path, json).with_context(|| format!("cannot write the results to {}", path.display()))?;
        eprintln!("results: {}", path.display());
        Ok(())
    }
}

/// A Markdown table: the first column names the row, the others are numbers.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Self {
        Self { rows: vec![header.into_iter().map(Into::into).collect()] }
    }

    pub(crate) fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Padded, so that it reads well as plain text too.
    pub(crate) fn markdown(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
        let width = |column| self.rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0).max(2);
        let mut lines = Vec::new();
        for (at, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> = (0..columns)
                .map(|column| match (cell(row, column), width(column)) {
                    (text, width) if column == 0 => format!("{text:<width$}"),
                    (text, width) => format!("{text:>width$}"),
                })
                .collect();
            lines.push(format!("| {} |", cells.join(" | ")));
            if at == 0 {
                let rule = |column| match (column, "-".repeat(width(column) - 1)) {
                    (0, dashes) => format!("{dashes}-"),
                    (_, dashes) => format!("{dashes}:"),
                };
                lines.push(format!("| {} |", (0..columns).map(rule).collect::<Vec<_>>().join(" | ")));
            }
        }
        lines.join("\n")
    }
}
