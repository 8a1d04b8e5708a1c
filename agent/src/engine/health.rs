//! Whether a model can be relied on, as a state machine without clock or engine: every moment is an argument.
//!
//! Healthy, until [`FAILURES_IN_A_ROW`] generations have failed and none in between has succeeded: then degraded. After a pause a probe is
//! due; while it runs the model is half-open. A probe that succeeds makes it healthy, one that fails degraded again, for twice the pause.

use std::time::Duration;

use tokio::time::Instant;

use super::{EngineError, Health};

/// One failure may be the request's own, such as a text over which the engine breaks down, and two may be one request and its repetition.
const FAILURES_IN_A_ROW: u32 = 3;
/// Time to the first probe: an engine that is built anew, or a server that restarts, takes seconds.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// A machine whose engine stays broken costs a probe so often; one that was mended is back after no more than that.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The health of one model.
#[derive(Debug)]
pub(super) struct ModelHealth {
    state: State,
    era: Era,
}

#[derive(Debug)]
enum State {
    Healthy { failures: u32 },
    Degraded { reason: String, pause: Duration, probe_at: Instant },
    HalfOpen { reason: String, pause: Duration },
}

/// The time between two changes from or to healthy. What began in another one says nothing about this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Era(u64);

/// What a probe has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    Succeeded,
    Failed {
        reason: String,
    },
    /// It could not begin: no place was free.
    NotTried,
}

/// Whether this is the request's fault, and says nothing about the engine.
pub(super) fn is_refusal(error: &EngineError) -> bool {
    match error {
        EngineError::UnknownModel { .. }
        | EngineError::PromptTooLong { .. }
        | EngineError::InvalidParameter(_)
        | EngineError::Unsupported(_) => true,
        EngineError::Hung { .. } | EngineError::Failed(_) => false,
    }
}

impl ModelHealth {
    pub(super) fn new() -> Self {
        Self { state: State::Healthy { failures: 0 }, era: Era(0) }
    }

    /// To be kept with a generation that begins now.
    pub(super) fn era(&self) -> Era {
        self.era
    }

    /// A generation that began in `era` has failed. Returns whether the model is degraded from now on, so that somebody has to probe it.
    pub(super) fn failed(&mut self, era: Era, reason: impl Into<String>, now: Instant) -> bool {
        match &mut self.state {
            State::Healthy { failures } if era == self.era => {
                *failures += 1;
                *failures >= FAILURES_IN_A_ROW && self.broken(reason, now)
            }
            _ => false,
        }
    }

    /// A generation that began in `era` has succeeded. Returns whether that made the model healthy.
    pub(super) fn succeeded(&mut self, era: Era) -> bool {
        era == self.era && self.recovered()
    }

    /// It cannot generate, for a reason that needs no second failure. Returns whether the model is degraded from now on and was not before.
    pub(super) fn broken(&mut self, reason: impl Into<String>, now: Instant) -> bool {
        let reason = reason.into();
        match &mut self.state {
            State::Healthy { .. } => {
                self.degrade(reason, FIRST_PAUSE, now);
                self.era.0 += 1;
                true
            }
            State::Degraded { reason: known, .. } | State::HalfOpen { reason: known, .. } => {
                *known = reason;
                false
            }
        }
    }

    /// When the next probe is due; `None` where none is.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Degraded { probe_at, .. } => Some(probe_at),
            State::Healthy { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Begins with a probe, if one is due.
    pub(super) fn begin_probe(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::Degraded { reason, pause, probe_at } if *probe_at <= now => {
                self.state = State::HalfOpen { reason: std::mem::take(reason), pause: *pause };
                true
            }
            _ => false,
        }
    }

    /// The probe has ended. Returns whether that made the model healthy.
    pub(super) fn end_probe(&mut self, probe: Probe, now: Instant) -> bool {
        match (&mut self.state, probe) {
            (_, Probe::Succeeded) => return self.recovered(),
            // A client's generation has succeeded meanwhile.
            (State::Healthy { .. } | State::Degraded { .. }, _) => {}
            (State::HalfOpen { pause, .. }, Probe::Failed { reason }) => {
                let pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                self.degrade(reason, pause, now);
            }
            (State::HalfOpen { reason, pause }, Probe::NotTried) => {
                let (reason, pause) = (std::mem::take(reason), *pause);
                self.degrade(reason, pause, now);
            }
        }
        false
    }

    /// What the outside is told.
    pub(super) fn health(&self) -> Health {
        match &self.state {
            State::Healthy { .. } => Health::Healthy,
            State::Degraded { reason, .. } => Health::Degraded { reason: reason.clone() },
            State::HalfOpen { reason, .. } => Health::HalfOpen { reason: reason.clone() },
        }
    }

    fn degrade(&mut self, reason: String, pause: Duration, now: Instant) {
        self.state = State::Degraded { reason, pause, probe_at: now + pause };
    }

    fn recovered(&mut self) -> bool {
        let was = std::mem::replace(&mut self.state, State::Healthy { failures: 0 });
        let changed = !matches!(was, State::Healthy { .. });
        self.era.0 += u64::from(changed);
        changed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn degraded(now: Instant) -> ModelHealth {
        let mut model = ModelHealth::new();
        for at in 1..=FAILURES_IN_A_ROW {
            let era = model.era();
            assert_eq!(model.failed(era, format!("failure {at}"), now), at == FAILURES_IN_A_ROW);
        }
        model
    }

    #[test]
    fn three_failures_in_a_row_degrade_and_the_last_one_is_the_reason() {
        let now = Instant::now();
        let model = degraded(now);
        assert_eq!(model.health(), Health::Degraded { reason: "failure 3".to_owned() });
        assert_eq!(model.probe_at(), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn a_success_in_between_starts_the_count_again() {
        let now = Instant::now();
        let mut model = ModelHealth::new();
        let era = model.era();
        for _ in 0..10 {
            assert!(!model.failed(era, "one", now));
            assert!(!model.failed(era, "two", now));
            assert!(!model.succeeded(era));
        }
        assert_eq!(model.health(), Health::Healthy);
    }

    #[test]
    fn a_probe_makes_it_healthy_or_the_pause_longer() {
        let mut now = Instant::now();
        let mut model = degraded(now);
        let mut pauses = vec![];
        for _ in 0..10 {
            let due = model.probe_at().unwrap();
            pauses.push(due - now);
            assert!(!model.begin_probe(due - Duration::from_millis(1)), "not yet due");
            assert!(model.begin_probe(due) && !model.begin_probe(due), "one at a time");
            assert!(matches!(model.health(), Health::HalfOpen { .. }));
            now = due + Duration::from_secs(1);
            assert!(!model.end_probe(Probe::Failed { reason: "still broken".to_owned() }, now));
            assert_eq!(model.health(), Health::Degraded { reason: "still broken".to_owned() });
        }
        assert!(pauses.windows(2).all(|two| two[1] == (two[0] * 2).min(LONGEST_PAUSE)), "{pauses:?}");
        assert_eq!((pauses[0], pauses[9]), (FIRST_PAUSE, LONGEST_PAUSE));
        assert!(model.begin_probe(now + LONGEST_PAUSE) && model.end_probe(Probe::Succeeded, now));
        assert_eq!(model.health(), Health::Healthy);
    }

    #[test]
    fn a_probe_that_found_no_place_changes_nothing() {
        let now = Instant::now();
        let mut model = degraded(now);
        assert!(model.begin_probe(now + FIRST_PAUSE));
        assert!(!model.end_probe(Probe::NotTried, now));
        assert_eq!(model.health(), Health::Degraded { reason: "failure 3".to_owned() });
        assert_eq!(model.probe_at(), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn what_began_before_the_state_changed_says_nothing() {
        let now = Instant::now();
        let mut model = ModelHealth::new();
        let before = model.era();
        assert!(model.broken("it cannot be built anew", now));
        assert!(!model.succeeded(before));
        let meanwhile = model.era();
        assert!(model.succeeded(meanwhile), "a client's generation is as good as a probe");
        for _ in 0..FAILURES_IN_A_ROW {
            assert!(!model.failed(before, "late", now) && !model.failed(meanwhile, "late", now));
        }
        assert_eq!(model.health(), Health::Healthy);
    }

    #[test]
    fn refusals_are_told_from_failures() {
        let refusals = [
            EngineError::UnknownModel { model: "x".to_owned(), available: vec![] },
            EngineError::PromptTooLong { model: "x".to_owned(), prompt_tokens: 2, context_tokens: 1 },
            EngineError::InvalidParameter("x".to_owned()),
            EngineError::Unsupported("x".to_owned()),
        ];
        assert!(refusals.iter().all(is_refusal));
        assert!(!is_refusal(&EngineError::Hung { seconds: 1 }) && !is_refusal(&EngineError::Failed("x".to_owned())));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Begin,
        Fail(usize),
        Succeed(usize),
        Break,
        BeginProbe,
        EndProbe(Probe),
    }

    fn step() -> impl Strategy<Value = Step> {
        let failed = Probe::Failed { reason: "probe".to_owned() };
        prop_oneof![
            (1..400u64).prop_map(Step::Wait),
            Just(Step::Begin),
            (0..4usize).prop_map(Step::Fail),
            (0..4usize).prop_map(Step::Fail),
            (0..4usize).prop_map(Step::Succeed),
            Just(Step::Break),
            Just(Step::BeginProbe),
            prop_oneof![Just(Probe::Succeeded), Just(failed), Just(Probe::NotTried)].prop_map(Step::EndProbe),
        ]
    }

    proptest! {
        /// Whatever happens, in whatever order: each change has its cause, at most one probe runs, and it can always recover.
        #[test]
        fn every_change_has_its_cause(steps in prop::collection::vec(step(), 1..200)) {
            let mut now = Instant::now();
            let mut model = ModelHealth::new();
            let mut begun = vec![model.era()];
            let mut in_a_row = 0;
            for step in steps {
                let (was, era) = (model.health(), model.era());
                let of = |back: &usize, begun: &[Era]| begun[begun.len().saturating_sub(1 + back)];
                let was_healthy = was == Health::Healthy;
                match &step {
                    Step::Wait(seconds) => now += Duration::from_secs(*seconds),
                    Step::Begin => begun.push(model.era()),
                    Step::Fail(back) => {
                        let ticket = of(back, &begun);
                        in_a_row += u32::from(was_healthy && ticket == era);
                        let degrades = model.failed(ticket, "failed", now);
                        prop_assert_eq!(degrades, was_healthy && in_a_row == FAILURES_IN_A_ROW);
                    }
                    Step::Succeed(back) => {
                        let ticket = of(back, &begun);
                        let recovers = model.succeeded(ticket);
                        prop_assert_eq!(recovers, !was_healthy && ticket == era);
                        if ticket == era {
                            in_a_row = 0;
                        }
                    }
                    Step::Break => prop_assert_eq!(model.broken("broken", now), was_healthy),
                    Step::BeginProbe => {
                        let due = model.probe_at().is_some_and(|at| at <= now);
                        prop_assert_eq!(model.begin_probe(now), due);
                        if due {
                            let half_open = matches!(model.health(), Health::HalfOpen { .. });
                            prop_assert!(half_open);
                        }
                    }
                    Step::EndProbe(probe) => {
                        let recovers = model.end_probe(probe.clone(), now);
                        prop_assert_eq!(recovers, *probe == Probe::Succeeded && !was_healthy);
                        if *probe == Probe::Succeeded {
                            in_a_row = 0;
                        }
                    }
                }
                let is_healthy = model.health() == Health::Healthy;
                prop_assert_eq!(was_healthy != is_healthy, era != model.era(), "an era ends with each change");
                if !is_healthy {
                    in_a_row = 0;
                }
                if let Some(at) = model.probe_at() {
                    prop_assert!(at <= now + LONGEST_PAUSE, "a probe is always near");
                }
            }
            model.begin_probe(now + LONGEST_PAUSE);
            model.end_probe(Probe::Succeeded, now + LONGEST_PAUSE);
            prop_assert_eq!(model.health(), Health::Healthy);
        }
    }
}
