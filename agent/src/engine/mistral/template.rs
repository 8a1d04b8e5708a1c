//! A model's chat template: from a conversation to the text that the model reads.
//!
//! Rendered here and not by mistral.rs: it does so on the engine's thread, panics or fails at each request where a template is missing or broken,
//! and writes `<` in tool descriptions as `\u003c`. What a template cannot do is found out when the model is loaded: [`ChatTemplate::new`].

use minijinja::{Environment, Error, ErrorKind, Value, context, value::Kwargs};
use serde::Serialize as _;
use serde_json::json;
use time::{OffsetDateTime, format_description::parse_strftime_owned};
use titan_proto::v1::{Message, Tool, ToolCall};

use super::{super::Reasoning, tool_calls::CallFormat};

/// A template that renders conversations.
pub(super) struct ChatTemplate {
    source: String,
    tokens: SpecialTokens,
    calls: Option<CallFormat>,
    system: bool,
}

/// Texts of tokens that templates write.
#[derive(Clone, Debug, Default)]
pub(super) struct SpecialTokens {
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
    pub(super) unk: Option<String>,
}

/// Why a conversation could not be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    /// The template says so itself.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// It needs something that is not there, or is no template.
    #[error("the model's chat template fails: {0}")]
    Broken(String),
    /// The conversation has what this template has no place for.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl ChatTemplate {
    /// Takes a template that can render a prompt and a conversation. One that refuses system messages only, or tools, says so later.
    pub(super) fn new(source: String, tokens: SpecialTokens) -> Result<Self, TemplateError> {
        let source = for_minijinja(&source);
        let calls = CallFormat::of_template(&source);
        let mut template = Self { source, tokens, calls, system: true };
        template.probe()?;
        Ok(template)
    }

    /// How the model writes calls of functions, if its template has functions.
    pub(super) fn calls(&self) -> Option<CallFormat> {
        self.calls
    }

    /// The model can think before it answers.
    pub(super) fn has_reasoning(&self) -> bool {
        self.source.contains("<think>") || self.source.contains("enable_thinking")
    }

    /// The text of the conversation, up to where the answer begins. `escape` makes every text in it harmless.
    pub(super) fn render(
        &self,
        messages: &[Message],
        tools: &[Tool],
        reasoning: &Reasoning,
        escape: &dyn Fn(&str) -> String,
    ) -> Result<String, TemplateError> {
        if !tools.is_empty() && self.calls.is_none() {
            let why = "this model cannot call functions: its chat template has no place for tools; leave `tools` out or choose another model";
            return Err(TemplateError::Unsupported(why));
        }
        if !self.system && messages.iter().any(|message| is_system(&message.role)) {
            let why =
                "this model's chat template takes no system message: put its text into the first message of the user";
            return Err(TemplateError::Unsupported(why));
        }
        self.render_unchecked(messages, tools, reasoning, escape)
    }

    fn render_unchecked(
        &self,
        messages: &[Message],
        tools: &[Tool],
        reasoning: &Reasoning,
        escape: &dyn Fn(&str) -> String,
    ) -> Result<String, TemplateError> {
        let mut env = Environment::new();
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // As transformers renders templates.
        env.set_lstrip_blocks(true);
        env.set_trim_blocks(true);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        env.add_filter("tojson", tojson);
        let developer = self.source.contains("developer");
        let messages: Vec<Value> =
            messages.iter().map(|message| Value::from_serialize(message_json(message, developer, escape))).collect();
        let tools = match tools {
            [] => Value::from(()),
            tools => Value::from_serialize(tools.iter().map(|tool| tool_json(tool, escape)).collect::<Vec<_>>()),
        };
        let optional = |value: Option<Value>| value.unwrap_or(Value::UNDEFINED);
        let context = context! {
            messages, tools,
            documents => Value::from(()),
            add_generation_prompt => true,
            bos_token => self.tokens.bos.as_deref().unwrap_or_default(),
            eos_token => self.tokens.eos.as_deref().unwrap_or_default(),
            unk_token => self.tokens.unk.as_deref().unwrap_or_default(),
            enable_thinking => optional(reasoning.enabled.map(Value::from)),
            reasoning_effort => optional(reasoning.effort.as_deref().map(Value::from)),
        };
        env.template_from_str(&self.source)
            .and_then(|template| template.render(context))
            .map_err(|error| failure(&error))
    }

    /// Renders what people will send. What fails here would fail at each request.
    fn probe(&mut self) -> Result<(), TemplateError> {
        let say = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
            ..Message::default()
        };
        let render = |template: &Self, messages: &[Message], tools: &[Tool]| {
            template.render_unchecked(messages, tools, &Reasoning::default(), &|text| text.to_owned())
        };
        let (question, answer) = (say("user", "first question"), say("assistant", "first answer"));
        let prompt = render(self, std::slice::from_ref(&question), &[])?;
        if !prompt.contains("first question") {
            return Err(TemplateError::Broken("it leaves out what the user says".to_owned()));
        }
        let conversation = [question.clone(), answer, say("user", "second question")];
        let rendered = render(self, &conversation, &[])?;
        if !rendered.contains("first answer") || !rendered.contains("second question") {
            return Err(TemplateError::Broken("it leaves out a part of a conversation".to_owned()));
        }
        match render(self, &[say("system", "rules"), question.clone()], &[]) {
            Ok(rendered) => self.system = rendered.contains("rules"),
            Err(TemplateError::Refused(_)) => self.system = false,
            Err(error) => return Err(error),
        }
        if self.calls.is_some() {
            let tool = Tool {
                name: "weather".to_owned(),
                description: "Tells the weather.".to_owned(),
                parameters: r#"{"type":"object","properties":{"city":{"type":"string"}}}"#.to_owned(),
            };
            // Nine characters: some templates demand just that many.
            let id = "abcdefghi".to_owned();
            let call =
                ToolCall { id: id.clone(), name: "weather".to_owned(), arguments: r#"{"city":"Oslo"}"#.to_owned() };
            let asked = Message { role: "assistant".to_owned(), tool_calls: vec![call], ..Message::default() };
            let told = Message { tool_call_id: id, name: "weather".to_owned(), ..say("tool", "12 degrees") };
            render(self, &[question, asked, told], &[tool])?;
        }
        Ok(())
    }
}

fn is_system(role: &str) -> bool {
    matches!(role, "system" | "developer")
}

/// What minijinja does not know of Jinja in Python, and templates use.
fn for_minijinja(source: &str) -> String {
    let source = source.replace("[::-1]", "|reverse");
    // Marks what is trained on; renders nothing.
    ["{% generation %}", "{%- generation %}", "{% generation -%}", "{%- generation -%}"]
        .iter()
        .fold(source, |source, tag| source.replace(tag, "").replace(&tag.replace("generation", "endgeneration"), ""))
}

fn message_json(message: &Message, developer: bool, escape: &dyn Fn(&str) -> String) -> serde_json::Value {
    let role = match message.role.as_str() {
        "developer" if !developer => "system",
        role => role,
    };
    let content = match message.parts.as_slice() {
        [] => message.content.clone(),
        parts => parts.iter().map(|part| part.text.as_str()).collect::<Vec<_>>().join("\n"),
    };
    let mut json = json!({ "role": role, "content": escape(&content) });
    if !message.tool_calls.is_empty() {
        let call = |call: &ToolCall| {
            let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
            let function = json!({ "name": escape(&call.name), "arguments": escaped(arguments, escape) });
            json!({ "id": escape(&call.id), "type": "function", "function": function })
        };
        json["tool_calls"] = message.tool_calls.iter().map(call).collect();
    }
    for (key, text) in
        [("tool_call_id", &message.tool_call_id), ("name", &message.name), ("reasoning_content", &message.reasoning)]
    {
        if !text.is_empty() {
            json[key] = escape(text).into();
        }
    }
    json
}

fn tool_json(tool: &Tool, escape: &dyn Fn(&str) -> String) -> serde_json::Value {
    let parameters = match tool.parameters.as_str() {
        "" => json!({ "type": "object", "properties": {} }),
        schema => serde_json::from_str(schema).unwrap_or_else(|_| json!({})),
    };
    json!({ "type": "function", "function": {
        "name": escape(&tool.name),
        "description": escape(&tool.description),
        "parameters": escaped(parameters, escape),
    }})
}

/// The same with every text in it escaped.
fn escaped(value: serde_json::Value, escape: &dyn Fn(&str) -> String) -> serde_json::Value {
    match value {
        serde_json::Value::String(text) => escape(&text).into(),
        serde_json::Value::Array(values) => values.into_iter().map(|value| escaped(value, escape)).collect(),
        serde_json::Value::Object(fields) => {
            fields.into_iter().map(|(key, value)| (escape(&key), escaped(value, escape))).collect()
        }
        other => other,
    }
}

/// Begins the message of an error that a template raised itself.
const RAISED: &str = "\u{1}";

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn failure(error: &Error) -> TemplateError {
    let raised = error.detail().and_then(|detail| detail.strip_prefix(RAISED));
    match raised {
        Some(message) => TemplateError::Refused(one_line(message)),
        None => {
            let place = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
            let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
            TemplateError::Broken(one_line(&format!("{}{detail}{place}", error.kind())))
        }
    }
}

/// Longest reason in characters: a template may put the whole conversation into its message.
const REASON_CHARS: usize = 200;

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(REASON_CHARS).collect()
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let wrong = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    };
    let description = parse_strftime_owned(format).map_err(|error| wrong(&error))?;
    OffsetDateTime::now_utc().format(&description).map_err(|error| wrong(&error))
}

/// As `json.dumps` of Python writes it, which is what models have seen: with a space after `,` and `:`.
fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's other options change nothing for what templates write.
    for ignored in ["ensure_ascii", "sort_keys", "separators"] {
        let _: Option<Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let spaces = b" ".repeat(indent);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    let text = written
        .map_err(|error| error.to_string())
        .and_then(|()| String::from_utf8(out).map_err(|error| error.to_string()));
    text.map(Value::from_safe_string).map_err(|error| Error::new(ErrorKind::BadSerialization, error))
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
                          {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn user(content: &str) -> Message {
        Message { role: "user".into(), content: content.into(), ..Message::default() }
    }

    fn rendered(source: &str, messages: &[Message], tools: &[Tool]) -> Result<String, TemplateError> {
        let template = ChatTemplate::new(source.to_owned(), SpecialTokens::default())?;
        template.render(messages, tools, &Reasoning::default(), &|text| text.replace("<|", "<||"))
    }

    fn refusal(source: &str) -> String {
        ChatTemplate::new(source.to_owned(), SpecialTokens::default()).err().unwrap().to_string()
    }

    #[test]
    fn a_conversation_is_rendered_and_its_texts_are_escaped() {
        let system = Message { role: "developer".into(), content: "be kind".into(), ..Message::default() };
        let got = rendered(CHATML, &[system, user("a<|im_end|>b")], &[]).unwrap();
        assert_eq!(
            got,
            "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\na<||im_end|>b<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn templates_that_cannot_answer_are_refused_with_the_reason() {
        assert!(
            refusal("{{ raise_exception('I never answer') }}").contains("refuses this conversation: I never answer")
        );
        assert!(refusal("{{ fancy_function(messages) }}").contains("fancy_function"));
        assert!(refusal("{% for m in messages %}").contains("fails"));
        assert!(refusal("hello").contains("leaves out what the user says"));
        assert!(refusal("{{ messages[0].content }}").contains("a part of a conversation"));
        assert!(!refusal("{% for m in messages %}").contains('\n'));
    }

    #[test]
    fn a_template_without_system_messages_refuses_only_those() {
        let gemma = format!(
            "{{% if messages[0].role == 'system' %}}{{{{ raise_exception('no system role') }}}}{{% endif %}}{CHATML}"
        );
        assert!(rendered(&gemma, &[user("hi")], &[]).is_ok());
        let system = Message { role: "system".into(), content: "rules".into(), ..Message::default() };
        let refused = rendered(&gemma, &[system, user("hi")], &[]).unwrap_err();
        assert!(refused.to_string().contains("takes no system message"), "{refused}");
    }

    #[test]
    fn tools_reach_the_template_in_order_and_as_python_writes_them() {
        let source = format!(
            "{{% if tools %}}{{% for tool in tools %}}{{{{ tool | tojson }}}}\n{{% endfor %}}<tool_call>{{% endif %}}{CHATML}"
        );
        let tool = Tool {
            name: "f".into(),
            description: "says <|im_end|> & 'é'".into(),
            parameters: r#"{"type":"object","properties":{"z":{"type":"string"},"a":{"enum":["<|x"]}}}"#.into(),
        };
        let got = rendered(&source, &[user("hi")], std::slice::from_ref(&tool)).unwrap();
        let expected = r#"{"type": "function", "function": {"name": "f", "description": "says <||im_end|> & 'é'", "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {"enum": ["<||x"]}}}}}"#;
        assert!(got.starts_with(expected), "{got}");
        let refused = rendered(CHATML, &[user("hi")], &[tool]).unwrap_err();
        assert!(refused.to_string().contains("cannot call functions"), "{refused}");
    }
}
