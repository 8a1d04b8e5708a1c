//! Conversations and tool calls through coordinator and agents, each a process of its own.

use titan_client::{
    Feature, Generation, Message, Prompt, Reasoning, Sampling, TitanClient, Tool, ToolCall, ToolChoice, WirePreference,
};

use crate::{
    parts::coordinator,
    support::{Process, User, stderr, stdout, synthetic_text},
};

const TOKENS: u32 = 60;
const IDS: [&str; 2] = ["agent-1", "agent-2"];

/// An agent that has registered.
fn agent(user: &User, id: &str, coordinator: &str) -> Process {
    let fixed = ["agent", "--engine", "synthetic", "--rate", "100", "--agent-port", "0"];
    let mut command = user.titan(fixed);
    command.env("AGENT_ID", id).env("COORDINATOR_ENDPOINT", coordinator);
    let (mut process, _) = Process::spawn(command, user.dir.path());
    process.logged("registered");
    process
}

/// A call that is thought about before.
fn calling() -> Prompt {
    Prompt {
        max_tokens: TOKENS,
        tools: vec![Tool { name: "weather".into(), ..Tool::default() }],
        tool_choice: ToolChoice::Required,
        reasoning: Reasoning { enabled: Some(true), ..Reasoning::default() },
        ..Prompt::conversation("synthetic", [Message::system("Be brief."), Message::user("Is it warm?")])
    }
}

async fn read(generation: &mut Generation, mut after: impl FnMut(usize)) -> (String, Vec<ToolCall>) {
    let mut pieces = 0;
    while let Some(piece) = generation.next_piece().await {
        assert_eq!(piece.unwrap().text, "");
        pieces += 1;
        after(pieces);
    }
    (generation.reasoning().to_owned(), generation.tool_calls().to_vec())
}

#[tokio::test]
async fn a_tool_call_survives_the_death_of_its_agent_and_the_loss_of_its_connection() {
    let user = User::new();
    let (_coord, rest, grpc) = coordinator(&user);
    let mut agents = IDS.map(|id| agent(&user, id, &grpc));
    let mut whole = None;
    for preference in [WirePreference::Quic, WirePreference::Grpc] {
        let client = TitanClient::builder(&rest).tls(user.client_tls()).wire(preference).build().unwrap();
        let mut generation = client.generate(calling()).await.unwrap();
        let answer = read(&mut generation, |_| ()).await;
        let arguments: serde_json::Value = serde_json::from_str(&answer.1[0].arguments).unwrap();
        assert!(arguments["said"].as_str().unwrap().contains("00000030 tok"));
        let whole = whole.get_or_insert(answer);

        // While it thinks, and within the arguments.
        for kill_after in [3, 30] {
            let mut generation = client.generate(calling()).await.unwrap();
            let killed = IDS.iter().position(|id| *id == generation.agent_id()).unwrap();
            let moved = read(&mut generation, |pieces| {
                if pieces == kill_after {
                    agents[killed].kill();
                }
            })
            .await;
            assert_eq!((&moved, generation.moved()), (&*whole, 1), "{preference:?}, {kill_after}");
            let usage = generation.usage().unwrap();
            assert_eq!((usage.finish_reason.as_str(), usage.completion_tokens), ("tool_calls", TOKENS));
            agents[killed] = agent(&user, IDS[killed], &grpc);
        }
        if preference == WirePreference::Quic {
            let mut generation = client.generate(calling()).await.unwrap();
            let resumed = read(&mut generation, |pieces| {
                if pieces == 30 {
                    client.disconnect();
                }
            })
            .await;
            assert_eq!((&resumed, generation.resumed(), generation.moved()), (&*whole, 1, 0));
        }
        client.close().await;
    }
}

#[tokio::test]
async fn a_stop_text_across_the_cut_is_found_by_the_next_agent() {
    let user = User::new();
    let (_coord, rest, grpc) = coordinator(&user);
    let mut agents = IDS.map(|id| agent(&user, id, &grpc));
    let client = TitanClient::builder(&rest).tls(user.client_tls()).without(Feature::PrefillAhead).build().unwrap();
    // It begins with token 30, behind which the agent dies.
    let sampling = Sampling { stop: vec!["00000030 tok 00000031 tok 00000032".into()], ..Sampling::default() };
    let prompt = Prompt { max_tokens: TOKENS, sampling, ..Prompt::conversation("synthetic", [Message::user("hello")]) };
    let mut generation = client.generate(prompt).await.unwrap();
    let killed = IDS.iter().position(|id| *id == generation.agent_id()).unwrap();
    let mut pieces = 0;
    while let Some(piece) = generation.next_piece().await {
        piece.unwrap();
        pieces += 1;
        if pieces == 30 {
            // Two tokens more, which show nothing.
            tokio::time::sleep(std::time::Duration::from_millis(15)).await;
            agents[killed].kill();
        }
    }
    assert_eq!((generation.text(), generation.moved()), (synthetic_text(30).as_str(), 1));
    let usage = generation.usage().unwrap();
    assert_eq!((usage.finish_reason.as_str(), usage.completion_tokens), ("stop", 33));
}

#[test]
fn a_system_message_and_a_schema_are_asked_for_by_flags() {
    let user = User::new();
    let (_coord, rest, grpc) = coordinator(&user);
    let _agent = agent(&user, IDS[0], &grpc);
    let told = user.output([
        "run",
        "--coordinator",
        &rest,
        "--system",
        "Be very brief.",
        "--json",
        "--max-tokens",
        "2",
        "hello",
    ]);
    assert!(told.status.success(), "{}", stderr(&told));
    // Four words: the system's message is read too.
    assert!(stdout(&told).contains("\"prompt_tokens\":4"), "{}", stdout(&told));

    let schema = user.dir.path().join("schema.json");
    std::fs::write(&schema, "{\"type\":\"object\"}").unwrap();
    let schema = schema.display().to_string();
    let run = |schema: &str| user.output(["run", "--coordinator", &rest, "--schema", schema, "hello"]);
    // The synthetic engine has no choice of what it says, and tells.
    let refused = stderr(&run(&schema));
    assert!(refused.contains("response_format"), "{refused}");
    std::fs::write(user.dir.path().join("broken.json"), "{").unwrap();
    let broken = stderr(&run(&user.dir.path().join("broken.json").display().to_string()));
    assert!(broken.contains("broken.json is not JSON") && broken.contains("--schema"), "{broken}");
    let missing = stderr(&run("/no/such.json"));
    assert!(missing.contains("cannot read the schema /no/such.json (--schema)"), "{missing}");
}
