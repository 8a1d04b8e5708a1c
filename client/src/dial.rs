//! Getting a request to an agent over one of the two wires.
//!
//! Connections race, the prompt does not. A request that may have gone out as early data over QUIC, without a sign of life from the
//! other end, is cancelled there before it goes out over gRPC, and carries the same nonce: the agent runs it once.
//!
//! An agent of which nothing at all is heard is given up after [`FIRST_SIGN_TIME`], over both wires together, and a connection that has
//! gone silent after 3 s. Whether such an agent is tried again is not decided here.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::Stream;
use titan_proto::v1::{StreamRequest, StreamResponse, agent_service_client::AgentServiceClient};
use titan_transport::{EarlyDataSafe, QuicChannel, Wire};
use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use crate::{
    ClientError, Processed, WirePreference,
    connections::{AgentConnections, FIRST_SIGN_TIME, watch_udp},
    error::{BrokenBy, Progress, classify, not_connected},
};

/// An answer that has begun.
pub(crate) struct Started {
    pub(crate) stream: AnswerStream,
    pub(crate) wire: Wire,
    /// The request went out before the handshake was complete.
    pub(crate) early: bool,
}

/// The messages of an answer as they come.
pub(crate) struct AnswerStream {
    messages: Streaming<StreamResponse>,
    /// Of gRPC. Once the last handle of a channel is gone, hyper takes its connection for idle, whatever still comes over it, and pings
    /// no more: an answer whose network vanished would never end.
    _channel: Option<Channel>,
}

impl Stream for AnswerStream {
    type Item = Result<StreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.messages).poll_next(cx)
    }
}

/// Chooses the wire.
pub(crate) struct Dialer {
    preference: WirePreference,
    quic_timeout: Duration,
    fallbacks: AtomicU64,
}

/// QUIC has lost the race, or is out of it.
struct Silence {
    reason: String,
    /// gRPC was tried already, and does not connect either.
    grpc: Option<ClientError>,
}

impl Dialer {
    pub(crate) fn new(preference: WirePreference, quic_timeout: Duration) -> Self {
        Self { preference, quic_timeout, fallbacks: AtomicU64::new(0) }
    }

    /// How many requests went over gRPC because UDP did not answer.
    pub(crate) fn fallbacks(&self) -> u64 {
        self.fallbacks.load(Relaxed)
    }

    /// Gets `request` to `agent` and waits for its answer to begin.
    pub(crate) async fn start(
        &self,
        agent: &Arc<AgentConnections>,
        request: StreamRequest,
    ) -> Result<Started, ClientError> {
        match (self.preference, &agent.quic) {
            (WirePreference::Grpc, _) | (WirePreference::Auto, None) => over_grpc(agent, request).await,
            (WirePreference::Quic, Some(quic)) => only_quic(agent, quic, request).await,
            (WirePreference::Quic, None) => Err(ClientError::WireUnavailable {
                agent_id: agent.place.agent_id.clone(),
                wire: Wire::Quic,
                reason: "it offers none that this client speaks".to_owned(),
            }),
            (WirePreference::Auto, Some(quic)) if agent.try_udp(Instant::now()) => {
                self.race(agent, quic, request).await
            }
            (WirePreference::Auto, Some(_)) => {
                self.fallbacks.fetch_add(1, Relaxed);
                tracing::debug!(agent = %agent.place.agent_id, "UDP did not answer lately: gRPC at once");
                over_grpc(agent, request).await.inspect_err(|error| {
                    // It is the agent, then, not UDP.
                    if matches!(error, ClientError::Unreachable { .. }) {
                        agent.udp_answers();
                    }
                })
            }
        }
    }

    async fn race(
        &self,
        agent: &Arc<AgentConnections>,
        quic: &QuicChannel,
        request: StreamRequest,
    ) -> Result<Started, ClientError> {
        let silence = match self.quic_or_silence(agent, quic, request.clone()).await {
            Ok(result) => return result,
            Err(silence) => silence,
        };
        tracing::debug!(agent = %agent.place.agent_id, reason = %silence.reason, "falling back to gRPC");
        let result = match silence.grpc {
            Some(error) => Err(error),
            None => over_grpc(agent, request).await,
        };
        match result {
            Err(ClientError::Unreachable { agent_id, reason, gone }) => {
                let reason = format!("QUIC: {}; gRPC: {reason}", silence.reason);
                Err(ClientError::Unreachable { agent_id, reason, gone })
            }
            result => {
                self.fallbacks.fetch_add(1, Relaxed);
                agent.udp_is_silent(Instant::now());
                watch_udp(agent);
                result
            }
        }
    }

    /// Ok is how the request over QUIC went. On Err it is cancelled, if it had gone out at all.
    async fn quic_or_silence(
        &self,
        agent: &Arc<AgentConnections>,
        quic: &QuicChannel,
        request: StreamRequest,
    ) -> Result<Result<Started, ClientError>, Silence> {
        // Where a session can be resumed the call goes out at once, as early data; otherwise it waits for the handshake.
        let mut call = pin!(over_quic(agent, quic, request));
        // A sign of life from the other end: from then on the call stays on QUIC, however long the model takes.
        let mut connected = pin!(quic.connect());
        let mut grpc = pin!(async {
            tokio::time::sleep(self.quic_timeout).await;
            tracing::debug!(agent = %agent.place.agent_id, "no answer over UDP yet: trying gRPC too");
            agent.grpc().await.map(drop)
        });
        let mut grpc_failed = None;
        // gRPC is held to it by itself, from its own beginning.
        let mut nothing_heard = pin!(tokio::time::sleep(FIRST_SIGN_TIME));
        loop {
            tokio::select! {
                // In this order: a call that has just been sent over a complete connection must win over gRPC.
                biased;
                result = &mut call => return match result {
                    Err(ClientError::Unreachable { reason, .. }) => Err(Silence { reason, grpc: grpc_failed }),
                    result => Ok(result),
                },
                result = &mut connected => return match result {
                    Ok(()) => Ok(answered(agent, quic, call).await),
                    Err(error) => match not_connected(&agent.place.agent_id, &error) {
                        ClientError::Unreachable { reason, .. } => Err(Silence { reason, grpc: grpc_failed }),
                        // Falling back would hide it.
                        distrust => Ok(Err(distrust)),
                    },
                },
                result = &mut grpc, if grpc_failed.is_none() => match result {
                    Ok(()) => {
                        let reason = format!("no answer within {} ms over UDP", self.quic_timeout.as_millis());
                        return Err(Silence { reason, grpc: None });
                    }
                    Err(error) => grpc_failed = Some(error),
                },
                () = &mut nothing_heard, if grpc_failed.is_some() => {
                    return Err(Silence { reason: no_answer(quic), grpc: grpc_failed });
                }
            }
        }
    }
}

async fn over_quic(
    agent: &AgentConnections,
    quic: &QuicChannel,
    request: StreamRequest,
) -> Result<Started, ClientError> {
    let mut request = Request::new(request);
    // It carries a nonce.
    request.extensions_mut().insert(EarlyDataSafe);
    let before = quic.stats();
    match AgentServiceClient::new(quic.clone()).stream_inference(request).await {
        Ok(response) => {
            let after = quic.stats();
            // The counts are the channel's. They move between these lines for calls made before the handshake is complete, and of
            // those all are early, or all were refused.
            let early =
                after.early_calls > before.early_calls && after.early_data_rejected == before.early_data_rejected;
            let stream = AnswerStream { messages: response.into_inner(), _channel: None };
            Ok(Started { stream, wire: Wire::Quic, early })
        }
        Err(status) => Err(classify(&agent.place.agent_id, &status, Progress::Asked)),
    }
}

/// Over QUIC or not at all.
async fn only_quic(
    agent: &AgentConnections,
    quic: &QuicChannel,
    request: StreamRequest,
) -> Result<Started, ClientError> {
    let mut call = pin!(over_quic(agent, quic, request));
    tokio::select! {
        biased;
        result = &mut call => return result,
        connected = timeout(FIRST_SIGN_TIME, quic.connect()) => {
            if connected.is_err() {
                // The handshake goes on, and the next try finds what has come of it.
                let agent_id = agent.place.agent_id.clone();
                return Err(ClientError::Unreachable { agent_id, reason: no_answer(quic), gone: false });
            }
        }
    }
    answered(agent, quic, call).await
}

/// Waits for the answer to a call over a connection that is up, for as long as anything comes over it.
async fn answered(
    agent: &AgentConnections,
    quic: &QuicChannel,
    call: Pin<&mut impl Future<Output = Result<Started, ClientError>>>,
) -> Result<Started, ClientError> {
    tokio::select! {
        biased;
        result = call => result,
        () = quic.silent() => Err(ClientError::Broken {
            agent_id: agent.place.agent_id.clone(),
            code: Code::Unavailable,
            message: "nothing comes over its connection any more".to_owned(),
            processed: Processed::Maybe,
            by: BrokenBy::Silence,
        }),
    }
}

fn no_answer(quic: &QuicChannel) -> String {
    format!("no answer from {} within {FIRST_SIGN_TIME:?} over UDP", quic.address())
}

async fn over_grpc(agent: &AgentConnections, request: StreamRequest) -> Result<Started, ClientError> {
    loop {
        let (channel, is_new) = agent.grpc().await?;
        match AgentServiceClient::new(channel.clone()).stream_inference(request.clone()).await {
            Ok(response) => {
                let stream = AnswerStream { messages: response.into_inner(), _channel: Some(channel) };
                return Ok(Started { stream, wire: Wire::Http, early: false });
            }
            Err(status) => {
                agent.grpc_ended(&status);
                if is_new || !AgentConnections::grpc_had_ended(&status) {
                    return Err(classify(&agent.place.agent_id, &status, Progress::Asked));
                }
            }
        }
    }
}
