//! Grammars that an answer keeps to: JSON schemas, regular expressions, Lark, and the calls of functions.
//!
//! llguidance says which tokens may come next; the sampler chooses among those. mistral.rs' own constraints are not used: they look at what its
//! own sampler chose, and tokens are chosen here.

use std::sync::Arc;

use mistralrs::core::llguidance::{Matcher, api::TopLevelGrammar};
use serde_json::{Value, json};
use titan_proto::v1::Tool;

use super::{
    super::{Constraint, EngineError, ToolChoice},
    tool_calls::{COMPACT, CallFormat},
    vocabulary::Vocabulary,
};

/// What the next token may be.
pub(super) struct Guide {
    vocabulary: Arc<Vocabulary>,
    now: Option<Matcher>,
    /// Begins when the model has stopped thinking.
    after_reasoning: Option<Matcher>,
    /// Each call that the model begins by itself keeps to this.
    calls: Option<String>,
    /// `now` is of a call, behind which the model is free again.
    in_call: bool,
}

impl Guide {
    /// `thinking`: the answer begins within the model's reasoning, which is free. A grammar that is none is the request's fault.
    pub(super) fn new(
        vocabulary: Arc<Vocabulary>,
        constraint: Option<&Constraint>,
        calls: Option<(CallFormat, &[Tool], &ToolChoice)>,
        thinking: bool,
    ) -> Result<Self, EngineError> {
        let mut guide = Self { vocabulary, now: None, after_reasoning: None, calls: None, in_call: false };
        let grammar = match (constraint, calls) {
            (Some(constraint), _) => Some(grammar(constraint)),
            (None, Some((format, tools, choice @ (ToolChoice::Required | ToolChoice::Named(_))))) => {
                Some(TopLevelGrammar::from_lark(format.grammar(tools, choice, false)))
            }
            (None, Some((format, tools, ToolChoice::Auto))) if format.opening().is_some() => {
                let grammar = format.grammar(tools, &ToolChoice::Auto, true);
                // A schema that cannot be kept to is said at once, and not when the model calls.
                guide.matcher(TopLevelGrammar::from_lark(grammar.clone()))?;
                guide.calls = Some(grammar);
                None
            }
            _ => None,
        };
        let matcher = grammar.map(|grammar| guide.matcher(grammar)).transpose()?;
        match thinking {
            true => guide.after_reasoning = matcher,
            false => guide.now = matcher,
        }
        Ok(guide)
    }

    fn matcher(&self, grammar: TopLevelGrammar) -> Result<Matcher, EngineError> {
        let what = |error: &dyn std::fmt::Display| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            EngineError::InvalidParameter(format!("the grammar or schema cannot be used: {line}"))
        };
        let parser = self.vocabulary.grammars().create_parser(grammar).map_err(|error| what(&error))?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(error) => Err(what(&error)),
            None => Ok(matcher),
        }
    }

    /// Takes what may not come next out of the logits.
    pub(super) fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        let Some(matcher) = &mut self.now else { return Ok(()) };
        let allowed = matcher.compute_mask_or_eos().map_err(|error| broken(&error))?;
        for (token, logit) in (0u32..).zip(logits.iter_mut()) {
            // A model may have more logits than tokens.
            if (token as usize) >= allowed.len() || !allowed.is_allowed(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// The token that was chosen, or that a continuation begins with.
    pub(super) fn accept(&mut self, token: u32) -> Result<(), EngineError> {
        let Some(matcher) = &mut self.now else { return Ok(()) };
        matcher.consume_token(token).map_err(|error| broken(&error))?;
        if self.in_call && matcher.is_stopped() {
            self.now = None;
            self.in_call = false;
        }
        Ok(())
    }

    /// Nothing more can come.
    pub(super) fn is_complete(&self) -> bool {
        self.now.as_ref().is_some_and(Matcher::is_stopped)
    }

    /// The model has begun to call a function by itself.
    pub(super) fn call_begins(&mut self) -> Result<(), EngineError> {
        if let (None, Some(grammar)) = (&self.now, &self.calls) {
            self.now = Some(self.matcher(TopLevelGrammar::from_lark(grammar.clone()))?);
            self.in_call = true;
        }
        Ok(())
    }

    /// The model has stopped thinking.
    pub(super) fn reasoning_ends(&mut self) {
        if let Some(matcher) = self.after_reasoning.take() {
            self.now = Some(matcher);
        }
    }
}

fn broken(error: &dyn std::fmt::Display) -> EngineError {
    let text = error.to_string();
    EngineError::Failed(format!("the grammar could not be followed: {}", text.lines().next().unwrap_or_default()))
}

fn grammar(constraint: &Constraint) -> TopLevelGrammar {
    match constraint {
        Constraint::JsonObject => {
            TopLevelGrammar::from_json_schema(json!({ "type": "object", "x-guidance": COMPACT.clone() }))
        }
        Constraint::JsonSchema(schema) => TopLevelGrammar::from_json_schema(compact(schema.clone())),
        Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Constraint::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
    }
}

fn compact(mut schema: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("x-guidance").or_insert_with(|| COMPACT.clone());
    }
    schema
}
