//! `/v1/responses`: the field's newer interface, with answers that run in the background and can be read again from any event on.
//!
//! [`request`] reads it, [`events`] makes the events of an answer and the response as it is at any time, [`store`] keeps those that run in the background.

mod events;
mod request;
mod store;

use std::sync::Arc;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;

use self::{events::Answer, request::ResponseRequest};
pub(crate) use self::{request::read, store::Store};
use crate::{
    backend::{Backend, Caller},
    error::ApiError,
    fields::Fields,
    generation::broke_off,
    router::{Settings, with_ignored},
    sse,
};

/// The origin in the id of a response ([`Settings::origin`]); `None` if it is not one of ours.
pub fn origin_of(id: &str) -> Option<&str> {
    let (origin, rest) = id.strip_prefix("resp_")?.split_once('_')?;
    let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_plain(origin) && is_plain(rest)).then_some(origin)
}

pub(crate) async fn create<B: Backend>(
    backend: &Arc<B>,
    settings: &Settings,
    store: &Store,
    caller: &Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    let ResponseRequest { request, options, echo, ignored } = read(fields)?;
    let answer = Answer::new(&settings.origin, &options, echo);
    let response = if options.background {
        // A place first: what runs in the background and cannot be kept is of no use.
        let place = store.place(answer, &caller.owner)?;
        let stream = backend.generate(caller, request).await?;
        let kept = place.run::<B>(stream);
        match options.stream {
            true => kept.stream(None, settings.comment_interval),
            false => kept.json(),
        }
    } else {
        let mut stream = backend.generate(caller, request).await?;
        match options.stream {
            true => sse::answer::<B, _>(stream, answer, settings.comment_interval).await?,
            false => Json(whole::<B>(&mut stream, answer).await?).into_response(),
        }
    };
    Ok(with_ignored(response, &ignored))
}

async fn whole<B: Backend>(stream: &mut B::Stream, mut answer: Answer) -> Result<serde_json::Value, ApiError> {
    let mut events = Vec::new();
    while let Some(message) = stream.next().await {
        let message = message?;
        let done = message.done;
        sse::Encoder::message(&mut answer, message, &mut events);
        events.clear();
        if done {
            return Ok(answer.json());
        }
    }
    Err(broke_off())
}
