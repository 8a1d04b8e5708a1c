//! Checks what agents say before it reaches the registry: every text bounded, every number in range.
//!
//! Agents are trusted to be ours (they show a certificate), not to be free of bugs: one NaN or one 2^63 of memory would
//! win every comparison in the scheduler.

use std::{collections::BTreeSet, sync::Arc};

use titan_certs::{agent_server_name, validate_name};
use titan_proto::{
    MAX_TOKENS_PER_SECOND,
    rest::GrpcTls,
    v1::{AgentRegistration, HealthUpdate},
};

use crate::registry::{Load, Profile, QuicProfile};

/// Models one agent may serve, all names counted. A machine holds tens; names are cheap, but each is an index entry.
pub(crate) const MAX_MODELS: usize = 256;
/// Bytes of a model's name, as agents and clients write it. Hub names are below 100.
pub(crate) const MAX_MODEL_NAME_BYTES: usize = 256;
/// Bytes of `host:port`: the longest DNS name (253), and a port.
pub(crate) const MAX_ENDPOINT_BYTES: usize = 253 + 6;
/// Jobs one agent may run, queue or say it runs: ten times what the largest GPU servers batch.
pub(crate) const MAX_JOBS: u32 = 10_000;
/// Memory of one machine in MB: 1 PB, so that a value in bytes by mistake is noticed.
pub(crate) const MAX_MEMORY_MB: i64 = 1 << 30;
/// A round trip above a minute is no measurement.
pub(crate) const MAX_RTT_MS: f64 = 60_000.0;
/// Jobs one update may claim: those of a full agent, turned over a few times between two heartbeats.
pub(crate) const MAX_CLAIMS: usize = 4 * MAX_JOBS as usize;
/// Entries of `capabilities`. They are accepted for old agents and not used.
pub(crate) const MAX_CAPABILITIES: usize = 64;

/// What an agent said cannot be. Trying again with the same values cannot help.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum InputError {
    #[error("agent_id: {0}")]
    Id(#[from] titan_certs::NameError),
    #[error("{field} is `{value}`: give host:port as clients should dial it, such as gpu1.example.com:50052")]
    Endpoint { field: &'static str, value: String },
    #[error("{field} is `{value}`, which nobody can dial: set PUBLIC_HOST to a name or address that clients reach")]
    Unspecified { field: &'static str, value: String },
    #[error("grpc_tls is `{0}`: use none, server or mutual")]
    Tls(String),
    #[error("quic_server_name is `{0}`: give a DNS name")]
    ServerName(String),
    #[error("{field} is {value}: it must be between {min} and {max}")]
    Range { field: &'static str, value: String, min: i64, max: i64 },
    #[error("supported_models is empty: an agent serves at least one model")]
    NoModels,
    #[error("{count} {what}: at most {max} are accepted")]
    TooMany { what: &'static str, count: usize, max: usize },
    #[error("a model's name has {len} bytes: give 1 to {MAX_MODEL_NAME_BYTES}, without control characters")]
    ModelName { len: usize },
}

/// A registration, checked.
pub(crate) fn profile(registration: AgentRegistration) -> Result<Profile, InputError> {
    let AgentRegistration { agent_id, endpoint, total_vram_mb, total_ram_mb, max_jobs, supported_models, .. } =
        registration;
    validate_name(&agent_id)?;
    check_endpoint("endpoint", &endpoint)?;
    let grpc_tls =
        GrpcTls::parse(&registration.grpc_tls).ok_or_else(|| InputError::Tls(short(&registration.grpc_tls)))?;
    let quic = match registration.quic_endpoint {
        address if address.is_empty() => None,
        address => {
            check_endpoint("quic_endpoint", &address)?;
            Some(QuicProfile { address, server_name: server_name(&agent_id, registration.quic_server_name)? })
        }
    };
    if registration.capabilities.len() > MAX_CAPABILITIES {
        let count = registration.capabilities.len();
        return Err(InputError::TooMany { what: "capabilities", count, max: MAX_CAPABILITIES });
    }
    Ok(Profile {
        id: agent_id.into(),
        endpoint,
        grpc_tls,
        quic,
        total_vram_mb: memory("total_vram_mb", total_vram_mb)?,
        total_ram_mb: memory("total_ram_mb", total_ram_mb)?,
        max_jobs: jobs("max_jobs", max_jobs, 1)?,
        models: models(supported_models)?,
    })
}

/// The load in a heartbeat, checked. `claimed_job_ids` stay where they are.
pub(crate) fn load(update: &HealthUpdate) -> Result<Load, InputError> {
    if update.claimed_job_ids.len() > MAX_CLAIMS {
        let count = update.claimed_job_ids.len();
        return Err(InputError::TooMany { what: "claimed_job_ids", count, max: MAX_CLAIMS });
    }
    measured("cpu_percent", update.cpu_percent, 100.0 * MAX_CPUS)?;
    Ok(Load {
        free_vram_mb: memory("free_vram_mb", update.free_vram_mb)?,
        free_ram_mb: memory("free_ram_mb", update.free_ram_mb)?,
        running_jobs: jobs("running_jobs", update.running_jobs, 0)?,
        queued_jobs: jobs("queued_jobs", update.queued_jobs, 0)?,
        rtt_ms: measured("rtt_ms", update.rtt_ms, MAX_RTT_MS)?,
        tokens_per_second: measured("tokens_per_second", update.tokens_per_second, MAX_TOKENS_PER_SECOND)?,
        draining: update.draining,
    })
}

/// Some systems count 100 % per CPU.
const MAX_CPUS: f64 = 4096.0;

fn check_endpoint(field: &'static str, value: &str) -> Result<(), InputError> {
    let wrong = || InputError::Endpoint { field, value: short(value) };
    let (host, port) = value.rsplit_once(':').ok_or_else(wrong)?;
    if value.len() > MAX_ENDPOINT_BYTES || port.parse::<u16>().is_ok_and(|port| port == 0) {
        return Err(wrong());
    }
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    let unspecified = || InputError::Unspecified { field, value: short(value) };
    if let Some(v6) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let address: std::net::Ipv6Addr = v6.parse().map_err(|_| wrong())?;
        return if address.is_unspecified() { Err(unspecified()) } else { Ok(()) };
    }
    if host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_unspecified()) {
        return Err(unspecified());
    }
    if is_host_name(host) { Ok(()) } else { Err(wrong()) }
}

/// A DNS name or IPv4 address by its characters. Underscores stand in the names of containers.
fn is_host_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

fn server_name(agent_id: &str, given: String) -> Result<String, InputError> {
    if given.is_empty() {
        return Ok(agent_server_name(agent_id));
    }
    if given.len() > MAX_ENDPOINT_BYTES || !is_host_name(&given) {
        return Err(InputError::ServerName(short(&given)));
    }
    Ok(given)
}

fn memory(field: &'static str, value: i64) -> Result<i64, InputError> {
    if (0..=MAX_MEMORY_MB).contains(&value) {
        return Ok(value);
    }
    Err(InputError::Range { field, value: value.to_string(), min: 0, max: MAX_MEMORY_MB })
}

fn jobs(field: &'static str, value: i32, min: u32) -> Result<u32, InputError> {
    match u32::try_from(value) {
        Ok(jobs) if (min..=MAX_JOBS).contains(&jobs) => Ok(jobs),
        _ => Err(InputError::Range { field, value: value.to_string(), min: min.into(), max: MAX_JOBS.into() }),
    }
}

/// 0 means not measured yet.
fn measured(field: &'static str, value: f64, max: f64) -> Result<Option<f64>, InputError> {
    if !(0.0..=max).contains(&value) {
        return Err(InputError::Range { field, value: value.to_string(), min: 0, max: max as i64 });
    }
    Ok((value > 0.0).then_some(value))
}

fn models(names: Vec<String>) -> Result<Vec<Arc<str>>, InputError> {
    if names.is_empty() {
        return Err(InputError::NoModels);
    }
    if names.len() > MAX_MODELS {
        return Err(InputError::TooMany { what: "supported_models", count: names.len(), max: MAX_MODELS });
    }
    for name in &names {
        if name.is_empty() || name.len() > MAX_MODEL_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(InputError::ModelName { len: name.len() });
        }
    }
    let mut seen = BTreeSet::new();
    Ok(names.into_iter().map(Arc::from).filter(|name: &Arc<str>| seen.insert(Arc::clone(name))).collect())
}

/// Enough of a wrong value to recognise it.
fn short(value: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    value.chars().take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn registration() -> AgentRegistration {
        AgentRegistration {
            agent_id: "agent-1".into(),
            endpoint: "localhost:50052".into(),
            total_ram_mb: 16_000,
            max_jobs: 4,
            supported_models: vec!["smollm2:135m".into(), "default".into(), "default".into()],
            quic_endpoint: "[2001:db8::1]:50052".into(),
            grpc_tls: "mutual".into(),
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut AgentRegistration)) -> String {
        let mut registration = registration();
        change(&mut registration);
        profile(registration).unwrap_err().to_string()
    }

    #[test]
    fn a_good_registration_passes_and_missing_details_are_filled_in() {
        let profile = profile(registration()).unwrap();
        assert_eq!(profile.models.len(), 2, "a name given twice counts once");
        assert_eq!(profile.grpc_tls, GrpcTls::Mutual);
        let quic = profile.quic.unwrap();
        assert_eq!(quic.address, "[2001:db8::1]:50052");
        assert_eq!(quic.server_name, "agent-1.agent.titan.internal");
        let without_quic =
            super::profile(AgentRegistration { quic_endpoint: String::new(), ..registration() }).unwrap();
        assert_eq!(without_quic.quic, None);
    }

    #[test]
    fn what_nobody_could_dial_is_refused_with_what_to_do() {
        for wrong in [
            "",
            "host",
            "host:",
            ":1",
            "host:0",
            "host:65536",
            "host:+1",
            "http://host:1",
            "a b:1",
            "[::1:1",
            "host:1/x",
            "a\r\nb:1",
            "::1:50052",
        ] {
            assert!(refused(|r| r.endpoint = wrong.into()).contains("host:port"), "{wrong}");
        }
        assert!(refused(|r| r.endpoint = format!("{}:1", "a".repeat(300))).contains("host:port"));
        for nowhere in ["0.0.0.0:50052", "[::]:50052"] {
            assert!(refused(|r| r.endpoint = nowhere.into()).contains("PUBLIC_HOST"), "{nowhere}");
            assert!(refused(|r| r.quic_endpoint = nowhere.into()).contains("quic_endpoint"), "{nowhere}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        assert!(refused(|r| r.agent_id = "../a".into()).contains("agent_id"));
        assert!(refused(|r| r.max_jobs = 0).contains("max_jobs is 0"));
        assert!(refused(|r| r.max_jobs = i32::MAX).contains("max_jobs"));
        assert!(refused(|r| r.total_ram_mb = -1).contains("total_ram_mb is -1"));
        assert!(refused(|r| r.total_vram_mb = i64::MAX).contains("total_vram_mb"));
        assert!(refused(|r| r.grpc_tls = "ssl".into()).contains("`ssl`"));
        assert!(refused(|r| r.quic_server_name = "a b".into()).contains("quic_server_name"));
        assert!(refused(|r| r.supported_models.clear()).contains("at least one model"));
        assert!(refused(|r| r.supported_models = vec!["m".repeat(257)]).contains("257 bytes"));
        assert!(refused(|r| r.supported_models = vec!["a\nb".into()]).contains("control"));
        assert!(refused(|r| r.supported_models = vec!["m".into(); 257]).contains("257 supported_models"));
        assert!(refused(|r| r.capabilities = (0..65).map(|i| (i.to_string(), String::new())).collect()).contains("65"));
    }

    #[test]
    fn numbers_that_are_no_measurements_are_refused() {
        let refused = |update: HealthUpdate| load(&update).unwrap_err().to_string();
        for value in [f64::NAN, -1.0, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(refused(HealthUpdate { rtt_ms: value, ..Default::default() }).contains("rtt_ms"));
            assert!(refused(HealthUpdate { cpu_percent: value, ..Default::default() }).contains("cpu_percent"));
            assert!(
                refused(HealthUpdate { tokens_per_second: value, ..Default::default() }).contains("tokens_per_second")
            );
        }
        assert!(refused(HealthUpdate { free_ram_mb: i64::MIN, ..Default::default() }).contains("free_ram_mb"));
        assert!(refused(HealthUpdate { running_jobs: -1, ..Default::default() }).contains("running_jobs"));
        assert!(refused(HealthUpdate { queued_jobs: i32::MAX, ..Default::default() }).contains("queued_jobs"));
        let claims = vec![String::new(); MAX_CLAIMS + 1];
        assert!(refused(HealthUpdate { claimed_job_ids: claims, ..Default::default() }).contains("claimed_job_ids"));
    }

    #[test]
    fn zero_means_not_measured_yet() {
        let load = load(&HealthUpdate { tokens_per_second: 12.5, ..Default::default() }).unwrap();
        assert_eq!((load.rtt_ms, load.tokens_per_second), (None, Some(12.5)));
    }
}
