//! A backend that says what a test tells it to.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use futures_util::Stream;
use http::{HeaderMap, Request, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use serde_json::Value;
use titan_openai::{Backend, Caller, Settings, router};
use titan_proto::v1::{ModelInfo, StreamRequest, StreamResponse, ToolCallDelta};
use tokio::sync::{Mutex, mpsc};
use tonic::Status;
use tower::ServiceExt as _;

/// What the backend does with the next request.
pub(crate) enum Next {
    Refuse(Status),
    Say(Vec<Result<StreamResponse, Status>>),
    /// What a test sends.
    Follow(mpsc::Receiver<Result<StreamResponse, Status>>),
}

#[derive(Default)]
pub(crate) struct Scripted {
    next: Mutex<Option<Next>>,
    asked: Mutex<Option<StreamRequest>>,
    dropped: Arc<AtomicUsize>,
}

pub(crate) struct Script {
    receiver: mpsc::Receiver<Result<StreamResponse, Status>>,
    dropped: Arc<AtomicUsize>,
}

impl Stream for Script {
    type Item = Result<StreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, SeqCst);
    }
}

impl Backend for Scripted {
    type Stream = Script;

    async fn authenticate(&self, request: &Parts) -> Result<Caller, Status> {
        let key =
            request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        match key {
            None | Some("wrong") => Err(Status::unauthenticated("the key is wrong")),
            Some(key) => Ok(Caller { key: key.to_owned(), owner: key.to_owned(), ..Caller::default() }),
        }
    }

    async fn models(&self, _caller: &Caller) -> Result<Vec<ModelInfo>, Status> {
        let model = |name: &str| ModelInfo { name: name.to_owned(), context_tokens: 2048, ..ModelInfo::default() };
        Ok(vec![model("small"), model("org/big:7b")])
    }

    async fn generate(&self, _caller: &Caller, request: StreamRequest) -> Result<Script, Status> {
        *self.asked.lock().await = Some(request);
        let receiver = match self.next.lock().await.take().unwrap() {
            Next::Refuse(status) => return Err(status),
            Next::Follow(receiver) => receiver,
            Next::Say(messages) => {
                let (sender, receiver) = mpsc::channel(messages.len().max(1));
                for message in messages {
                    sender.try_send(message).unwrap();
                }
                receiver
            }
        };
        Ok(Script { receiver, dropped: Arc::clone(&self.dropped) })
    }
}

/// The API over a scripted backend.
pub(crate) struct Fixture {
    backend: Arc<Scripted>,
    pub(crate) router: Router,
}

pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answered {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    /// The data of the events, without `[DONE]`, which has to be the last.
    #[track_caller]
    pub(crate) fn chunks(&self) -> Vec<Value> {
        let mut data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(Settings { origin: "here".to_owned(), ..Settings::default() })
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let backend = Arc::new(Scripted::default());
        Self { router: router(Arc::clone(&backend), settings), backend }
    }

    pub(crate) async fn next(&self, next: Next) {
        *self.backend.next.lock().await = Some(next);
    }

    /// What the backend was asked last.
    pub(crate) async fn asked(&self) -> StreamRequest {
        self.backend.asked.lock().await.take().unwrap()
    }

    pub(crate) async fn was_asked(&self) -> bool {
        self.backend.asked.lock().await.is_some()
    }

    /// Answers whose streams were given back.
    pub(crate) fn dropped(&self) -> usize {
        self.backend.dropped.load(SeqCst)
    }

    pub(crate) async fn call(&self, method: &str, path: &str, key: &str, body: impl Into<Body>) -> Answered {
        let request = request(method, path, key, body);
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answered { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answered {
        self.call("POST", path, "key", body.to_string()).await
    }

    /// Has the backend say this, and posts a body.
    pub(crate) async fn say(&self, messages: Vec<StreamResponse>, path: &str, body: Value) -> Answered {
        self.next(Next::Say(messages.into_iter().map(Ok).collect())).await;
        self.post(path, body).await
    }
}

pub(crate) fn request(method: &str, path: &str, key: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap()
}

pub(crate) fn text(content: &str) -> StreamResponse {
    StreamResponse { content: content.to_owned(), ..StreamResponse::default() }
}

pub(crate) fn thought(reasoning: &str) -> StreamResponse {
    StreamResponse { reasoning: reasoning.to_owned(), ..StreamResponse::default() }
}

pub(crate) fn call(index: u32, id: &str, name: &str, arguments: &str) -> StreamResponse {
    let (id, name, arguments) = (id.to_owned(), name.to_owned(), arguments.to_owned());
    StreamResponse { tool_calls: vec![ToolCallDelta { index, id, name, arguments }], ..StreamResponse::default() }
}

pub(crate) fn done(finish_reason: &str) -> StreamResponse {
    let metadata = [("prompt_tokens", "7"), ("completion_tokens", "5"), ("cached_tokens", "3")];
    StreamResponse {
        done: true,
        finish_reason: finish_reason.to_owned(),
        metadata: metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..StreamResponse::default()
    }
}

/// Waits for what happens in another task.
pub(crate) async fn until(condition: impl AsyncFn() -> bool) {
    for _ in 0..500 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen");
}
