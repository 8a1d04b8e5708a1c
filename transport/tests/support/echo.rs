//! The service under test, written by hand against tonic, as generated code would be.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt as _, stream};
use http::{Request as HttpRequest, Response as HttpResponse, uri::PathAndQuery};
use parking_lot::Mutex;
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    client::Grpc,
    metadata::{MetadataMap, MetadataValue},
    server::NamedService,
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use super::Channel;
use titan_transport::PeerInfo;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Blob {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: bytes::Bytes,
    /// What the handler is to do.
    #[prost(string, tag = "2")]
    pub verb: String,
    #[prost(uint64, tag = "3")]
    pub n: u64,
}

pub fn blob(verb: &str, n: u64) -> Blob {
    Blob { data: bytes::Bytes::new(), verb: verb.into(), n }
}

/// What a test can see of the handlers.
#[derive(Default)]
pub struct Probe {
    pub started: AtomicU64,
    /// Handlers and response streams that have ended or been dropped.
    pub ended: AtomicU64,
    /// Messages that handlers have produced.
    pub produced: AtomicU64,
    /// Messages that handlers have taken.
    pub consumed: AtomicU64,
    pub peer: Mutex<Option<PeerInfo>>,
}

/// Lives as long as a handler and its response stream.
struct Alive(Arc<Probe>);

impl Alive {
    fn new(probe: &Arc<Probe>) -> Self {
        probe.started.fetch_add(1, SeqCst);
        Self(probe.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
    }
}

#[derive(Clone)]
pub struct Echo(pub Arc<Probe>);

type BlobStream = Pin<Box<dyn Stream<Item = Result<Blob, Status>> + Send>>;

impl Echo {
    async fn unary(self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        let _alive = Alive::new(&self.0);
        *self.0.peer.lock() = request.extensions().get::<PeerInfo>().cloned();
        let metadata = request.metadata().clone();
        let blob = request.into_inner();
        match blob.verb.as_str() {
            "sleep" => tokio::time::sleep(std::time::Duration::from_millis(blob.n)).await,
            "hang" => std::future::pending().await,
            "panic" => panic!("as the test asked"),
            "fail" => return Err(failure(blob.n)),
            "confirm" => {
                let early = self.0.peer.lock().clone().and_then(|peer| peer.early_data);
                if let Some(early) = early {
                    return Ok(Response::new(super::echo::blob("confirmed", early.confirmed().await.into())));
                }
            }
            _ => {}
        }
        let mut response = Response::new(blob);
        copy(&metadata, response.metadata_mut());
        Ok(response)
    }

    /// `n` messages; "fail" ends them with an error, "hang" does not end them, "big" makes each 16 KiB, "pace" makes one every 10 ms.
    async fn produce(self, request: Request<Blob>) -> Result<Response<BlobStream>, Status> {
        let alive = Alive::new(&self.0);
        let metadata = request.metadata().clone();
        let Blob { verb, n, .. } = request.into_inner();
        if verb == "refuse" {
            return Err(failure(n));
        }
        let pace = (verb == "pace").then(|| std::time::Duration::from_millis(10));
        let data = bytes::Bytes::from(vec![7; if verb == "big" { 16 << 10 } else { 0 }]);
        let probe = self.0.clone();
        let messages = stream::iter(0..n).then(move |n| {
            let message = Ok(Blob { data: data.clone(), n, ..Blob::default() });
            let probe = probe.clone();
            async move {
                if let Some(pace) = pace {
                    tokio::time::sleep(pace).await;
                }
                probe.produced.fetch_add(1, SeqCst);
                message
            }
        });
        let end: BlobStream = match verb.as_str() {
            "fail" => Box::pin(stream::iter([Err(failure(9))])),
            "hang" => Box::pin(stream::pending()),
            "panic" => Box::pin(stream::once(async { panic!("as the test asked") })),
            _ => Box::pin(stream::empty()),
        };
        let all = messages.chain(end).inspect(move |_| {
            let _ = &alive;
        });
        let mut response = Response::new(Box::pin(all) as BlobStream);
        copy(&metadata, response.metadata_mut());
        Ok(response)
    }

    /// Sums `n` of all messages; "early" answers after the first, "stall" takes one and then no more.
    async fn consume(self, request: Request<Streaming<Blob>>) -> Result<Response<Blob>, Status> {
        let _alive = Alive::new(&self.0);
        let mut messages = request.into_inner();
        let mut sum = 0;
        while let Some(blob) = messages.message().await? {
            self.0.consumed.fetch_add(1, SeqCst);
            sum += blob.n;
            match blob.verb.as_str() {
                "early" => break,
                "stall" => std::future::pending().await,
                "fail" => return Err(failure(blob.n)),
                _ => {}
            }
        }
        Ok(Response::new(super::echo::blob("sum", sum)))
    }

    /// Answers each message at once; "end" ends the responses while the requests are still open, "hang" listens no more.
    async fn chat(self, request: Request<Streaming<Blob>>) -> Result<Response<BlobStream>, Status> {
        let alive = Alive::new(&self.0);
        let replies = stream::unfold((request.into_inner(), alive), |(mut messages, alive)| async move {
            match messages.message().await {
                Ok(Some(blob)) if blob.verb == "end" => None,
                Ok(Some(blob)) if blob.verb == "hang" => std::future::pending().await,
                Ok(Some(blob)) => Some((Ok(blob), (messages, alive))),
                Ok(None) => None,
                Err(status) => Some((Err(status), (messages, alive))),
            }
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

/// An error with everything that a status can carry.
fn failure(code: u64) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-reason", MetadataValue::from_static("tested"));
    metadata.insert_bin("x-reason-bin", MetadataValue::from_bytes(&[0, 1, 254, 255]));
    let message = "it failed: ünïcode, 100 %, \"quotes\"\nand a second line";
    Status::with_details_and_metadata(Code::from(code as i32), message, vec![0, 159, 146, 150].into(), metadata)
}

fn copy(from: &MetadataMap, to: &mut MetadataMap) {
    for value in from.get_all("x-text").iter() {
        to.append("x-text", value.clone());
    }
    for value in from.get_all_bin("x-data-bin").iter() {
        to.append_bin("x-data-bin", value.clone());
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<HttpRequest<Body>> for Echo {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let echo = self.clone();
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<Blob, Blob>::default())
            .max_decoding_message_size(4 * 1024 * 1024 + 64);
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/test.Echo/Unary" => grpc.unary(service_fn(|r| echo.clone().unary(r)), request).await,
                "/test.Echo/Produce" => grpc.server_streaming(service_fn(|r| echo.clone().produce(r)), request).await,
                "/test.Echo/Consume" => grpc.client_streaming(service_fn(|r| echo.clone().consume(r)), request).await,
                "/test.Echo/Chat" => grpc.streaming(service_fn(|r| echo.clone().chat(r)), request).await,
                path => Status::unimplemented(format!("no method {path}")).into_http(),
            })
        })
    }
}

pub type Client = Grpc<Channel>;

pub async fn unary(mut client: Client, request: impl tonic::IntoRequest<Blob>) -> Result<Response<Blob>, Status> {
    client.ready().await?;
    client.unary(request.into_request(), path("Unary"), codec()).await
}

pub async fn produce(
    mut client: Client,
    request: impl tonic::IntoRequest<Blob>,
) -> Result<Response<Streaming<Blob>>, Status> {
    client.ready().await?;
    client.server_streaming(request.into_request(), path("Produce"), codec()).await
}

pub async fn consume(
    mut client: Client,
    request: impl Stream<Item = Blob> + Send + 'static,
) -> Result<Response<Blob>, Status> {
    client.ready().await?;
    client.client_streaming(Request::new(request), path("Consume"), codec()).await
}

pub async fn chat(
    mut client: Client,
    request: impl Stream<Item = Blob> + Send + 'static,
) -> Result<Response<Streaming<Blob>>, Status> {
    client.ready().await?;
    client.streaming(Request::new(request), path("Chat"), codec()).await
}

pub fn path(method: &'static str) -> PathAndQuery {
    format!("/test.Echo/{method}").parse().unwrap()
}

pub fn codec() -> ProstCodec<Blob, Blob> {
    ProstCodec::default()
}
