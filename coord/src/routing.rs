//! The one question the coordinator answers: which agent should serve this request? REST and gRPC both end here.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::Method;
use parking_lot::Mutex;
use titan_proto::{
    COORDINATOR_NAME, MAX_CLOCK_SKEW, MAX_PROMPT_BYTES,
    conversation::{MAX_MESSAGES, MAX_TOOLS, text_bytes},
    digest::MAX_PREFIX_DIGESTS,
    v1::{Message, Prefill, Tool},
};
use titan_transport::{
    seldom,
    token::{CLOCK_LEEWAY, Claims, TokenIssuer, new_jti, unix_seconds},
};
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::{
    access::{Access, AccessError},
    agent_input::{DIGEST_DIGITS, MAX_MODEL_NAME_BYTES, is_digest},
    caller::Asker,
    client_ids,
    config::Config,
    outcomes::Outcomes,
    prefill::Outboxes,
    registry::{BookError, Policy, Profile, Registry, Wanted},
    scheduler::WeightsError,
    usage::{Finished, UsageLog},
    waiting::{DEFAULT_PATIENCE, FRONT_DOOR_PATIENCE, MAX_PATIENCE, NoRoom, Queued, Waiting},
};

/// Bytes of a client's id. It is in every token, which travels with every request.
pub(crate) const MAX_CLIENT_ID_BYTES: usize = 256;
/// A parameter under this name, with any digest of the prompt as its value, may stand for the prompt itself: routing needs
/// no text, and a long prompt is better sent once, to the agent.
pub const PROMPT_DIGEST: &str = "prompt_digest";
/// A parameter under this name lists agents, separated by commas, that failed the client: another one is chosen if there is one.
pub(crate) const EXCLUDE_AGENTS: &str = "exclude_agents";
/// Agents in [`EXCLUDE_AGENTS`], each of which is looked for among all agents that serve the model. A client has met a handful.
pub(crate) const MAX_EXCLUDED: usize = 64;
/// What a client without a slot is told to wait: about as long as a short answer takes.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Tokens are valid from a little before they are made, because an agent's clock may be behind ours.
const BACKDATED: Duration = MAX_CLOCK_SKEW.saturating_sub(CLOCK_LEEWAY);
/// How long agents that are gone stay in status answers: long enough to be noticed by a person.
const REMEMBER_AGENTS: Duration = Duration::from_secs(10 * 60);
/// The most agents, gone ones included: what the scheduler compares within a millisecond, and about 20 MB.
const MAX_AGENTS: usize = 20_000;

/// What both interfaces and the health streams share.
pub(crate) struct Dispatcher {
    /// Held for lookups and bookings only, never across an await or a signature.
    pub(crate) registry: Mutex<Registry>,
    pub(crate) issuer: TokenIssuer,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) heartbeat_timeout: Duration,
    pub(crate) started: Instant,
    /// What agents are told ahead; `None` where that is off.
    pub(crate) prefill: Option<Outboxes>,
    /// Who may ask.
    pub(crate) access: Access,
    /// What was generated, and for whom; `None` where nobody wants to know.
    pub(crate) usage: Option<UsageLog>,
    pub(crate) outcomes: Outcomes,
    pub(crate) waiting: Waiting,
    token_ttl: Duration,
    booking_timeout: Duration,
}

/// A request to be routed, as it came. No `Debug`: it holds a prompt.
#[derive(Clone, Copy)]
pub(crate) struct RouteRequest<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) model: &'a str,
    pub(crate) prompt: &'a str,
    /// The parameter [`PROMPT_DIGEST`].
    pub(crate) prompt_digest: Option<&'a str>,
    /// The parameter [`EXCLUDE_AGENTS`].
    pub(crate) exclude_agents: Option<&'a str>,
    /// In place of the prompt.
    pub(crate) messages: &'a [Message],
    pub(crate) tools: &'a [Tool],
    /// The chain of digests of the conversation: PROTOCOL.md §19.
    pub(crate) prefix_digests: &'a [u64],
    /// Empty for any.
    pub(crate) model_digest: &'a str,
    pub(crate) max_tokens: i32,
    pub(crate) temperature: f32,
    /// The token will stand in an address.
    pub(crate) address: Option<Address<'a>>,
    /// Who asks.
    pub(crate) asker: &'a Asker,
}

/// Where a token in an address may be used, once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
}

/// How long a token in an address is good for: a client is sent there, and needs a few round trips.
const ADDRESS_TTL: Duration = Duration::from_secs(30);

/// Where to go, and the token to show there.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) agent: Arc<Profile>,
    pub(crate) session_token: String,
    /// Unix seconds.
    pub(crate) expires_at: i64,
    pub(crate) job_id: String,
    /// Of the model on this agent; empty where it does not tell.
    pub(crate) model_digest: String,
    /// 0 while not measured.
    pub(crate) estimated_rtt_ms: f64,
    /// How many generations the token may start, if not any number.
    pub(crate) generations: Option<u32>,
    /// Where it waited for room, if it did.
    pub(crate) queued: Option<Queued>,
}

/// Why a request was not routed. REST and gRPC say the same [`code_word`](Self::code_word).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("client_id is missing: give any name for yourself")]
    MissingClientId,
    #[error("model is missing: GET /api/v1/models lists those that are served")]
    MissingModel,
    #[error("prompt is missing: give it, or messages, prefix_digests or the parameter {PROMPT_DIGEST}")]
    MissingPrompt,
    #[error("the prompt has {bytes} bytes, with all messages and tools; at most {MAX_PROMPT_BYTES} are accepted")]
    PromptTooLarge { bytes: usize },
    #[error("{name} {must}")]
    InvalidParameter { name: &'static str, must: String },
    #[error("no agent serves the model `{model}`; there are: {}", available.join(", "))]
    ModelNotFound { model: String, available: Vec<Arc<str>> },
    #[error("no healthy agent serves the model `{model}` at the moment")]
    NoAgents { model: String },
    #[error(
        "no agent serves the model `{model}` with the digest {wanted}, only with {}: an answer goes on with the same weights, tokenizer \
         and template alone", found.join(", ")
    )]
    NoEqualModel { model: String, wanted: String, found: Vec<String> },
    #[error("agents that were there before this coordinator was started have not come back yet; try again in {} s", retry_after.as_secs())]
    Starting { retry_after: Duration },
    #[error("every agent that serves the model `{model}` is full{reason}; try again in {} s", retry_after.as_secs())]
    NoCapacity { model: String, reason: NoRoom, retry_after: Duration },
    /// The caller may not ask, or not now.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Details are in the log.
    #[error("the session token could not be made")]
    Internal,
}

impl RouteError {
    /// What programs compare.
    pub(crate) fn code_word(&self) -> &'static str {
        match self {
            Self::MissingClientId => "missing_client_id",
            Self::MissingModel => "missing_model",
            Self::MissingPrompt => "missing_prompt",
            Self::PromptTooLarge { .. } => "prompt_too_large",
            Self::InvalidParameter { .. } => "invalid_parameter",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::NoAgents { .. } | Self::NoEqualModel { .. } => "no_agents",
            Self::Starting { .. } => "starting",
            Self::NoCapacity { .. } => "no_capacity",
            Self::Access(error) => error.code_word(),
            Self::Internal => "internal",
        }
    }

    /// Where it waited in vain, if it did.
    pub(crate) fn queued(&self) -> Option<Queued> {
        match self {
            Self::NoCapacity { reason: NoRoom::InTime(queued), .. } => Some(*queued),
            _ => None,
        }
    }

    /// When trying again may help.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoCapacity { retry_after, .. } | Self::Starting { retry_after } => Some(*retry_after),
            Self::Access(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl Dispatcher {
    /// `access`: who may ask. `usage`: where it is written down what was generated.
    pub(crate) fn new(
        config: &Config,
        issuer: TokenIssuer,
        access: Access,
        usage: Option<UsageLog>,
    ) -> Result<Self, WeightsError> {
        let policy = Policy {
            lease: config.heartbeat_timeout,
            booking: config.booking_timeout,
            remember: REMEMBER_AGENTS,
            max_agents: MAX_AGENTS,
            weights: config.weights.normalized()?,
            token_ttl: config.token_ttl,
        };
        Ok(Self {
            registry: Mutex::new(Registry::new(policy)),
            outcomes: Outcomes::new(&issuer),
            waiting: Waiting::default(),
            issuer,
            heartbeat_interval: config.heartbeat_interval,
            heartbeat_timeout: config.heartbeat_timeout,
            started: Instant::now(),
            prefill: config.prefill_ahead.then(Outboxes::default),
            access,
            usage,
            token_ttl: config.token_ttl,
            booking_timeout: config.booking_timeout,
        })
    }

    /// Chooses an agent, books a slot there, waiting for one if need be, and signs a token for it.
    pub(crate) async fn route(&self, request: RouteRequest<'_>) -> Result<Route, RouteError> {
        check(&request)?;
        let job_id = format!("job_{}", Uuid::new_v4().simple());
        let except = excluded(request.exclude_agents.unwrap_or_default())?;
        let who = request.asker.who(request.client_id);
        let wanted = Wanted {
            model: request.model,
            model_digest: request.model_digest,
            except: &except,
            conversation: request.prefix_digests,
            who: Some(&who),
        };
        let asker = request.asker;
        let usual = if request.address.is_some() { FRONT_DOOR_PATIENCE } else { DEFAULT_PATIENCE };
        let patience = asker.patience.unwrap_or(usual).min(MAX_PATIENCE);
        let now = Instant::now();
        // From now on it counts, also while it waits; and no more where it comes to nothing.
        let until = now + patience + self.booking_timeout;
        let reserved = self.access.admit(&asker.caller, request.model, &job_id, until, now)?;
        let booked = self.book_or_wait(&wanted, &job_id, asker, patience).await;
        let (booked, queued) = booked.map_err(|error| refusal(&wanted, error))?;
        let agent = booked.profile;
        let model_digest = agent.digest(request.model).unwrap_or_default().to_owned();

        let claims = Claims {
            key: asker.caller.key_id().map(str::to_owned),
            generations: asker.caller.generations(),
            ..self.claims(&agent.id, request.client_id, request.model, &job_id, request.address)
        };
        let session_token = self.sign(&claims).inspect_err(|_| {
            self.registry.lock().release(&agent.id, &job_id, Instant::now());
            self.room_at(&agent.id);
        })?;
        reserved.book(Instant::now() + self.booking_timeout);
        debug!(%job_id, agent = %agent.id, model = request.model, "routed");
        Ok(Route {
            agent,
            session_token,
            expires_at: claims.exp,
            job_id,
            model_digest,
            estimated_rtt_ms: booked.rtt_ms.unwrap_or(0.0),
            generations: claims.generations,
            queued,
        })
    }

    /// Sends a client to an agent for what that keeps, without a slot there.
    pub(crate) fn visit(
        &self,
        agent: Arc<Profile>,
        client_id: &str,
        address: Address<'_>,
    ) -> Result<Route, RouteError> {
        let claims = self.claims(&agent.id, client_id, "", "", Some(address));
        let session_token = self.sign(&claims)?;
        let (job_id, model_digest) = (String::new(), String::new());
        Ok(Route {
            agent,
            session_token,
            expires_at: claims.exp,
            job_id,
            model_digest,
            estimated_rtt_ms: 0.0,
            generations: None,
            queued: None,
        })
    }

    fn claims(
        &self,
        agent_id: &str,
        client_id: &str,
        model: &str,
        job_id: &str,
        address: Option<Address<'_>>,
    ) -> Claims {
        let now = SystemTime::now();
        let ttl = if address.is_some() { ADDRESS_TTL } else { self.token_ttl };
        Claims {
            iss: COORDINATOR_NAME.to_owned(),
            agent_id: agent_id.to_owned(),
            client_id: client_id.to_owned(),
            model: model.to_owned(),
            job_id: job_id.to_owned(),
            jti: new_jti(),
            iat: unix_seconds(now),
            nbf: unix_seconds(now - BACKDATED),
            exp: unix_seconds(now + ttl),
            request: address.map(|Address { method, path }| Claims::request_line(method.as_str(), path)),
            key: None,
            generations: None,
        }
    }

    fn sign(&self, claims: &Claims) -> Result<String, RouteError> {
        self.issuer.issue(claims).map_err(|cause| {
            seldom!(error, %cause, "signing a session token failed");
            RouteError::Internal
        })
    }

    /// Tells the agent of `route` what its client is about to ask, where that is on and the request said it. Waits for nobody.
    pub(crate) fn tell_ahead(&self, route: &Route, prefill: impl FnOnce() -> Prefill) {
        let Some(outboxes) = &self.prefill else { return };
        let mut prefill = prefill();
        if prefill.prompt.is_empty() && prefill.messages.is_empty() && prefill.request.is_none() {
            return;
        }
        prefill.options.remove(PROMPT_DIGEST);
        prefill.options.remove(EXCLUDE_AGENTS);
        let taken = outboxes.offer(&route.agent.id, prefill, Instant::now());
        debug!(job_id = route.job_id, agent = %route.agent.id, taken, "prefill ahead");
    }

    /// Charges the keys for what was generated, and writes it down.
    pub(crate) fn account(&self, agent_id: &str, finished: Vec<Finished>, now: Instant) {
        for finished in finished {
            if let Some(key) = &finished.key {
                self.access.charge(key, finished.prompt_tokens + finished.completion_tokens, now);
            }
            if let Some(usage) = &self.usage {
                let key_name = finished.key.as_deref().and_then(|key| self.access.name_of(key));
                usage.record(agent_id, key_name, finished);
            }
        }
    }

    /// After a restart: agents that were there before it come back within a lease, or are gone. An agent notices the loss within 15 s (10 s to a
    /// keep-alive ping, 5 s for its answer) and tries again at least every 5 s, with 5 s to connect: 25 s together, below the 30 s of a lease.
    pub(crate) fn expect_back(&self, ids: Vec<Arc<str>>) {
        if !ids.is_empty() {
            info!(agents = ids.len(), "waiting for the agents that were there before");
        }
        self.registry.lock().expect(ids, self.started + self.heartbeat_timeout);
    }

    /// Tidies the registry; to be called now and then.
    pub(crate) fn expire_agents(&self, now: Instant) {
        let expired = self.registry.lock().expire(now);
        for id in expired.offline {
            self.access.gone(&id);
            seldom!(info, agent = %id, "no heartbeat in time: the agent is offline");
        }
        for id in expired.missing {
            warn!(agent = %id, "was there before this coordinator was started, and has not come back");
        }
        for id in expired.forgotten {
            debug!(agent = %id, "forgotten");
        }
        self.serve_all(now);
    }
}

/// Said of what is not known, as long as it may still come.
pub(crate) fn starting() -> RouteError {
    RouteError::Starting { retry_after: RETRY_AFTER }
}

fn refusal(wanted: &Wanted<'_>, error: NoRoom) -> RouteError {
    let model = wanted.model.to_owned();
    let error = match error {
        NoRoom::Never(error) => error,
        reason => return RouteError::NoCapacity { model, reason, retry_after: RETRY_AFTER },
    };
    match error {
        BookError::ModelNotFound { available } => RouteError::ModelNotFound { model, available },
        BookError::NoAgents => RouteError::NoAgents { model },
        BookError::OtherDigests { found } => {
            let named = |digest: String| if digest.is_empty() { "one that is not known".to_owned() } else { digest };
            let found = found.into_iter().map(named).collect();
            RouteError::NoEqualModel { model, wanted: wanted.model_digest.to_owned(), found }
        }
        BookError::Starting => starting(),
        BookError::NoCapacity => RouteError::NoCapacity { model, reason: NoRoom::AtOnce, retry_after: RETRY_AFTER },
    }
}

/// What a conversation says is for the agent to judge; here its size counts.
fn check_conversation(request: &RouteRequest<'_>) -> Result<(), RouteError> {
    let RouteRequest { prompt, prompt_digest, messages, tools, prefix_digests, model_digest, .. } = *request;
    let invalid = |name, must: String| Err(RouteError::InvalidParameter { name, must });
    let nothing = prompt.is_empty() && messages.is_empty() && prefix_digests.is_empty();
    if nothing && prompt_digest.is_none_or(str::is_empty) {
        return Err(RouteError::MissingPrompt);
    }
    if !prompt.is_empty() && !messages.is_empty() {
        return invalid("messages", "stand beside a prompt: give one of the two".to_owned());
    }
    let bytes = prompt.len() + text_bytes(messages, tools);
    if bytes > MAX_PROMPT_BYTES {
        return Err(RouteError::PromptTooLarge { bytes });
    }
    let counts = [
        ("messages", messages.len(), MAX_MESSAGES),
        ("tools", tools.len(), MAX_TOOLS),
        ("prefix_digests", prefix_digests.len(), MAX_PREFIX_DIGESTS),
    ];
    if let Some((name, count, max)) = counts.into_iter().find(|&(_, count, max)| count > max) {
        return invalid(name, format!("are {count}: at most {max} are accepted"));
    }
    if !model_digest.is_empty() && !is_digest(model_digest) {
        return invalid("model_digest", format!("must be {DIGEST_DIGITS} hexadecimal digits, a-f in lower case"));
    }
    Ok(())
}

/// The agents that a request names in [`EXCLUDE_AGENTS`].
fn excluded(list: &str) -> Result<Vec<&str>, RouteError> {
    let ids = || list.split(',').map(str::trim).filter(|id| !id.is_empty());
    let count = ids().count();
    if count > MAX_EXCLUDED {
        let must = format!(
            "names {count} agents: at most {MAX_EXCLUDED} are accepted; leave out those that failed longest ago"
        );
        return Err(RouteError::InvalidParameter { name: EXCLUDE_AGENTS, must });
    }
    Ok(ids().collect())
}

fn check(request: &RouteRequest<'_>) -> Result<(), RouteError> {
    let invalid = |name, must: String| Err(RouteError::InvalidParameter { name, must });
    if request.client_id.is_empty() {
        return Err(RouteError::MissingClientId);
    }
    if request.client_id.len() > MAX_CLIENT_ID_BYTES || request.client_id.chars().any(char::is_control) {
        return invalid(
            "client_id",
            format!("must have at most {MAX_CLIENT_ID_BYTES} bytes, none of them control characters"),
        );
    }
    if request.address.is_none() && request.client_id.starts_with(client_ids::RESERVED) {
        return invalid(
            "client_id",
            format!("must not begin with {:?}: those are clients of /v1", client_ids::RESERVED),
        );
    }
    if request.model.is_empty() {
        return Err(RouteError::MissingModel);
    }
    if request.model.len() > MAX_MODEL_NAME_BYTES {
        return invalid("model", format!("must have at most {MAX_MODEL_NAME_BYTES} bytes"));
    }
    check_conversation(request)?;
    if request.max_tokens < 0 {
        return invalid("max_tokens", format!("is {}: it must be 0 (the default) or more", request.max_tokens));
    }
    if !request.temperature.is_finite() || request.temperature < 0.0 {
        return invalid("temperature", format!("is {}: it must be 0 (greedy) or more", request.temperature));
    }
    Ok(())
}
