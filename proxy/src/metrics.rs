//! What the proxy has done, as Prometheus reads it.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use titan_client::ClientStats;

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) requests: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) running: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
}

impl Metrics {
    pub(crate) fn text(&self, stats: &ClientStats) -> String {
        let mut text = String::new();
        let mut add = |name: &str, kind: &str, help: &str, value: u64| {
            // Writing into a string does not fail.
            let _ = write!(
                text,
                "# HELP titan_proxy_{name} {help}\n# TYPE titan_proxy_{name} {kind}\ntitan_proxy_{name} {value}\n"
            );
        };
        add("requests_total", "counter", "Requests for text.", self.requests.load(Relaxed));
        add("failed_total", "counter", "Requests that ended with an error.", self.failed.load(Relaxed));
        add("running", "gauge", "Answers that come now.", self.running.load(Relaxed));
        add("completion_tokens_total", "counter", "Tokens of complete answers.", self.completion_tokens.load(Relaxed));
        add("coordinator_calls_total", "counter", "Questions to the coordinator.", stats.rest_calls);
        add(
            "grpc_fallbacks_total",
            "counter",
            "Requests that went over gRPC because UDP did not answer.",
            stats.grpc_fallbacks,
        );
        add("resumed_total", "counter", "Answers that went on over another connection, each time.", stats.resumed);
        add("moved_total", "counter", "Answers that went on at another agent, each time.", stats.moved);
        add("quic_handshakes_total", "counter", "Full QUIC handshakes.", stats.quic.full_handshakes);
        add(
            "quic_early_data_total",
            "counter",
            "Requests that were accepted as early data.",
            stats.quic.early_data_accepted,
        );
        add(
            "repaired_messages_total",
            "counter",
            "Messages that came by a repeat, before the stream.",
            stats.quic.repaired_messages,
        );
        add(
            "network_changes_total",
            "counter",
            "Changes of network that connections went through.",
            stats.quic.network_changes,
        );
        text
    }
}
