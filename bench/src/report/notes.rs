//! Sentences that pages share: what was found wrong, how it was measured, and where.

use super::{
    aggregate::Data,
    format::{grouped, number},
    twins::{self, Twin, Verdict},
};
use crate::net::{record::Run, subject::Subject};

/// What a reader must know before any figure, the worst first.
pub(super) fn warnings(data: &Data, twins: &[Twin]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (subject, tokens) in &data.tokens {
        if tokens.lost > 0 || tokens.duplicated > 0 {
            warnings.push(format!(
                "TOKENS LOST OR DUPLICATED: {}: {} lost in streams that said they were complete, {} duplicated, of {}. \
                 Both must be 0.",
                subject.label(),
                grouped(&tokens.lost.to_string()),
                grouped(&tokens.duplicated.to_string()),
                grouped(&tokens.expected.to_string())
            ));
        }
    }
    if twins::verdict(twins) == Verdict::Differ {
        let differing = twins
            .iter()
            .filter(|twin| twin.differs())
            .map(|twin| format!("{} by {}", twin.measure.title(), number(twin.ratio.median)));
        warnings.push(format!(
            "THE SELF-TEST FAILED: the same subject measured twice differs ({}). Differences between subjects of that size mean \
             nothing in this run.",
            differing.collect::<Vec<_>>().join("; ")
        ));
    }
    let marked = data.checks.iter().filter(|check| check.marked.is_some()).count();
    if marked > 0 {
        warnings.push(format!(
            "The emulated path was off in {marked} of {} checks; they are listed below with what was off.",
            data.checks.len()
        ));
    }
    if data.runs.iter().any(|run| run.interrupted) {
        warnings.push("The run was interrupted: what is missing was not measured.".to_owned());
    }
    if data.values.is_empty() && data.fairness.is_empty() {
        warnings.push("Nothing was measured.".to_owned());
    }
    let commits: Vec<&str> = data.runs.iter().map(|run| run.environment.commit.as_str()).collect();
    if commits.windows(2).any(|pair| pair[0] != pair[1]) {
        warnings.push(format!("Runs of different commits are shown together: {}.", commits.join(", ")));
    }
    warnings
}

/// Shown where the self-test's result is.
pub(super) fn self_test(twins: &[Twin]) -> &'static str {
    match twins::verdict(twins) {
        Verdict::NotMeasured => "Not measured: the twin did not run.",
        Verdict::Alike => "Passed: no difference found. Every interval holds 1.",
        Verdict::TooFew => "No difference found, but some measures have too few pairs for an interval.",
        Verdict::Differ => "FAILED: an interval does not hold 1.",
    }
}

pub(super) const SELF_TEST_METHOD: &str = "Titan over QUIC is measured twice under two names. Each measure is paired by run, \
    repetition and network; the ratio of the second to the first is shown as the median over all pairs. The intervals hold together \
    with 95 % confidence: each alone is wider, for the number of measures.";

/// What is said where Titan is ahead everywhere.
pub(super) fn behind_nowhere(has_titan: bool) -> &'static str {
    if has_titan {
        "In no figure above is another subject better with intervals that are apart."
    } else {
        "Titan over QUIC was not measured."
    }
}

pub(super) const BEHIND: &str = "Every figure above in which another subject's median is better than that of Titan over QUIC and the \
    two intervals are apart, the worst first. Titan with routing is compared with the cold starts of those that need none.";

/// For a row that is not sure.
pub(super) const DOUBT: &str = "fewer than six repetitions: ranges, not intervals";

/// Terms and what they mean.
pub(super) const METHOD: [(&str, &str); 14] = [
    (
        "Path",
        "Two hosts, network namespaces on one machine, joined by an emulator that delays, loses and paces IP packets, for TCP and UDP \
         alike, with fixed seeds. Losses are in each direction; streams connect without any, then they begin. Every subject and repetition has a path of its own with the same settings.",
    ),
    (
        "Subject",
        "A server process and a client process each, with the same synthetic source of tokens: a fixed rate, twelve bytes of text a token, \
         the moment of sending inside. Peers have their best fair settings: TCP_NODELAY, keep-alive, pools that are warm.",
    ),
    (
        "Time to first token (TTFT)",
        "From asking for the answer, connecting included, to its first token read. Cold: no connection and no TLS session. Resumed: a TLS \
         session (and with Titan the route), but no connection. Warm: a connection. With routing: with the call that finds the agent, which \
         Titan alone has to make.",
    ),
    (
        "Returning",
        "A start as resumed, after the earlier connection has stood for half a second: what servers send for the next one has come, even \
         where packets are lost. Many of them, so that the slowest of a hundred means something; one that failed counts as the slowest.",
    ),
    ("Gap", "Between two tokens read. A token interval is the time between two tokens at their source."),
    (
        "Lateness",
        "How long after the ideal a token is read: sent on schedule, and half the path's round trip later read.",
    ),
    ("Stalled", "Share of the time that a reader at the pace of the tokens waits for an overdue one."),
    ("Lost, duplicated", "Tokens that a complete stream lacks or has twice. Both must be 0."),
    (
        "Bytes, packets per token",
        "IP packets that entered the path in both directions, headers and those that the path lost included, connecting not.",
    ),
    (
        "CPU",
        "User and system time of all processes of a side, relays included, one subject at a time over a clean path. What the kernel does \
         for packets that arrive is done in the emulator's thread and counts for nobody: TCP does more of its work there than QUIC.",
    ),
    (
        "Memory",
        "Resident memory with so many idle connections, less that with none, by their number; and the same of streams that have begun \
         and wait, up to a hundred on a connection where the protocol has that. Processes do nothing else, before or meanwhile.",
    ),
    (
        "Recovery",
        "From the change of the client's address, or the death of the agent, half-way through an answer, until a token is read that was sent after it. Without a \
         change that takes half a round trip.",
    ),
    (
        "Median and interval",
        "Figures are medians over repetitions. The interval holds the true median with at least 95 % confidence, from order statistics \
         (sign test), which assume nothing about the distribution; below six repetitions there is none, and the smallest and the largest \
         value are shown as min–max. The 99 % gap is taken in each repetition; plots of all gaps put the repetitions together.",
    ),
    (
        "Failed",
        "A stream that breaks off and says so is counted as failed and is in no figure of gaps, stalls or traffic.",
    ),
];

/// Machine and settings of one run: name, value.
pub(super) fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let environment = &run.environment;
    vec![
        ("begun", super::format::date(environment.started_at)),
        ("command", run.command.clone()),
        ("version, commit", format!("{}, {}", environment.version, environment.commit)),
        ("build", environment.profile.clone()),
        ("processor", format!("{}, {} cores", environment.cpu, environment.cores)),
        ("memory", format!("{} GB", number(environment.memory_bytes as f64 / 1e9))),
        ("kernel", format!("Linux {}", environment.kernel)),
        ("load average before", number(environment.load_average)),
        ("TCP of the machine", environment.tcp_congestion_control.clone()),
        ("interrupted", if run.interrupted { "yes" } else { "no" }.to_owned()),
    ]
}

/// What each subject is and how it is set, as its server says.
pub(super) fn settings(data: &Data) -> Vec<(Subject, String)> {
    let mut all: Vec<(Subject, String)> = Vec::new();
    for (subject, note) in data.runs.iter().flat_map(|run| &run.notes) {
        if !subject.is_variant() && all.iter().all(|(known, _)| known != subject) {
            all.push((*subject, note.clone()));
        }
    }
    all
}

/// Who did not run, and why.
pub(super) fn skipped(data: &Data) -> Vec<(Subject, String)> {
    let mut all: Vec<(Subject, String)> = Vec::new();
    for skipped in data.runs.iter().flat_map(|run| &run.skipped) {
        if !all.contains(skipped) {
            all.push(skipped.clone());
        }
    }
    all
}
