//! One run of one subject.

use std::time::Instant;

use serde::Serialize;

use super::Subject;

/// What one run gave.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) round: u32,
    pub(super) subject: Subject,
    pub(super) tokens: u32,
    /// From the request to the first text.
    pub(super) first_token_s: f64,
    /// From the request to the end.
    pub(super) total_s: f64,
    /// Tokens after the first text by the time from the first text to the last.
    pub(super) decode_tokens_per_second: f64,
    /// All tokens by the whole time.
    pub(super) total_tokens_per_second: f64,
    /// Of the whole process: engine, agent and client.
    pub(super) cpu_s: f64,
    #[serde(skip)]
    pub(super) text: String,
}

/// What an engine counted in one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Tokens {
    /// The chat template's included.
    pub(super) prompt: u32,
    /// Those of the prompt that the engine had computed before, where it tells.
    pub(super) cached: Option<u32>,
    pub(super) completion: u32,
}

/// When the texts of one answer came.
#[derive(Clone, Debug)]
pub(super) struct Timing {
    pub(super) start: Instant,
    pub(super) first: Instant,
    pub(super) last: Instant,
    pub(super) text: String,
}

impl Timing {
    /// From the request to the first text.
    pub(super) fn first_token_s(&self) -> f64 {
        (self.first - self.start).as_secs_f64()
    }

    /// Tokens after the first text by the time from the first text to the last.
    pub(super) fn decode_tokens_per_second(&self, tokens: u32) -> f64 {
        f64::from(tokens.saturating_sub(1)) / (self.last - self.first).as_secs_f64()
    }
}

/// Takes the times of one run.
#[derive(Debug)]
pub(super) struct Stopwatch {
    start: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    text: String,
}

impl Stopwatch {
    /// The request goes out now.
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), first: None, last: None, text: String::new() }
    }

    /// Text has come; empty text is none.
    pub(super) fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.text_at(text, Instant::now());
        }
    }

    fn text_at(&mut self, text: &str, now: Instant) {
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.text.push_str(text);
    }

    /// The run is over now; `None` where there were not at least two texts, so that nothing can be said of its speed.
    pub(super) fn sample(self, subject: Subject, round: u32, tokens: u32, cpu_s: f64) -> Option<Sample> {
        self.sample_at(Instant::now(), subject, round, tokens, cpu_s)
    }

    fn sample_at(self, now: Instant, subject: Subject, round: u32, tokens: u32, cpu_s: f64) -> Option<Sample> {
        let timing = self.timing()?;
        let total = now - timing.start;
        Some(Sample {
            round,
            subject,
            tokens,
            first_token_s: timing.first_token_s(),
            total_s: total.as_secs_f64(),
            decode_tokens_per_second: timing.decode_tokens_per_second(tokens),
            total_tokens_per_second: f64::from(tokens) / total.as_secs_f64(),
            cpu_s,
            text: timing.text,
        })
    }

    /// `None` where there were not at least two texts.
    pub(super) fn timing(self) -> Option<Timing> {
        let (first, last) = (self.first?, self.last?);
        (last > first).then_some(Timing { start: self.start, first, last, text: self.text })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    #[test]
    fn speed_is_of_the_tokens_after_the_first() {
        let mut watch = Stopwatch::start();
        let start = watch.start;
        for n in 0..11_u32 {
            watch.text_at("x", start + Duration::from_millis(500) + Duration::from_millis(20) * n);
        }
        let sample = watch.sample_at(start + Duration::from_secs(1), Subject::AgentQuic, 1, 11, 0.5).unwrap();
        assert!((sample.decode_tokens_per_second - 50.0).abs() < 1e-6);
        assert!((sample.total_tokens_per_second - 11.0).abs() < 1e-6);
        assert!((sample.first_token_s - 0.5).abs() < 1e-6);
        assert_eq!(sample.text.len(), 11);
    }

    #[test]
    fn without_two_texts_there_is_no_speed() {
        assert!(Stopwatch::start().sample(Subject::MistralAlone, 1, 0, 0.0).is_none());
        let mut watch = Stopwatch::start();
        watch.text("");
        assert!(watch.first.is_none());
        watch.text("x");
        assert!(watch.sample(Subject::MistralAlone, 1, 1, 0.0).is_none());
    }
}
