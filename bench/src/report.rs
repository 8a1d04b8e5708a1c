//! Results: JSON for machines, Markdown tables for people. One shape for all measurements, so that one reader can show them all.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use crate::environment::Environment;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown_and_lines_up() {
        let mut table = Table::new(["wire", "tokens/s"]);
        table.row(["gRPC (TLS)", "9"]);
        table.row(["QUIC", "49999"]);
        let expected = "\
| wire       | tokens/s |
| ---------- | -------: |
| gRPC (TLS) |        9 |
| QUIC       |    49999 |";
        assert_eq!(table.markdown(), expected);
    }

    #[test]
    fn a_report_says_what_where_and_how() {
        let environment = Environment::read();
        let report = Report::new("load", &environment, &"settings", true, &[1, 2]);
        let json = serde_json::to_value(&report).unwrap_or_default();
        assert_eq!(
            (&json["bench"], &json["interrupted"], &json["results"][1]),
            (&"load".into(), &true.into(), &2.into())
        );
        assert!(json["environment"]["kernel"].is_string());
    }
}
