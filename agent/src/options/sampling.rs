//! How tokens are chosen: `max_tokens`, `temperature`, the `options` by name, and the same as typed fields.

use std::{collections::HashMap, fmt::Display, str::FromStr};

use titan_proto::{
    DEFAULT_MAX_TOKENS,
    conversation::{MAX_PENALTY, MAX_TEMPERATURE},
    v1,
};

use super::OptionError;
use crate::engine::Sampling;

/// Most stop texts in one request: each is searched for in every piece of text.
pub const MAX_STOPS: usize = 16;
/// Longest stop text in bytes: that much text may have to be held back from the reader while it could be the beginning of one.
pub const MAX_STOP_BYTES: usize = 256;

/// The options that a request may carry, as they stand in an error message.
pub(super) const KNOWN: &str = "top_p, top_k, min_p, stop, seed, frequency_penalty, presence_penalty";

pub(super) fn sampling(
    max_tokens: i32,
    temperature: f32,
    options: &HashMap<String, String>,
    typed: Option<v1::Sampling>,
) -> Result<Sampling, OptionError> {
    let max_tokens = if max_tokens == 0 { DEFAULT_MAX_TOKENS } else { max_tokens };
    let Ok(max_tokens) = u32::try_from(max_tokens) else {
        return Err(OptionError::out_of_range("max_tokens", max_tokens, "1 or more; 0 means the default, 100"));
    };
    if !(0.0..=MAX_TEMPERATURE).contains(&temperature) {
        return Err(OptionError::out_of_range("temperature", temperature, "0 (greedy) to 2"));
    }
    let v1::Sampling { top_p, top_k, min_p, stop, seed, frequency_penalty, presence_penalty } =
        typed.unwrap_or_default();
    let stop = if stop.is_empty() { None } else { Some(stop) };
    let twice = [
        ("top_p", top_p.is_some()),
        ("top_k", top_k.is_some()),
        ("min_p", min_p.is_some()),
        ("stop", stop.is_some()),
        ("seed", seed.is_some()),
        ("frequency_penalty", frequency_penalty.is_some()),
        ("presence_penalty", presence_penalty.is_some()),
    ];
    if let Some((name, _)) = twice.into_iter().find(|&(name, typed)| typed && options.contains_key(name)) {
        return Err(OptionError::field(format!("sampling.{name}"), "stands in options too: give it once"));
    }
    let mut sampling = Sampling {
        max_tokens,
        temperature,
        top_p: top_p.map(|value| TOP_P.check("sampling.top_p", value)).transpose()?,
        top_k: top_k.map(|value| TOP_K.check("sampling.top_k", value)).transpose()?,
        min_p: min_p.map(|value| MIN_P.check("sampling.min_p", value)).transpose()?,
        stop: stop.map(|texts| check_stops("sampling.stop", texts)).transpose()?.unwrap_or_default(),
        seed,
        frequency_penalty: frequency_penalty
            .map(|value| PENALTY.check("sampling.frequency_penalty", value))
            .transpose()?,
        presence_penalty: presence_penalty
            .map(|value| PENALTY.check("sampling.presence_penalty", value))
            .transpose()?,
    };
    for (name, value) in options {
        match name.as_str() {
            "top_p" => sampling.top_p = Some(TOP_P.parse(name, value)?),
            "top_k" => sampling.top_k = Some(TOP_K.parse(name, value)?),
            "min_p" => sampling.min_p = Some(MIN_P.parse(name, value)?),
            "stop" => sampling.stop = stops(value)?,
            "seed" => sampling.seed = Some(SEED.parse(name, value)?),
            "frequency_penalty" => sampling.frequency_penalty = Some(PENALTY.parse(name, value)?),
            "presence_penalty" => sampling.presence_penalty = Some(PENALTY.parse(name, value)?),
            _ => return Err(OptionError::Unknown { name: super::quote(name) }),
        }
    }
    Ok(sampling)
}

/// What a number may be. NaN fails every comparison, so no range accepts it.
struct Range<T> {
    accepted: &'static str,
    contains: fn(T) -> bool,
}

const TOP_P: Range<f32> = Range { accepted: "a number above 0 and up to 1", contains: |v| v > 0.0 && v <= 1.0 };
const TOP_K: Range<u32> = Range { accepted: "a whole number, 1 or more", contains: |v| v >= 1 };
const MIN_P: Range<f32> = Range { accepted: "a number from 0 to 1", contains: |v| (0.0..=1.0).contains(&v) };
const SEED: Range<u64> = Range { accepted: "a whole number from 0 to 2^64-1", contains: |_| true };
const PENALTY: Range<f32> =
    Range { accepted: "a number from -2 to 2", contains: |v| (-MAX_PENALTY..=MAX_PENALTY).contains(&v) };

impl<T: FromStr + Copy + Display> Range<T> {
    fn check(&self, name: &str, value: T) -> Result<T, OptionError> {
        if (self.contains)(value) { Ok(value) } else { Err(OptionError::out_of_range(name, value, self.accepted)) }
    }

    fn parse(&self, name: &str, value: &str) -> Result<T, OptionError> {
        match value.trim().parse::<T>() {
            Ok(parsed) if (self.contains)(parsed) => Ok(parsed),
            _ => Err(OptionError::out_of_range(name, value, self.accepted)),
        }
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
    // An empty text is found everywhere: it would end every generation at once.
    if stops.iter().any(String::is_empty) {
        return Err(OptionError::out_of_range("stop", value, NOT_EMPTY));
    }
    check_stops("stop", stops)
}

const NOT_EMPTY: &str = "texts that are not empty";

fn check_stops(name: &str, stops: Vec<String>) -> Result<Vec<String>, OptionError> {
    if stops.len() > MAX_STOPS {
        return Err(OptionError::TooManyStops { count: stops.len() });
    }
    if stops.iter().any(String::is_empty) {
        return Err(OptionError::out_of_range(name, "", NOT_EMPTY));
    }
    match stops.iter().map(String::len).find(|&bytes| bytes > MAX_STOP_BYTES) {
        Some(bytes) => Err(OptionError::StopTooLong { bytes }),
        None => Ok(stops),
    }
}
