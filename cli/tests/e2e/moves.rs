//! An agent that is killed while it answers: the text goes on at another one.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use titan_client::{Prompt, TitanClient, WirePreference};

use crate::{
    parts::coordinator,
    support::{Process, User, synthetic_text},
};

const TOKENS_PER_SECOND: &str = "100";
const TOKENS: u32 = 120;
const IDS: [&str; 2] = ["agent-1", "agent-2"];

/// An agent that has registered.
pub(crate) fn agent(user: &User, id: &str, coordinator: &str) -> Process {
    let fixed = ["agent", "--engine", "synthetic", "--rate", TOKENS_PER_SECOND, "--agent-port", "0"];
    let mut command = user.titan(fixed);
    command.env("AGENT_ID", id).env("COORDINATOR_ENDPOINT", coordinator);
    let (mut process, _) = Process::spawn(command, user.dir.path());
    process.logged("registered");
    process
}

#[tokio::test]
async fn an_answer_survives_the_death_of_its_agent() {
    let user = User::new();
    let (_coord, rest, grpc) = coordinator(&user);
    let mut agents = IDS.map(|id| agent(&user, id, &grpc));
    // Early, late, and at the last token.
    for (preference, kill_after) in [
        (WirePreference::Quic, 1),
        (WirePreference::Quic, 57),
        (WirePreference::Grpc, 30),
        (WirePreference::Auto, 90),
        (WirePreference::Auto, TOKENS - 1),
    ] {
        let client = TitanClient::builder(&rest).tls(user.client_tls()).wire(preference).build().unwrap();
        let prompt = Prompt { max_tokens: TOKENS, ..Prompt::new("synthetic", "hello") };
        let mut generation = client.generate(prompt).await.unwrap();
        let first = generation.agent_id().to_owned();
        let killed = IDS.iter().position(|id| *id == first).unwrap();
        let (mut text, mut pieces, mut longest) = (String::new(), 0, Duration::ZERO);
        let mut since = Instant::now();
        while let Some(piece) = generation.next().await {
            text.push_str(&piece.unwrap());
            pieces += 1;
            longest = longest.max(since.elapsed());
            since = Instant::now();
            if pieces == kill_after {
                agents[killed].kill();
            }
        }
        println!("{preference:?}, killed after {kill_after} tokens: longest pause {} ms", longest.as_millis());
        assert_eq!(text, synthetic_text(TOKENS), "{preference:?}, {kill_after}");
        assert_eq!(generation.usage().unwrap().completion_tokens, TOKENS);
        if kill_after < TOKENS - 1 {
            assert_eq!((generation.moved(), client.stats().moved), (1, 1));
            assert_ne!(generation.agent_id(), first);
        }
        client.close().await;
        agents[killed] = agent(&user, IDS[killed], &grpc);
    }
}
