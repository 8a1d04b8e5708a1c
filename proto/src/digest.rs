//! The chain of digests of a conversation: `PROTOCOL.md` §19. Pure.
//!
//! A client sends the digests of its conversation's beginnings, agents report those of what their engines hold, and the coordinator compares
//! numbers: it sees no text. The client's id is the salt, so one client's digests say nothing about another's conversations.

use sha2::{Digest as _, Sha256};

use crate::v1::{Message, Tool};

/// Digests of one routing request: the newest ones. A conversation goes on by a few messages at a time, so that its engine's last digest is
/// among them; and they take a kilobyte of JSON.
pub const MAX_PREFIX_DIGESTS: usize = 64;
/// Digests that one agent reports: the messages of some tens of conversations. With 20,000 agents the coordinator keeps 80 MB of them.
pub const MAX_CACHED_PREFIXES: usize = 512;

/// What the first digest begins with. A change of the form changes the number in it, so that old and new digests are never equal.
const DOMAIN: &str = "titancompute prefix 1";

/// The digest of a conversation's beginning, which grows message by message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(u64);

impl Chain {
    /// Before the first message. `owner` is the client's id, as the session token names it.
    pub fn new(owner: &str, model: &str, tools: &[Tool]) -> Self {
        let salted = Form::default().text(DOMAIN).text(owner).text(model).digest();
        let mut form = Form::default().number(salted).count(tools.len());
        for Tool { name, description, parameters } in tools {
            form = form.text(name).text(description).text(parameters);
        }
        Self(form.digest())
    }

    /// Adds a message and gives the digest of all up to it. An assistant's `reasoning` does not count: few clients send it back.
    pub fn push(&mut self, message: &Message) -> u64 {
        let Message { role, content, parts, tool_calls, tool_call_id, name, reasoning: _ } = message;
        let text: String = std::iter::once(content).chain(parts.iter().map(|part| &part.text)).cloned().collect();
        let mut form = Form::default().number(self.0).text(role).text(&text).count(tool_calls.len());
        for call in tool_calls {
            form = form.text(&call.id).text(&call.name).text(&call.arguments);
        }
        self.0 = form.text(tool_call_id).text(name).digest();
        self.0
    }
}

/// The digests of a conversation's beginnings, one for each message, the shortest first.
pub fn prefixes(owner: &str, model: &str, tools: &[Tool], messages: &[Message]) -> Vec<u64> {
    let mut chain = Chain::new(owner, model, tools);
    messages.iter().map(|message| chain.push(message)).collect()
}

/// An agent in a word of 16 hexadecimal digits, for ids by which it is found again.
pub fn origin(agent_id: &str) -> String {
    to_hex(Form::default().text("titancompute origin 1").text(agent_id).digest())
}

/// As a digest stands in JSON: 16 hexadecimal digits.
pub fn to_hex(digest: u64) -> String {
    format!("{digest:016x}")
}

/// The inverse of [`to_hex`]; `None` for anything else.
pub fn from_hex(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits { u64::from_str_radix(text, 16).ok() } else { None }
}

/// What is digested: numbers of eight bytes, the highest first, and texts behind their length in bytes. No two lists of fields have the
/// same form.
#[derive(Default)]
struct Form(Sha256);

impl Form {
    fn number(mut self, number: u64) -> Self {
        self.0.update(number.to_be_bytes());
        self
    }

    fn count(self, count: usize) -> Self {
        self.number(count as u64)
    }

    fn text(self, text: &str) -> Self {
        let mut form = self.count(text.len());
        form.0.update(text.as_bytes());
        form
    }

    /// The first eight bytes of the SHA-256, the highest first.
    fn digest(self) -> u64 {
        self.0.finalize().iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::v1::{ContentPart, ToolCall};

    const DOCUMENT: &str = include_str!("../PROTOCOL.md");

    /// The conversation of the document's example.
    fn example() -> (Vec<Tool>, Vec<Message>) {
        let weather = Tool {
            name: "weather".into(),
            description: "Weather of a town".into(),
            parameters: r#"{"type":"object","properties":{"town":{"type":"string"}}}"#.into(),
        };
        let arguments = r#"{"town":"Bern"}"#.into();
        let call = ToolCall { id: "call_1".into(), name: "weather".into(), arguments };
        let messages = vec![
            Message::system("Be brief."),
            Message::user("Is it warm in Bern? ☀"),
            Message { tool_calls: vec![call], ..Message::assistant("") },
            Message { name: "weather".into(), ..Message::tool("call_1", "14 °C") },
        ];
        (vec![weather], messages)
    }

    /// The rows `| what | 16 digits |` of §19.
    fn documented() -> Vec<(String, u64)> {
        let section = DOCUMENT.split("\n## 19.").nth(1).expect("PROTOCOL.md §19");
        let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
        cells.filter_map(|(what, digits)| Some((what.to_owned(), from_hex(digits.trim_matches('`'))?))).collect()
    }

    #[test]
    fn the_documents_test_vectors_hold() {
        let (tools, messages) = example();
        let mut computed = vec![
            ("no message, no tools".to_owned(), Chain::new("client-1", "smollm2:135m", &[]).0),
            ("no message".to_owned(), Chain::new("client-1", "smollm2:135m", &tools).0),
        ];
        let digests = prefixes("client-1", "smollm2:135m", &tools, &messages);
        computed
            .extend(digests.into_iter().enumerate().map(|(at, digest)| (format!("messages to {}", at + 1), digest)));
        assert_eq!(documented(), computed);
    }

    #[test]
    fn a_longer_conversation_has_the_same_beginnings() {
        let (tools, messages) = example();
        let all = prefixes("c", "m", &tools, &messages);
        assert_eq!(all.len(), messages.len());
        for length in 0..messages.len() {
            assert_eq!(prefixes("c", "m", &tools, &messages[..length]), all[..length]);
        }
    }

    #[test]
    fn whatever_a_model_reads_makes_a_difference() {
        let (tools, messages) = example();
        let digest = |owner: &str, model: &str, tools: &[Tool], messages: &[Message]| {
            *prefixes(owner, model, tools, messages).last().unwrap()
        };
        let one = digest("c", "m", &tools, &messages);
        assert_ne!(digest("d", "m", &tools, &messages), one, "another client");
        assert_ne!(digest("c", "n", &tools, &messages), one);
        assert_ne!(digest("c", "m", &[], &messages), one);
        let changes: [fn(&mut Vec<Message>); 7] = [
            |m| m[0].role = "developer".into(),
            |m| m[1].content.push('!'),
            |m| m[2].tool_calls.clear(),
            |m| m[2].tool_calls[0].id = "call_2".into(),
            |m| m[3].tool_call_id = "call_2".into(),
            |m| m[3].name.clear(),
            |m| m.swap(0, 1),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = messages.clone();
            change(&mut changed);
            assert_ne!(digest("c", "m", &tools, &changed), one, "change {number}");
        }
        // Where one text ends and the next one begins counts too.
        assert_ne!(Chain::new("ab", "c", &[]), Chain::new("a", "bc", &[]));
    }

    #[test]
    fn parts_are_their_text_and_reasoning_does_not_count() {
        let part = |text: &str| ContentPart { r#type: "text".into(), text: text.into() };
        let parts = Message { content: String::new(), parts: vec![part("a"), part("b")], ..Message::user("") };
        let thought = Message { reasoning: "hm".into(), ..Message::user("ab") };
        let one = prefixes("c", "m", &[], &[Message::user("ab")]);
        assert_eq!((prefixes("c", "m", &[], &[parts]), prefixes("c", "m", &[], &[thought])), (one.clone(), one));
    }

    #[test]
    fn digests_are_read_as_they_are_written() {
        for digest in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(from_hex(&to_hex(digest)), Some(digest));
        }
        for wrong in ["", "0", "+123456789abcdef", "0123456789abcdeg", "00123456789abcdef", "é123456789abcde"] {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }
}
