//! Conversations with the real model, over the wires and between agents.

use futures_util::StreamExt as _;
use titan_client::{Message, Prompt, TitanClient, Tool, ToolChoice, WirePreference};

use crate::{
    parts::coordinator,
    support::{Process, User},
};

const MODEL: &str = "smollm2";
const IDS: [&str; 2] = ["agent-1", "agent-2"];

/// An agent with the default model that has registered. `more`: further arguments.
fn agent(user: &User, id: &str, coordinator: &str, more: &[&str]) -> Process {
    let model = format!("{MODEL}={}", titan_agent::engine::fetch::test_model().unwrap().display());
    let fixed = ["agent", "--cpu", "--engines", "1", "--agent-port", "0", "--model", &model];
    let mut command = user.titan(fixed.into_iter().chain(more.iter().copied()));
    command.env("AGENT_ID", id).env("COORDINATOR_ENDPOINT", coordinator).env("HEARTBEAT_INTERVAL", "1");
    let (mut process, _) = Process::spawn(command, user.dir.path());
    process.logged("registered");
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_turns_come_back_to_their_agent_and_cost_what_is_new() {
    let user = User::new();
    let (_coord, rest, grpc) = coordinator(&user);
    let _agents = IDS.map(|id| agent(&user, id, &grpc, &[]));
    let mut messages = vec![Message::system("You are a helpful assistant.")];
    let mut first_agent = String::new();
    let mut first_tokens = Vec::new();
    for turn in 1..=10 {
        // Another client each turn: neither a kept route nor a connection brings it back.
        let client = TitanClient::builder(&rest).tls(user.client_tls()).wire(WirePreference::Quic).client_id("alice");
        let client = client.build().unwrap();
        messages.push(Message::user(format!("Question {turn}: tell me about the number {turn}.")));
        let prompt = Prompt { max_tokens: 16, temperature: 0.0, ..Prompt::conversation(MODEL, messages.clone()) };
        let mut generation = client.generate(prompt).await.unwrap();
        while let Some(piece) = generation.next().await {
            piece.unwrap();
        }
        let usage = generation.usage().unwrap().clone();
        let new = usage.prompt_tokens - usage.cached_tokens;
        println!(
            "turn {turn}: {}, {} prompt tokens, {new} computed anew, first token after {:.0} ms",
            generation.agent_id(),
            usage.prompt_tokens,
            usage.ttft_ms
        );
        first_tokens.push(usage.ttft_ms);
        if turn == 1 {
            generation.agent_id().clone_into(&mut first_agent);
        } else {
            assert_eq!(generation.agent_id(), first_agent, "turn {turn}");
            assert!(new <= 40, "turn {turn} computes {new} tokens of {} anew", usage.prompt_tokens);
        }
        messages.push(generation.message());
        client.close().await;
        // The agent's next report says what it holds.
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    }
    println!("turn 10 against turn 2: {:.2}", first_tokens[9] / first_tokens[1]);
}

const HERMES: &str = "{% if tools %}<|im_start|>system\nYou can call these functions:\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}\
Write a call as <tool_call>{\"name\": ..., \"arguments\": ...}</tool_call>.<|im_end|>\n{% endif %}\
{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}\
{% for call in message.tool_calls %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn weather() -> Tool {
    Tool {
        name: "weather".into(),
        description: "Tells the weather of a city.".into(),
        parameters: r#"{"type":"object","properties":{"city":{"type":"string","maxLength":24},"days":{"type":"integer","minimum":1,"maximum":9}},"required":["city","days"],"additionalProperties":false}"#.into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_comes_back_whole_also_when_its_agent_dies_half_way() {
    let user = User::new();
    let template = user.dir.path().join("hermes.jinja");
    std::fs::write(&template, HERMES).unwrap();
    let more = ["--chat-template", template.to_str().unwrap()];
    let (_coord, rest, grpc) = coordinator(&user);
    let mut agents = IDS.map(|id| agent(&user, id, &grpc, &more));
    let client = TitanClient::builder(&rest).tls(user.client_tls()).wire(WirePreference::Quic).build().unwrap();
    let question = Message::user("What will the weather be in Oslo?");
    let prompt = |seed| Prompt {
        max_tokens: 80,
        temperature: 0.8,
        tools: vec![weather()],
        tool_choice: ToolChoice::Required,
        sampling: titan_client::Sampling { seed: Some(seed), ..Default::default() },
        ..Prompt::conversation(MODEL, vec![question.clone()])
    };
    for kill in [false, true] {
        let mut generation = client.generate(prompt(7)).await.unwrap();
        let first = IDS.iter().position(|id| *id == generation.agent_id()).unwrap();
        let mut pieces = 0;
        while let Some(piece) = generation.next_piece().await {
            piece.unwrap();
            pieces += 1;
            let arguments = generation.tool_calls().first().map_or(0, |call| call.arguments.len());
            if kill && arguments > 3 && generation.moved() == 0 {
                agents[first].kill();
            }
        }
        let calls = generation.tool_calls().to_vec();
        println!("{pieces} pieces, moved {} times: {}({})", generation.moved(), calls[0].name, calls[0].arguments);
        assert_eq!(generation.moved(), u32::from(kill));
        assert_eq!((calls.len(), calls[0].name.as_str()), (1, "weather"));
        let arguments: serde_json::Value = serde_json::from_str(&calls[0].arguments).unwrap();
        assert!(arguments["city"].is_string() && arguments["days"].is_i64(), "{arguments}");
        assert_eq!(generation.usage().unwrap().finish_reason, "tool_calls");
        assert!(!calls[0].id.is_empty() && generation.text().is_empty());
        if !kill {
            // Its result is used: the conversation goes on.
            let mut messages = vec![question.clone(), generation.message()];
            messages.push(Message { name: "weather".into(), ..Message::tool(&calls[0].id, "Snow, -4 degrees.") });
            let answer = Prompt { max_tokens: 12, tools: vec![weather()], ..Prompt::conversation(MODEL, messages) };
            let mut generation = client.generate(answer).await.unwrap();
            while let Some(piece) = generation.next().await {
                piece.unwrap();
            }
            assert!(!generation.text().is_empty() || !generation.tool_calls().is_empty());
        }
    }
    client.close().await;
}
