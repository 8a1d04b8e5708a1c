//! What is measured, one name for tables, plots and the CSV.

/// One quantity. Less is better in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Measure {
    Connect,
    TtftCold,
    TtftRouted,
    TtftResumed,
    TtftReturning,
    TtftWarm,
    GapP50,
    GapP95,
    GapP99,
    GapP999,
    GapMax,
    LatenessP50,
    LatenessP99,
    Stall,
    BytesPerToken,
    PacketsPerToken,
    Recovery,
    CpuServer,
    CpuClient,
    MemoryIdleServer,
    MemoryIdleClient,
    MemoryStreamServer,
    MemoryStreamClient,
}

impl Measure {
    /// As the CSV names it: its unit at the end.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Connect => "connect_ms",
            Self::TtftCold => "ttft_cold_ms",
            Self::TtftRouted => "ttft_cold_routed_ms",
            Self::TtftResumed => "ttft_resumed_ms",
            Self::TtftReturning => "ttft_returning_ms",
            Self::TtftWarm => "ttft_warm_ms",
            Self::GapP50 => "gap_p50_ms",
            Self::GapP95 => "gap_p95_ms",
            Self::GapP99 => "gap_p99_ms",
            Self::GapP999 => "gap_p999_ms",
            Self::GapMax => "gap_max_ms",
            Self::LatenessP50 => "lateness_p50_ms",
            Self::LatenessP99 => "lateness_p99_ms",
            Self::Stall => "stall_percent",
            Self::BytesPerToken => "bytes_per_token",
            Self::PacketsPerToken => "packets_per_token",
            Self::Recovery => "recovery_ms",
            Self::CpuServer => "server_cpu_s_per_million_tokens",
            Self::CpuClient => "client_cpu_s_per_million_tokens",
            Self::MemoryIdleServer => "server_kib_per_idle_connection",
            Self::MemoryIdleClient => "client_kib_per_idle_connection",
            Self::MemoryStreamServer => "server_kib_per_stream",
            Self::MemoryStreamClient => "client_kib_per_stream",
        }
    }

    /// As tables name it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Connect => "time to connect, ms",
            Self::TtftCold => "TTFT cold, ms",
            Self::TtftRouted => "TTFT cold with routing, ms",
            Self::TtftResumed => "TTFT resumed, ms",
            Self::TtftReturning => "TTFT returning, ms",
            Self::TtftWarm => "TTFT warm, ms",
            Self::GapP50 => "gap p50, ms",
            Self::GapP95 => "gap p95, ms",
            Self::GapP99 => "gap p99, ms",
            Self::GapP999 => "gap p99.9, ms",
            Self::GapMax => "longest gap, ms",
            Self::LatenessP50 => "lateness p50, ms",
            Self::LatenessP99 => "lateness p99, ms",
            Self::Stall => "stalled, % of time",
            Self::BytesPerToken => "bytes per token",
            Self::PacketsPerToken => "packets per token",
            Self::Recovery => "recovery, ms",
            Self::CpuServer => "server CPU, s per million tokens",
            Self::CpuClient => "client CPU, s per million tokens",
            Self::MemoryIdleServer => "server memory, KiB per idle connection",
            Self::MemoryIdleClient => "client memory, KiB per idle connection",
            Self::MemoryStreamServer => "server memory, KiB per stream",
            Self::MemoryStreamClient => "client memory, KiB per stream",
        }
    }
}
