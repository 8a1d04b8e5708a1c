//! The OpenAI API, over one small trait.
//!
//! [`router`] serves `/v1/chat/completions`, `/v1/completions`, `/v1/responses` and `/v1/models`; whoever can generate text implements [`Backend`]: the
//! agent with its handler, the proxy with a client of agents. What crosses the trait is the project's own
//! [`StreamRequest`](titan_proto::v1::StreamRequest) and [`StreamResponse`](titan_proto::v1::StreamResponse), so that nothing of the field's dialect
//! goes further than this crate.
//!
//! The way of a request: [`body`] reads it, [`fields`] takes its fields one by one and knows which were left, [`chat`], [`completions`] and
//! [`responses`] make a `StreamRequest` of them and answers of what comes back, [`sse`] sends these as they come, [`error`] says what went wrong in the
//! field's words. [`document()`] is its OpenAPI document, served at `/v1/openapi.json`. [`SseParser`] is for clients of this API, whoever serves it. [`peek()`] is for a router in front, which wants the model and the conversation and nothing else.
//!
//! It does no I/O of its own, keeps nothing but background responses, and knows neither tokens nor certificates: that is the backend's.

mod backend;
mod body;
mod chat;
mod completions;
mod document;
mod error;
mod fields;
mod generation;
mod models;
mod peek;
mod reader;
mod responses;
mod router;
mod sse;

pub use self::{
    backend::{Backend, Caller},
    body::check_content_type,
    document::document,
    error::ApiError,
    peek::peek,
    reader::{MAX_EVENT_BYTES, SseError, SseEvent, SseParser},
    responses::origin_of,
    router::{IGNORED_HEADER, Settings, router},
};
