//! The OpenAI API on the agent's TCP port, beside gRPC: the same handler, asked in the field's dialect.
//!
//! The session token is the API key. Or it stands in the address, `/s/TOKEN/v1/…`, which is where the coordinator's redirect sends clients that
//! know nothing of tokens: such a token is for one request, since addresses are logged and shown by all kinds of programs.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::{
    Router,
    extract::{Path, Request},
    response::{IntoResponse as _, Response},
    routing::any,
};
use http::{StatusCode, Uri, request::Parts};
use titan_openai::{ApiError, Backend, Caller, Settings};
use titan_proto::v1::{ModelInfo, StreamRequest};
use titan_transport::{
    PeerInfo, is_grpc,
    token::{Claims, unix_seconds},
};
use tonic::{Status, metadata::MetadataMap};
use tower::ServiceExt as _;

use crate::{
    auth::{Purpose, check_role},
    replay::Verdict,
    service::{Answer, Core},
};

/// What follows the token in an address.
const API: &str = "/v1/";
/// The use of a token in an address, as the memory of requests has it.
const ONE_USE: &str = "address";

/// gRPC and the API on one port; for those who do not speak gRPC a wrong address is a 404.
pub(crate) fn beside(grpc: Router, core: Arc<Core>) -> Router {
    let api = router(core).fallback(not_found);
    Router::new().fallback(move |request: Request| async move {
        let router = if is_grpc(request.headers()) { grpc } else { api };
        match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    })
}

async fn not_found(uri: Uri) -> ApiError {
    let message = if uri.path().starts_with("/api/") {
        "this is an agent, and /api/ is the coordinator's: REST is on its port (COORDINATOR_HTTP_PORT, 8080 by default)"
    } else {
        "there is nothing at this address: the OpenAI API is below /v1/, as in /v1/chat/completions"
    };
    ApiError::with_status(StatusCode::NOT_FOUND, message)
}

/// The API, with the token in a header or in the address.
fn router(core: Arc<Core>) -> Router {
    let settings = Settings { origin: titan_proto::digest::origin(&core.agent_id), ..Settings::default() };
    let api = titan_openai::router(Arc::new(Api { core }), settings);
    let behind = api.clone();
    api.route(
        "/s/{token}/{*path}",
        any(move |Path((token, _)): Path<(String, String)>, request: Request| redirected(behind, token, request)),
    )
}

/// A request that the coordinator has sent here: as if the token had come in a header.
async fn redirected(api: Router, token: String, mut request: Request) -> Response {
    let rest = request.uri().path_and_query().and_then(|all| all.as_str().get("/s/".len() + token.len()..));
    let uri = rest.filter(|rest| rest.starts_with(API)).and_then(|rest| rest.parse::<Uri>().ok());
    let Some(uri) = uri else { return not_found(request.uri().clone()).await.into_response() };
    *request.uri_mut() = uri;
    request.extensions_mut().insert(InAddress(token));
    match api.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// A token that stood in the address.
#[derive(Clone)]
struct InAddress(String);

struct Api {
    core: Arc<Core>,
}

impl Api {
    /// Uses a token in an address up.
    fn once(&self, claims: &Claims) -> Result<(), Status> {
        let (dead_at, now) = (unix_seconds(claims.dead_at()), unix_seconds(SystemTime::now()));
        match self.core.replay.lock().remember(&claims.jti, ONE_USE, dead_at, now) {
            Verdict::Fresh => Ok(()),
            Verdict::Repeated => {
                Err(Status::unauthenticated("this address was for one request: ask the coordinator again"))
            }
            Verdict::Unrecorded => {
                Err(Status::unavailable("too many requests at this agent: ask the coordinator again"))
            }
        }
    }
}

impl Backend for Api {
    type Stream = Answer;

    async fn authenticate(&self, request: &Parts) -> Result<Caller, Status> {
        let peer = request.extensions.get::<PeerInfo>();
        check_role(peer)?;
        let path = request.uri.path();
        // An answer that was begun with a token may outlive it.
        let purpose = if path.starts_with("/v1/responses/") { Purpose::Resume } else { Purpose::Begin };
        let mut extensions = http::Extensions::new();
        let claims = match request.extensions.get::<InAddress>() {
            Some(InAddress(token)) => {
                let line = Claims::request_line(request.method.as_str(), path);
                let claims = self.core.auth.authenticate(token, &MetadataMap::new(), Purpose::Address(&line)).await?;
                self.once(&claims)?;
                claims
            }
            None => {
                let headers = MetadataMap::from_headers(request.headers.clone());
                self.core.auth.authenticate("", &headers, purpose).await?
            }
        };
        let owner = claims.client_id.clone();
        if let Some(peer) = peer {
            extensions.insert(peer.clone());
        }
        extensions.insert(claims);
        Ok(Caller { owner, extensions, ..Caller::default() })
    }

    async fn models(&self, caller: &Caller) -> Result<Vec<ModelInfo>, Status> {
        let claims = claims(caller)?;
        Ok(self.core.model_info().into_iter().filter(|info| claims.allows_model(&info.name)).collect())
    }

    async fn generate(&self, caller: &Caller, request: StreamRequest) -> Result<Answer, Status> {
        let peer = caller.extensions.get::<PeerInfo>();
        self.core.start(Instant::now(), peer, claims(caller)?, request).await
    }
}

fn claims(caller: &Caller) -> Result<&Claims, Status> {
    caller.extensions.get().ok_or_else(|| Status::internal("the request has lost its token"))
}
