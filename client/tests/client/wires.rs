//! Which wire a request takes, and that it takes one only.

use std::time::Duration;

use titan_client::{
    ClientError, Feature, Message, Processed, Prompt, Reasoning, TitanClient, Tool, ToolChoice, Wire, WirePreference,
};
use titan_proto::{digest, rest::GrpcTls};
use tokio::net::UdpSocket;

use crate::{MODEL, TestAgent, TestCoordinator, World, builder, certs, eventually, refused, relay::Relay, say, soon};

#[tokio::test]
async fn quic_is_preferred_where_both_work() {
    let world = World::new().await;
    let (text, generation) = world.say("grüße, 世界 🌍 ́e").await;
    assert_eq!(text, "grüße, 世界 🌍 ́e");
    assert_eq!((generation.wire(), generation.endpoint()), (Wire::Quic, world.agent.quic.to_string().as_str()));
    assert!(generation.rtt().is_some() && generation.ttft().is_some());
    let usage = generation.usage().unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, 4));
    assert_eq!((usage.tokens_per_second, usage.ttft_ms), (12.5, 1.25));
    assert_eq!(usage.finish_reason, "stop");
    assert_eq!(world.client.stats().grpc_fallbacks, 0);
}

#[tokio::test]
async fn a_forced_wire_is_the_only_one_used() {
    let agent = TestAgent::start("agent-1").await;
    let coordinator = TestCoordinator::start([agent.place()]).await;
    for (preference, wire) in [(WirePreference::Grpc, Wire::Http), (WirePreference::Quic, Wire::Quic)] {
        let builder = builder(&coordinator).wire(preference);
        let client = builder.build().unwrap();
        let (text, generation) = say(&client, "one two").await;
        assert_eq!((text.as_str(), generation.wire()), ("one two", wire));
        assert_eq!(agent.last_run(|run| run.wire), wire);
        assert_eq!((client.stats().quic.calls > 0, client.stats().grpc_fallbacks), (wire == Wire::Quic, 0));
    }
}

#[tokio::test]
async fn without_a_certificate_requests_go_over_grpc() {
    let agent = TestAgent::start("agent-1").await;
    let coordinator = TestCoordinator::start([agent.place()]).await;
    let client = TitanClient::builder(coordinator.url()).build().unwrap();
    let (text, generation) = say(&client, "one").await;
    assert_eq!((text.as_str(), generation.wire(), generation.rtt()), ("one", Wire::Http, None));
}

#[tokio::test]
async fn grpc_speaks_tls_where_the_coordinator_says_so() {
    let agent = TestAgent::start("agent-1").await;
    for tls in [GrpcTls::Server, GrpcTls::Mutual] {
        let coordinator = TestCoordinator::start([agent.place_with(tls, None)]).await;
        let client = builder(&coordinator).build().unwrap();
        assert_eq!(say(&client, "one").await.0, "one");

        let stranger = TitanClient::builder(coordinator.url()).tls(certs::stranger()).build().unwrap();
        let error = refused(&stranger, "one").await;
        assert!(matches!(error, ClientError::Certificate { .. }), "{error:?}");
        assert!(!error.retryable() && error.processed() == Processed::No);

        let bare = TitanClient::builder(coordinator.url()).build().unwrap();
        let error = refused(&bare, "one").await;
        assert!(matches!(error, ClientError::WireUnavailable { wire: Wire::Http, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn where_udp_gets_no_answer_grpc_takes_over_and_the_prompt_runs_once() {
    let agent = TestAgent::start("agent-1").await;
    // Swallows everything, so no ICMP message says that nobody is there.
    let hole = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let world = World::of(agent).await;
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(hole.local_addr().unwrap()))]);
    let (text, generation) = world.say("one two").await;
    assert_eq!((text.as_str(), generation.wire()), ("one two", Wire::Http));
    assert_eq!((world.agent.runs(), world.client.stats().grpc_fallbacks), (1, 1));
    let (_, second) = world.say("three").await;
    assert_eq!((second.wire(), second.routed()), (Wire::Http, false));
    assert_eq!((world.agent.runs(), world.client.stats().grpc_fallbacks), (2, 2));
}

#[tokio::test]
async fn a_closed_udp_port_is_not_waited_for() {
    let world = World::new().await;
    let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(gone))]);
    let client = builder(&world.coordinator);
    // Without the ICMP message this would never fall back.
    let client = client.quic_timeout(Duration::from_secs(3600)).build().unwrap();
    let (_, generation) = say(&client, "one").await;
    assert_eq!((generation.wire(), world.agent.runs()), (Wire::Http, 1));
}

#[tokio::test]
async fn forced_quic_never_falls_back() {
    let world = World::new().await;
    let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let builder = || crate::builder(&world.coordinator).wire(WirePreference::Quic).deadline(Duration::from_secs(1));
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(gone))]);
    let error = refused(&builder().build().unwrap(), "one").await;
    let ClientError::TimedOut { last: Some(last), .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**last, ClientError::Unreachable { gone: true, .. }), "{error:?}");
    world.coordinator.name([world.agent.place_with(GrpcTls::None, None)]);
    let error = refused(&builder().build().unwrap(), "one").await;
    assert!(matches!(error, ClientError::WireUnavailable { wire: Wire::Quic, .. }), "{error:?}");
    assert_eq!(world.agent.runs(), 0);
}

#[tokio::test]
async fn udp_that_answers_again_is_used_again() {
    let world = World::new().await;
    let relay = Relay::to(world.agent.quic).await;
    relay.pass(false, false);
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    assert_eq!(world.say("one").await.1.wire(), Wire::Http);
    // The attempt that lost the race goes on.
    relay.pass(true, true);
    eventually("a handshake", || world.client.stats().quic.full_handshakes == 1).await;
    let again = async {
        while world.say("two").await.1.wire() != Wire::Quic {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(again).await;
}

#[tokio::test]
async fn early_data_into_the_void_runs_once_over_grpc() {
    let world = World::new().await;
    let relay = Relay::to(world.agent.quic).await;
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    assert_eq!(world.say("one").await.1.wire(), Wire::Quic);
    world.reconnect().await;
    relay.pass(false, false);
    let (text, generation) = world.say("two three").await;
    assert_eq!((text.as_str(), generation.wire(), generation.early_data()), ("two three", Wire::Http, false));
    assert_eq!(world.agent.runs(), 2);
}

#[tokio::test]
async fn early_data_whose_answer_is_lost_runs_once_and_is_resumed_over_grpc() {
    let world = World::new().await;
    let relay = Relay::to(world.agent.quic).await;
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    assert_eq!(world.say("one").await.1.wire(), Wire::Quic);
    world.reconnect().await;
    relay.pass(true, false);
    let (text, generation) = world.say("two three").await;
    assert_eq!((text.as_str(), generation.wire()), ("two three", Wire::Http));
    assert_eq!((world.agent.runs(), world.client.stats().resumed), (2, 1));
    assert!(world.agent.last_run(|run| run.early));
}

#[tokio::test]
async fn early_data_whose_answer_is_lost_does_not_run_twice() {
    let mut world = World::new().await;
    let builder = builder(&world.coordinator);
    world.client = builder.without(Feature::Resume).build().unwrap();
    let relay = Relay::to(world.agent.quic).await;
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    assert_eq!(world.say("one").await.1.wire(), Wire::Quic);
    world.reconnect().await;
    relay.pass(true, false);
    let error = world.refused("two").await;
    assert!(matches!(error, ClientError::AlreadyRan { .. }), "{error:?}");
    assert_eq!((error.processed(), error.retryable()), (Processed::Yes, true));
    assert_eq!(world.agent.runs(), 2);
    assert!(world.agent.last_run(|run| run.early));
}

#[tokio::test]
async fn refused_early_data_is_sent_again_and_runs_once() {
    let mut world = World::new().await;
    world.say("one").await;
    world.reconnect().await;
    // The same agent, restarted: it has forgotten all sessions.
    let (grpc, quic) = (world.agent.grpc, world.agent.quic);
    world.agent.kill();
    world.agent = TestAgent::start_at("agent-1", grpc, quic).await;
    let (text, generation) = world.say("two three").await;
    assert_eq!((text.as_str(), generation.wire(), generation.early_data()), ("two three", Wire::Quic, false));
    assert_eq!(world.agent.runs(), 1);
    let stats = world.client.stats();
    assert_eq!((stats.rest_calls, stats.quic.early_data_rejected, stats.quic.full_handshakes), (1, 1, 2));
}

#[tokio::test]
async fn an_agent_of_another_ca_is_not_trusted_over_quic() {
    let world = World::new().await;
    let trusting_others = titan_client::TlsMaterial { roots: certs::stranger().roots, ..certs::client() };
    for material in [trusting_others, certs::stranger()] {
        let client = TitanClient::builder(world.coordinator.url()).tls(material).build().unwrap();
        let error = refused(&client, "one").await;
        assert!(matches!(error, ClientError::Certificate { .. }), "{error:?}");
        assert_eq!((error.processed(), error.retryable()), (Processed::No, false));
    }
    assert_eq!(world.agent.runs(), 0, "and it did not fall back to plain text");
}

#[tokio::test]
async fn a_client_of_another_ca_is_not_trusted_by_the_agent() {
    let world = World::new().await;
    // It trusts the agent; the agent does not trust it.
    let material = titan_client::TlsMaterial { roots: certs::client().roots, ..certs::stranger() };
    let client = TitanClient::builder(world.coordinator.url()).tls(material).build().unwrap();
    let error = soon(client.generate(Prompt::new(MODEL, "one"))).await.unwrap_err();
    assert!(matches!(error, ClientError::Certificate { .. }), "{error:?}");
    assert_eq!(world.agent.runs(), 0);
}

#[tokio::test]
async fn a_conversation_with_a_tool_goes_over_both_wires_and_the_coordinator_gets_digests() {
    for preference in [WirePreference::Quic, WirePreference::Grpc] {
        let mut world = World::new().await;
        let builder = TitanClient::builder(world.coordinator.url()).tls(certs::client());
        world.client = builder.wire(preference).client_id("me").build().unwrap();
        let mut messages = vec![Message::system("Be brief."), Message::user("hm {\"a\": 1}")];
        let tools = vec![Tool { name: "f".into(), ..Tool::default() }];
        let prompt = Prompt {
            tools: tools.clone(),
            tool_choice: ToolChoice::Named("f".into()),
            reasoning: Reasoning { enabled: Some(true), ..Reasoning::default() },
            logprobs: Some(2),
            ..Prompt::conversation(MODEL, messages.clone())
        };
        let mut generation = soon(world.client.generate(prompt)).await.unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = soon(generation.next_piece()).await {
            pieces.push(piece.unwrap());
        }
        assert_eq!((pieces.len(), pieces[0].reasoning.as_str(), pieces[1].tool_calls.len()), (3, "hm ", 1));
        assert!(generation.ttft().is_some(), "reasoning is the first that is seen");
        let sent = world.agent.last_run(|run| run.request.clone());
        assert_eq!((&sent.messages, &sent.tools, sent.prompt.as_str()), (&messages, &tools, ""));
        assert_eq!((sent.logprobs, sent.top_logprobs, sent.tool_choice.unwrap().name.as_str()), (true, 2, "f"));
        let question = world.coordinator.question();
        let digests = digest::prefixes("me", MODEL, &tools, &messages);
        let hex: Vec<_> = digests.iter().copied().map(digest::to_hex).collect();
        assert_eq!(question["prefix_digests"], serde_json::json!(hex));
        assert!(!question.to_string().contains("brief"), "nothing of the conversation goes to the coordinator");

        // The next turn begins with all of this one.
        messages.push(generation.message());
        messages.push(Message::tool("c1", "14"));
        world.client.forget();
        let next = Prompt { tools, ..Prompt::conversation(MODEL, messages) };
        soon(world.client.generate(next)).await.unwrap();
        let question = world.coordinator.question();
        assert_eq!(question["prefix_digests"].as_array().unwrap()[..2], serde_json::json!(hex).as_array().unwrap()[..]);
        assert_eq!(question["prefix_digests"].as_array().unwrap().len(), 4);
    }
}
