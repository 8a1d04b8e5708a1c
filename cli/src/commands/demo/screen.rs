//! Two columns on a terminal, drawn over themselves. What is drawn is pure; drawing it is not.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use console::Term;

use super::{
    column::{Column, Ended},
    player::Side,
};

/// Narrower columns are put one below the other.
const LEAST_COLUMN: usize = 34;
const BETWEEN_COLUMNS: &str = "  │  ";
/// More text than this is no easier to follow.
const MOST_TEXT_ROWS: usize = 14;
const LEAST_TEXT_ROWS: usize = 2;
/// Lines of a column beside its text: its name, two lines of figures.
const ROWS_AROUND_TEXT: usize = 3;
/// The last of what happened.
const EVENT_ROWS: usize = 4;
/// Of a terminal that does not say how large it is.
const USUAL_SIZE: (usize, usize) = (80, 24);

/// All that is shown.
pub(super) struct View<'a> {
    pub(super) title: &'a str,
    pub(super) tokens: usize,
    pub(super) sides: [Side; 2],
    /// Theirs.
    pub(super) columns: &'a [Column; 2],
    /// What happened, and when.
    pub(super) events: &'a [(Duration, String)],
    pub(super) now: Instant,
}

/// A line, and how it is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tone {
    #[default]
    Plain,
    Strong,
    Faint,
    Good,
    Bad,
}

impl Tone {
    /// ECMA-48 §8.3.117, select graphic rendition.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Bad => "31",
        }
    }
}

impl Cell {
    fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone }
    }
}

/// The lines for a terminal of this size; none is wider, and there are fewer than it has.
pub(super) fn frame(view: &View<'_>, width: usize, height: usize) -> Vec<Vec<Cell>> {
    let beside = (width.saturating_sub(BETWEEN_COLUMNS.chars().count())) / 2;
    let side_by_side = beside >= LEAST_COLUMN;
    let (column_width, stacked) = if side_by_side { (beside, 1) } else { (width, 2) };
    // The title, a line after it, and the cursor's.
    let others = 3 + EVENT_ROWS + stacked * ROWS_AROUND_TEXT;
    let text_rows = (height.saturating_sub(others) / stacked).clamp(LEAST_TEXT_ROWS, MOST_TEXT_ROWS);
    let blocks = [0, 1].map(|at| block(view, view.sides[at], &view.columns[at], column_width, text_rows));
    let mut rows = vec![vec![fit(Cell::new(Tone::Strong, view.title), width)], Vec::new()];
    match blocks {
        [left, right] if side_by_side => {
            rows.extend(left.into_iter().zip(right).map(|(left, right)| vec![left, right]))
        }
        blocks => rows.extend(blocks.into_iter().flatten().map(|cell| vec![cell])),
    }
    let shown = view.events.len().saturating_sub(EVENT_ROWS);
    let events = view.events[shown..].iter().map(|(at, text)| format!("{:>5.1} s  {text}", at.as_secs_f64()));
    rows.extend(events.map(|text| vec![fit(Cell::new(Tone::Strong, text), width)]));
    rows.resize_with(others - 1 + stacked * text_rows, Vec::new);
    rows.truncate(height.saturating_sub(1));
    rows
}

/// One column, each line filled up to its width.
fn block(view: &View<'_>, side: Side, column: &Column, width: usize, text_rows: usize) -> Vec<Cell> {
    let from = column.agent().map(|agent| format!(" from {agent}")).unwrap_or_default();
    let mut cells = vec![Cell::new(Tone::Strong, format!("{}{from}", side.label()))];
    let lines = wrapped(&column.text(), width);
    let first = lines.len().saturating_sub(text_rows);
    cells.extend(lines[first..].iter().map(|line| Cell::new(Tone::Plain, line)));
    cells.resize_with(1 + text_rows, Cell::default);
    let gap = |gap: Option<Duration>| gap.map_or_else(|| "–".to_owned(), time);
    let (longest, p99) = (gap(column.longest_gap(view.now)), gap(column.p99_gap()));
    cells.push(Cell::new(
        Tone::Faint,
        format!("{}/{} tokens, longest gap {longest}, p99 {p99}", column.received(), view.tokens),
    ));
    cells.push(match (column.ended(), column.stalled(view.now)) {
        (Some(Ended::Complete), _) => Cell::new(Tone::Good, "complete"),
        (Some(Ended::Broke(error)), _) => Cell::new(Tone::Bad, format!("broke off: {error}")),
        (Some(Ended::Silent), _) => Cell::new(Tone::Bad, "silent: given up"),
        (None, Some(silent)) => Cell::new(Tone::Bad, format!("stalled for {}", time(silent))),
        (None, None) => Cell::new(Tone::Plain, if column.last_at().is_some() { "flowing" } else { "connecting" }),
    });
    cells.into_iter().map(|cell| fit(cell, width)).collect()
}

/// `83 ms`, `1.2 s`.
pub(super) fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

/// Lines of at most so many characters, broken between words where that is possible.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let mut word = word.chars().collect::<Vec<_>>();
            if !line.is_empty() && line.chars().count() + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
            }
            while word.len() > width {
                lines.push(word.drain(..width).collect());
            }
            line.extend((!line.is_empty()).then_some(' '));
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

/// Cut, or filled up.
fn fit(cell: Cell, width: usize) -> Cell {
    let one_line = cell.text.replace(char::is_control, " ");
    let text = match one_line.chars().count() > width {
        true => one_line.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => format!("{one_line:<width$}"),
    };
    Cell { text, ..cell }
}

/// A terminal, with its cursor hidden until this is dropped.
pub(super) struct Screen {
    term: Term,
    /// Lines that stand there already.
    drawn: usize,
}

impl Screen {
    /// On standard output. `None` where that is no terminal.
    pub(super) fn new() -> Option<Self> {
        let term = Term::stdout();
        if !term.is_term() {
            return None;
        }
        // A terminal that cannot hide it shows it.
        let _ = term.hide_cursor();
        Some(Self { term, drawn: 0 })
    }

    /// Draws over what was drawn before.
    pub(super) fn draw(&mut self, view: &View<'_>) {
        let (height, width) = self
            .term
            .size_checked()
            .map_or((USUAL_SIZE.1, USUAL_SIZE.0), |(rows, columns)| (rows.into(), columns.into()));
        let rows = frame(view, width, height);
        let mut text = match self.drawn {
            0 => String::new(),
            // ECMA-48 §8.3.22: back to the first line.
            lines => format!("\x1b[{lines}A"),
        };
        for row in &rows {
            let cells = row.iter().map(|cell| format!("\x1b[{}m{}\x1b[0m", cell.tone.code(), cell.text));
            // Writing to a string cannot fail.
            // §8.3.41: what stood there goes only when the new line is there, so that nothing flickers.
            let _ = writeln!(text, "{}\x1b[K", cells.collect::<Vec<_>>().join(BETWEEN_COLUMNS));
        }
        // §8.3.39: lines of a frame that was higher.
        text.push_str("\x1b[J");
        self.drawn = rows.len();
        // Whoever closed the terminal sees nothing of it.
        let _ = self.term.write_str(&text).and_then(|()| self.term.flush());
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.term.show_cursor();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use titan_agent::engine::synthetic::word;

    use super::*;
    use crate::commands::demo::player::What;

    fn columns() -> [Column; 2] {
        let now = Instant::now();
        let mut columns = [(); 2].map(|()| Column::new(Duration::from_millis(50)));
        for index in 0..150 {
            columns[1].hears(What::Text(word(index).to_owned()), now + Duration::from_millis(50) * index);
        }
        columns[0].hears(What::Begins { agent: "agent-1".to_owned() }, now);
        columns[0].hears(What::Text("Alice ".to_owned()), now);
        columns
    }

    fn shown(columns: &[Column; 2], width: usize, height: usize) -> Vec<Vec<Cell>> {
        let events = [(Duration::from_secs(3), "the client's address changes".to_owned())];
        let now = columns[0].last_at().unwrap() + Duration::from_secs(9);
        frame(
            &View { title: "title", tokens: 200, sides: Side::pair(false), columns, events: &events, now },
            width,
            height,
        )
    }

    fn all(rows: &[Vec<Cell>]) -> String {
        rows.iter().map(|row| row.iter().map(|cell| cell.text.clone()).collect::<Vec<_>>().join("|") + "\n").collect()
    }

    #[test]
    fn no_line_is_wider_and_no_frame_higher_than_the_terminal() {
        let columns = columns();
        for (width, height) in [(200, 60), (80, 24), (73, 24), (72, 24), (40, 24), (40, 12), (10, 5), (1, 1), (0, 0)] {
            let rows = shown(&columns, width, height);
            assert!(rows.len() <= height.max(1) - usize::from(height > 0), "{width} x {height}: {}", rows.len());
            for row in &rows {
                let cells: usize = row.iter().map(|cell| cell.text.chars().count()).sum();
                let between = row.len().saturating_sub(1) * BETWEEN_COLUMNS.chars().count();
                assert!(cells + between <= width.max(1), "{width} x {height}: {row:?}");
            }
        }
    }

    #[test]
    fn a_wide_terminal_has_the_columns_side_by_side_and_a_narrow_one_has_not() {
        let columns = columns();
        let side_by_side = |rows: &[Vec<Cell>]| rows.iter().filter(|row| row.len() == 2).count();
        let (wide, narrow) = (shown(&columns, 80, 24), shown(&columns, 60, 24));
        assert_eq!(side_by_side(&wide), ROWS_AROUND_TEXT + MOST_TEXT_ROWS);
        assert_eq!(side_by_side(&narrow), 0);
        for rows in [&wide, &narrow] {
            let text = all(rows);
            for part in [
                "gRPC from agent-1",
                "QUIC",
                "1/200 tokens",
                "150/200 tokens",
                "stalled for 9.0 s",
                "3.0 s  the client's",
            ] {
                assert!(text.contains(part), "{part:?} is not in\n{text}");
            }
            assert!(text.contains(word(149).trim()), "the newest text is shown:\n{text}");
        }
    }

    #[test]
    fn an_error_stays_on_its_line() {
        let mut columns = columns();
        columns[0].hears(What::Ends(Err(format!("the agent\nis {} gone", "quite ".repeat(30)))), Instant::now());
        let text = all(&shown(&columns, 80, 24));
        assert!(text.contains("broke off: the agent is quite") && text.contains('…'), "{text}");
    }

    #[test]
    fn lines_break_between_words_where_they_can() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("a waistcoat-pocket", 8), ["a", "waistcoa", "t-pocket"]);
        assert_eq!(wrapped("one\ntwo ", 9), ["one", "two"]);
        assert_eq!(wrapped("abc", 0), ["a", "b", "c"]);
    }
}
