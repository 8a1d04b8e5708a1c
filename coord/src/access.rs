//! Who is asking, and whether that is too much: the API keys of [`crate::keys`] at work.
//!
//! Keys are asked for on an address that other machines reach, and on this machine as soon as there is one. A client certificate of the private CA
//! stands in for a key: whoever has one got it from the operator. Its name is looked for among the keys, so that limits and revocation hold for it too.

mod budget;
mod running;

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Extensions, HeaderMap, header::AUTHORIZATION};
use parking_lot::{Mutex, RwLock};
use rustls_pki_types::CertificateDer;
use titan_certs::Identity;
use titan_transport::{PeerInfo, seldom};
use tracing::info;

use self::{budget::Budget, running::Running};
use crate::keys::{ApiKey, DEFAULT_PRIORITY, KeyFile, KeysError, id_of, key_of_certificate};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// When a key with all its generations running is told to come again: about the time in which a short answer ends.
const GENERATION_ENDS: Duration = Duration::from_secs(2);
/// How often the file is looked at: a revoked key is good for so long at most.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// The key that was shown, if one was asked for.
    pub(crate) key: Option<Arc<ApiKey>>,
}

impl Caller {
    /// The id of the key, for tokens and accounts.
    pub(crate) fn key_id(&self) -> Option<&str> {
        self.key.as_deref().map(|key| key.id.as_str())
    }

    /// Who goes first where there is no room for all: a larger number.
    pub(crate) fn priority(&self) -> u8 {
        self.key.as_deref().map_or(DEFAULT_PRIORITY, |key| key.limits.priority)
    }

    /// Whether it may use the model.
    pub(crate) fn may_use(&self, model: &str) -> bool {
        let models = self.key.as_deref().map_or(&[][..], |key| &key.limits.models);
        models.is_empty() || models.iter().any(|allowed| allowed == model)
    }

    /// How many generations a token may start. Whoever has a limit asks for each one, so that each is counted.
    pub(crate) fn generations(&self) -> Option<u32> {
        self.key.as_deref().filter(|key| key.limits.counts()).map(|_| 1)
    }
}

#[cfg(test)]
impl Caller {
    /// The owner of a key with this id, without a limit.
    pub(crate) fn with_key(id: &str) -> Self {
        Self { key: Some(Arc::new(ApiKey::for_tests(id, DEFAULT_PRIORITY))) }
    }

    /// The same with this priority.
    pub(crate) fn with_priority(id: &str, priority: u8) -> Self {
        Self { key: Some(Arc::new(ApiKey::for_tests(id, priority))) }
    }
}

/// Why somebody gets no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccessError {
    #[error(
        "an API key is missing: send `authorization: Bearer titan-…` (TITAN_API_KEY, --api-key); the operator makes one with `titan keys add NAME`"
    )]
    MissingKey,
    #[error(
        "the API key is none of this coordinator's: `titan keys list` shows those that there are, by their beginnings"
    )]
    UnknownKey,
    #[error("the API key {name:?} was revoked: ask the operator for another one")]
    Revoked { name: String },
    #[error("the API key {name:?} may not be used with the model {model:?}, only with: {}", allowed.join(", "))]
    ModelNotAllowed { name: String, model: String, allowed: Vec<String> },
    #[error("the API key {name:?} has reached its limit {limit} = {value}: try again in {} s", whole_seconds(*retry_after))]
    Limited { name: String, limit: &'static str, value: u32, retry_after: Duration },
}

impl AccessError {
    /// What programs compare.
    pub(crate) fn code_word(&self) -> &'static str {
        match self {
            Self::MissingKey => "missing_api_key",
            Self::UnknownKey => "invalid_api_key",
            Self::Revoked { .. } => "revoked_api_key",
            Self::ModelNotAllowed { .. } => "model_not_allowed",
            Self::Limited { .. } => "rate_limited",
        }
    }

    /// The limit that was reached.
    pub(crate) fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Limited { limit, .. } => Some(limit),
            _ => None,
        }
    }

    /// When trying again may help.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Limited { retry_after, .. } => Some(Duration::from_secs(whole_seconds(*retry_after))),
            _ => None,
        }
    }
}

/// Rounded up, since `retry-after` has no fractions (RFC 9110 §10.2.3): whoever comes a moment early comes in vain.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// The keys, and what each has used lately.
pub(crate) struct Access {
    /// `None` where nobody needs one.
    file: Option<KeyFile>,
    /// Keys are asked for even where there are none.
    required: bool,
    known: RwLock<Arc<Known>>,
    /// The file as it was last looked at, also where it held no keys: strangers do not have it read again and again.
    seen: Mutex<Option<Stamp>>,
    uses: Mutex<Uses>,
}

/// The keys of the file as it was last read.
#[derive(Default)]
struct Known {
    by_id: HashMap<String, Arc<ApiKey>>,
    /// The newest of each name.
    by_name: HashMap<String, Arc<ApiKey>>,
    /// There are keys, or there were since the start: a file that is moved away closes the door and does not open it.
    asked: bool,
}

/// What changes with a file's content, and with who may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

#[derive(Default)]
struct Uses {
    of_keys: HashMap<String, KeyUse>,
    running: Running,
}

/// What one key has used.
#[derive(Default)]
struct KeyUse {
    requests: Budget,
    tokens: Budget,
}

impl Access {
    /// Whoever reaches the coordinator may have text generated.
    pub(crate) fn open() -> Self {
        Self::new(None, false)
    }

    /// The keys of a file, which need not be there yet. `required`: they are asked for even where there are none.
    pub(crate) fn with_keys(file: KeyFile, required: bool) -> Result<Self, KeysError> {
        let access = Self::new(Some(file), required);
        access.look()?;
        Ok(access)
    }

    fn new(file: Option<KeyFile>, required: bool) -> Self {
        let (known, seen, uses) = Default::default();
        Self { file, required, known, seen, uses }
    }

    /// Takes up what has changed in the file.
    pub(crate) fn look(&self) -> Result<(), KeysError> {
        let Some(file) = &self.file else { return Ok(()) };
        let stamp = stamp(file).ok();
        // Held to the end: of two that look at once, the later one must not be overtaken.
        let mut seen = self.seen.lock();
        if stamp == *seen {
            return Ok(());
        }
        let read = file.read();
        if !matches!(read, Err(KeysError::Io { .. })) {
            *seen = stamp;
        }
        let keys: Vec<Arc<ApiKey>> = read?.into_iter().map(Arc::new).collect();
        // Later ones take the place of earlier ones: a name is given again once its key is revoked.
        let by_name = keys.iter().map(|key| (key.name.clone(), Arc::clone(key))).collect();
        let by_id: HashMap<_, _> = keys.into_iter().map(|key| (key.id.clone(), key)).collect();
        let good = by_id.values().filter(|key| key.revoked.is_none()).count();
        let asked = self.known.read().asked || !by_id.is_empty();
        *self.known.write() = Arc::new(Known { by_id, by_name, asked });
        info!(keys = good, "API keys read");
        Ok(())
    }

    /// The same for a coordinator that runs: a file that cannot be read changes nothing.
    pub(crate) fn look_again(&self) {
        if let Err(error) = self.look() {
            seldom!(warn, %error, "API keys stay as they were");
        }
    }

    /// Whether a key is asked for.
    pub(crate) fn asks(&self) -> bool {
        self.file.is_some() && (self.required || self.known.read().asked)
    }

    /// Whether a key is asked for and there is none.
    pub(crate) fn is_closed(&self) -> bool {
        self.asks() && !self.known.read().by_id.values().any(|key| key.revoked.is_none())
    }

    /// Who sent a request with these headers, over the connection in its extensions.
    pub(crate) fn caller(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Caller, AccessError> {
        let certificate = extensions.get::<PeerInfo>().and_then(|peer| peer.certificate.as_ref());
        self.authenticate(headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()), certificate)
    }

    /// Who shows this header `authorization`, or this certificate, which TLS has checked.
    fn authenticate(
        &self,
        authorization: Option<&str>,
        certificate: Option<&CertificateDer<'_>>,
    ) -> Result<Caller, AccessError> {
        let shown = authorization.and_then(bearer);
        if shown.and_then(id_of).is_some_and(|id| !self.known.read().by_id.contains_key(id)) {
            // One that was made a moment ago is good at once.
            self.look_again();
        }
        if !self.asks() {
            return Ok(Caller::default());
        }
        let known = Arc::clone(&self.known.read());
        if let Some(shown) = shown
            && let Some(id) = id_of(shown)
        {
            let key = known.by_id.get(id).filter(|key| key.hash.is_of(shown)).ok_or(AccessError::UnknownKey)?;
            return good(key);
        }
        // OpenAI's packages send some key always, so one of another kind does not stand in the way.
        match certificate.and_then(|certificate| Identity::from_der(certificate).ok()) {
            Some(Identity { name, .. }) => match (key_of_certificate(&name), known.by_name.get(&name)) {
                (Some(id), _) => good(known.by_id.get(id).ok_or(AccessError::UnknownKey)?),
                (None, Some(key)) => good(key),
                (None, None) => Ok(Caller::default()),
            },
            None if shown.is_some() => Err(AccessError::UnknownKey),
            None => Err(AccessError::MissingKey),
        }
    }

    /// Counts a request for `model`, or says why it is too much. It counts as a generation until `until`, or until what is returned is dropped.
    pub(crate) fn admit(
        &self,
        caller: &Caller,
        model: &str,
        job_id: &str,
        until: Instant,
        now: Instant,
    ) -> Result<Reserved<'_>, AccessError> {
        let nothing = Reserved { access: self, job: None };
        let Some(key) = &caller.key else { return Ok(nothing) };
        if !caller.may_use(model) {
            let (name, model, allowed) = (key.name.clone(), model.to_owned(), key.limits.models.clone());
            return Err(AccessError::ModelNotAllowed { name, model, allowed });
        }
        if !key.limits.counts() {
            return Ok(nothing);
        }
        let limited =
            |limit, value, retry_after| AccessError::Limited { name: key.name.clone(), limit, value, retry_after };
        let mut uses = self.uses.lock();
        // The request counts only if nothing else stands against it, so it comes last.
        if let Some(concurrent) = key.limits.concurrent
            && uses.running.of(&key.id, now) >= concurrent
        {
            return Err(limited("concurrent", concurrent, GENERATION_ENDS));
        }
        let used = uses.of_keys.entry(key.id.clone()).or_default();
        if let Some(tokens) = key.limits.tokens_per_minute {
            used.tokens.any_left(tokens, MINUTE, now).map_err(|wait| limited("tokens_per_minute", tokens, wait))?;
        }
        if let Some(requests) = key.limits.requests_per_second {
            used.requests.take(requests, SECOND, now).map_err(|wait| limited("requests_per_second", requests, wait))?;
        }
        if key.limits.concurrent.is_none() {
            return Ok(nothing);
        }
        uses.running.book(&key.id, job_id, until);
        Ok(Reserved { access: self, job: Some((key.id.clone(), job_id.to_owned())) })
    }

    /// What runs at an agent, by key, and the jobs that it has begun since it last said so.
    pub(crate) fn runs(&self, agent_id: &str, claimed: &[String], by_key: HashMap<String, u32>) {
        let mut uses = self.uses.lock();
        claimed.iter().for_each(|job_id| uses.running.release(job_id));
        uses.running.set(agent_id, by_key);
    }

    /// An agent is gone, and what ran there.
    pub(crate) fn gone(&self, agent_id: &str) {
        self.uses.lock().running.set(agent_id, HashMap::new());
    }

    /// A generation has used so many tokens.
    pub(crate) fn charge(&self, key_id: &str, tokens: u64, now: Instant) {
        let Some(key) = self.known.read().by_id.get(key_id).cloned() else { return };
        if let Some(limit) = key.limits.tokens_per_minute {
            self.uses.lock().of_keys.entry(key.id.clone()).or_default().tokens.charge(tokens, limit, MINUTE, now);
        }
    }

    /// The name of a key, also of one that was revoked.
    pub(crate) fn name_of(&self, key_id: &str) -> Option<String> {
        self.known.read().by_id.get(key_id).map(|key| key.name.clone())
    }
}

/// A generation that counts for its key although nothing runs yet. Dropped, it does not count any more: it will not come.
#[must_use]
pub(crate) struct Reserved<'a> {
    access: &'a Access,
    /// The key's id, and the job's.
    job: Option<(String, String)>,
}

impl Reserved<'_> {
    /// It has a slot at an agent, which claims it until `until`, or it does not come.
    pub(crate) fn book(mut self, until: Instant) {
        if let Some((key_id, job_id)) = self.job.take() {
            self.access.uses.lock().running.book(&key_id, &job_id, until);
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some((_, job_id)) = &self.job {
            self.access.uses.lock().running.release(job_id);
        }
    }
}

fn good(key: &Arc<ApiKey>) -> Result<Caller, AccessError> {
    match key.revoked {
        Some(_) => Err(AccessError::Revoked { name: key.name.clone() }),
        None => Ok(Caller { key: Some(Arc::clone(key)) }),
    }
}

/// RFC 6750 §2.1; the scheme in any case (RFC 9110 §11.1).
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, key) = authorization.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}

fn stamp(file: &KeyFile) -> io::Result<Stamp> {
    let metadata = fs::metadata(file.path())?;
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    Ok(Stamp { inode: metadata.ino(), bytes: metadata.len(), changed })
}

#[cfg(test)]
mod tests;
