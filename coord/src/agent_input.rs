//! Checks what agents say before it reaches the registry: every text bounded, every number in range.
//!
//! Agents are trusted to be ours (they show a certificate), not to be free of bugs: one NaN or one 2^63 of memory would
//! win every comparison in the scheduler.

mod accounts;

use std::{collections::BTreeSet, sync::Arc};

use titan_certs::{agent_server_name, validate_name};
use titan_proto::{
    MAX_TOKENS_PER_SECOND,
    digest::{self, MAX_CACHED_PREFIXES},
    rest::GrpcTls,
    v1::{AgentRegistration, HealthUpdate, ModelInfo},
};

pub(crate) use self::accounts::{finished, running_by_key};
use crate::registry::{Condition, Load, Profile, QuicProfile};

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

/// Bytes of a model's source: a path or URL. Of its other texts a part of that is enough.
pub(crate) const MAX_SOURCE_BYTES: usize = 1024;
pub(crate) const MAX_WORD_BYTES: usize = 128;
/// Digits of a model's digest: a SHA-256.
pub(crate) const DIGEST_DIGITS: usize = 64;
/// Parameters of a model, and tokens of its context: a thousand times what there is.
pub(crate) const MAX_PARAMETERS: i64 = 1_000_000_000_000_000;
pub(crate) const MAX_CONTEXT_TOKENS: i64 = 1_000_000_000;
/// Characters of the reason for which an agent is not healthy: a sentence. The rest is cut off.
pub(crate) const MAX_REASON_CHARS: usize = 200;

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
    #[error("model_info: {0}")]
    ModelInfo(String),
    #[error("instance has {len} bytes: give at most {MAX_WORD_BYTES}, without control characters")]
    Instance { len: usize },
    #[error("health is `{0}`: use healthy, degraded or half_open")]
    Health(String),
    #[error("{field} has {len} bytes: at most {MAX_MODEL_NAME_BYTES} are accepted, without control characters")]
    Word { field: &'static str, len: usize },
    #[error("finished.outcome is `{0}`: use completed, cancelled or failed")]
    Outcome(String),
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
    let instance = registration.instance;
    if instance.len() > MAX_WORD_BYTES || instance.chars().any(char::is_control) {
        return Err(InputError::Instance { len: instance.len() });
    }
    Ok(Profile {
        origin: digest::origin(&agent_id),
        instance: instance.into(),
        id: agent_id.into(),
        endpoint,
        grpc_tls,
        quic,
        total_vram_mb: memory("total_vram_mb", total_vram_mb)?,
        total_ram_mb: memory("total_ram_mb", total_ram_mb)?,
        max_jobs: jobs("max_jobs", max_jobs, 1)?,
        model_info: model_info(registration.model_info, &supported_models)?,
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
        computing: jobs("computing", update.computing, 0)?,
    })
}

/// How the agent sees itself, checked.
pub(crate) fn condition(update: &HealthUpdate) -> Result<Condition, InputError> {
    // It is shown to people, in JSON and on terminals.
    let reason = || -> Arc<str> {
        let text = update.health_reason.chars().filter(|c| !c.is_control()).take(MAX_REASON_CHARS);
        text.collect::<String>().into()
    };
    match update.health.as_str() {
        "" | "healthy" => Ok(Condition::Healthy),
        "degraded" => Ok(Condition::Degraded { reason: reason() }),
        "half_open" => Ok(Condition::HalfOpen { reason: reason() }),
        other => Err(InputError::Health(short(other))),
    }
}

/// How far its clock is ahead of ours, in milliseconds, where the update says what it shows.
pub(crate) fn clock_ahead_ms(update: &HealthUpdate, our_clock_unix_ms: i64) -> Option<i64> {
    (update.clock_unix_ms != 0).then(|| update.clock_unix_ms.saturating_sub(our_clock_unix_ms))
}

/// What its engines hold, where the update says so, checked.
pub(crate) fn prefixes(update: &HealthUpdate) -> Result<Option<Vec<u64>>, InputError> {
    let count = update.cached_prefixes.len();
    if count > MAX_CACHED_PREFIXES {
        return Err(InputError::TooMany { what: "cached_prefixes", count, max: MAX_CACHED_PREFIXES });
    }
    Ok(update.caches.then(|| update.cached_prefixes.clone()))
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

fn model_info(infos: Vec<ModelInfo>, models: &[String]) -> Result<Vec<ModelInfo>, InputError> {
    let wrong = |problem: String| Err(InputError::ModelInfo(problem));
    if infos.len() > MAX_MODELS {
        return Err(InputError::TooMany { what: "model_info", count: infos.len(), max: MAX_MODELS });
    }
    let mut seen = BTreeSet::new();
    for info in &infos {
        let name = short(&info.name);
        if !models.contains(&info.name) {
            return wrong(format!("`{name}` is none of supported_models"));
        }
        if !seen.insert(&info.name) {
            return wrong(format!("`{name}` is described twice"));
        }
        let texts = [
            ("engine", &info.engine, MAX_WORD_BYTES),
            ("source", &info.source, MAX_SOURCE_BYTES),
            ("architecture", &info.architecture, MAX_WORD_BYTES),
            ("quantization", &info.quantization, MAX_WORD_BYTES),
        ];
        for (field, text, max) in texts {
            if text.len() > max || text.chars().any(char::is_control) {
                return wrong(format!("{field} of `{name}` must have at most {max} bytes, without control characters"));
            }
        }
        if !info.digest.is_empty() && !is_digest(&info.digest) {
            let digest = short(&info.digest);
            return wrong(format!(
                "digest of `{name}` is `{digest}`: give {DIGEST_DIGITS} hexadecimal digits, a-f in lower case"
            ));
        }
        if !matches!(info.continuation.as_str(), "" | "tokens" | "text" | "none") {
            let continuation = short(&info.continuation);
            return wrong(format!("continuation of `{name}` is `{continuation}`: use tokens, text or none"));
        }
        let numbers = [
            ("parameters", info.parameters, MAX_PARAMETERS),
            ("context_tokens", info.context_tokens, MAX_CONTEXT_TOKENS),
            ("places", info.places.into(), MAX_JOBS.into()),
        ];
        for (field, value, max) in numbers {
            if !(0..=max).contains(&value) {
                return Err(InputError::Range { field, value: value.to_string(), min: 0, max });
            }
        }
    }
    Ok(infos)
}

/// Whether a text has the form of a model's digest.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == DIGEST_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
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
    fn what_an_agent_says_of_its_models_is_bounded() {
        let info = |change: fn(&mut ModelInfo)| {
            let mut info = ModelInfo {
                name: "default".into(),
                engine: "mistral.rs".into(),
                digest: "0123456789abcdef".repeat(4),
                continuation: "tokens".into(),
                ..ModelInfo::default()
            };
            change(&mut info);
            info
        };
        let with = |infos| AgentRegistration { model_info: infos, ..registration() };
        assert_eq!(profile(with(vec![info(|_| ())])).unwrap().digest("default"), Some(&*"0123456789abcdef".repeat(4)));
        assert_eq!(profile(with(vec![info(|i| i.digest.clear())])).unwrap().digest("default"), None);
        type Change = fn(&mut ModelInfo);
        let wrong: [(&str, Change); 9] = [
            ("`gpt` is none of supported_models", |i| i.name = "gpt".into()),
            ("engine of `default` must have at most 128", |i| i.engine = "e".repeat(129)),
            ("source of `default` must have at most 1024", |i| i.source = "a\nb".into()),
            ("digest of `default` is `abc`: give 64", |i| i.digest = "abc".into()),
            ("digest of `default`", |i| i.digest = "A".repeat(64)),
            ("continuation of `default` is `maybe`", |i| i.continuation = "maybe".into()),
            ("parameters is -1", |i| i.parameters = -1),
            ("context_tokens is 9223372036854775807", |i| i.context_tokens = i64::MAX),
            ("places is -1", |i| i.places = -1),
        ];
        for (message, change) in wrong {
            assert!(refused(|r| r.model_info = vec![info(change)]).contains(message), "{message}");
        }
        assert!(refused(|r| r.model_info = vec![info(|_| ()); 2]).contains("described twice"));
        assert!(refused(|r| r.model_info = vec![ModelInfo::default(); 257]).contains("257 model_info"));
    }

    #[test]
    fn how_an_agent_is_and_what_it_holds_is_checked() {
        let update = |health: &str, reason: &str| HealthUpdate {
            health: health.into(),
            health_reason: reason.into(),
            ..Default::default()
        };
        for healthy in ["", "healthy"] {
            assert_eq!(condition(&update(healthy, "ignored")), Ok(Condition::Healthy));
        }
        let long = condition(&update("degraded", &format!("a\u{1b}[1m{}", "é".repeat(300)))).unwrap();
        assert_eq!(long.reason().map(|reason| (reason.chars().count(), reason.contains('\u{1b}'))), Some((200, false)));
        assert_eq!(condition(&update("half_open", "x")), Ok(Condition::HalfOpen { reason: "x".into() }));
        assert!(condition(&update("fine", "")).unwrap_err().to_string().contains("`fine`: use healthy"));

        let holding = |caches, count| HealthUpdate { caches, cached_prefixes: vec![7; count], ..Default::default() };
        assert_eq!(prefixes(&holding(false, 1)), Ok(None));
        assert_eq!(prefixes(&holding(true, 0)), Ok(Some(Vec::new())));
        let error = prefixes(&holding(true, MAX_CACHED_PREFIXES + 1)).unwrap_err().to_string();
        assert!(error.contains("513 cached_prefixes: at most 512"), "{error}");
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
        assert!(refused(HealthUpdate { computing: -1, ..Default::default() }).contains("computing"));
        let claims = vec![String::new(); MAX_CLAIMS + 1];
        assert!(refused(HealthUpdate { claimed_job_ids: claims, ..Default::default() }).contains("claimed_job_ids"));
    }

    #[test]
    fn zero_means_not_measured_yet() {
        let load = load(&HealthUpdate { tokens_per_second: 12.5, ..Default::default() }).unwrap();
        assert_eq!((load.rtt_ms, load.tokens_per_second), (None, Some(12.5)));
    }
}
