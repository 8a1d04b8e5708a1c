//! From what a request says to what an engine is asked: every value checked before it reaches a model.
//!
//! A value out of range breaks some samplers outright (a NaN temperature), so nothing is clamped and nothing is guessed: the
//! error names the parameter, the value and the accepted range.

use std::{
    collections::HashMap,
    fmt::{self, Display},
    str::FromStr,
};

use titan_proto::{
    DEFAULT_MAX_TOKENS, MAX_PROMPT_BYTES,
    v1::{self, StreamRequest},
};
use tonic::Status;

use crate::engine::{Continuation, Generate, Sampling};

/// Highest temperature: above 2 every model's output is noise, and existing APIs stop there too.
pub const MAX_TEMPERATURE: f32 = 2.0;
/// Largest penalty in either direction, the range that existing APIs have.
pub const MAX_PENALTY: f32 = 2.0;
/// Most stop texts in one request: each is searched for in every piece of text.
pub const MAX_STOPS: usize = 16;
/// Longest stop text in bytes: that much text may have to be held back from the reader while it could be the beginning of one.
pub const MAX_STOP_BYTES: usize = 256;

/// Most tokens of a continuation: more than any model's context holds.
pub const MAX_CONTINUATION_TOKENS: usize = 1 << 20;

/// The options that a request may carry, as they stand in an error message.
const KNOWN: &str = "top_p, top_k, min_p, stop, seed, frequency_penalty, presence_penalty";
/// Characters of a refused value that its error repeats.
const QUOTED_CHARS: usize = 40;

/// What the request asks of the engine; `model` is the name that the token allows.
pub fn generate(request: StreamRequest, model: String) -> Result<Generate, OptionError> {
    if request.prompt.is_empty() {
        return Err(OptionError::EmptyPrompt);
    }
    if request.prompt.len() > MAX_PROMPT_BYTES {
        return Err(OptionError::PromptTooLong { bytes: request.prompt.len() });
    }
    let mut sampling = sampling(request.max_tokens, request.temperature, &request.options)?;
    let continuation = request.continuation.map(continuation).transpose()?;
    if continuation.is_some() && request.max_tokens == 0 {
        // Everything has been generated: what is missing of its text may still come, and the end.
        sampling.max_tokens = 0;
    }
    Ok(Generate { continuation, ..Generate::new(model, request.prompt, sampling) })
}

fn continuation(given: v1::Continuation) -> Result<Continuation, OptionError> {
    let v1::Continuation { text, token_ids: tokens, completion_tokens, reasoning, tool_calls } = given;
    let out_of_range = |name: &str, value: usize, accepted| Err(OptionError::out_of_range(name, value, accepted));
    if text.is_empty() {
        return out_of_range("continuation.text", 0, "text: without any, leave the continuation out");
    }
    if text.len() > MAX_PROMPT_BYTES {
        return Err(OptionError::PromptTooLong { bytes: text.len() });
    }
    if tokens.len() > MAX_CONTINUATION_TOKENS || completion_tokens as usize > MAX_CONTINUATION_TOKENS {
        let count = tokens.len().max(completion_tokens as usize);
        return out_of_range("continuation.completion_tokens", count, "at most 1048576");
    }
    if !tokens.is_empty() && tokens.len() != completion_tokens as usize {
        let accepted = "the number of token_ids, where there are any";
        return out_of_range("continuation.completion_tokens", completion_tokens as usize, accepted);
    }
    Ok(Continuation { text, tokens, completion_tokens, reasoning, tool_calls })
}

fn sampling(max_tokens: i32, temperature: f32, options: &HashMap<String, String>) -> Result<Sampling, OptionError> {
    let max_tokens = if max_tokens == 0 { DEFAULT_MAX_TOKENS } else { max_tokens };
    let Ok(max_tokens) = u32::try_from(max_tokens) else {
        return Err(OptionError::out_of_range("max_tokens", max_tokens, "1 or more; 0 means the default, 100"));
    };
    if !(0.0..=MAX_TEMPERATURE).contains(&temperature) {
        return Err(OptionError::out_of_range("temperature", temperature, "0 (greedy) to 2"));
    }
    let mut sampling = Sampling {
        max_tokens,
        temperature,
        top_p: None,
        top_k: None,
        min_p: None,
        stop: Vec::new(),
        seed: None,
        frequency_penalty: None,
        presence_penalty: None,
    };
    for (name, value) in options {
        match name.as_str() {
            "top_p" => {
                let accepted = "a number above 0 and up to 1";
                sampling.top_p = Some(number(name, value, accepted, |v: f32| v > 0.0 && v <= 1.0)?);
            }
            "top_k" => sampling.top_k = Some(number(name, value, "a whole number, 1 or more", |v: u32| v >= 1)?),
            "min_p" => {
                sampling.min_p = Some(number(name, value, "a number from 0 to 1", |v: f32| (0.0..=1.0).contains(&v))?);
            }
            "stop" => sampling.stop = stops(value)?,
            "seed" => sampling.seed = Some(number(name, value, "a whole number from 0 to 2^64-1", |_: u64| true)?),
            "frequency_penalty" => sampling.frequency_penalty = Some(penalty(name, value)?),
            "presence_penalty" => sampling.presence_penalty = Some(penalty(name, value)?),
            _ => return Err(OptionError::Unknown { name: quote(name) }),
        }
    }
    Ok(sampling)
}

fn penalty(name: &str, value: &str) -> Result<f32, OptionError> {
    number(name, value, "a number from -2 to 2", |v: f32| (-MAX_PENALTY..=MAX_PENALTY).contains(&v))
}

/// NaN fails every comparison, so no range accepts it.
fn number<T: FromStr + Copy>(
    name: &str,
    value: &str,
    accepted: &'static str,
    in_range: fn(T) -> bool,
) -> Result<T, OptionError> {
    match value.trim().parse::<T>() {
        Ok(parsed) if in_range(parsed) => Ok(parsed),
        _ => Err(OptionError::out_of_range(name, value, accepted)),
    }
}

/// A JSON array of texts, or else one text as it stands (`[END]` is no JSON and so a text).
fn stops(value: &str) -> Result<Vec<String>, OptionError> {
    let stops = match serde_json::from_str::<serde_json::Value>(value) {
        Ok(array @ serde_json::Value::Array(_)) => {
            let accepted = "a text, or a JSON array of texts such as [\"###\", \"END\"]";
            serde_json::from_value(array).map_err(|_| OptionError::out_of_range("stop", value, accepted))?
        }
        _ => vec![value.to_owned()],
    };
    if stops.len() > MAX_STOPS {
        return Err(OptionError::TooManyStops { count: stops.len() });
    }
    // An empty text is found everywhere: it would end every generation at once.
    if stops.iter().any(String::is_empty) {
        return Err(OptionError::out_of_range("stop", value, "texts that are not empty"));
    }
    match stops.iter().map(String::len).find(|&bytes| bytes > MAX_STOP_BYTES) {
        Some(bytes) => Err(OptionError::StopTooLong { bytes }),
        None => Ok(stops),
    }
}

/// Why a request's parameters were refused. The same request will be refused again.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OptionError {
    /// There is no prompt.
    #[error("prompt is empty: say what to generate text for")]
    EmptyPrompt,
    /// The prompt is larger than any wire carries.
    #[error("prompt has {bytes} bytes; at most {MAX_PROMPT_BYTES} are accepted")]
    PromptTooLong {
        /// Its length.
        bytes: usize,
    },
    /// No option has this name.
    #[error("unknown option {name:?}: the options are {KNOWN}")]
    Unknown {
        /// The name, cut short if it is long.
        name: String,
    },
    /// The value is not one that the parameter takes.
    #[error("{name} is {value:?}; accepted is {accepted}")]
    OutOfRange {
        /// The parameter.
        name: String,
        /// Its value, cut short if it is long.
        value: String,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// More stop texts than are searched for.
    #[error("stop has {count} texts; at most {MAX_STOPS} are accepted")]
    TooManyStops {
        /// How many there are.
        count: usize,
    },
    /// A stop text that would hold back too much.
    #[error("stop has a text of {bytes} bytes; at most {MAX_STOP_BYTES} are accepted")]
    StopTooLong {
        /// Its length.
        bytes: usize,
    },
}

impl OptionError {
    fn out_of_range(name: &str, value: impl Display, accepted: &'static str) -> Self {
        Self::OutOfRange { name: name.to_owned(), value: quote(&value), accepted }
    }
}

impl From<OptionError> for Status {
    fn from(error: OptionError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// The beginning of a value, so that a megabyte of it is not sent back.
fn quote(value: &(impl fmt::Display + ?Sized)) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn request(options: &[(&str, &str)]) -> StreamRequest {
        StreamRequest {
            prompt: "hello".into(),
            options: options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            ..Default::default()
        }
    }

    fn sampled(options: &[(&str, &str)]) -> Sampling {
        generate(request(options), "m".into()).unwrap().sampling
    }

    fn refusal(options: &[(&str, &str)]) -> String {
        generate(request(options), "m".into()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_absent_is_the_default_or_neutral() {
        let generate = generate(request(&[]), "m".into()).unwrap();
        assert_eq!((generate.model.as_str(), generate.messages[0].content.as_str()), ("m", "hello"));
        let sampling = generate.sampling;
        assert_eq!((sampling.max_tokens, sampling.temperature), (100, 0.0));
        assert_eq!((sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed), (None, None, None, None));
        assert!(sampling.stop.is_empty());
    }

    #[test]
    fn every_option_is_read() {
        let sampling = sampled(&[
            ("top_p", "0.9"),
            ("top_k", "40"),
            ("min_p", "0.05"),
            ("stop", "###"),
            ("seed", "18446744073709551615"),
            ("frequency_penalty", "-2"),
            ("presence_penalty", "2.0"),
        ]);
        assert_eq!((sampling.top_p, sampling.top_k, sampling.min_p), (Some(0.9), Some(40), Some(0.05)));
        assert_eq!((sampling.stop.as_slice(), sampling.seed), (["###".to_owned()].as_slice(), Some(u64::MAX)));
        assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (Some(-2.0), Some(2.0)));
    }

    #[test]
    fn values_out_of_range_are_refused_by_name_value_and_range() {
        for (name, value) in [
            ("top_p", "0"),
            ("top_p", "1.01"),
            ("top_p", "NaN"),
            ("top_p", ""),
            ("top_k", "0"),
            ("top_k", "-1"),
            ("top_k", "1.5"),
            ("min_p", "-0.1"),
            ("min_p", "inf"),
            ("seed", "-1"),
            ("seed", "18446744073709551616"),
            ("frequency_penalty", "2.1"),
            ("presence_penalty", "-3"),
            ("stop", ""),
            ("stop", "[\"a\", \"\"]"),
            ("stop", "[1]"),
        ] {
            let message = refusal(&[(name, value)]);
            assert!(message.starts_with(&format!("{name} is {value:?}; accepted is ")), "{message}");
        }
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_known_ones() {
        let message = refusal(&[("topp", "0.5")]);
        assert!(message.contains("\"topp\"") && message.contains("top_p, top_k"), "{message}");
    }

    #[test]
    fn max_tokens_and_temperature_are_checked() {
        for (max_tokens, temperature, named) in [
            (-1, 0.0, "max_tokens is \"-1\""),
            (i32::MIN, 0.0, "max_tokens"),
            (1, -0.1, "temperature is \"-0.1\""),
            (1, f32::NAN, "temperature is \"NaN\""),
            (1, f32::INFINITY, "temperature is \"inf\""),
            (1, 2.01, "temperature is \"2.01\""),
        ] {
            let message = sampling(max_tokens, temperature, &HashMap::new()).unwrap_err().to_string();
            assert!(message.starts_with(named), "{message}");
        }
        assert_eq!(sampling(i32::MAX, 2.0, &HashMap::new()).unwrap().max_tokens, i32::MAX as u32);
    }

    #[test]
    fn stop_is_one_text_or_a_json_array() {
        assert_eq!(sampled(&[("stop", "[\"a\", \"b\\n\"]")]).stop, ["a", "b\n"]);
        assert_eq!(sampled(&[("stop", "[END]")]).stop, ["[END]"]);
        assert_eq!(sampled(&[("stop", "\"quoted\"")]).stop, ["\"quoted\""]);
        assert_eq!(sampled(&[("stop", "[]")]).stop, Vec::<String>::new());
    }

    #[test]
    fn stop_texts_are_bounded_in_number_and_length() {
        let many = serde_json::to_string(&vec!["x"; MAX_STOPS + 1]).unwrap();
        assert!(refusal(&[("stop", &many)]).contains("17 texts; at most 16"));
        let long = "x".repeat(MAX_STOP_BYTES + 1);
        assert!(refusal(&[("stop", &long)]).contains("257 bytes; at most 256"));
    }

    #[test]
    fn the_prompt_is_neither_empty_nor_beyond_the_limit() {
        let empty = StreamRequest::default();
        assert_eq!(generate(empty, "m".into()).unwrap_err(), OptionError::EmptyPrompt);
        let long = StreamRequest { prompt: "x".repeat(MAX_PROMPT_BYTES + 1), ..Default::default() };
        assert!(matches!(generate(long, "m".into()), Err(OptionError::PromptTooLong { .. })));
        let full = StreamRequest { prompt: "x".repeat(MAX_PROMPT_BYTES), ..Default::default() };
        assert!(generate(full, "m".into()).is_ok());
    }

    #[test]
    fn a_continuation_may_have_no_tokens_left_and_names_its_number() {
        let of = |text: &str, token_ids: Vec<u32>, completion_tokens, max_tokens| {
            let continuation =
                Some(v1::Continuation { text: text.into(), token_ids, completion_tokens, ..Default::default() });
            generate(StreamRequest { continuation, max_tokens, ..request(&[]) }, "m".into())
        };
        let nothing_left = of("a b", vec![1, 2], 2, 0).unwrap();
        assert_eq!(nothing_left.sampling.max_tokens, 0, "not the default");
        assert_eq!(nothing_left.continuation.unwrap().tokens, [1, 2]);
        assert_eq!(of("a b", vec![], 2, 7).unwrap().sampling.max_tokens, 7);
        for wrong in [of("", vec![1], 1, 1), of("a", vec![1], 2, 1), of("a", vec![], u32::MAX, 1)] {
            assert!(wrong.unwrap_err().to_string().starts_with("continuation."));
        }
    }

    #[test]
    fn a_long_value_is_not_sent_back_whole() {
        let message = refusal(&[("top_p", &"9é".repeat(100_000))]);
        assert!(message.len() < 250, "{}", message.len());
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_in_range(name in "top_p|top_k|min_p|stop|seed|presence_penalty", value in ".{0,12}") {
            if let Ok(generate) = generate(request(&[(&name, &value)]), "m".into()) {
                let sampling = generate.sampling;
                prop_assert!(sampling.top_p.is_none_or(|v| v > 0.0 && v <= 1.0));
                prop_assert!(sampling.top_k.is_none_or(|v| v >= 1));
                prop_assert!(sampling.min_p.is_none_or(|v| (0.0..=1.0).contains(&v)));
                prop_assert!(sampling.presence_penalty.is_none_or(|v| v.abs() <= MAX_PENALTY));
                prop_assert!(sampling.stop.iter().all(|stop| !stop.is_empty()));
            }
        }
    }
}
