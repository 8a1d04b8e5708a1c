//! The one REST call: which agent serves this?

use std::{
    fmt::Write as _,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::{Either, select};
use reqwest::{
    Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect,
};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use titan_proto::{
    digest as prefix,
    rest::{Error as Refusal, InferenceRequest, InferenceResponse, ModelInfo, OutcomeReport, Status},
};
use titan_transport::tls::{TlsMaterial, https_client_config};

use crate::{
    Prompt,
    client::unix_now,
    error::{chain, is_tls},
    names::Names,
    policy::Fault,
    route::Route,
};

/// Three lost SYNs (RFC 6298 §2: 1 s, then doubled) would be 7 s: by then nobody waits for a first token any more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The whole call, beside the time for which the coordinator may hold it: it answers out of memory, so what takes longer is broken.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The same of a question that is not to be held: then the caller may use a route that it has.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a coordinator that holds a question is asked whether it is still there.
const PROBE_PAUSE: Duration = Duration::from_secs(10);
/// How long a question may be held until an agent has room, in milliseconds.
const QUEUE_TIMEOUT: &str = "x-titan-queue-timeout-ms";
/// The longest that is asked for; coordinators grant no more.
const MAX_QUEUE_TIME: Duration = Duration::from_secs(600);
/// A connection over which a question is held, and whose other end is gone, is noticed after a quarter of a minute.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(5);
const TCP_KEEP_ALIVE_PROBES: u32 = 3;
/// Three round trips of a new connection over the longest path.
const NEW_CONNECTION_AFTER: Duration = Duration::from_millis(1000);
/// An answer has about 1.5 kB.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// A status has about 1 kB for each agent.
const MAX_STATUS_BYTES: usize = 16 << 20;
/// Where a digest stands instead of the prompt.
const PROMPT_DIGEST: &str = "prompt_digest";
/// Agents that failed this client, separated by commas.
const EXCLUDE_AGENTS: &str = "exclude_agents";
const PATH: &str = "/api/v1/inference/request";
const STATUS_PATH: &str = "/api/v1/status";
const JOBS_PATH: &str = "/api/v1/jobs";

/// A coordinator, by its URL.
pub(crate) struct Coordinator {
    http: reqwest::Client,
    /// Makes a connection for each question.
    unpooled: reqwest::Client,
    /// As it was given: paths go behind its own.
    url: Url,
    names: Names,
    /// Questions carry the prompt: PROTOCOL.md §17.
    prefill_ahead: bool,
    calls: AtomicU64,
}

/// Why the coordinator named no agent.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoordinatorError {
    /// It does not answer.
    #[error("no coordinator answers at {url}: {reason}")]
    Unreachable {
        /// Who was asked.
        url: String,
        /// What happened.
        reason: String,
    },
    /// It does not show a certificate of the CA.
    #[error("the coordinator at {url} is not trusted: {reason}")]
    Untrusted {
        /// Who was asked.
        url: String,
        /// What is wrong with its certificate.
        reason: String,
    },
    /// It answered with an error.
    #[error("the coordinator answered {status} {code_word}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What programs compare, such as `model_not_found` or `no_capacity`.
        code_word: String,
        /// One sentence for a person.
        message: String,
        /// When trying again may help.
        retry_after: Option<Duration>,
    },
    /// Whoever answered is no coordinator.
    #[error("{url} did not answer as a coordinator does: {reason}")]
    NotACoordinator {
        /// Who was asked.
        url: String,
        /// What came instead.
        reason: String,
    },
}

impl CoordinatorError {
    /// Whether the same question may be answered at another time.
    pub fn retryable(&self) -> bool {
        Fault::of_coordinator(self).passes()
    }

    /// How long to wait before that, where the coordinator said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Coordinator {
    /// `tls` holds the CA that an https coordinator's certificate must be of, and perhaps an identity. `key`: the header `authorization`.
    pub(crate) fn new(
        url: Url,
        tls: Option<&TlsMaterial>,
        key: Option<HeaderValue>,
        names: Names,
        prefill_ahead: bool,
    ) -> Result<Self, String> {
        // The port stands in the URL, and 0 leaves it as it is.
        let tls = https_client_config(tls, true).map_err(|error| error.to_string())?;
        let headers: HeaderMap = key.into_iter().map(|key| (AUTHORIZATION, key)).collect();
        let client = || {
            names
                .iter()
                .fold(reqwest::Client::builder(), |http, (host, address)| http.resolve(host, (address, 0).into()))
                .tls_backend_preconfigured(tls.clone())
                .default_headers(headers.clone())
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_keepalive(TCP_KEEP_ALIVE)
                .tcp_keepalive_interval(TCP_KEEP_ALIVE)
                .tcp_keepalive_retries(TCP_KEEP_ALIVE_PROBES)
                .timeout(TIMEOUT)
                // A coordinator does not redirect; whoever does is none, and would get the request.
                .redirect(redirect::Policy::none())
                // The environment's proxy is for the web. A coordinator is a machine of the same private CA, or this one.
                .no_proxy()
        };
        let http = client().build().map_err(|error| chain(&error))?;
        let unpooled = client().pool_max_idle_per_host(0).build().map_err(|error| chain(&error))?;
        Ok(Self { http, unpooled, url, names, prefill_ahead, calls: AtomicU64::new(0) })
    }

    /// How often it was asked.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// Asks who serves `prompt`, rather not one of the `excluded` agents, and with this digest of the model if one is given. What the prompt or
    /// the conversation says stays here and digests go, except for prefill ahead: then everything goes that the agent will be asked. Where all
    /// agents are full it may hold the question for `patience`.
    pub(crate) async fn ask(
        &self,
        client_id: &str,
        prompt: &Prompt,
        excluded: &[String],
        model_digest: &str,
        patience: Duration,
    ) -> Result<Arc<Route>, CoordinatorError> {
        let mut question = self.question(client_id, prompt, self.prefill_ahead);
        if !excluded.is_empty() {
            question.parameters.insert(EXCLUDE_AGENTS.to_owned(), excluded.join(","));
        }
        question.model_digest = Some(model_digest.to_owned()).filter(|digest| !digest.is_empty());
        self.named(question, prompt, patience).await
    }

    /// Asks for a route to the model of `prompt` for later: nothing is begun ahead for it.
    pub(crate) async fn ask_ahead(&self, client_id: &str, prompt: &Prompt) -> Result<Arc<Route>, CoordinatorError> {
        self.named(self.question(client_id, prompt, false), prompt, Duration::ZERO).await
    }

    async fn named(
        &self,
        question: InferenceRequest,
        prompt: &Prompt,
        patience: Duration,
    ) -> Result<Arc<Route>, CoordinatorError> {
        self.calls.fetch_add(1, Relaxed);
        let sent = self.send(&question, patience).await;
        let response = sent.map_err(|error| self.failed(&error))?;
        let answer: InferenceResponse = self.body(response, MAX_ANSWER_BYTES).await?;
        let route = Route::new(&prompt.model, answer, &self.names, unix_now())
            .map_err(|reason| self.not_a_coordinator(reason))?;
        let place = &route.place;
        tracing::debug!(agent = %place.agent_id, grpc = %place.grpc, quic = ?place.quic, job = %route.job_id, "route asked");
        Ok(Arc::new(route))
    }

    /// The models that agents serve now.
    pub(crate) async fn models(&self) -> Result<Vec<ModelInfo>, CoordinatorError> {
        self.calls.fetch_add(1, Relaxed);
        let mut url = self.at(STATUS_PATH);
        url.set_query(Some("include_agents=true"));
        let response = self.http.get(url).send().await.map_err(|error| self.failed(&error))?;
        let status: Status = self.body(response, MAX_STATUS_BYTES).await?;
        Ok(status.models())
    }

    /// Tells what became of a job.
    pub(crate) async fn report(&self, job_id: &str, report: &OutcomeReport) -> Result<(), CoordinatorError> {
        let mut url = self.at(JOBS_PATH);
        // A URL with a host has segments.
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend([job_id, "outcome"]);
        }
        let response = self.http.post(url).json(report).send().await.map_err(|error| self.failed(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status.is_success() {
            return Ok(());
        }
        let body = self.read(response, MAX_ANSWER_BYTES).await?;
        Err(self.refusal(status, &headers, &body))
    }

    fn question(&self, client_id: &str, prompt: &Prompt, ahead: bool) -> InferenceRequest {
        let mut question = InferenceRequest {
            client_id: Some(client_id.to_owned()),
            model: Some(prompt.model.clone()),
            max_tokens: Some(prompt.max_tokens_on_the_wire()),
            temperature: Some(prompt.temperature),
            prefix_digests: prefix_digests(client_id, prompt),
            ..InferenceRequest::default()
        };
        // A hint that says less than the request makes the agent begin something else.
        if ahead && prompt.fits_a_hint() {
            question.prompt = Some(prompt.prompt.clone()).filter(|text| !text.is_empty());
            question.messages = prompt.messages.iter().cloned().map(Into::into).collect();
            question.tools = prompt.tools.iter().cloned().map(Into::into).collect();
            question.parameters = prompt.options.clone();
        } else if question.prefix_digests.is_empty() {
            question.parameters.insert(PROMPT_DIGEST.to_owned(), digest(&prompt.prompt));
        }
        question
    }

    /// Asks over the connection that there is, if one is, and lets the coordinator hold the question for `patience` until an agent has room.
    ///
    /// Whether it is held, or the connection is dead since the network changed, nobody says. So the same question, not to be held, goes over a
    /// new connection beside it, now and then: its answer shows that the coordinator is there, and where it names an agent it is the answer.
    /// The coordinator may book a slot for each; one that is not claimed is free again after a moment.
    async fn send(&self, question: &InferenceRequest, patience: Duration) -> reqwest::Result<Response> {
        let patience = patience.min(MAX_QUEUE_TIME);
        let ask = |http: &reqwest::Client, patience: Duration, time: Duration| {
            let http = http.post(self.at(PATH)).json(question).timeout(time);
            http.header(QUEUE_TIMEOUT, patience.as_millis().to_string()).send()
        };
        let mut held = pin!(ask(&self.http, patience, patience + TIMEOUT));
        let mut pause = NEW_CONNECTION_AFTER;
        loop {
            let pause_over = tokio::time::sleep(pause);
            let probe = async {
                pause_over.await;
                ask(&self.unpooled, Duration::ZERO, PROBE_TIMEOUT).await
            };
            match select(held.as_mut(), pin!(probe)).await {
                Either::Left((sent, _)) => return sent,
                // It is there, and has no room, or not for one more from here.
                Either::Right((Ok(full), _))
                    if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&full.status()) =>
                {
                    pause = PROBE_PAUSE;
                }
                // Where the new connection gets no answer, the old one gets none either.
                Either::Right((sent, _)) => return sent,
            }
        }
    }

    async fn body<T: DeserializeOwned>(&self, response: Response, most: usize) -> Result<T, CoordinatorError> {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = self.read(response, most).await?;
        if status != StatusCode::OK {
            return Err(self.refusal(status, &headers, &body));
        }
        serde_json::from_slice(&body).map_err(|error| self.not_a_coordinator(error.to_string()))
    }

    async fn read(&self, mut response: Response, most: usize) -> Result<Vec<u8>, CoordinatorError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > most {
                return Err(self.not_a_coordinator(format!("its answer has more than {most} bytes")));
            }
        }
        Ok(body)
    }

    fn refusal(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> CoordinatorError {
        let Ok(refusal) = serde_json::from_slice::<Refusal>(body) else {
            let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("no content type");
            let reason = format!("HTTP status {status} with a body of {kind}");
            // A gateway before a coordinator that is away (RFC 9110 §15.6.3 to §15.6.5).
            let gateway = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT]
                .contains(&status);
            return match gateway {
                true => CoordinatorError::Unreachable { url: self.shown_url(), reason },
                false => self.not_a_coordinator(reason),
            };
        };
        let retry_after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        CoordinatorError::Refused {
            status: status.as_u16(),
            code_word: refusal.error,
            message: refusal.message,
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    fn failed(&self, error: &reqwest::Error) -> CoordinatorError {
        // Its outermost text repeats the URL.
        let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), chain);
        let url = self.shown_url();
        if is_tls(error) {
            CoordinatorError::Untrusted { url, reason }
        } else {
            CoordinatorError::Unreachable { url, reason }
        }
    }

    fn not_a_coordinator(&self, reason: String) -> CoordinatorError {
        CoordinatorError::NotACoordinator { url: self.shown_url(), reason }
    }

    fn shown_url(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{path}", self.url.path().trim_end_matches('/')));
        url
    }
}

/// The newest digests of a conversation's beginnings (PROTOCOL.md §19); none of a single prompt.
fn prefix_digests(client_id: &str, prompt: &Prompt) -> Vec<String> {
    let digests = prefix::prefixes(client_id, &prompt.model, &prompt.tools, &prompt.messages);
    let older = digests.len().saturating_sub(prefix::MAX_PREFIX_DIGESTS);
    digests[older..].iter().copied().map(prefix::to_hex).collect()
}

fn digest(prompt: &str) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(prompt) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use titan_proto::v1::Message;

    use super::*;

    #[test]
    fn of_a_long_conversation_the_newest_digests_go() {
        let messages: Vec<Message> = (0..100).map(|turn| Message::user(format!("turn {turn}"))).collect();
        let all = prefix::prefixes("c", "m", &[], &messages);
        let sent = prefix_digests("c", &Prompt::conversation("m", messages));
        assert_eq!(sent.len(), prefix::MAX_PREFIX_DIGESTS);
        assert_eq!((sent.first(), sent.last()), (Some(&prefix::to_hex(all[36])), Some(&prefix::to_hex(all[99]))));
        assert!(prefix_digests("c", &Prompt::new("m", "p")).is_empty());
    }

    #[test]
    fn the_digest_names_its_algorithm() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(digest("abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
