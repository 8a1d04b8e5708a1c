//! How models write calls of functions, and how they are found in what they write. Pure text, no engine.

#[cfg(test)]
mod tests;

use serde_json::{Value, json};
use titan_proto::v1::{Tool, ToolCallDelta};

use super::super::ToolChoice;

/// The dialects that are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5 and 3.
    Tagged,
    /// `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`: Mistral.
    List,
    /// `{"name": …, "parameters": {…}}` as the whole answer: Llama 3.
    Bare,
}

impl CallFormat {
    /// The one that a template describes. `None` where it has no tools, or writes calls in another way.
    pub(super) fn of_template(source: &str) -> Option<Self> {
        match source {
            source if !source.contains("tools") => None,
            // Qwen 3 Coder writes XML within the tags.
            source if source.contains("<function=") => None,
            source if source.contains("<tool_call>") => Some(Self::Tagged),
            source if source.contains("[TOOL_CALLS]") => Some(Self::List),
            source if source.contains("\"parameters\"") || source.contains("<|python_tag|>") => Some(Self::Bare),
            _ => None,
        }
    }

    /// What a call begins with. `None`: a call is the whole answer.
    pub(super) fn opening(self) -> Option<&'static str> {
        match self {
            Self::Tagged => Some("<tool_call>"),
            Self::List => Some("[TOOL_CALLS]"),
            Self::Bare => None,
        }
    }

    fn closing(self) -> Option<&'static str> {
        match self {
            Self::Tagged => Some("</tool_call>"),
            Self::List | Self::Bare => None,
        }
    }

    fn arguments_key(self) -> &'static str {
        match self {
            Self::Tagged | Self::List => "arguments",
            Self::Bare => "parameters",
        }
    }

    /// A grammar in Lark for calls of these functions, and nothing else. `opened`: what a call begins with has been written.
    pub(super) fn grammar(self, tools: &[Tool], choice: &ToolChoice, opened: bool) -> String {
        let named = |tool: &&Tool| !matches!(choice, ToolChoice::Named(name) if *name != tool.name);
        let schemas: Vec<Value> = tools.iter().filter(named).map(|tool| self.schema(tool)).collect();
        let schema = json!({ "anyOf": schemas, "x-guidance": COMPACT.clone() });
        let text = |text: &str| Value::from(text).to_string();
        let opening = match self.opening() {
            Some(opening) if !opened => text(opening),
            _ => String::new(),
        };
        let (before, after) = match self {
            Self::Tagged => (r#"/\s?/"#, format!(r#"/\s?/ {}"#, text("</tool_call>"))),
            Self::List => (r#"/\s?\[/"#, r#""]""#.to_owned()),
            Self::Bare => ("", String::new()),
        };
        format!("start: {opening} {before} call {after}\ncall: %json {schema}\n")
    }

    fn schema(self, tool: &Tool) -> Value {
        let mut arguments: Value =
            serde_json::from_str(&tool.parameters).unwrap_or_else(|_| json!({ "type": "object" }));
        // Definitions are found from the root of the whole schema.
        let definitions: Vec<(String, Value)> = ["$defs", "definitions"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), arguments.as_object_mut()?.remove(key)?)))
            .collect();
        let mut schema = json!({
            "type": "object",
            "properties": { "name": { "const": tool.name }, self.arguments_key(): arguments },
            "required": ["name", self.arguments_key()],
            "additionalProperties": false,
        });
        if let Some(fields) = schema.as_object_mut() {
            fields.extend(definitions);
        }
        schema
    }
}

/// How llguidance writes JSON: as Python's `json.dumps`, which models have seen. With free white space a small model writes nothing else.
pub(super) static COMPACT: std::sync::LazyLock<Value> =
    std::sync::LazyLock::new(|| json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " }));

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    Text(String),
    Reasoning(String),
    Call(ToolCallDelta),
}

/// Tells text, reasoning and calls apart. The result does not depend on how the answer is cut into pieces, but for where its parts are cut.
pub(super) struct AnswerParser {
    format: Option<CallFormat>,
    mode: Mode,
    /// What may be the beginning of a tag, or what a call has so far.
    held: String,
    calls: u32,
    /// Bytes of the current call's arguments that are out.
    sent: usize,
    named: bool,
    /// Nothing of the text, the reasoning, has come: white space is left out there.
    fresh: bool,
    ids: Box<dyn Fn(u32) -> String + Send>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The beginning, where `<think>` or a call without an opening may come.
    Start,
    Text,
    Reasoning,
    Call,
    /// After a call: white space, or another one.
    Between,
}

const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";

impl AnswerParser {
    /// `format`: there are functions to call. `thinks`: the template has `<think>` tags. `thinking`: the prompt ends within them. `ids` names calls.
    pub(super) fn new(format: Option<CallFormat>, thinking: bool, ids: Box<dyn Fn(u32) -> String + Send>) -> Self {
        let mode = if thinking { Mode::Reasoning } else { Mode::Start };
        Self { format, mode, held: String::new(), calls: 0, sent: 0, named: false, fresh: true, ids }
    }

    /// Calls that were begun.
    pub(super) fn calls(&self) -> u32 {
        self.calls
    }

    /// Within a call.
    pub(super) fn in_call(&self) -> bool {
        self.mode == Mode::Call
    }

    /// Within the model's reasoning.
    pub(super) fn in_reasoning(&self) -> bool {
        self.mode == Mode::Reasoning
    }

    /// Takes the next piece and gives what is certain.
    pub(super) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts, false) {}
        parts
    }

    /// The end of the answer: gives what was held back.
    pub(super) fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        while self.step(&mut parts, true) {}
        let rest = std::mem::take(&mut self.held);
        match self.mode {
            Mode::Reasoning => self.give(&mut parts, &rest, Part::Reasoning),
            // A call that was cut off: what of it is out is all that can be said, and where nothing is out it was none.
            Mode::Call if !self.named => {
                let opening = self.format.and_then(CallFormat::opening).unwrap_or_default();
                self.give(&mut parts, &format!("{opening}{rest}"), Part::Text);
            }
            Mode::Call | Mode::Between => {}
            Mode::Start | Mode::Text => self.give(&mut parts, &rest, Part::Text),
        }
        parts
    }

    /// Goes one step on in what is held. `false` if more has to come first.
    fn step(&mut self, parts: &mut Vec<Part>, last: bool) -> bool {
        match self.mode {
            Mode::Start => self.start(last),
            Mode::Text => self.text(parts),
            Mode::Reasoning => {
                let (before, found) = self.up_to(THOUGHT);
                self.give(parts, &before, Part::Reasoning);
                if found {
                    self.enter(Mode::Text);
                }
                found
            }
            Mode::Call => self.call(parts),
            Mode::Between => self.between(),
        }
    }

    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.fresh = true;
        (self.sent, self.named) = (0, false);
    }

    fn start(&mut self, last: bool) -> bool {
        let begun = self.held.trim_start();
        if begun.is_empty() || (!last && THINK.starts_with(begun) && begun.len() < THINK.len()) {
            return false;
        }
        if let Some(rest) = begun.strip_prefix(THINK) {
            self.held = rest.to_owned();
            self.enter(Mode::Reasoning);
        } else if self.format == Some(CallFormat::Bare) && begun.starts_with(['{', '[', '<']) {
            // `<`: of `<|python_tag|>`, which some write first.
            self.held = begun.to_owned();
            self.mode = Mode::Call;
        } else {
            self.mode = Mode::Text;
            self.fresh = false;
        }
        true
    }

    fn text(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(opening) = self.format.and_then(CallFormat::opening) else {
            let text = std::mem::take(&mut self.held);
            self.give(parts, &text, Part::Text);
            return false;
        };
        let (before, found) = self.up_to(opening);
        // The white space before a call belongs to neither.
        let before = if found { before.trim_end().to_owned() } else { before };
        self.give(parts, &before, Part::Text);
        if found {
            self.enter(Mode::Call);
        }
        found
    }

    /// What comes before `tag`, and whether the tag is there. What may be its beginning stays.
    fn up_to(&mut self, tag: &str) -> (String, bool) {
        if let Some(at) = self.held.find(tag) {
            let rest = self.held.split_off(at + tag.len());
            let mut before = std::mem::replace(&mut self.held, rest);
            before.truncate(at);
            return (before, true);
        }
        let may_begin = |at: &usize| tag.starts_with(&self.held[*at..]);
        let mut from = self.held.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(self.held.len());
        // White space before what may be a call waits with it.
        if self.mode == Mode::Text {
            from = self.held[..from].trim_end().len();
        }
        let rest = self.held.split_off(from);
        (std::mem::replace(&mut self.held, rest), false)
    }

    fn give(&mut self, parts: &mut Vec<Part>, text: &str, part: fn(String) -> Part) {
        let text = if self.fresh { text.trim_start() } else { text };
        if !text.is_empty() {
            self.fresh = false;
            parts.push(part(text.to_owned()));
        }
    }

    fn call(&mut self, parts: &mut Vec<Part>) -> bool {
        let skipped =
            self.held.len() - self.held.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '[' | ',')).len();
        self.held.drain(..skipped);
        if let Some(rest) = self.held.strip_prefix("<|python_tag|>") {
            self.held = rest.to_owned();
        }
        if !self.held.starts_with('{') && !self.held.is_empty() && !"<|python_tag|>".starts_with(&self.held) {
            return self.no_call(parts);
        }
        let object = Object::read(&self.held);
        if let (false, Some(name)) = (self.named, object.text("name", &self.held)) {
            self.named = true;
            let id = (self.ids)(self.calls);
            parts.push(Part::Call(ToolCallDelta { index: self.calls, id, name, arguments: String::new() }));
            self.calls += 1;
        }
        let arguments = object.value("arguments").or_else(|| object.value("parameters"));
        if let (true, Some(value)) = (self.named, arguments) {
            let raw = &self.held[value.start..value.end];
            // Some models write the arguments as a text that holds the JSON.
            let arguments = match raw.starts_with('"') {
                true if value.complete => serde_json::from_str::<String>(raw).unwrap_or_default(),
                true => String::new(),
                false => raw.to_owned(),
            };
            if let Some(more) = arguments.get(self.sent..).filter(|more| !more.is_empty()) {
                let index = self.calls.saturating_sub(1);
                parts.push(Part::Call(ToolCallDelta { index, arguments: more.to_owned(), ..ToolCallDelta::default() }));
                self.sent = arguments.len();
            }
        }
        let Some(end) = object.end else { return false };
        if !self.named {
            return self.no_call(parts);
        }
        self.held.drain(..end);
        self.enter(Mode::Between);
        true
    }

    /// It looked like a call, and is text.
    fn no_call(&mut self, parts: &mut Vec<Part>) -> bool {
        if self.named {
            self.enter(Mode::Between);
            return true;
        }
        let opening = self.format.and_then(CallFormat::opening).unwrap_or_default();
        let text = format!("{opening}{}", std::mem::take(&mut self.held));
        self.mode = Mode::Text;
        self.fresh = false;
        parts.push(Part::Text(text));
        false
    }

    fn between(&mut self) -> bool {
        let rest = self.held.trim_start();
        let closing = self.format.and_then(CallFormat::closing);
        if let Some(after) = closing.and_then(|closing| rest.strip_prefix(closing)) {
            self.held = after.to_owned();
            self.enter(Mode::Text);
            return true;
        }
        match self.format {
            // The next call of a list.
            Some(CallFormat::List) if rest.starts_with(',') => {
                self.held = rest.to_owned();
                self.enter(Mode::Call);
                true
            }
            Some(CallFormat::Tagged)
                if !rest.is_empty() && !closing.is_some_and(|closing| closing.starts_with(rest)) =>
            {
                self.enter(Mode::Text);
                true
            }
            Some(CallFormat::Tagged) => false,
            // Nothing that follows a list or a bare call is meant for a reader.
            _ => {
                self.held.clear();
                false
            }
        }
    }
}

/// The fields of a JSON object that may not be whole yet.
struct Object {
    fields: Vec<(String, Field)>,
    /// Behind its closing brace.
    end: Option<usize>,
}

#[derive(Clone, Copy)]
struct Field {
    start: usize,
    end: usize,
    complete: bool,
}

impl Object {
    fn read(text: &str) -> Self {
        let mut object = Self { fields: Vec::new(), end: None };
        let (mut depth, mut string, mut escaped) = (0usize, None, false);
        let (mut key, mut value) = (None::<String>, None::<usize>);
        for (at, byte) in text.bytes().enumerate() {
            if let Some(start) = string {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = true,
                    b'"' => {
                        string = None;
                        if depth == 1 && key.is_none() {
                            key = serde_json::from_str(&text[start..=at]).ok();
                        } else if depth == 1 {
                            object.close(&mut key, &mut value, at + 1);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            let in_value = depth == 1 && key.is_some();
            if in_value && value.is_none() && !byte.is_ascii_whitespace() && byte != b':' {
                value = Some(at);
            }
            match byte {
                b'"' => string = Some(at),
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    if depth == 1 {
                        object.close(&mut key, &mut value, at + 1);
                    } else if depth == 0 {
                        // A number, true, false or null before it.
                        object.close(&mut key, &mut value, at);
                        object.end = Some(at + 1);
                        break;
                    }
                }
                b',' if depth == 1 => {
                    object.close(&mut key, &mut value, at);
                    key = None;
                }
                _ => {}
            }
        }
        if let (Some(key), Some(start)) = (key, value) {
            object.fields.push((key, Field { start, end: text.len(), complete: false }));
        }
        object
    }

    fn close(&mut self, key: &mut Option<String>, value: &mut Option<usize>, end: usize) {
        if let (Some(name), Some(start)) = (key.as_ref(), value.take()) {
            self.fields.push((name.clone(), Field { start, end, complete: true }));
            // The next text at this depth is a key again, behind a comma.
            *key = None;
        }
    }

    fn value(&self, name: &str) -> Option<Field> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, field)| *field)
    }

    fn text(&self, name: &str, of: &str) -> Option<String> {
        let field = self.value(name).filter(|field| field.complete)?;
        serde_json::from_str(&of[field.start..field.end]).ok()
    }
}
