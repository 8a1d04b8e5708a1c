//! `titan-bench engine`: what the agent and its wires cost a real model.
//!
//! One process holds mistral.rs alone ([`baseline`]) and an agent with its own engine ([`agent`]), both with one sequence and the same
//! model. Each round runs every subject once, in an order that changes; subjects are compared within a round ([`compare`]), so
//! that a machine that is busy for a minute slows them alike.
//!
//! [`matrix`] is the other half, `--matrix`: long prompts, several at once and conversations, beside llama.cpp.

mod agent;
mod baseline;
mod compare;
mod matrix;
mod sample;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use titan_agent::engine::fetch::{self, FetchProgress};
use titan_proto::v1::Message;
use tokio_util::sync::CancellationToken;

use self::{
    agent::ThroughAgent,
    baseline::MistralAlone,
    compare::{Comparison, ORDERS, compare, table},
    sample::{Sample, Stopwatch, Timing, Tokens},
};
use crate::{
    args::EngineArgs, environment::Environment, lab::Lab, progress::Progress, report::Report, usage::Usage, wire::Wire,
};

/// Who generates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Subject {
    MistralAlone,
    AgentGrpc,
    AgentQuic,
    /// mistral.rs alone once more: the self-test.
    MistralAgain,
}

/// Everything measured.
#[derive(Debug, Serialize)]
struct Results {
    comparisons: Vec<Comparison>,
    /// All subjects gave the same text in every run, as greedy decoding should.
    same_text: bool,
    samples: Vec<Sample>,
}

/// Between two runs: an engine is idle within 250 ms after its last token (measured), and must not compute in another's run.
const PAUSE: Duration = Duration::from_millis(300);

/// Runs the rounds, prints the table and writes the file.
pub(crate) async fn run(args: EngineArgs, interrupt: CancellationToken) -> anyhow::Result<()> {
    if args.matrix {
        return matrix::run(args, interrupt).await;
    }
    let environment = Environment::read();
    let model = model_file(&args).await?;
    let samples = tokio::select! {
        bench = Bench::set_up(&args, model) => bench?.measure(&args, &interrupt).await?,
        () = interrupt.cancelled() => Vec::new(),
    };
    let results = Results { comparisons: compare(&samples), same_text: same_text(&samples), samples };
    if results.comparisons.is_empty() {
        eprintln!("interrupted before the first round was complete");
        return Ok(());
    }
    println!(
        "{} tokens, greedy, one sequence, CPU; gRPC {}\n",
        args.tokens,
        if args.plaintext { "in plain text" } else { "with TLS" }
    );
    println!("{}\n", table(&results.comparisons).markdown());
    if !results.same_text {
        println!("The texts differ between runs: the comparison is not of the same work.");
    }
    println!("{}", environment.summary());
    if let Some(out) = &args.out {
        Report::new("engine", &environment, &args, interrupt.is_cancelled(), &results).write(out)?;
    }
    let wanting = results.comparisons.iter().find(|comparison| !comparison.is_within());
    match wanting {
        Some(comparison) if args.assert => {
            anyhow::bail!("{}: not shown to be within 2 % of mistral.rs alone", comparison.label())
        }
        _ => Ok(()),
    }
}

struct Bench {
    alone: MistralAlone,
    agent: ThroughAgent,
}

impl Bench {
    async fn set_up(args: &EngineArgs, model: PathBuf) -> anyhow::Result<Self> {
        eprintln!("loading {} twice, for mistral.rs alone and for the agent", model.display());
        let alone = MistralAlone::load(&model, false).await.context("loading the model into mistral.rs")?;
        let agent = ThroughAgent::start(model, Lab::new()?, args.plaintext, 1).await?;
        Ok(Self { alone, agent })
    }

    /// All rounds, or those that `interrupt` lets come.
    async fn measure(self, args: &EngineArgs, interrupt: &CancellationToken) -> anyhow::Result<Vec<Sample>> {
        let mut subjects = vec![Subject::MistralAlone, Subject::AgentGrpc, Subject::AgentQuic];
        if args.self_test {
            subjects.push(Subject::MistralAgain);
        }
        let progress = Progress::new(u64::from(args.rounds + 1) * subjects.len() as u64);
        let mut samples = Vec::new();
        // Round 0 warms everything up and is not kept.
        for round in 0..=args.rounds {
            progress.stage(format!("round {round} of {}", args.rounds));
            for subject in order(&subjects, round) {
                tokio::time::sleep(PAUSE).await;
                let sample = tokio::select! {
                    sample = self.run(subject, round, args) => sample.with_context(|| format!("{subject:?}"))?,
                    // mistral.rs does not like a caller who goes away, but here the process goes too.
                    () = interrupt.cancelled() => return Ok(samples),
                };
                progress.step();
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
        Ok(samples)
    }

    async fn run(&self, subject: Subject, round: u32, args: &EngineArgs) -> anyhow::Result<Sample> {
        let messages = [message("user", &args.prompt)];
        let before = Usage::now()?;
        let mut watch = Stopwatch::start();
        let tokens = match subject {
            Subject::MistralAlone | Subject::MistralAgain => {
                self.alone.generate(&messages, args.tokens, &mut watch).await
            }
            Subject::AgentGrpc => self.agent.generate(Wire::Grpc, &messages, args.tokens, &mut watch).await,
            Subject::AgentQuic => self.agent.generate(Wire::Quic, &messages, args.tokens, &mut watch).await,
        }?;
        let cpu_s = Usage::now()?.since(&before).cpu_s();
        watch
            .sample(subject, round, tokens.completion, cpu_s)
            .context("the model gave no text to measure: another --prompt may help")
    }
}

/// One message of a conversation.
fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned(), ..Message::default() }
}

/// The subjects in this round's order: over six rounds each comes first, second and last, and after each other, equally often.
fn order(subjects: &[Subject], round: u32) -> Vec<Subject> {
    let turn = ORDERS[round as usize % ORDERS.len()];
    let mut order: Vec<Subject> = turn.iter().filter_map(|&at| subjects.get(at)).copied().collect();
    // The subject of the self-test goes to every place in turn.
    for (at, &extra) in subjects.iter().enumerate().skip(order.len()) {
        order.insert((round as usize + at) % (order.len() + 1), extra);
    }
    order
}

fn same_text(samples: &[Sample]) -> bool {
    samples.windows(2).all(|pair| pair[0].text == pair[1].text)
}

async fn model_file(args: &EngineArgs) -> anyhow::Result<PathBuf> {
    match &args.model {
        Some(path) => std::fs::canonicalize(path).with_context(|| format!("--model {}", path.display())),
        None => {
            let fetched = tokio::task::spawn_blocking(|| fetch::default_model(&say_progress)).await?;
            Ok(fetched?)
        }
    }
}

fn say_progress(progress: FetchProgress) {
    match progress {
        FetchProgress::Waiting => eprintln!("another process is fetching the default model"),
        FetchProgress::Unpacking => eprintln!("unpacking the default model"),
        FetchProgress::Downloading { bytes, total } => {
            eprint!("\rfetching the default model: {} of {} MB ", bytes / 1_000_000, total / 1_000_000);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: [Subject; 3] = [Subject::MistralAlone, Subject::AgentGrpc, Subject::AgentQuic];

    #[test]
    fn over_six_rounds_every_subject_has_every_place_equally_often() {
        for place in 0..3 {
            for subject in THREE {
                let times = (1..=6).filter(|&round| order(&THREE, round)[place] == subject).count();
                assert_eq!(times, 2, "{subject:?} in place {place}");
            }
        }
    }

    #[test]
    fn the_self_test_joins_each_round_once() {
        let four = [THREE.as_slice(), &[Subject::MistralAgain]].concat();
        let places: Vec<_> = (1..=8)
            .map(|round| {
                let order = order(&four, round);
                assert!(four.iter().all(|subject| order.contains(subject)) && order.len() == 4);
                order.iter().position(|&subject| subject == Subject::MistralAgain)
            })
            .collect();
        assert!((0..4).all(|place| places.contains(&Some(place))), "{places:?}");
    }
}
