//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use titan_proto::v1::ModelInfo;
use tonic::Status;

use crate::error::ApiError;

pub(crate) fn list(models: &[ModelInfo]) -> Response {
    Json(json!({"object": "list", "data": models.iter().map(model).collect::<Vec<_>>()})).into_response()
}

pub(crate) fn one(models: &[ModelInfo], id: &str) -> Result<Response, ApiError> {
    match models.iter().find(|info| info.name == id) {
        Some(info) => Ok(Json(model(info)).into_response()),
        None => Err(unknown(models, id).into()),
    }
}

fn unknown(models: &[ModelInfo], id: &str) -> Status {
    let names: Vec<&str> = models.iter().map(|info| info.name.as_str()).collect();
    Status::not_found(format!("there is no model {id:?}; there is {}", names.join(", ")))
}

/// The field's own shape. `max_model_len` is vLLM's name for the context.
fn model(info: &ModelInfo) -> Value {
    let mut model = json!({"id": info.name, "object": "model", "created": 0, "owned_by": "titancompute"});
    if info.context_tokens > 0 {
        model["max_model_len"] = info.context_tokens.into();
    }
    model
}
