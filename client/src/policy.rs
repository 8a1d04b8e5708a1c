//! What the client does about a fault. All of that is decided here and nowhere else, without a clock and without a network.
//!
//! [`Fault`] names what can go wrong with one try, and [`Fault::rule`] is the table: whether a model may have seen the prompt, what is
//! done next, when the one who failed is asked again, and what the coordinator hears. [`Tries`] counts what a request has met, and holds
//! it to its deadline: an agent that failed is never preferred to another one, and nothing is waited for that would come too late.

use std::time::{Duration, Instant};

use titan_proto::rest::Outcome;
use tonic::Code;

use crate::{ClientError, CoordinatorError, Processed, error::BrokenBy};

/// Who fails without a word on when to come again is asked again for so long: a process that restarts, and a network interface that comes
/// up, are back by then.
const RESTART_TIME: Duration = Duration::from_secs(10);
/// The same once text has come, which is worth more: an agent keeps an answer whose connection is lost for so long (PROTOCOL.md §15).
pub(crate) const KEPT_TIME: Duration = Duration::from_secs(30);
/// How long the agent of a broken connection is asked to go on before another one is asked beside: a handshake over the longest path, or a
/// lost first packet.
const HEAD_START: Duration = Duration::from_secs(2);
/// The same where nothing has come for 3 s already: one round trip over the longest path.
const HEAD_START_AFTER_SILENCE: Duration = Duration::from_millis(600);
/// Runs of one prompt that may be lost before the caller is told: a prompt that brings its agent down must not bring all of them down.
const MAX_LOST_RUNS: u32 = 3;
/// Refusals other than for want of room before the caller is told. More agents would say the same, and an agent also says that it is not
/// available when its model has just failed.
const MAX_REFUSALS: u32 = 4;
/// The wait before the second try, twice that before the third, and so on.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest of these waits: half of the shortest heartbeat interval, by which the coordinator learns of an agent.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// The wait where somebody asks for one and does not say for how long.
const UNSAID_WAIT: Duration = Duration::from_secs(1);
/// So long requests do without a coordinator that has not answered, where a route is held: to wait for it takes seconds if its machine is
/// dead. It is asked beside them.
pub(crate) const AWAY_TIME: Duration = Duration::from_secs(5);
/// What remains of a request's time when the coordinator gives up to find room for it.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// What is said beyond this is past any deadline, and arithmetic with it might overflow.
const MAX_SAID_WAIT: Duration = Duration::from_secs(86_400);

/// What went wrong with one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The coordinator does not answer, or is broken.
    NoCoordinator,
    /// The coordinator has just started, and does not know its agents yet.
    Starting(Duration),
    /// The coordinator says when to come again: all agents are full, or this client asks too much.
    NotNow(Duration),
    /// The coordinator knows no agent for this.
    NoAgent,
    /// Nothing comes from the agent: its machine is dead, or cannot be reached from here.
    NoAnswer,
    /// The agent's machine says that nobody listens there.
    Gone,
    /// All slots of the agent are taken. It may say when to come again.
    Full(Option<Duration>),
    /// The agent takes nothing new.
    Draining,
    /// The agent does not take this token, or does not serve this model.
    Unfit,
    /// The agent's certificate or wire does not suit this client.
    Unusable,
    /// The connection broke while the request was out.
    Lost,
    /// Nothing comes over the connection any more.
    Silent,
    /// The agent has run the prompt already: its answer was lost on the way.
    AlreadyRan,
    /// The agent's model failed.
    Failed,
    /// Whoever is asked would refuse it.
    Refused,
}

/// What is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The coordinator is asked again.
    AskAgain,
    /// The same once text has come; before that, the coordinator's word is final.
    AskAgainIfBegun,
    /// A route that is held from earlier is used. Where there is none the coordinator is asked again.
    HeldRoute,
    /// The coordinator is asked at once for another agent.
    Another,
    /// The agent is asked to go on with its run, and so much later another agent beside it.
    GoOn(Duration),
    /// The caller is told.
    GiveUp,
}

/// When the one who failed is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// After a short wait that grows: 50 ms to 500 ms.
    Soon,
    /// When it said.
    Said(Duration),
    /// Not for this request.
    Never,
}

/// What becomes of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteFate {
    /// The next request uses it.
    Kept,
    /// It is used while the coordinator is away, and otherwise not.
    PutAside,
    /// It leads nowhere.
    Dropped,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Whether a model may have seen the prompt.
    pub(crate) seen: Processed,
    pub(crate) then: Then,
    pub(crate) again: Again,
    /// Whether an agent that is asked to go on with a run is asked once more.
    pub(crate) resumes: bool,
    /// What the coordinator is told of the agent. Nothing where the agent tells it by itself, or where it may be this client's own fault.
    pub(crate) report: Option<Outcome>,
}

impl Fault {
    /// The table.
    #[rustfmt::skip]
    pub(crate) fn rule(self) -> Rule {
        use {Again::*, Fault::*, Processed::{Maybe, No, Yes}, Then::*};
        let row = |seen, then, again, resumes, report| Rule { seen, then, again, resumes, report };
        match self {
            // what happened            a model      what is done next               it is asked   resuming   the coordinator
            //                          may have                                     again         goes on    is told
            //                          seen it
            NoCoordinator       => row( No,          HeldRoute,                      Soon,         false,     None ),
            Starting(wait)      => row( No,          HeldRoute,                      Said(wait),   false,     None ),
            NotNow(wait)        => row( No,          AskAgain,                       Said(wait),   false,     None ),
            NoAgent             => row( No,          AskAgainIfBegun,                Soon,         false,     None ),

            NoAnswer            => row( No,          Another,                        Soon,         true,      Some(Outcome::Unreachable) ),
            Gone                => row( No,          Another,                        Soon,         false,     Some(Outcome::Unreachable) ),
            Full(Some(wait))    => row( No,          Another,                        Said(wait),   false,     None ),
            Full(None)          => row( No,          Another,                        Soon,         false,     None ),
            Draining            => row( No,          Another,                        Soon,         false,     None ),
            Unfit               => row( No,          Another,                        Never,        false,     Some(Outcome::Refused) ),
            Unusable            => row( No,          Another,                        Never,        false,     None ),

            Lost                => row( Maybe,       GoOn(HEAD_START),               Soon,         true,      Some(Outcome::Broken) ),
            Silent              => row( Maybe,       GoOn(HEAD_START_AFTER_SILENCE), Soon,         true,      Some(Outcome::Broken) ),
            AlreadyRan          => row( Yes,         GoOn(HEAD_START),               Never,        false,     None ),
            Failed              => row( Maybe,       Another,                        Never,        false,     Some(Outcome::Broken) ),

            Refused             => row( No,          GiveUp,                         Never,        false,     None ),
        }
    }

    /// Which fault an error is.
    pub(crate) fn of(error: &ClientError) -> Self {
        match error {
            ClientError::Coordinator(error) => Self::of_coordinator(error),
            ClientError::Unreachable { gone: true, .. } => Self::Gone,
            ClientError::Unreachable { gone: false, .. } => Self::NoAnswer,
            ClientError::Certificate { .. } | ClientError::WireUnavailable { .. } => Self::Unusable,
            ClientError::AlreadyRan { .. } => Self::AlreadyRan,
            ClientError::Broken { by: BrokenBy::Connection, .. } => Self::Lost,
            ClientError::Broken { by: BrokenBy::Silence, .. } => Self::Silent,
            ClientError::Broken { by: BrokenBy::Agent, .. } => Self::Failed,
            ClientError::TimedOut { last, .. } => last.as_deref().map_or(Self::NoAnswer, Self::of),
            ClientError::Refused { code, retry_after, .. } => match code {
                Code::ResourceExhausted => Self::Full(*retry_after),
                Code::Unavailable => Self::Draining,
                Code::Unauthenticated | Code::PermissionDenied | Code::NotFound => Self::Unfit,
                _ => Self::Refused,
            },
        }
    }

    /// The same of the coordinator's errors.
    pub(crate) fn of_coordinator(error: &CoordinatorError) -> Self {
        let CoordinatorError::Refused { status, code_word, retry_after, .. } = error else {
            let away = matches!(error, CoordinatorError::Unreachable { .. });
            return if away { Self::NoCoordinator } else { Self::Refused };
        };
        match (*status, code_word.as_str(), *retry_after) {
            (_, "starting", wait) => Self::Starting(wait.unwrap_or(UNSAID_WAIT)),
            // Request Timeout, Too Many Requests, and all that is the server's fault (RFC 9110 §15.6).
            (408 | 429 | 500.., _, Some(wait)) => Self::NotNow(wait),
            (408 | 429, _, None) | (_, "no_capacity", None) => Self::NotNow(UNSAID_WAIT),
            (503, ..) => Self::NoAgent,
            (500.., ..) => Self::NoCoordinator,
            _ => Self::Refused,
        }
    }

    /// What the coordinator is told of the agent; `kept`: that was asked over a route of an earlier request.
    pub(crate) fn report(self, kept: bool) -> Option<Outcome> {
        // It may be the old token.
        self.rule().report.filter(|_| !(kept && self == Self::Unfit))
    }

    /// What becomes of the route that led to an agent that failed so.
    pub(crate) fn route(self) -> RouteFate {
        match self.rule() {
            Rule { then: Then::GiveUp, .. } => RouteFate::Kept,
            Rule { again: Again::Never, seen: Processed::No, .. } => RouteFate::Dropped,
            _ => RouteFate::PutAside,
        }
    }

    /// Whether the same request may succeed at another time.
    pub(crate) fn passes(self) -> bool {
        let rule = self.rule();
        rule.again != Again::Never || rule.seen != Processed::No
    }
}

/// What to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask the coordinator, after this wait.
    Ask(Duration),
    /// Have the agent go on with its run, if `here`, and ask the coordinator for another one so much later, if at all.
    GoOn { here: bool, another_after: Option<Duration> },
    /// Tell the caller.
    GiveUp,
    /// Tell the caller that the time is over.
    TooLate,
}

/// Whether an agent that the coordinator names is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// After this wait, which is none for an agent that has not failed.
    After(Duration),
    /// It has failed for good, or for too long: the caller is told.
    GiveUp,
    /// Its turn comes when the time is over: the caller is told that.
    TooLate,
}

/// What one request has met, and how long it has.
#[derive(Clone, Debug)]
pub(crate) struct Tries {
    /// Nothing is waited for past this.
    deadline: Instant,
    /// Whether an agent keeps a run whose connection is lost.
    may_resume: bool,
    /// Whether another agent may be asked for what one may have run.
    may_move: bool,
    /// Whether text has come.
    has_begun: bool,
    /// Runs that were lost.
    lost_runs: u32,
    refusals: u32,
    /// The coordinator's faults in a row.
    coordinator_faults: u32,
    /// Since when all faults have been without a word on how long they last.
    in_the_dark: Option<Instant>,
    agents: Vec<Met>,
}

/// An agent that failed.
#[derive(Clone, Debug)]
struct Met {
    agent_id: String,
    faults: u32,
    /// It is not asked before; None for never.
    again: Option<Instant>,
    /// It is only full: once its time has come it is as good as any.
    full: bool,
}

impl Tries {
    /// For a request of which nothing has come.
    pub(crate) fn new(deadline: Instant, may_resume: bool, may_move: bool) -> Self {
        Self {
            deadline,
            may_resume,
            may_move,
            has_begun: false,
            lost_runs: 0,
            refusals: 0,
            coordinator_faults: 0,
            in_the_dark: None,
            agents: Vec::new(),
        }
    }

    /// The same after a pause in which all went well: what its agents did is remembered. `has_begun`: text has come.
    pub(crate) fn going_on(self, deadline: Instant, may_move: bool, has_begun: bool) -> Self {
        Self { deadline, may_move, has_begun, coordinator_faults: 0, in_the_dark: None, ..self }
    }

    /// The agent goes on with a run that seemed lost.
    pub(crate) fn goes_on(&mut self, agent_id: &str) {
        self.lost_runs = self.lost_runs.saturating_sub(1);
        self.agents.retain(|met| met.agent_id != agent_id);
    }

    /// The coordinator failed. `luck`, from 0 to 1, spreads out those that wait for the same.
    pub(crate) fn coordinator_failed(&mut self, fault: Fault, now: Instant, luck: f64) -> Next {
        let rule = fault.rule();
        if rule.then == Then::GiveUp || rule.then == Then::AskAgainIfBegun && !self.has_begun {
            return Next::GiveUp;
        }
        self.coordinator_faults += 1;
        let Some(wait) = wait(rule.again, self.coordinator_faults, luck) else { return Next::GiveUp };
        self.note_darkness(rule.again, now);
        if now + wait > self.deadline {
            Next::TooLate
        } else if self.nothing_speaks_for(now + wait) {
            Next::GiveUp
        } else {
            Next::Ask(wait)
        }
    }

    /// The agent failed; `kept`: over a route of an earlier request.
    pub(crate) fn agent_failed(&mut self, agent_id: &str, fault: Fault, kept: bool, now: Instant, luck: f64) -> Next {
        let rule = fault.rule();
        if rule.then == Then::GiveUp {
            return Next::GiveUp;
        }
        if kept && fault == Fault::Unfit {
            // It may be the old token: the same agent takes a new one.
            return Next::Ask(Duration::ZERO);
        }
        self.meet(agent_id, fault, now, luck);
        self.note_darkness(rule.again, now);
        self.refusals += u32::from(matches!(fault, Fault::Draining | Fault::Unfit | Fault::Unusable));
        if self.refusals >= MAX_REFUSALS {
            return Next::GiveUp;
        }
        if rule.seen == Processed::No {
            return Next::Ask(Duration::ZERO);
        }
        self.lost_runs += 1;
        let may_move = self.may_move && self.lost_runs <= MAX_LOST_RUNS;
        match rule.then {
            Then::GoOn(head_start) if self.may_resume => {
                Next::GoOn { here: true, another_after: may_move.then_some(head_start) }
            }
            _ if may_move => Next::Ask(Duration::ZERO),
            _ => Next::GiveUp,
        }
    }

    /// The coordinator, or a held route, names this agent.
    pub(crate) fn named(&mut self, agent_id: &str, now: Instant) -> Turn {
        self.coordinator_faults = 0;
        let Some(met) = self.agents.iter().find(|met| met.agent_id == agent_id) else {
            return Turn::After(Duration::ZERO);
        };
        let Some(again) = met.again else { return Turn::GiveUp };
        let at = again.max(now);
        if at > self.deadline {
            Turn::TooLate
        } else if self.nothing_speaks_for(at) {
            Turn::GiveUp
        } else {
            Turn::After(at - now)
        }
    }

    /// Agents to leave for others, if there are any.
    pub(crate) fn excluded(&self, now: Instant) -> Vec<String> {
        let failed = |met: &&Met| !met.full || met.again.is_none_or(|again| again > now);
        self.agents.iter().filter(failed).map(|met| met.agent_id.clone()).collect()
    }

    /// Whether this agent may be asked at all.
    pub(crate) fn may_ask(&self, agent_id: &str) -> bool {
        !self.agents.iter().any(|met| met.agent_id == agent_id && met.again.is_none())
    }

    /// How long the coordinator may hold a question until an agent has room: so that its word comes in time.
    pub(crate) fn patience(&self, now: Instant) -> Duration {
        let left = self.deadline.saturating_duration_since(now);
        left - (left / 10).min(ANSWER_TIME)
    }

    fn meet(&mut self, agent_id: &str, fault: Fault, now: Instant, luck: f64) {
        let at = self.agents.iter().position(|met| met.agent_id == agent_id).unwrap_or_else(|| {
            self.agents.push(Met { agent_id: agent_id.to_owned(), faults: 0, again: Some(now), full: false });
            self.agents.len() - 1
        });
        let met = &mut self.agents[at];
        met.faults += 1;
        met.again = wait(fault.rule().again, met.faults, luck).map(|wait| now + wait);
        met.full = matches!(fault, Fault::Full(_));
    }

    fn note_darkness(&mut self, again: Again, now: Instant) {
        match again {
            Again::Said(_) => self.in_the_dark = None,
            Again::Soon | Again::Never => {
                self.in_the_dark.get_or_insert(now);
            }
        }
    }

    fn nothing_speaks_for(&self, at: Instant) -> bool {
        let patience = if self.has_begun { KEPT_TIME } else { RESTART_TIME };
        self.in_the_dark.is_some_and(|since| at > since + patience)
    }
}

/// The wait before an agent that is asked to go on with its run is asked once more, after `faults` in vain; None if that is pointless, or
/// past `until`.
pub(crate) fn resume_after(fault: Fault, faults: u32, now: Instant, until: Instant, luck: f64) -> Option<Duration> {
    let wait = wait(Again::Soon, faults, luck).filter(|_| fault.rule().resumes)?;
    (now + wait < until).then_some(wait)
}

/// Never before the time that was said, and up to half of it later; other waits are half to one and a half times as long.
fn wait(again: Again, faults: u32, luck: f64) -> Option<Duration> {
    match again {
        Again::Never => None,
        Again::Said(wait) => Some(wait.min(MAX_SAID_WAIT).mul_f64(1.0 + luck / 2.0)),
        Again::Soon => {
            let wait = FIRST_WAIT.saturating_mul(2u32.saturating_pow(faults.saturating_sub(1))).min(MAX_WAIT);
            Some(wait.mul_f64(0.5 + luck))
        }
    }
}

#[cfg(test)]
mod tests;
