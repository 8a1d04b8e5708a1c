//! One half of a call as it arrives: frames from a QUIC stream, given to tonic as an HTTP body.
//!
//! Nothing is read before tonic asks, so QUIC's flow control carries a slow reader's back-pressure to the sender.

use std::{
    future::Future as _,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::Message as _;
use quinn::{ReadError, RecvStream, VarInt};
use titan_proto::wire::{Headers, Trailers};
use tonic::Status;

use crate::{
    client::CallError,
    wire::{
        ErrorCode,
        frame::{Decoder, Event, FrameError, Half},
        metadata::{self, MetadataError},
        reframe,
    },
};

/// One read from the stream, at most.
const READ_BYTES: usize = 64 * 1024;
/// A message up to this size reaches tonic in one piece with its prefix.
const WHOLE_BYTES: usize = 16 * 1024;

/// The incoming half of a call.
pub(crate) struct IncomingBody {
    half: Half,
    recv: RecvStream,
    decoder: Decoder,
    /// The beginning of the body, read while looking for HEADERS.
    peeked: Option<Event>,
    done: bool,
}

/// Why an incoming half broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IncomingError {
    #[error("reading from the peer: {0}")]
    Read(#[from] ReadError),
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("the peer broke the protocol: {0}")]
    Metadata(#[from] MetadataError),
    #[error("the peer broke the protocol: {0}")]
    Protobuf(#[from] prost::DecodeError),
}

/// What a response begins with.
pub(crate) enum Start {
    /// Metadata, and a body to read.
    Headers(HeaderMap),
    /// Only trailers: an error, usually.
    Trailers(HeaderMap),
}

impl IncomingBody {
    pub(crate) fn new(recv: RecvStream, half: Half) -> Self {
        Self { half, recv, decoder: Decoder::new(half), peeked: None, done: false }
    }

    /// Reads a request's HEADERS.
    pub(crate) async fn request_headers(&mut self) -> Result<Headers, IncomingError> {
        match self.event().await? {
            Some(Event::Headers(payload)) => Ok(Headers::decode(payload)?),
            // The decoder lets no request begin otherwise.
            _ => Err(FrameError::Incomplete("HEADERS").into()),
        }
    }

    /// Reads the beginning of a response. HEADERS are optional there: PROTOCOL.md §3.1.
    pub(crate) async fn response_start(&mut self) -> Result<Start, IncomingError> {
        match self.event().await? {
            Some(Event::Headers(payload)) => {
                let mut headers = HeaderMap::new();
                metadata::insert(&mut headers, Headers::decode(payload)?.metadata)?;
                Ok(Start::Headers(headers))
            }
            Some(Event::Trailers(payload)) => {
                self.done = true;
                Ok(Start::Trailers(metadata::trailer_map(Trailers::decode(payload)?)?))
            }
            event => {
                self.peeked = event;
                Ok(Start::Headers(HeaderMap::new()))
            }
        }
    }

    /// Stops reading and tells the peer why.
    pub(crate) fn stop(&mut self, code: ErrorCode) {
        self.done = true;
        // An error means that the stream has ended already.
        let _ = self.recv.stop(code.code());
    }

    async fn event(&mut self) -> Result<Option<Event>, IncomingError> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The next event; None at the proper end of the stream.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, IncomingError>> {
        loop {
            if let Some(event) = self.decoder.next()? {
                return Poll::Ready(Ok(Some(event)));
            }
            match ready!(pin!(self.recv.read_chunk(READ_BYTES, true)).poll(cx))? {
                Some(chunk) => self.decoder.feed(chunk.bytes),
                None => {
                    self.done = true;
                    self.decoder.finish()?;
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, IncomingError>> {
        let event = match self.peeked.take() {
            Some(event) => Some(event),
            None => ready!(self.poll_event(cx))?,
        };
        Poll::Ready(Ok(match event {
            None => None,
            Some(Event::Message { len, compressed }) => {
                let whole = self.decoder.take_whole(WHOLE_BYTES).unwrap_or_default();
                let mut data = reframe::prefix(len, compressed, whole.len());
                data.extend_from_slice(&whole);
                Some(Frame::data(data.freeze()))
            }
            Some(Event::Data(data)) => Some(Frame::data(data)),
            Some(Event::Trailers(payload)) => {
                self.done = true;
                // The end of the stream is usually here too; taking it spares the peer a STOP_SENDING.
                let _ = pin!(self.recv.read_chunk(1, true)).poll(cx);
                Some(Frame::trailers(metadata::trailer_map(Trailers::decode(payload)?)?))
            }
            Some(Event::Headers(_)) => return Poll::Ready(Err(FrameError::Unexpected("HEADERS").into())),
        }))
    }
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.done {
            return Poll::Ready(None);
        }
        Poll::Ready(
            ready!(self.poll_body(cx))
                .map_err(|error| {
                    self.stop(error.code());
                    error.into_status()
                })
                .transpose(),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        if !self.done {
            // A server that has answered does not mind the rest of the request; a client that drops an answer cancels.
            self.stop(if self.half == Half::Request { ErrorCode::NoError } else { ErrorCode::Cancelled });
        }
    }
}

impl IncomingError {
    /// What to tell the peer.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Read(_) => ErrorCode::Cancelled,
            Self::Frame(FrameError::TooLong { .. }) | Self::Metadata(MetadataError::TooMany(_)) => ErrorCode::Limit,
            _ => ErrorCode::Protocol,
        }
    }

    /// What to tell the program.
    pub(crate) fn into_status(self) -> Status {
        let text = self.to_string();
        match self {
            Self::Read(ReadError::Reset(code)) => reset_status(code),
            Self::Read(ReadError::ConnectionLost(error)) => CallError::Lost(error).into_status(),
            Self::Read(ReadError::ZeroRttRejected) => CallError::EarlyDataRejected.into_status(),
            Self::Read(_) => Status::internal(text),
            Self::Frame(FrameError::TooLong { .. }) | Self::Metadata(MetadataError::TooMany(_)) => {
                Status::resource_exhausted(text)
            }
            _ => Status::internal(text),
        }
    }
}

/// What a stream reset with `code` means to whoever reads from it: PROTOCOL.md §6.
pub(crate) fn reset_status(code: VarInt) -> Status {
    match ErrorCode::from_code(code) {
        Some(ErrorCode::Refused) => CallError::Refused.into_status(),
        Some(ErrorCode::Cancelled) => Status::cancelled("the peer cancelled the call"),
        Some(ErrorCode::Internal) => Status::internal("the peer's handler broke down"),
        Some(ErrorCode::Limit) => Status::resource_exhausted("the peer reports that a limit was exceeded"),
        Some(ErrorCode::Timeout) => Status::deadline_exceeded("the peer waited too long for the request"),
        Some(code) => Status::internal(format!("the peer reset the call: {code:?}")),
        None => Status::internal(format!("the peer reset the call with the unknown code {code}")),
    }
}
