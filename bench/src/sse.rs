//! Server-sent events: bytes in, the data of events out. No I/O here. HTML Standard §9.2.6, "Interpreting an event stream".

use std::collections::VecDeque;

/// Bytes of one event's data, and of one line: an event here has about 200.
const MAX_EVENT_BYTES: usize = 64 * 1024;

/// An event stream as it comes.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// A line whose end has not come yet.
    line: Vec<u8>,
    /// The last byte was a CR: an LF after it belongs to the same line end.
    after_cr: bool,
    /// The lines of `data:` so far, each with an LF.
    data: Vec<u8>,
    events: VecDeque<String>,
}

/// Not an event stream, or none that a server here sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SseError {
    #[error("an event has more than {MAX_EVENT_BYTES} bytes")]
    TooLong,
    #[error("an event is not UTF-8")]
    NotUtf8,
}

impl Parser {
    /// Takes the next bytes, however they are cut.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        for &byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\r' | b'\n' => self.end_line()?,
                _ if self.line.len() == MAX_EVENT_BYTES => return Err(SseError::TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    /// The data of the next complete event.
    pub(crate) fn next(&mut self) -> Option<String> {
        self.events.pop_front()
    }

    fn end_line(&mut self) -> Result<(), SseError> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            // An empty line ends the event; one without data is none.
            let mut data = std::mem::take(&mut self.data);
            if data.pop().is_some() {
                self.events.push_back(String::from_utf8(data).map_err(|_| SseError::NotUtf8)?);
            }
            return Ok(());
        }
        // A comment has an empty name; other fields mean nothing here.
        let (name, value) = match line.iter().position(|&byte| byte == b':') {
            Some(colon) => (&line[..colon], line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..])),
            None => (&line[..], &[][..]),
        };
        if name == b"data" {
            if self.data.len() + value.len() > MAX_EVENT_BYTES {
                return Err(SseError::TooLong);
            }
            self.data.extend_from_slice(value);
            self.data.push(b'\n');
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn all(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = Parser::default();
        chunks.iter().for_each(|chunk| parser.push(chunk).unwrap());
        std::iter::from_fn(|| parser.next()).collect()
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        let one = |text: &str| all(&[text.as_bytes()]);
        assert_eq!(one("data: a\n\ndata: b\n\n"), ["a", "b"]);
        assert_eq!(
            one("data:a\r\n\r\ndata:  b\r\rdata: c"),
            ["a", " b"],
            "any line end, one blank, and no end no event"
        );
        assert_eq!(one("data: a\ndata: b\n\n"), ["a\nb"]);
        assert_eq!(one(": ping\n\nevent: x\nid: 1\ndata: a\n\nretry: 5\n\n"), ["a"]);
        assert_eq!(one("data\n\ndata:\n\n"), ["", ""]);
    }

    #[test]
    fn what_is_no_event_stream_is_refused() {
        assert_eq!(Parser::default().push(b"data: \xff\n\n"), Err(SseError::NotUtf8));
        assert_eq!(Parser::default().push(&[b'x'; MAX_EVENT_BYTES + 1]), Err(SseError::TooLong));
        let lines = b"data: 0123456789\n".repeat(MAX_EVENT_BYTES / 10);
        assert_eq!(Parser::default().push(&lines), Err(SseError::TooLong));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(cuts in proptest::collection::vec(0usize..60, 0..6)) {
            let text = b"data: one\r\n\r\n: c\ndata: two\ndata: three\n\ndata: [DONE]\r\r";
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(all(&chunks), ["one", "two\nthree", "[DONE]"]);
        }
    }
}
