//! An OpenAI-compatible server that plays a script.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE},
};
use futures_util::stream;
use parking_lot::Mutex;
use serde_json::{Value, json};
use titan_agent::engine::openai::{ServerEngine, ServerSpec};
use tokio::{net::TcpListener, sync::oneshot};

use crate::MODEL;

/// What it does with a request.
#[derive(Clone)]
pub(crate) enum Reply {
    /// An event stream.
    Stream(Vec<Step>),
    /// A status, headers and a body.
    Status(u16, Vec<(&'static str, &'static str)>, String),
    /// Nothing, while the connection stays open.
    Silence,
}

#[derive(Clone)]
pub(crate) enum Step {
    Send(Bytes),
    Pause(Duration),
    /// The connection breaks.
    Break,
    /// Nothing more comes.
    Hang,
}

impl Reply {
    /// 200 with JSON.
    pub(crate) fn json(value: &Value) -> Self {
        Self::Status(200, vec![("content-type", "application/json")], value.to_string())
    }

    pub(crate) fn status(status: u16, message: &str) -> Self {
        Self::Status(status, vec![], json!({"error": {"message": message}}).to_string())
    }

    /// These chunks, each an event, and the end.
    pub(crate) fn events(chunks: &[Value]) -> Self {
        let mut steps: Vec<Step> = chunks.iter().map(Step::event).collect();
        steps.push(Step::text("data: [DONE]\n\n"));
        Self::Stream(steps)
    }
}

impl Step {
    pub(crate) fn text(text: &str) -> Self {
        Self::Send(Bytes::copy_from_slice(text.as_bytes()))
    }

    pub(crate) fn event(chunk: &Value) -> Self {
        Self::text(&format!("data: {chunk}\n\n"))
    }
}

/// A chunk with this text.
pub(crate) fn text(text: &str) -> Value {
    delta(&json!({"content": text}))
}

pub(crate) fn delta(delta: &Value) -> Value {
    json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

pub(crate) fn finish(reason: &str) -> Value {
    json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

pub(crate) fn usage(prompt_tokens: u32, completion_tokens: u32) -> Value {
    json!({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}})
}

/// What `/models` says.
pub(crate) fn models(ids: &[&str], owned_by: &str) -> Value {
    let data: Vec<Value> = ids.iter().map(|id| json!({"id": id, "object": "model", "owned_by": owned_by})).collect();
    json!({"object": "list", "data": data})
}

type Script = dyn Fn(&str, &Value, &HeaderMap) -> Reply + Send + Sync;

/// A server that runs until the value is dropped or it is killed.
pub(crate) struct Scripted {
    pub(crate) addr: SocketAddr,
    /// Bodies of the completions that were asked for.
    pub(crate) asked: Arc<Mutex<Vec<Value>>>,
    /// Answers that are being given, or held back.
    pub(crate) open: Arc<AtomicUsize>,
    /// Pieces of streams that the network took.
    pub(crate) sent: Arc<AtomicUsize>,
    running: Mutex<Option<oneshot::Sender<()>>>,
}

impl Scripted {
    /// One model, `there`, whose completions `reply` gives; it is always well, and knows nothing else.
    pub(crate) fn completing(reply: impl Fn(&Value) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(move |path, body, _| match path {
            "/v1/chat/completions" => reply(body),
            path => Self::well(path),
        })
    }

    /// What a server that is well says of itself.
    pub(crate) fn well(path: &str) -> Reply {
        match path {
            "/v1/models" => Reply::json(&models(&["there"], "somebody")),
            "/health" => Reply::json(&json!({})),
            _ => Reply::status(404, "no such path"),
        }
    }

    pub(crate) fn start(script: impl Fn(&str, &Value, &HeaderMap) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script)
    }

    pub(crate) fn start_at(
        addr: SocketAddr,
        script: impl Fn(&str, &Value, &HeaderMap) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind(addr).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (asked, open, sent) = (Arc::default(), Arc::default(), Arc::default());
        let script: Arc<Script> = Arc::new(script);
        let player = Player { script, asked: Arc::clone(&asked), open: Arc::clone(&open), sent: Arc::clone(&sent) };
        let app = Router::new().fallback(move |request: Request<Body>| player.clone().play(request));
        // In a runtime of its own: with its end all its connections are gone, as when a process is killed.
        let (running, killed) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let serving = axum::serve(TcpListener::from_std(listener).unwrap(), app);
                tokio::select! {
                    served = async { serving.await } => served.unwrap(),
                    _ = killed => {}
                }
            });
            runtime.shutdown_background();
        });
        Self { addr, asked, open, sent, running: Mutex::new(Some(running)) }
    }

    pub(crate) fn spec(&self) -> ServerSpec {
        ServerSpec::parse(&format!("{MODEL}=http://{}/v1", self.addr)).unwrap()
    }

    pub(crate) async fn engine(&self) -> ServerEngine {
        ServerEngine::start(self.spec(), 4).await.unwrap()
    }

    /// Ends it, with all its connections.
    pub(crate) fn kill(&self) {
        self.running.lock().take();
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Clone)]
struct Player {
    script: Arc<Script>,
    asked: Arc<Mutex<Vec<Value>>>,
    open: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
}

/// Counted as long as it is there.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Player {
    async fn play(self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path = head.uri.path().to_owned();
        let completion = path.ends_with("/chat/completions");
        let reply = (self.script)(&path, &body, &head.headers);
        if completion {
            self.asked.lock().push(body);
        }
        self.open.fetch_add(1, Relaxed);
        let open = Open(self.open);
        match reply {
            Reply::Silence => {
                let _open = open;
                std::future::pending().await
            }
            Reply::Status(status, headers, body) => {
                let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                response.body(Body::from(body)).unwrap()
            }
            Reply::Stream(steps) => {
                let state = (steps.into_iter(), open, self.sent);
                let body = stream::unfold(state, |(mut steps, open, sent)| async move {
                    loop {
                        let sent_now = match steps.next()? {
                            Step::Send(bytes) => {
                                sent.fetch_add(1, Relaxed);
                                Ok(bytes)
                            }
                            Step::Pause(time) => {
                                tokio::time::sleep(time).await;
                                continue;
                            }
                            Step::Break => Err(io::Error::other("as the script says")),
                            Step::Hang => std::future::pending().await,
                        };
                        return Some((sent_now, (steps, open, sent)));
                    }
                });
                Response::builder().header(CONTENT_TYPE, "text/event-stream").body(Body::from_stream(body)).unwrap()
            }
        }
    }
}
