//! What `titan run` prints: the text to stdout as it arrives, what the model thinks before it and one closing line to stderr; or JSON lines.

use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;
use titan_client::{ClientError, Generation, Processed};

use crate::terminal::harmless;

/// Where it goes.
pub(super) struct Output {
    json: bool,
    verbose: bool,
    /// Escape sequences are for the terminal's owner to send, not for a model.
    terminal: bool,
    /// The same of stderr, where reasoning goes.
    stderr_terminal: bool,
    /// Whether the last text ended a line.
    at_line_start: bool,
    /// Reasoning has been written, and no text after it.
    thinking: bool,
}

/// What is known at the end. With `--json` these are the fields of the last object.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    done: bool,
    agent: String,
    wire: &'static str,
    endpoint: String,
    /// From the request, routing included, to the first text.
    ttft_ms: f64,
    tokens: u32,
    tokens_per_second: f64,
    prompt_tokens: u32,
    /// Whether the agent had begun with the prompt before the request came.
    prefilled: bool,
    finish_reason: String,
    job_id: String,
    /// Whether the coordinator was asked for this request.
    routed: bool,
    connection: Connection,
    /// Whether the session that it resumed came from disk.
    stored_session: bool,
    #[serde(flatten)]
    flow: Flow,
    /// Whether the prompt went out before the handshake was complete.
    early_data: bool,
    /// Measured by QUIC.
    rtt_ms: Option<f64>,
    /// How many messages had come each time that the answer lost its connection and was resumed.
    resumed_at: Vec<u64>,
    /// The same, each time that it lost its agent and moved to another one. The other fields are of the last agent.
    moved_at: Vec<u64>,
}

/// What kept the text flowing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Flow {
    /// Messages that came by a repeat, because the path had lost them.
    pub(super) repaired_messages: u64,
    /// Changes of network that the connection followed.
    pub(super) network_changes: u64,
    /// First packets that were sent again by themselves.
    pub(super) copied_packets: u64,
    /// What this side may have on its way.
    pub(super) congestion_window_bytes: Option<u64>,
}

/// What the request's connection cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Connection {
    /// A new QUIC connection, with key exchange and certificates.
    FullHandshake,
    /// A new QUIC connection that resumed a session and took early data.
    EarlyData,
    /// One that was there, or a gRPC one.
    Kept,
}

impl Figures {
    /// Of a generation that has ended.
    pub(super) fn of(generation: &Generation, connection: Connection, stored_session: bool, flow: Flow) -> Self {
        let usage = generation.usage().cloned().unwrap_or_default();
        let milliseconds = |time: std::time::Duration| round(time.as_secs_f64() * 1000.0, 100.0);
        Self {
            done: true,
            agent: generation.agent_id().to_owned(),
            wire: generation.wire().as_str(),
            endpoint: generation.endpoint().to_owned(),
            ttft_ms: generation.ttft().map_or(0.0, milliseconds),
            tokens: usage.completion_tokens,
            tokens_per_second: round(usage.tokens_per_second, 10.0),
            prompt_tokens: usage.prompt_tokens,
            prefilled: usage.prefilled,
            finish_reason: usage.finish_reason,
            job_id: generation.job_id().to_owned(),
            routed: generation.routed(),
            connection,
            stored_session,
            flow,
            early_data: generation.early_data(),
            rtt_ms: generation.rtt().map(milliseconds),
            resumed_at: generation.resumed_at().to_vec(),
            moved_at: generation.moved_at().to_vec(),
        }
    }

    fn closing_line(&self) -> String {
        let Self { agent, wire, ttft_ms, tokens, tokens_per_second, .. } = self;
        let cut = if self.finish_reason == "length" { " · cut off by --max-tokens or the context" } else { "" };
        format!("{agent} · {wire} · TTFT {ttft_ms:.0} ms · {tokens} tokens · {tokens_per_second:.1} tokens/s{cut}")
    }

    fn details(&self) -> String {
        let route = if self.routed { "asked the coordinator" } else { "kept, no REST call" };
        let connection = match self.connection {
            Connection::FullHandshake => "full handshake",
            Connection::EarlyData if self.stored_session => "0-RTT, session from disk",
            Connection::EarlyData => "0-RTT",
            Connection::Kept if self.wire == "quic" => "kept, no handshake",
            Connection::Kept => "HTTP/2",
        };
        let early = if self.early_data { ", prompt sent as early data" } else { "" };
        let ahead = if self.prefilled { ", prompt prefilled ahead" } else { "" };
        let rtt = self.rtt_ms.map(|rtt| format!(" · RTT {rtt:.2} ms")).unwrap_or_default();
        format!(
            "route: {route} · connection: {connection}{early} to {}{rtt} · prompt {} tokens{ahead} · {}{}{}",
            self.endpoint,
            self.prompt_tokens,
            self.job_id,
            self.flow(),
            breaks("resumed", &self.resumed_at) + &breaks("moved", &self.moved_at)
        )
    }
}

impl Figures {
    /// What QUIC did against losses and changes of network.
    fn flow(&self) -> String {
        if self.wire != "quic" {
            return String::new();
        }
        let Flow { repaired_messages, network_changes, copied_packets, congestion_window_bytes } = self.flow;
        let window = congestion_window_bytes.map(|bytes| format!(" · window {} kB", bytes / 1000)).unwrap_or_default();
        let network =
            if network_changes > 0 { format!(" · network changed {network_changes}×") } else { String::new() };
        format!("{window} · {copied_packets} packets sent twice · {repaired_messages} messages repaired{network}")
    }
}

/// ` · resumed 2×, at token 57, 80`, if it was.
fn breaks(what: &str, at: &[u64]) -> String {
    let tokens: Vec<_> = at.iter().map(u64::to_string).collect();
    if at.is_empty() { String::new() } else { format!(" · {what} {}×, at token {}", at.len(), tokens.join(", ")) }
}

impl Output {
    /// On this process's stdout and stderr.
    pub(super) fn new(json: bool, verbose: bool) -> Self {
        let (terminal, stderr_terminal) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self { json, verbose, terminal, stderr_terminal, at_line_start: true, thinking: false }
    }

    /// Text to append; it is visible when this returns.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        if self.json {
            return line(&serde_json::json!({"text": text}));
        }
        self.end_reasoning();
        let mut stdout = io::stdout().lock();
        if self.terminal {
            stdout.write_all(harmless(text).as_bytes())?;
        } else {
            stdout.write_all(text.as_bytes())?;
        }
        stdout.flush()?;
        self.at_line_start = text.ends_with('\n');
        Ok(())
    }

    /// What the model thinks: to stderr, so that stdout is the answer alone, and dim where a person reads.
    pub(super) fn reasoning(&mut self, text: &str) -> io::Result<()> {
        if self.json {
            return line(&serde_json::json!({"reasoning": text}));
        }
        if !self.thinking {
            self.end_line()?;
        }
        self.thinking = true;
        beside(&if self.stderr_terminal { format!("{DIM}{}{PLAIN}", harmless(text)) } else { text.to_owned() });
        Ok(())
    }

    fn end_reasoning(&mut self) {
        if std::mem::take(&mut self.thinking) {
            beside("\n");
        }
    }

    /// The text is complete.
    pub(super) fn finish(&mut self, figures: &Figures) -> io::Result<()> {
        if self.json {
            return line(figures);
        }
        self.end_line()?;
        self.end_reasoning();
        beside(&format!("{}\n", figures.closing_line()));
        if self.verbose {
            beside(&format!("{}\n", figures.details()));
        }
        Ok(())
    }

    /// The text ends here, and the reason follows on stderr.
    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        // Whoever reads stdout may be gone; stderr and the exit code tell it all the same.
        let _ = match error.downcast_ref::<ClientError>() {
            Some(error) if self.json => {
                let processed = match error.processed() {
                    Processed::No => "no",
                    Processed::Maybe => "maybe",
                    Processed::Yes => "yes",
                };
                line(
                    &serde_json::json!({"error": error.to_string(), "retryable": error.retryable(), "processed": processed}),
                )
            }
            _ => self.end_line(),
        };
    }

    /// The user has seen enough.
    pub(super) fn interrupted(&mut self) {
        let _ = self.end_line();
    }

    fn end_line(&mut self) -> io::Result<()> {
        if !self.at_line_start && !self.json {
            self.at_line_start = true;
            writeln!(io::stdout())?;
        }
        Ok(())
    }
}

/// SGR 2 and 0 (ECMA-48 §8.3.117).
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// To stderr, where it can be written: the text is what was asked for, and it is on stdout.
fn beside(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

fn line(value: &impl Serialize) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, value)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            done: true,
            agent: "agent-1".into(),
            wire: "quic",
            endpoint: "localhost:50052".into(),
            ttft_ms: 431.26,
            tokens: 100,
            tokens_per_second: 29.8,
            prompt_tokens: 38,
            prefilled: false,
            finish_reason: "stop".into(),
            job_id: "job_1".into(),
            routed: true,
            connection: Connection::FullHandshake,
            stored_session: false,
            flow: Flow::default(),
            early_data: false,
            rtt_ms: Some(0.31),
            resumed_at: vec![],
            moved_at: vec![],
        }
    }

    #[test]
    fn the_closing_line_says_who_how_and_how_fast() {
        assert_eq!(figures().closing_line(), "agent-1 · quic · TTFT 431 ms · 100 tokens · 29.8 tokens/s");
        let cut = Figures { finish_reason: "length".into(), ..figures() };
        assert!(cut.closing_line().contains("--max-tokens"));
    }

    #[test]
    fn details_tell_that_the_agent_began_ahead() {
        assert!(!figures().details().contains("ahead"));
        let ahead = Figures { prefilled: true, ..figures() };
        assert!(ahead.details().contains("prompt 38 tokens, prompt prefilled ahead · job_1"), "{}", ahead.details());
    }

    #[test]
    fn details_tell_a_kept_route_and_early_data() {
        assert!(figures().details().contains("asked the coordinator · connection: full handshake to localhost:50052"));
        let again = Figures { routed: false, connection: Connection::EarlyData, early_data: true, ..figures() };
        let details = again.details();
        assert!(details.contains("no REST call") && details.contains("0-RTT, prompt sent as early data"), "{details}");
        let new_process = Figures { stored_session: true, ..again }.details();
        assert!(new_process.contains("0-RTT, session from disk, prompt sent as early data"), "{new_process}");
        assert!(!details.contains("resumed"), "{details}");
    }

    #[test]
    fn details_tell_what_kept_the_text_flowing() {
        let window = Some(40_000);
        let flow =
            Flow { repaired_messages: 4, network_changes: 1, copied_packets: 3, congestion_window_bytes: window };
        let details = Figures { flow, ..figures() }.details();
        let flowing = " · window 40 kB · 3 packets sent twice · 4 messages repaired · network changed 1×";
        assert!(details.ends_with(flowing), "{details}");
        assert!(!Figures { wire: "grpc", ..figures() }.details().contains("repaired"));
    }

    #[test]
    fn details_tell_where_an_answer_was_resumed() {
        let details = Figures { resumed_at: vec![57, 80], moved_at: vec![90], ..figures() }.details();
        assert!(details.ends_with(" · resumed 2×, at token 57, 80 · moved 1×, at token 90"), "{details}");
    }
}
