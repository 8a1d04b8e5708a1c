//! The engine that is a server: anything that speaks the OpenAI API, such as vLLM, SGLang, llama.cpp, Ollama or LM Studio, that its owner runs
//! beside the agent. One [`ServerEngine`] is one model on one server.
//!
//! The way of a request: [`monitor`] knows whether the server is there, [`request`] puts the question, [`http`] asks it, [`run`] reads what
//! comes ([`sse`], [`answer`]). [`kind`] knows in what servers differ, [`source`] reads the command line, [`regex_grammar`] translates for
//! llama.cpp. docs/ENGINES.md says what is passed on to which kind of server and what is refused.
//!
//! A request is cancelled by closing its connection. Nothing is sent twice: an answer that broke off is for the client to continue.

mod answer;
mod http;
mod kind;
mod monitor;
mod regex_grammar;
mod request;
mod run;
mod source;

use std::{fmt, sync::Arc};

use titan_proto::v1::ModelInfo;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

pub use self::source::{ApiKey, ServerSpec, ServerSpecError};
use self::{
    answer::Answer,
    http::{Http, HttpError},
    kind::{Kind, Trouble, look},
    monitor::Server,
    request::{Body, body, continuation_of},
};
use super::{Engine, EngineError, Generate, GenerateFuture, Health, TokenStream};

/// One model on one server.
pub struct ServerEngine {
    server: Arc<Server>,
    // The server is looked at as long as this is there.
    _watch: AbortOnDropHandle<()>,
}

/// Why an engine cannot be made of a server. A server that is not there is no reason: it may come.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Nothing can be asked over https: the system has no roots of trust.
    #[error("model {name:?} at {url}: {reason}")]
    Client {
        /// The name here.
        name: String,
        /// The server.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The server is there, and says that it will not do.
    #[error("model {name:?}, the server at {url}: {reason}")]
    Unusable {
        /// The name here.
        name: String,
        /// The server.
        url: String,
        /// What is wrong, and what to change.
        reason: String,
    },
}

impl ServerEngine {
    /// Looks at the server, and goes on looking. A server that is not there makes a degraded engine, which recovers when it comes.
    /// `max_jobs` is how many generations run at once where the server does not tell. Needs a tokio runtime.
    ///
    /// # Errors
    /// The server answers, but has no such model, or several, or does not accept the key.
    pub async fn start(spec: ServerSpec, max_jobs: usize) -> Result<Self, ServerError> {
        let (name, url) = (spec.name.clone(), spec.url.to_string());
        if spec.is_exposed() {
            let what = if spec.key.is_some() { "prompts, answers and the key" } else { "prompts and answers" };
            tracing::warn!(model = name, server = url, "plain http to another machine: {what} can be read on the way");
        }
        let http = match Http::new(&spec) {
            Ok(http) => http,
            Err(reason) => return Err(ServerError::Client { name, url, reason }),
        };
        let first = look(&http, &spec).await;
        match &first {
            Ok(facts) => {
                tracing::info!(model = name, server = url, kind = ?facts.kind, id = facts.model, places = facts.places, "found the server of a model");
            }
            Err(trouble) if trouble.is_permanent() => {
                return Err(ServerError::Unusable { name, url, reason: trouble.to_string() });
            }
            Err(trouble) => {
                tracing::warn!(model = name, server = url, reason = %trouble, "no server of a model yet: its requests fail until it is there");
            }
        }
        let server = Server::new(spec, http, max_jobs, first);
        let watch = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&server).watch()));
        Ok(Self { server, _watch: watch })
    }

    async fn begin(&self, request: Generate) -> Result<TokenStream, EngineError> {
        let server = &self.server;
        let name = &server.spec.name;
        if request.model != *name {
            return Err(EngineError::UnknownModel { model: request.model, available: self.models() });
        }
        let facts = server.facts().map_err(|trouble| not_there(name, &trouble))?;
        let body = body(&request, &facts)?;
        // llama.cpp sends no headers before the first token: from here on it may compute.
        let counted = server.begin();
        let response = self.ask(body, facts.kind).await.map_err(|error| {
            if matches!(error, HttpError::Unreachable(_)) {
                server.suspect();
            }
            error.of_generation(name, facts.kind == Kind::LlamaCpp)
        })?;
        let (events, stream) = mpsc::channel(run::BUFFERED_EVENTS);
        let (answer, server) = (Answer::new(&request), Arc::clone(server));
        tokio::spawn(async move { run::pass_on(response, answer, &server, events, counted).await });
        Ok(stream)
    }

    async fn ask(&self, mut body: Body, kind: Kind) -> Result<reqwest::Response, HttpError> {
        let http = &self.server.http;
        let asked = http.stream(&body, run::FIRST_EVENT).await;
        // vLLM refuses more tokens than the context has room for, where others generate what fits. Without a number, so does it.
        if matches!(kind, Kind::Vllm { .. }) && asked.as_ref().is_err_and(HttpError::is_about_max_tokens) {
            body.max_tokens = None;
            return http.stream(&body, run::FIRST_EVENT).await;
        }
        asked
    }
}

fn not_there(name: &str, trouble: &Trouble) -> EngineError {
    EngineError::Failed(format!("the server of {name} cannot be used now: {trouble}"))
}

impl Engine for ServerEngine {
    fn models(&self) -> Vec<String> {
        vec![self.server.spec.name.clone()]
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        Box::pin(self.begin(request))
    }

    fn model_info(&self) -> Vec<ModelInfo> {
        let spec = &self.server.spec;
        let mut info = ModelInfo {
            name: spec.name.clone(),
            engine: "openai".to_owned(),
            source: spec.source(),
            continuation: "none".to_owned(),
            places: i32::try_from(self.server.places()).unwrap_or(i32::MAX),
            // A server tells no digest of its weights.
            ..ModelInfo::default()
        };
        if let Some(facts) = self.server.last_facts() {
            info.architecture.clone_from(&facts.architecture);
            info.quantization.clone_from(&facts.quantization);
            info.parameters = facts.parameters.unwrap_or_default();
            info.context_tokens = facts.context_tokens.unwrap_or_default();
            (info.tools, info.reasoning) = (facts.tools, facts.reasoning);
            info.continuation = continuation_of(facts.kind).to_owned();
        }
        vec![info]
    }

    fn computing(&self) -> usize {
        self.server.computing()
    }

    fn health(&self) -> Health {
        self.server.health()
    }

    fn queued(&self) -> usize {
        self.server.queued()
    }

    fn idle(&self, model: &str) -> bool {
        model == self.server.spec.name && self.server.idle()
    }
}

impl fmt::Debug for ServerEngine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ServerEngine").field("spec", &self.server.spec).finish_non_exhaustive()
    }
}
