//! What a line looks like. On a terminal nothing that came from outside can end it or move the cursor: JSON escapes such characters anyway.

use std::{error::Error, fmt, fmt::Write as _};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FormatFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
};

use crate::terminal::{Escaping, one_line};

/// SGR 3, 2 and 0 (ECMA-48 §8.3.117): names of fields are set off from their values.
const ITALIC: &str = "\x1b[3m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Fields as the library writes them, with every control character escaped. Its own escapes the message alone, and leaves line ends in it.
pub(super) struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = Visitor { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'writer> {
    writer: Writer<'writer>,
    is_first: bool,
    result: fmt::Result,
}

impl Visitor<'_> {
    fn put(&mut self, name: &str, value: &dyn fmt::Debug) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        if name != "message" {
            let name = name.strip_prefix("r#").unwrap_or(name);
            if self.writer.has_ansi_escapes() {
                write!(self.writer, "{ITALIC}{name}{PLAIN}{DIM}={PLAIN}")?;
            } else {
                write!(self.writer, "{name}=")?;
            }
        }
        write!(Escaping(&mut self.writer), "{value:?}")
    }
}

impl Visit for Visitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // What the `log` crate says of a line's origin stands in its head already.
        if self.result.is_ok() && !field.name().starts_with("log.") {
            self.result = self.put(field.name(), value);
        }
    }
}

/// A line without an event.
pub(super) fn line(json: bool, level: &str, message: &str) -> Vec<u8> {
    let mut time = String::new();
    // A clock that cannot be read leaves the time out.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    let line = if json {
        let line = serde_json::json!({"timestamp": time, "level": level, "message": message, "target": "titan"});
        format!("{line}\n")
    } else {
        format!("{time} {level:>5} {}\n", one_line(message))
    };
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Text(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Text {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a terminal is written.
    fn logged(event: impl FnOnce()) -> String {
        let text = Text::default();
        let writer = text.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(true)
            .fmt_fields(Fields)
            .log_internal_errors(false)
            .finish();
        tracing::subscriber::with_default(subscriber, event);
        let bytes = text.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn no_value_from_outside_ends_its_line_or_reaches_the_terminal() {
        let endpoint = "host:1\x1b[2K\x1b[1A\r\n2026-01-01T00:00:00Z  INFO agent lost\u{9b}31m\u{202e}";
        let error = io::Error::other(endpoint);
        let error: &(dyn Error + 'static) = &error;
        let events: [Box<dyn FnOnce()>; 6] = [
            Box::new(|| tracing::info!(%endpoint, "agent registered")),
            Box::new(|| tracing::info!(?endpoint, "agent registered")),
            Box::new(|| tracing::info!(endpoint, "agent registered")),
            Box::new(|| tracing::info!(error, "agent registered")),
            Box::new(|| tracing::info!("agent {endpoint} registered")),
            Box::new(|| {
                let _span = tracing::info_span!("call", %endpoint).entered();
                tracing::info!("agent registered");
            }),
        ];
        for event in events {
            let line = logged(event);
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            assert!(line.ends_with('\n') && line.contains("host:1\\u{1b}[2K"), "{line:?}");
            for hidden in ["\x1b[2K", "\x1b[1A", "\r", "\u{9b}", "\u{202e}"] {
                assert!(!line.contains(hidden), "{hidden:?} in {line:?}");
            }
        }
    }

    #[test]
    fn a_line_looks_as_it_did() {
        let line = logged(|| tracing::info!(count = 3, name = "a b", "message"));
        let (_, rest) = line.split_once("INFO").unwrap();
        let field = |name: &str| format!("{ITALIC}{name}{PLAIN}{DIM}={PLAIN}");
        assert!(rest.ends_with(&format!("message {}3 {}\"a b\"\n", field("count"), field("name"))), "{rest:?}");
    }

    #[test]
    fn a_line_without_an_event_is_one_line() {
        let text = |json| String::from_utf8(line(json, "WARN", "one\ntwo\x1b[0m")).unwrap();
        assert!(text(false).ends_with("  WARN one\\ntwo\\u{1b}[0m\n"), "{:?}", text(false));
        let json: serde_json::Value = serde_json::from_str(&text(true)).unwrap();
        assert_eq!((&json["level"], &json["message"]), (&"WARN".into(), &"one\ntwo\x1b[0m".into()));
        assert!(!json["timestamp"].as_str().unwrap().is_empty());
    }
}
