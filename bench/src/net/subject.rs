//! What is measured: Titan, and what users would pick instead.

use std::{any::Any, future::Future, pin::Pin, time::Duration};

use clap::ValueEnum;
use futures_util::Stream;
use serde::{Deserialize, Serialize};

/// A way to get tokens from a model to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// Titan's client library over QUIC
    TitanQuic,
    /// The same again: the self-test, which must find no difference
    TitanQuicAgain,
    /// Titan's client library over QUIC without what keeps a stream flowing: what QUIC alone does
    TitanQuicPlain,
    /// Titan's client library as it is by default: QUIC, or gRPC where UDP is blocked
    TitanAuto,
    /// Titan's client library over gRPC with TLS
    TitanGrpc,
    /// An OpenAI client by titan proxy on its own host
    OpenaiProxy,
    /// An OpenAI client that the coordinator redirects to the agent: HTTP/1.1 with TLS
    OpenaiRedirected,
    /// tonic's gRPC with TLS, as a user would write it
    Tonic,
    /// gRPC over HTTP/3: tonic-h3 and h3-quinn
    TonicH3,
    /// Server-sent events over HTTP/1.1 with TLS
    SseHttp1,
    /// Server-sent events over HTTP/2 with TLS
    SseHttp2,
    /// WebSocket over TLS
    WebSocket,
    /// Server-sent events over HTTP/2 with TLS through nginx
    Nginx,
    /// Server-sent events through the model gateway smg
    Smg,
}

impl Subject {
    /// As tables and plots name it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::TitanQuic => "Titan QUIC",
            Self::TitanQuicAgain => "Titan QUIC (again)",
            Self::TitanQuicPlain => "Titan QUIC, plain",
            Self::TitanAuto => "Titan (QUIC, else gRPC)",
            Self::TitanGrpc => "Titan gRPC",
            Self::OpenaiProxy => "OpenAI client by titan proxy",
            Self::OpenaiRedirected => "OpenAI client, redirected",
            Self::Tonic => "tonic gRPC",
            Self::TonicH3 => "gRPC over HTTP/3",
            Self::SseHttp1 => "SSE, HTTP/1.1",
            Self::SseHttp2 => "SSE, HTTP/2",
            Self::WebSocket => "WebSocket",
            Self::Nginx => "SSE via nginx",
            Self::Smg => "SSE via smg",
        }
    }

    /// As the command line names it.
    pub(crate) fn name(self) -> String {
        // Every variant has a name: none is skipped.
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it is another one under conditions of its own.
    pub(crate) fn is_variant(self) -> bool {
        matches!(self, Self::TitanQuicAgain | Self::TitanAuto)
    }

    /// Whether it is Titan, in any way.
    pub(crate) fn is_titan(self) -> bool {
        matches!(
            self,
            Self::TitanQuic | Self::TitanQuicAgain | Self::TitanQuicPlain | Self::TitanAuto | Self::TitanGrpc
        ) || self.is_openai()
    }

    /// Whether its client speaks the OpenAI API and knows nothing of Titan.
    pub(crate) fn is_openai(self) -> bool {
        matches!(self, Self::OpenaiProxy | Self::OpenaiRedirected)
    }

    /// Whether it needs UDP, so that TCP's congestion control is nothing to it.
    pub(crate) fn is_udp(self) -> bool {
        matches!(
            self,
            Self::TitanQuic | Self::TitanQuicAgain | Self::TitanQuicPlain | Self::OpenaiProxy | Self::TonicH3
        )
    }
}

/// The texts of one answer as they come: one stamp of the synthetic engine each, in order, none twice. Dropping it ends the answer.
/// It ends without an error only after the last token.
pub(crate) type Tokens = Pin<Box<dyn Stream<Item = anyhow::Result<String>> + Send>>;

/// A future of a [`Client`].
pub(crate) type Pending<'a, T> = Pin<Box<dyn Future<Output = anyhow::Result<T>> + Send + 'a>>;

/// An open connection, whatever its type.
pub(crate) type Held = Box<dyn Any + Send>;

/// An answer that has been asked for.
pub(crate) struct Answer {
    pub(crate) tokens: Tokens,
    /// Time that went by in finding the server, before anything was sent to it. `None` for subjects that do not look for it.
    pub(crate) routing: Option<Duration>,
}

/// One client of a subject, as a program of a user has it. A new one knows nothing of earlier ones: no connection, no TLS session.
pub(crate) trait Client: Send + Sync {
    /// Makes one more connection, without what earlier ones left, and gives it when a request could go out on it. It lives as long as
    /// what is given.
    fn connect(&self) -> Pending<'_, Held>;
    /// Asks for an answer of so many tokens, over the connection that there is, or a new one.
    fn ask(&self, tokens: u32) -> Pending<'_, Answer>;
    /// Closes the connection and keeps what helps to make the next one.
    fn disconnect(&self);
}
