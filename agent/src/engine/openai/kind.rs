//! Which server it is, and what it says of its model. Servers speak the same API and differ in what it leaves open: how an answer is gone on
//! with, what constrains a text, how many run at once.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    http::{Http, HttpError},
    source::ServerSpec,
};
use crate::engine::mistral::prompt_escape::{BREAKERS, PromptEscape};

/// Longest wait for the answer to one question about the server. It is asked again when it fails.
const PATIENCE: Duration = Duration::from_secs(3);
/// Texts of a template that are tried on the server's tokenizer: more than any known template's control tokens.
const MAX_CANDIDATES: usize = 64;
/// Longest text that may be a control token, in characters.
const MAX_CONTROL_CHARS: usize = 40;

/// What servers are told apart by. Those that are not known are taken for what the published API says, and nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    LlamaCpp,
    Vllm {
        /// From 0.11 on, constraints are in `structured_outputs`; before, in `guided_regex` and `guided_grammar`.
        structured_outputs: bool,
    },
    Sglang,
    Ollama,
    Other,
}

/// What a server says of itself and its model.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) kind: Kind,
    /// The server's name of the model.
    pub(super) model: String,
    pub(super) context_tokens: Option<i64>,
    pub(super) parameters: Option<i64>,
    pub(super) quantization: String,
    pub(super) architecture: String,
    /// Generations at once.
    pub(super) places: Option<usize>,
    pub(super) tools: bool,
    pub(super) reasoning: bool,
    /// What makes control tokens in a text harmless.
    pub(super) escape: PromptEscape,
}

/// Why the server cannot serve the model now.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Trouble {
    #[error("it does not answer: {0}")]
    Http(#[from] HttpError),
    #[error("it has several models, {}: write #MODEL behind the URL", .0.join(", "))]
    Several(Vec<String>),
    #[error("it has no model {wanted:?}; it has {}", if .available.is_empty() { "none".to_owned() } else { .available.join(", ") })]
    NoModel { wanted: String, available: Vec<String> },
    #[error("it lists no model")]
    Empty,
    #[error("it does not accept the key ({0}): give the right one with --model-key NAME=FILE")]
    Key(String),
    #[error("there is no OpenAI-compatible API at {0}: is the path right?")]
    NoApi(String),
}

impl Trouble {
    /// Whether it is the command line that has to change, and not the server that has to come up.
    pub(super) fn is_permanent(&self) -> bool {
        !matches!(self, Self::Http(_) | Self::Empty)
    }
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Listed>,
}

#[derive(Clone, Deserialize)]
struct Listed {
    id: String,
    /// Of llama.cpp.
    #[serde(default)]
    aliases: Vec<String>,
    owned_by: Option<String>,
    /// Of vLLM and SGLang.
    max_model_len: Option<i64>,
    /// Of llama.cpp.
    meta: Option<Meta>,
}

#[derive(Clone, Deserialize)]
struct Meta {
    n_params: Option<i64>,
}

#[derive(Deserialize)]
struct Props {
    total_slots: usize,
    model_ftype: Option<String>,
    #[serde(default)]
    chat_template: String,
    #[serde(default)]
    chat_template_tool_use: String,
    #[serde(default)]
    bos_token: String,
    #[serde(default)]
    eos_token: String,
    #[serde(default)]
    chat_template_caps: Value,
    #[serde(default)]
    default_generation_settings: Value,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<Value>,
}

impl Tokens {
    /// Whether this text is one token. The server gives texts as such, and lists of bytes for what is none.
    fn have(&self, text: &str) -> bool {
        self.tokens.iter().any(|token| token.get("piece").is_some_and(|piece| piece == text))
    }
}

/// Asks the server what it is.
pub(super) async fn look(http: &Http, spec: &ServerSpec) -> Result<Facts, Trouble> {
    let models: Models = http.json("models", PATIENCE).await.map_err(|error| match error.status() {
        Some(401 | 403) => Trouble::Key(error.to_string()),
        Some(404 | 405) => Trouble::NoApi(spec.url.to_string()),
        _ => Trouble::Http(error),
    })?;
    let listed = chosen(models.data, spec.model.as_deref())?;
    let mut facts = Facts {
        kind: Kind::Other,
        model: listed.id.clone(),
        context_tokens: listed.max_model_len,
        parameters: listed.meta.as_ref().and_then(|meta| meta.n_params),
        quantization: String::new(),
        architecture: String::new(),
        places: None,
        tools: false,
        reasoning: false,
        escape: PromptEscape::new(COMMON_CONTROLS.map(str::to_owned), BREAKERS[0]),
    };
    match listed.owned_by.as_deref() {
        Some("vllm") => {
            let version: Option<Version> = http.json("/version", PATIENCE).await.ok();
            let structured_outputs = version.is_none_or(|version| has_structured_outputs(&version.version));
            facts.kind = Kind::Vllm { structured_outputs };
        }
        Some("sglang") => facts.kind = Kind::Sglang,
        Some("llamacpp") => llama_cpp(http, &mut facts).await?,
        _ if http.json::<Version>("/api/version", PATIENCE).await.is_ok() => ollama(http, &mut facts).await,
        _ if http
            .json::<Value>("/get_model_info", PATIENCE)
            .await
            .is_ok_and(|info| info.get("model_path").is_some()) =>
        {
            facts.kind = Kind::Sglang;
        }
        // A server of the published API, or llama.cpp behind something that hides who owns its models.
        _ if http.json::<Props>("/props", PATIENCE).await.is_ok() => llama_cpp(http, &mut facts).await?,
        _ => {}
    }
    Ok(facts)
}

fn chosen(listed: Vec<Listed>, wanted: Option<&str>) -> Result<Listed, Trouble> {
    let names = || listed.iter().map(|model| model.id.clone()).collect();
    let found = match (wanted, listed.as_slice()) {
        (None, []) => return Err(Trouble::Empty),
        (None, [only]) => Some(only),
        (None, _) => return Err(Trouble::Several(names())),
        // Ollama's names have a tag, which may be left out.
        (Some(wanted), all) => all.iter().find(|model| {
            model.id == wanted
                || model.aliases.iter().any(|alias| alias == wanted)
                || model.id == format!("{wanted}:latest")
        }),
    };
    found.cloned().ok_or_else(|| Trouble::NoModel { wanted: wanted.unwrap_or_default().to_owned(), available: names() })
}

async fn llama_cpp(http: &Http, facts: &mut Facts) -> Result<(), Trouble> {
    let props: Props = http.json("/props", PATIENCE).await?;
    facts.kind = Kind::LlamaCpp;
    facts.places = Some(props.total_slots);
    facts.context_tokens = props.default_generation_settings.get("n_ctx").and_then(Value::as_i64);
    facts.quantization = props.model_ftype.clone().unwrap_or_default();
    facts.tools = props.chat_template_caps.get("supports_tools").and_then(Value::as_bool).unwrap_or(false);
    facts.reasoning = props.chat_template.contains("enable_thinking") || props.chat_template.contains("<think>");
    facts.escape = escape(http, &props).await?;
    Ok(())
}

/// What breaks up the texts that the server's tokenizer takes for control tokens, of all that its template mentions and of every usual one.
async fn escape(http: &Http, props: &Props) -> Result<PromptEscape, HttpError> {
    let mut candidates = vec![props.bos_token.clone(), props.eos_token.clone()];
    candidates.extend(marks(&props.chat_template));
    candidates.extend(marks(&props.chat_template_tool_use));
    candidates.truncate(MAX_CANDIDATES);
    candidates.extend(COMMON_CONTROLS.map(str::to_owned));
    candidates.sort_unstable();
    candidates.dedup();
    let all = candidates.join("\n");
    // One token where control tokens are read, and several where they are not.
    let (read, plain) = (tokens(http, &all, true).await?, tokens(http, &all, false).await?);
    if read.tokens.iter().all(|token| token.get("piece").is_none()) {
        // A server too old to give them.
        return Ok(PromptEscape::new(COMMON_CONTROLS.map(str::to_owned), BREAKERS[0]));
    }
    candidates.retain(|text| read.have(text) && !plain.have(text));
    // Some tokenizers drop invisible characters before they look for control tokens.
    for breaker in BREAKERS {
        let escape = PromptEscape::new(candidates.iter().cloned(), breaker);
        let broken_up = tokens(http, &escape.apply(&escape.sample()), true).await?;
        if !candidates.iter().any(|text| text.chars().nth(1).is_some() && broken_up.have(text)) {
            return Ok(escape);
        }
    }
    Ok(PromptEscape::new(candidates, ' '))
}

async fn tokens(http: &Http, text: &str, parse_special: bool) -> Result<Tokens, HttpError> {
    let question = json!({"content": text, "add_special": false, "parse_special": parse_special, "with_pieces": true});
    http.ask("/tokenize", &question, PATIENCE).await
}

async fn ollama(http: &Http, facts: &mut Facts) {
    facts.kind = Kind::Ollama;
    // What it does not tell is not known.
    let Ok(shown) = http.ask::<Value>("/api/show", &json!({"model": facts.model}), PATIENCE).await else { return };
    let text = |pointer: &str| shown.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let can = |what: &str| {
        shown.get("capabilities").and_then(Value::as_array).is_some_and(|all| all.iter().any(|one| one == what))
    };
    facts.architecture = text("/model_info/general.architecture");
    facts.quantization = text("/details/quantization_level");
    facts.parameters = shown.pointer("/model_info/general.parameter_count").and_then(Value::as_i64);
    (facts.tools, facts.reasoning) = (can("tools"), can("thinking"));
}

/// `0.11.0` and what is newer. A version that is no number is a build of the newest.
fn has_structured_outputs(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(0), Some(minor)) => minor >= 11,
        _ => true,
    }
}

/// Texts in a template that look like control tokens: `<|im_start|>`, `</s>`, `[INST]`.
fn marks(template: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, open) in template.char_indices().filter(|(_, character)| matches!(character, '<' | '[')) {
        let close = if open == '<' { '>' } else { ']' };
        let inside = template[at + 1..].chars().take(MAX_CONTROL_CHARS);
        let text: String =
            inside.take_while(|&c| c != close && !c.is_whitespace() && !matches!(c, '"' | '\'' | '<' | '[')).collect();
        if !text.is_empty() && template[at + 1 + text.len()..].starts_with(close) {
            found.push(format!("{open}{text}{close}"));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// What marks turns in the templates of the usual models. Where a server tells nothing of its tokenizer, these are broken up unseen;
/// `<s>` and `</s>` are left out, since they are HTML too.
const COMMON_CONTROLS: [&str; 30] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|return|>",
    "<|call|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn listed(ids: &[&str]) -> Vec<Listed> {
        let models = ids.iter().map(|id| json!({"id": id, "aliases": [format!("{id}-alias")]})).collect::<Vec<_>>();
        serde_json::from_value::<Models>(json!({"object": "list", "data": models})).unwrap().data
    }

    #[test]
    fn the_only_model_is_taken_and_several_are_named() {
        let id = |ids: &[&str], wanted| chosen(listed(ids), wanted).map(|model| model.id);
        assert_eq!(id(&["a"], None).unwrap(), "a");
        assert_eq!(id(&["a", "b:latest"], Some("b")).unwrap(), "b:latest");
        assert_eq!(id(&["a", "b"], Some("b-alias")).unwrap(), "b");
        let several = id(&["a", "b"], None).unwrap_err();
        assert!(several.is_permanent() && several.to_string().contains("a, b"), "{several}");
        let other = id(&["a", "b"], Some("c")).unwrap_err();
        assert!(other.is_permanent() && other.to_string().contains("\"c\"; it has a, b"), "{other}");
        assert!(!id(&[], None).unwrap_err().is_permanent(), "a server may load its model later");
    }

    #[test]
    fn versions_of_vllm_are_told_apart() {
        for (version, new) in
            [("0.10.2", false), ("0.11.0", true), ("0.11.1rc2.dev1", true), ("1.0", true), ("dev", true)]
        {
            assert_eq!(has_structured_outputs(version), new, "{version}");
        }
    }

    #[test]
    fn a_template_shows_its_control_tokens() {
        let template =
            "{% if a[0] < b and c > d %}<|im_start|>{{ x['role'] }}\n[INST] </s><a b>[/INST]<｜User｜>{% endif %}";
        assert_eq!(marks(template), ["</s>", "<|im_start|>", "<｜User｜>", "[/INST]", "[0]", "[INST]"]);
    }
}
