//! Parsers of single values. What they return on failure is shown by clap after the flag's name and the value.

use std::{ops::RangeInclusive, time::Duration};

use titan_coord::{MAX_BOOKING_TIMEOUT, MAX_HEARTBEAT_TIMEOUT, MAX_TOKEN_TTL, Weights};

use super::keys::Limit;

/// The unit of everything that crosses a wire in whole seconds.
const SECOND: Duration = Duration::from_secs(1);
/// Longest time to let running generations finish: longer than that, nobody waits for a server to stop.
const MAX_DRAIN: Duration = Duration::from_secs(60 * 60);
/// Longest time between two tokens: an engine that is slower than that serves nobody.
const MAX_ENGINE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// `300s`, `5m`, `1h`, `500ms`, or seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let help = || "give a time such as 300s, 5m, 1h, or a number of seconds".to_owned();
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| help())?;
    let seconds = match unit.trim() {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(help()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| help())
}

/// `--token-ttl`.
pub(crate) fn token_ttl(text: &str) -> Result<Duration, String> {
    duration_in(text, SECOND..=MAX_TOKEN_TTL)
}

/// `--heartbeat-timeout`, `--heartbeat-interval`.
pub(crate) fn heartbeat(text: &str) -> Result<Duration, String> {
    duration_in(text, SECOND..=MAX_HEARTBEAT_TIMEOUT)
}

/// `--booking-timeout`.
pub(crate) fn booking_timeout(text: &str) -> Result<Duration, String> {
    duration_in(text, SECOND..=MAX_BOOKING_TIMEOUT)
}

/// `--check-certs`: whoever waits longer than a day finds a certificate that has ended.
pub(crate) fn check_certs(text: &str) -> Result<Duration, String> {
    duration_in(text, SECOND..=MAX_TOKEN_TTL)
}

/// `--drain-time`.
pub(crate) fn drain_time(text: &str) -> Result<Duration, String> {
    duration_in(text, Duration::ZERO..=MAX_DRAIN)
}

/// `--engine-timeout`.
pub(crate) fn engine_timeout(text: &str) -> Result<Duration, String> {
    duration_in(text, SECOND..=MAX_ENGINE_TIMEOUT)
}

fn duration_in(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let value = duration(text)?;
    match range.contains(&value) {
        true => Ok(value),
        false => Err(format!("it must be between {:?} and {:?}", range.start(), range.end())),
    }
}

/// An API key. An empty one, of a variable that was not filled in, would be refused later by others and less plainly.
pub(crate) fn api_key(text: &str) -> Result<String, String> {
    let key = text.trim();
    match key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Err("a key is not empty, and has neither spaces nor control characters: look at TITAN_API_KEY or TITAN_PROXY_KEY if it is from there".to_owned()),
        false => Ok(key.to_owned()),
    }
}

/// A number from 1 on, or `none`.
pub(crate) fn limit(text: &str) -> Result<Limit, String> {
    match text.parse::<u32>() {
        _ if text.eq_ignore_ascii_case("none") => Ok(Limit::Lifted),
        Ok(number @ 1..) => Ok(Limit::To(number)),
        _ => Err("give a number from 1 on, or none".to_owned()),
    }
}

/// A number from 0 on.
pub(crate) fn temperature(text: &str) -> Result<f32, String> {
    let value = text.parse::<f32>().ok().filter(|value| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "give a number from 0 (always the likeliest token) on".to_owned())
}

/// Tokens per second; 0 is as fast as they are taken.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "give tokens per second, or 0 for as fast as they are read".to_owned())
}

/// `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.trim().is_empty());
    let (key, value) = pair.ok_or_else(|| "give KEY=VALUE, for example top_k=40".to_owned())?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// `http://host:port`, or `host:port`; without a slash at its end.
pub(crate) fn coordinator_url(text: &str) -> Result<String, String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = reqwest::Url::parse(&full).map_err(|error| format!("{error}; give a URL such as http://gpu-box:8080"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err("give an http:// or https:// URL, such as http://gpu-box:8080".to_owned());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("give the coordinator's address alone, without a path: http://gpu-box:8080".to_owned());
    }
    Ok(full.trim_end_matches('/').to_owned())
}

/// Four numbers: memory, load, round trip, speed.
pub(crate) fn weights(text: &str) -> Result<Weights, String> {
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|number| number.trim().parse()).collect();
    let Ok([free_memory, load, rtt, tokens_per_second]) = numbers.as_deref() else {
        return Err("give four numbers, MEMORY,LOAD,RTT,SPEED, such as 40,30,20,10".to_owned());
    };
    let weights = Weights { free_memory: *free_memory, load: *load, rtt: *rtt, tokens_per_second: *tokens_per_second };
    weights.normalized().map_err(|error| error.to_string())?;
    Ok(weights)
}
