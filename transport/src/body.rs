//! One half of a call as it arrives: frames from a QUIC stream, given to tonic as an HTTP body.
//!
//! Nothing is read before tonic asks, so QUIC's flow control carries a slow reader's back-pressure to the sender.

use std::{
    future::Future as _,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::Message as _;
use quinn::{ReadError, RecvStream, VarInt};
use titan_proto::wire::{Headers, Trailers};
use tonic::Status;

use crate::{
    client::CallError,
    repeat::receiver::Repeated,
    wire::{
        ErrorCode,
        arrivals::InStream,
        datagram::Frame as Repeat,
        frame::{Decoder, Event, FrameError, Half},
        metadata::{self, MetadataError},
        reframe,
        window::MAX_REPEATED_FRAME_BYTES,
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
    /// Frames may come in datagrams too.
    repeated: Option<Repeated>,
    /// How far the message is that the stream brings at present.
    in_message: InMessage,
    /// The beginning of the body, read while looking for HEADERS.
    peeked: Option<Piece>,
    /// Why the stream broke; told when what came before is passed on. quinn tells it once.
    broken: Option<IncomingError>,
    done: bool,
}

/// A part of a call, in order, each once.
enum Piece {
    Headers(Bytes),
    /// A message begins; `Data` follows for what `whole` does not hold.
    Message {
        len: u32,
        compressed: bool,
        whole: Bytes,
    },
    Data(Bytes),
    Trailers(Bytes),
}

/// What becomes of a message's bytes in the stream.
enum InMessage {
    /// They are passed on.
    Pass,
    /// They are gathered: a datagram may bring the message before they are complete.
    Gather { len: u32, compressed: bool, payload: BytesMut },
    /// A datagram has brought them.
    Skip,
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
    pub(crate) fn request(recv: RecvStream) -> Self {
        Self::new(recv, Half::Request, None)
    }

    /// With `repeated`, its frames may come in datagrams too: PROTOCOL.md §10.
    pub(crate) fn response(recv: RecvStream, repeated: Option<Repeated>) -> Self {
        Self::new(recv, Half::Response, repeated)
    }

    fn new(recv: RecvStream, half: Half, repeated: Option<Repeated>) -> Self {
        let in_message = InMessage::Pass;
        Self { half, recv, decoder: Decoder::new(half), repeated, in_message, peeked: None, broken: None, done: false }
    }

    /// Reads a request's HEADERS.
    pub(crate) async fn request_headers(&mut self) -> Result<Headers, IncomingError> {
        match self.piece().await? {
            Some(Piece::Headers(payload)) => Ok(Headers::decode(payload)?),
            // The decoder lets no request begin otherwise.
            _ => Err(FrameError::Incomplete("HEADERS").into()),
        }
    }

    /// Reads the beginning of a response. HEADERS are optional there: PROTOCOL.md §3.1.
    pub(crate) async fn response_start(&mut self) -> Result<Start, IncomingError> {
        match self.piece().await? {
            Some(Piece::Headers(payload)) => {
                let mut headers = HeaderMap::new();
                metadata::insert(&mut headers, Headers::decode(payload)?.metadata)?;
                Ok(Start::Headers(headers))
            }
            Some(Piece::Trailers(payload)) => {
                self.done = true;
                Ok(Start::Trailers(metadata::trailer_map(Trailers::decode(payload)?)?))
            }
            piece => {
                self.peeked = piece;
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

    async fn piece(&mut self) -> Result<Option<Piece>, IncomingError> {
        std::future::poll_fn(|cx| self.poll_piece(cx)).await
    }

    /// What comes next, from a datagram or from the stream; None at the proper end of the stream.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, IncomingError>> {
        // The stream first: what only a datagram has brought then tells of a loss.
        while self.broken.is_none()
            && let Poll::Ready(event) = self.poll_event(cx)
        {
            let piece = match event {
                Ok(Some(event)) => self.take(event),
                Ok(None) => return Poll::Ready(Ok(None)),
                Err(error) => {
                    self.broken = Some(error);
                    break;
                }
            };
            if piece.is_some() {
                return Poll::Ready(Ok(piece));
            }
        }
        match (self.take_early(cx), self.broken.take()) {
            (Some(piece), broken) => {
                self.broken = broken;
                Poll::Ready(Ok(Some(piece)))
            }
            (None, Some(error)) => Poll::Ready(Err(error)),
            (None, None) => Poll::Pending,
        }
    }

    fn take_early(&self, cx: &mut Context<'_>) -> Option<Piece> {
        // Not in the middle of a message that is being passed on.
        let between = self.decoder.between_messages() || !matches!(self.in_message, InMessage::Pass);
        let frame = self.repeated.as_ref().filter(|_| between)?.take_early(cx)?;
        Some(match frame {
            Repeat::Headers(payload) => Piece::Headers(payload),
            // A datagram has at most 64 KiB.
            Repeat::Message { payload, compressed } => {
                Piece::Message { len: payload.len() as u32, compressed, whole: payload }
            }
            Repeat::Trailers(payload) => Piece::Trailers(payload),
        })
    }

    /// What to pass on of what the stream has brought.
    fn take(&mut self, event: Event) -> Option<Piece> {
        match event {
            Event::Headers(payload) => self.wanted(false).then_some(Piece::Headers(payload)),
            Event::Trailers(payload) => self.wanted(true).then_some(Piece::Trailers(payload)),
            Event::Message { len, compressed } => {
                if let Some(whole) = self.decoder.take_whole(WHOLE_BYTES) {
                    return self.wanted(false).then_some(Piece::Message { len, compressed, whole });
                }
                if self.repeated.is_some() && len as usize <= MAX_REPEATED_FRAME_BYTES {
                    let payload = BytesMut::with_capacity(len as usize);
                    self.in_message = InMessage::Gather { len, compressed, payload };
                    return None;
                }
                let wanted = self.wanted(false);
                self.in_message = if wanted { InMessage::Pass } else { InMessage::Skip };
                wanted.then_some(Piece::Message { len, compressed, whole: Bytes::new() })
            }
            Event::Data(data) => match &mut self.in_message {
                InMessage::Pass => Some(Piece::Data(data)),
                InMessage::Skip => None,
                InMessage::Gather { len, compressed, payload } => {
                    payload.extend_from_slice(&data);
                    if payload.len() < *len as usize {
                        return None;
                    }
                    let (len, compressed, whole) = (*len, *compressed, payload.split().freeze());
                    self.in_message = InMessage::Pass;
                    self.wanted(false).then_some(Piece::Message { len, compressed, whole })
                }
            },
        }
    }

    /// Whether the frame that the stream brings has not been passed on already.
    fn wanted(&self, ended: bool) -> bool {
        self.repeated.as_ref().is_none_or(|repeated| repeated.stream_brings(ended) == InStream::Deliver)
    }

    /// The stream's next event; None at its proper end.
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
        let piece = match self.peeked.take() {
            Some(piece) => Some(piece),
            None => ready!(self.poll_piece(cx))?,
        };
        Poll::Ready(Ok(match piece {
            None => None,
            Some(Piece::Message { len, compressed, whole }) => {
                let mut data = reframe::prefix(len, compressed, whole.len());
                data.extend_from_slice(&whole);
                Some(Frame::data(data.freeze()))
            }
            Some(Piece::Data(data)) => Some(Frame::data(data)),
            Some(Piece::Trailers(payload)) => {
                self.done = true;
                // The end of the stream is usually here too; taking it spares the peer a STOP_SENDING.
                let _ = pin!(self.recv.read_chunk(1, true)).poll(cx);
                Some(Frame::trailers(metadata::trailer_map(Trailers::decode(payload)?)?))
            }
            Some(Piece::Headers(_)) => return Poll::Ready(Err(FrameError::Unexpected("HEADERS").into())),
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
