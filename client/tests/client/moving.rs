//! Answers that go on at another agent.

use std::time::Duration;

use futures_util::StreamExt as _;
use titan_client::{
    Builder, ClientError, Feature, Generation, Message, Processed, Prompt, Reasoning, Tool, ToolCall, ToolChoice,
    WirePreference,
};
use tonic::Code;

use crate::{MODEL, TestAgent, World, builder, coordinator::Place, soon};

/// Its answer does not end unless it is continued.
const HANGS: &str = "then hang";

/// Two agents, of which the first one is named first, and a client as `change` wants it.
async fn world(change: impl FnOnce(Builder) -> Builder) -> (World, TestAgent) {
    let mut world = World::new().await;
    world.client = change(builder(&world.coordinator)).build().unwrap();
    (world, TestAgent::start("agent-2").await)
}

/// An answer to `prompt` of which so many words have come.
async fn begun(world: &World, prompt: Prompt, words: usize) -> (String, Generation) {
    let mut generation = soon(world.client.generate(prompt)).await.unwrap();
    let mut text = String::new();
    for _ in 0..words {
        text.push_str(&soon(generation.next()).await.unwrap().unwrap());
    }
    (text, generation)
}

async fn rest(generation: &mut Generation) -> Result<String, ClientError> {
    let mut text = String::new();
    while let Some(piece) = soon(generation.next()).await {
        text.push_str(&piece?);
    }
    Ok(text)
}

#[tokio::test]
async fn an_answer_goes_on_at_another_agent_when_its_own_is_killed() {
    for preference in [WirePreference::Quic, WirePreference::Grpc, WirePreference::Auto] {
        let (mut world, other) = world(|builder| builder.wire(preference)).await;
        let prompt = Prompt { max_tokens: 10, ..Prompt::new(MODEL, HANGS) };
        let (mut text, mut generation) = begun(&world, prompt, 1).await;
        world.coordinator.name([other.place()]);
        world.agent.kill();
        text.push_str(&rest(&mut generation).await.unwrap());
        assert_eq!(text, HANGS);
        assert_eq!((generation.moved(), generation.agent_id()), (1, "agent-2"));
        assert_eq!(generation.usage().unwrap().completion_tokens, 2);
        assert_eq!((world.client.stats().moved, other.runs()), (1, 1));

        let come = generation.moved_at()[0];
        let (continuation, left) =
            other.last_run(|run| (run.request.continuation.clone().unwrap(), run.request.max_tokens));
        assert_eq!(continuation.token_ids, (0..come as u32).collect::<Vec<_>>());
        assert_eq!((continuation.completion_tokens as u64, left as u64), (come, 10 - come));
        assert!(HANGS.starts_with(&continuation.text));
        let question = world.coordinator.question();
        assert_eq!(question["parameters"]["exclude_agents"], "agent-1");
        assert!(!question.to_string().contains(HANGS), "neither prompt nor text goes to the coordinator");

        // Further requests go there too.
        let (_, next) = world.say("one").await;
        assert_eq!((next.agent_id(), next.routed()), ("agent-2", false));
    }
}

/// A demanded call, thought about before, whose arguments are `words`.
fn calling(words: &str) -> Prompt {
    Prompt {
        tools: vec![Tool { name: "f".into(), ..Tool::default() }],
        tool_choice: ToolChoice::Required,
        reasoning: Reasoning { enabled: Some(true), ..Reasoning::default() },
        ..Prompt::conversation(MODEL, [Message::user(words)])
    }
}

#[tokio::test]
async fn reasoning_and_half_a_tool_call_go_on_at_another_agent() {
    const WORDS: &str = "hm {\"a\": 1 }";
    for preference in [WirePreference::Quic, WirePreference::Grpc] {
        // While it thinks, and in the middle of the call.
        for come in [1, 2, 3] {
            let (mut world, other) = world(|builder| builder.wire(preference)).await;
            world.agent.pause_after(come);
            let mut generation = soon(world.client.generate(calling(WORDS))).await.unwrap();
            for _ in 0..come {
                soon(generation.next_piece()).await.unwrap().unwrap();
            }
            world.coordinator.name([other.place()]);
            world.agent.kill();
            while let Some(piece) = soon(generation.next_piece()).await {
                assert_eq!(piece.unwrap().text, "");
            }
            assert_eq!((generation.reasoning(), generation.text(), generation.moved()), ("hm ", "", 1));
            let call = ToolCall { id: "c1".into(), name: "f".into(), arguments: "{\"a\": 1 }".into() };
            assert_eq!(generation.tool_calls(), [call]);
            assert_eq!(generation.message().tool_calls, generation.tool_calls());
            let continuation = other.last_run(|run| run.request.continuation.clone().unwrap());
            assert_eq!((continuation.reasoning.as_str(), continuation.text.as_str()), ("hm ", ""));
            assert_eq!(continuation.token_ids, (0..come as u32).collect::<Vec<_>>());
            assert_eq!(continuation.tool_calls.len(), usize::from(come > 1));
        }
    }
}

#[tokio::test]
async fn an_answer_goes_on_with_the_same_model_only() {
    let (mut world, other) = world(|builder| builder).await;
    let with_digest = |agent: &TestAgent, digest: &str| Place { model_digest: Some(digest.into()), ..agent.place() };
    world.coordinator.name([with_digest(&world.agent, "d1")]);
    let (mut text, mut generation) = begun(&world, Prompt::new(MODEL, HANGS), 1).await;
    assert_eq!(world.coordinator.question()["model_digest"], serde_json::Value::Null, "any model may begin");
    world.coordinator.name([with_digest(&other, "d1")]);
    world.agent.kill();
    text.push_str(&rest(&mut generation).await.unwrap());
    assert_eq!((text.as_str(), generation.moved()), (HANGS, 1));
    assert_eq!(world.coordinator.question()["model_digest"], "d1");
    assert_eq!(other.last_run(|run| run.request.model_digest.clone()), "d1");
}

#[tokio::test]
async fn an_answer_is_not_continued_by_another_model() {
    let (mut world, other) = world(|builder| builder).await;
    let with_digest = |agent: &TestAgent, digest: &str| Place { model_digest: Some(digest.into()), ..agent.place() };
    world.coordinator.name([with_digest(&world.agent, "d1")]);
    let (_, mut generation) = begun(&world, Prompt::new(MODEL, HANGS), 1).await;
    world.coordinator.name([with_digest(&other, "d2")]);
    world.agent.kill();
    let error = rest(&mut generation).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("the digest d2, and the answer began with d1: another model"), "{said}");
    assert_eq!((other.runs(), error.processed()), (0, Processed::Yes));
}

#[tokio::test]
async fn an_agent_that_kept_nothing_or_failed_is_left_for_another() {
    let (world, other) = world(|builder| builder).await;
    let (mut text, mut generation) = begun(&world, Prompt::new(MODEL, HANGS), 1).await;
    world.coordinator.name([other.place()]);
    world.agent.forget();
    world.client.disconnect();
    text.push_str(&rest(&mut generation).await.unwrap());
    assert_eq!((text.as_str(), generation.moved(), generation.resumed()), (HANGS, 1, 0));

    world.client.forget();
    world.coordinator.name([world.agent.place(), other.place()]);
    let (mut text, mut generation) = begun(&world, Prompt::new(MODEL, "then fail"), 1).await;
    text.push_str(&rest(&mut generation).await.unwrap());
    assert_eq!((text.as_str(), generation.moved(), generation.agent_id()), ("then fail", 1, "agent-2"));
}

#[tokio::test]
async fn an_answer_moves_only_so_often() {
    let (world, other) = world(|builder| builder).await;
    let (third, fourth) = (TestAgent::start("agent-3").await, TestAgent::start("agent-4").await);
    let all = [&world.agent, &other, &third, &fourth];
    world.coordinator.choose(all.map(TestAgent::place));
    let (_, mut generation) = begun(&world, Prompt::new(MODEL, "always fail"), 1).await;
    let error = rest(&mut generation).await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { code: Code::Internal, .. }), "{error:?}");
    assert_eq!(all.map(TestAgent::runs), [1; 4], "where it began, and three others");
    let question = world.coordinator.question();
    assert_eq!(question["parameters"]["exclude_agents"], "agent-1,agent-2,agent-3", "none is asked twice");
}

#[tokio::test]
async fn without_the_feature_a_lost_agent_is_an_error() {
    let (mut world, other) = world(|builder| builder.without(Feature::Move)).await;
    let (_, mut generation) = begun(&world, Prompt::new(MODEL, HANGS), 1).await;
    assert!(!world.agent.last_run(|run| run.request.want_token_ids));
    world.coordinator.name([other.place()]);
    world.agent.kill();
    let error = rest(&mut generation).await.unwrap_err();
    assert_eq!((error.processed(), error.retryable(), other.runs()), (Processed::Yes, true, 0));
}

#[tokio::test]
async fn an_agent_that_cannot_continue_is_an_error_that_says_why() {
    let (mut world, other) = world(|builder| builder).await;
    let (_, mut generation) = begun(&world, Prompt::new(MODEL, HANGS), 1).await;
    world.coordinator.name([other.place()]);
    other.refuse(tonic::Status::invalid_argument("the answer cannot be continued"));
    world.agent.kill();
    let error = rest(&mut generation).await.unwrap_err();
    assert!(error.to_string().contains("the answer cannot be continued"), "{error}");
    assert!(matches!(error, ClientError::Broken { processed: Processed::Yes, .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_else_is_there() {
    let (mut world, _) = world(|builder| builder.deadline(Duration::from_secs(2))).await;
    let (_, mut generation) = begun(&world, Prompt::new(MODEL, HANGS), 1).await;
    world.coordinator.name([]);
    world.agent.kill();
    let error = rest(&mut generation).await.unwrap_err();
    assert!(error.to_string().contains("no_agents"), "{error}");
}
