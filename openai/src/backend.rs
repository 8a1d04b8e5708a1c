//! What the API stands on.

use std::future::Future;

use futures_util::Stream;
use http::{Extensions, request::Parts};
use titan_proto::v1::{ModelInfo, StreamRequest, StreamResponse};
use tonic::Status;

/// Something that generates text. What a [`Status`] becomes in the field's dialect: [`crate::ApiError`].
pub trait Backend: Send + Sync + 'static {
    /// An answer. Dropping it stops the generation.
    type Stream: Stream<Item = Result<StreamResponse, Status>> + Send + Unpin + 'static;

    /// Finds out who calls, before anything of the body is read.
    fn authenticate(&self, request: &Parts) -> impl Future<Output = Result<Caller, Status>> + Send;

    /// The models that this caller may use.
    fn models(&self, caller: &Caller) -> impl Future<Output = Result<Vec<ModelInfo>, Status>> + Send;

    /// Starts a generation. It has been accepted when this returns.
    fn generate(
        &self,
        caller: &Caller,
        request: StreamRequest,
    ) -> impl Future<Output = Result<Self::Stream, Status>> + Send;
}

/// Who calls.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// What they showed; empty where nothing is asked for.
    pub key: String,
    /// Whose background responses are whose.
    pub owner: String,
    /// Of the request: what the server underneath knows of the connection.
    pub extensions: Extensions,
}
