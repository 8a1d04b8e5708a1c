//! The same for a pipe: a line for each line of text that is full, and for everything that happens; or JSON.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    player::{Side, What},
    script::Cue,
};

/// As wide as prose is.
const LINE: usize = 80;

/// Standard output, line by line.
pub(super) struct Lines {
    json: bool,
    sides: [Side; 2],
    /// Text that has come and fills no line yet, as in [`Side::pair`].
    pending: [String; 2],
}

impl Lines {
    pub(super) fn new(json: bool, sides: [Side; 2]) -> Self {
        Self { json, sides, pending: Default::default() }
    }

    /// A client heard something.
    pub(super) fn heard(&mut self, side: Side, what: &What, at: Duration) -> io::Result<()> {
        if self.json {
            return print(&heard_json(side, what, at).to_string());
        }
        let pending = &mut self.pending[side.place()];
        if let What::Text(text) = what {
            pending.push_str(text);
            let full = pending.contains('\n') || pending.len() >= LINE;
            return if full { flush(side, pending) } else { Ok(()) };
        }
        flush(side, pending)?;
        print(&format!("{:>6.2} s  {}", at.as_secs_f64(), told(side, what)))
    }

    /// Something happened to the clients.
    pub(super) fn happened(&mut self, cue: Cue, at: Duration) -> io::Result<()> {
        if self.json {
            return print(&json!({"at_ms": ms(at), "event": cue.name()}).to_string());
        }
        for side in self.sides {
            flush(side, &mut self.pending[side.place()])?;
        }
        print(&format!("{:>6.2} s  {}", at.as_secs_f64(), cue.text()))
    }

    /// Everything is over.
    pub(super) fn finish(&mut self, figures: &Value, table: &str) -> io::Result<()> {
        if self.json {
            return print(&figures.to_string());
        }
        for side in self.sides {
            flush(side, &mut self.pending[side.place()])?;
        }
        print(&format!("\n{table}"))
    }
}

/// What happened to one client, in words. Empty for text.
pub(super) fn told(side: Side, what: &What) -> String {
    let side = side.label();
    match what {
        What::Begins { agent } => format!("{side}: {agent} begins"),
        What::GoesOn { agent } => format!("{side}: goes on at {agent}"),
        What::Text(_) => String::new(),
        What::Ends(Ok(())) => format!("{side}: complete"),
        What::Ends(Err(error)) => format!("{side}: broke off: {error}"),
    }
}

fn heard_json(side: Side, what: &What, at: Duration) -> Value {
    let (at_ms, side) = (ms(at), side.name());
    match what {
        What::Begins { agent } => json!({"at_ms": at_ms, "side": side, "event": "begins", "agent": agent}),
        What::GoesOn { agent } => json!({"at_ms": at_ms, "side": side, "event": "goes-on", "agent": agent}),
        What::Text(text) => json!({"at_ms": at_ms, "side": side, "text": text}),
        What::Ends(Ok(())) => json!({"at_ms": at_ms, "side": side, "event": "complete"}),
        What::Ends(Err(error)) => json!({"at_ms": at_ms, "side": side, "event": "broke-off", "error": error}),
    }
}

/// In steps of 10 us: finer says nothing.
pub(super) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

fn flush(side: Side, pending: &mut String) -> io::Result<()> {
    let text = std::mem::take(pending);
    match text.trim_end() {
        "" => Ok(()),
        text => text.split('\n').try_for_each(|line| print(&format!("    {} │ {line}", side.label()))),
    }
}

fn print(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
