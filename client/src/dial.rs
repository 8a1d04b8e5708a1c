//! Getting a request to an agent over one of the two wires.
//!
//! Connections race, the prompt does not. A request that may have gone out as early data over QUIC, without a sign of life from the
//! other end, is cancelled there before it goes out over gRPC, and carries the same nonce: the agent runs it once.

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
use tonic::{Request, Status, Streaming, transport::Channel};

use crate::{
    ClientError, WirePreference,
    agent::{Agent, watch_udp},
    error::{Progress, classify, not_connected},
};

/// What QUIC has left when gRPC was refused: two round trips to the other side of the earth, or one lost first packet
/// (RFC 9002 §6.2.2). An agent that answers neither is gone, and the coordinator may know another.
const ONLY_QUIC_TIMEOUT: Duration = Duration::from_secs(2);

/// An answer that has begun.
pub(crate) struct Started {
    pub(crate) stream: Answer,
    pub(crate) wire: Wire,
    /// The request went out before the handshake was complete.
    pub(crate) early: bool,
}

/// An answer as it comes.
pub(crate) struct Answer {
    messages: Streaming<StreamResponse>,
    /// Of gRPC. Once the last handle of a channel is gone, hyper takes its connection for idle, whatever still comes over it, and pings
    /// no more: an answer whose network vanished would never end.
    _channel: Option<Channel>,
}

impl Stream for Answer {
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
    pub(crate) async fn start(&self, agent: &Arc<Agent>, request: StreamRequest) -> Result<Started, ClientError> {
        match (self.preference, &agent.quic) {
            (WirePreference::Grpc, _) | (WirePreference::Auto, None) => over_grpc(agent, request).await,
            (WirePreference::Quic, Some(quic)) => over_quic(agent, quic, request).await,
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
        agent: &Arc<Agent>,
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
        agent: &Arc<Agent>,
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
        let mut last_wait = pin!(tokio::time::sleep(ONLY_QUIC_TIMEOUT));
        loop {
            tokio::select! {
                // In this order: a call that has just been sent over a complete connection must win over gRPC.
                biased;
                result = &mut call => return match result {
                    Err(ClientError::Unreachable { reason, .. }) => Err(Silence { reason, grpc: grpc_failed }),
                    result => Ok(result),
                },
                result = &mut connected => return match result {
                    Ok(()) => Ok(call.await),
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
                    Err(error) => {
                        grpc_failed = Some(error);
                        last_wait.as_mut().reset(tokio::time::Instant::now() + ONLY_QUIC_TIMEOUT);
                    }
                },
                () = &mut last_wait, if grpc_failed.is_some() => {
                    return Err(Silence { reason: "no answer over UDP".to_owned(), grpc: grpc_failed });
                }
            }
        }
    }
}

async fn over_quic(agent: &Agent, quic: &QuicChannel, request: StreamRequest) -> Result<Started, ClientError> {
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
            let stream = Answer { messages: response.into_inner(), _channel: None };
            Ok(Started { stream, wire: Wire::Quic, early })
        }
        Err(status) => Err(classify(&agent.place.agent_id, &status, Progress::Asked)),
    }
}

async fn over_grpc(agent: &Agent, request: StreamRequest) -> Result<Started, ClientError> {
    let channel = agent.grpc().await?;
    match AgentServiceClient::new(channel.clone()).stream_inference(request).await {
        Ok(response) => {
            let stream = Answer { messages: response.into_inner(), _channel: Some(channel) };
            Ok(Started { stream, wire: Wire::Http, early: false })
        }
        Err(status) => {
            agent.grpc_ended(&status);
            Err(classify(&agent.place.agent_id, &status, Progress::Asked))
        }
    }
}
