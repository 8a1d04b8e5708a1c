//! Reading server-sent events, as far as a stream of completions needs them: bytes in, whole events out. Neither socket nor clock.
//!
//! The format is the HTML standard's, "9.2.6 Interpreting an event stream". Bytes are decoded only when an event is whole, so that a
//! character that is cut between two reads is no fault.

use std::collections::VecDeque;

/// Largest event in bytes. A piece of an answer has some hundred; one with 20 alternatives for each of several tokens has some thousand.
/// Without a limit, a server that never ends a line fills its reader's memory.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    /// Its type; empty where the stream gives none.
    pub event: String,
    /// Its lines of data, with a line feed between each two.
    pub data: String,
}

/// Why bytes are no event stream. Nothing after it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A line, or an event, that does not end.
    #[error("an event of more than {MAX_EVENT_BYTES} bytes")]
    TooLong,
    /// Bytes that are no text.
    #[error("an event that is not UTF-8")]
    NotUtf8,
}

/// Puts events together.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_cr: bool,
    /// A byte-order mark may stand before the first line only.
    begun: bool,
    event: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    whole: VecDeque<SseEvent>,
}

impl SseParser {
    /// Takes the next bytes, however they are cut.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), SseError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
            bytes = &bytes[1..];
        }
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.extend(&bytes[..end])?;
            let cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            self.line_ended()?;
            if cr {
                match bytes.first() {
                    Some(b'\n') => bytes = &bytes[1..],
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
        }
        self.extend(bytes)
    }

    /// The next whole event; `None` until more bytes are pushed.
    pub fn event(&mut self) -> Option<SseEvent> {
        self.whole.pop_front()
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        if self.line.len() + self.data.len() + bytes.len() > MAX_EVENT_BYTES {
            return Err(SseError::TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn line_ended(&mut self) -> Result<(), SseError> {
        let line = std::mem::take(&mut self.line);
        let mut rest = line.as_slice();
        if !std::mem::replace(&mut self.begun, true) {
            rest = rest.strip_prefix(b"\xef\xbb\xbf").unwrap_or(rest);
        }
        if rest.is_empty() {
            return self.dispatch();
        }
        let colon = rest.iter().position(|&byte| byte == b':').unwrap_or(rest.len());
        let value = rest.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &rest[..colon] {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => self.event = value.to_vec(),
            // A comment (nothing before the colon), `id`, `retry`, and what later versions may add.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) -> Result<(), SseError> {
        let (event, data) = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
        // An event without data is none.
        if !std::mem::take(&mut self.has_data) {
            return Ok(());
        }
        let text = |bytes| String::from_utf8(bytes).map_err(|_| SseError::NotUtf8);
        self.whole.push_back(SseEvent { event: text(event)?, data: text(data)? });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn data_of(chunks: &[&[u8]]) -> Result<Vec<String>, SseError> {
        let mut parser = SseParser::default();
        let mut found = Vec::new();
        for chunk in chunks {
            parser.push(chunk)?;
            found.extend(std::iter::from_fn(|| parser.event()).map(|event| event.data));
        }
        Ok(found)
    }

    #[test]
    fn events_end_with_an_empty_line_of_any_kind() {
        for text in ["data: a\n\ndata:b\n\n", "data: a\r\n\r\ndata: b\r\n\r\n", "data: a\r\rdata: b\r\r"] {
            assert_eq!(data_of(&[text.as_bytes()]).unwrap(), ["a", "b"], "{text:?}");
        }
    }

    #[test]
    fn comments_and_unknown_fields_are_passed_over() {
        let text = b"\xef\xbb\xbf: ping\n\nid: 7\nretry: 10\nnoise\ndata: a\n\n: ping\n\nevent: empty\n\n";
        assert_eq!(data_of(&[text]).unwrap(), ["a"]);
    }

    #[test]
    fn several_lines_of_data_are_one_text_and_the_type_is_kept() {
        let mut parser = SseParser::default();
        parser.push(b"event: error\ndata: {\ndata:  1}\ndata\n\n").unwrap();
        let event = parser.event().unwrap();
        assert_eq!((event.event.as_str(), event.data.as_str()), ("error", "{\n 1}\n"));
    }

    #[test]
    fn what_is_not_ended_is_no_event() {
        assert!(data_of(&[b"data: [DONE]"]).unwrap().is_empty());
        assert!(data_of(&[b"data: [DONE]\n"]).unwrap().is_empty());
    }

    #[test]
    fn a_carriage_return_and_its_line_feed_may_come_apart() {
        assert_eq!(data_of(&[b"data: a\r", b"\n\r", b"\ndata: b\r", b"\r", b"x\n"]).unwrap(), ["a", "b"]);
    }

    #[test]
    fn a_line_and_an_event_without_end_are_refused() {
        let (line, rest) = (vec![b'x'; MAX_EVENT_BYTES / 2], vec![b'x'; MAX_EVENT_BYTES / 2 + 1]);
        assert_eq!(data_of(&[&line, &rest]), Err(SseError::TooLong));
        let line = [b"data: ".as_slice(), &vec![b'x'; MAX_EVENT_BYTES / 4], b"\n"].concat();
        assert_eq!(data_of(&[&line, &line, &line, &line, &line]), Err(SseError::TooLong));
        // Many short ones are no fault.
        assert_eq!(data_of(&vec![b"data: x\n\n".as_slice(); MAX_EVENT_BYTES / 8]).unwrap().len(), MAX_EVENT_BYTES / 8);
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(data_of(&[b"data: \xff\n\n"]), Err(SseError::NotUtf8));
    }

    proptest! {
        /// The same bytes give the same events, however the network cuts them.
        #[test]
        fn cuts_do_not_matter(
            parts in prop::collection::vec("data: ?[a-z\u{e9}\u{1f642}]{0,6}|: ping|event: e|\r\n|\n|\r|\n\n", 0..24),
            cuts in prop::collection::vec(0usize..200, 0..12),
        ) {
            let bytes = parts.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut < bytes.len()).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts {
                chunks.push(&bytes[from..cut]);
                from = cut;
            }
            chunks.push(&bytes[from..]);
            prop_assert_eq!(data_of(&chunks), data_of(&[&bytes]));
        }

        /// What a server wrote comes out again, whole and in order.
        #[test]
        fn events_come_out_as_they_went_in(
            texts in prop::collection::vec("[ -~\u{e9}\u{4e2d}\u{1f642}]{1,12}(\n[ -~]{0,6})?", 0..8),
            crlf in any::<bool>(),
        ) {
            let end = if crlf { "\r\n" } else { "\n" };
            let mut stream = String::new();
            for text in &texts {
                for line in text.split('\n') {
                    stream += &format!("data: {line}{end}");
                }
                stream += &format!(":{end}{end}");
            }
            let bytes: Vec<&[u8]> = stream.as_bytes().chunks(3).collect();
            prop_assert_eq!(data_of(&bytes).unwrap(), texts);
        }

        /// No bytes make it panic, or keep more than an event.
        #[test]
        fn any_bytes_are_survived(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut parser = SseParser::default();
            for chunk in &chunks {
                if parser.push(chunk).is_err() {
                    break;
                }
            }
        }
    }
}
