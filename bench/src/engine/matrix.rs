//! `titan-bench engine --matrix`: what engines cost, on the same file and all cores.
//!
//! Each round has a short prompt, a conversation of two turns for each length of context, and two answers at once ([`Case`]), and each
//! case runs by every contender in turn, in an order that changes. Only one contender computes at a time: between two runs all are waited for. Of the contenders
//! [`llama`] is a process of its own; [`prompts`] makes prompts of the lengths asked for, [`results`] the table.

mod llama;
mod prompts;
mod results;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Serialize;
use titan_proto::v1::Message;
use tokio_util::sync::CancellationToken;

use self::{
    llama::{LlamaServer, Settings},
    prompts::{WordCost, next_turn, prompt},
    results::{Comparison, Measure, Reading, compare, table, tokens_per_second_together},
};
use super::{MistralAlone, Stopwatch, ThroughAgent, Timing, Tokens, message, model_file};
use crate::{
    args::EngineArgs,
    environment::Environment,
    lab::Lab,
    progress::Progress,
    report::{Report, publish_into},
    usage::Usage,
    wire::Wire,
};

/// Who generates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Contender {
    MistralAlone,
    Agent,
    Llama,
}

impl Contender {
    fn label(self) -> &'static str {
        match self {
            Self::MistralAlone => "mistral.rs alone",
            Self::Agent => "through the agent",
            Self::Llama => "llama.cpp",
        }
    }
}

/// What one run does.
#[derive(Clone, Copy, Debug)]
enum Case {
    ShortPrompt,
    /// A prompt of `context` tokens, its answer, and turn 2.
    Conversation {
        context: u32,
    },
    TwoAtOnce,
}

/// Everything measured.
#[derive(Debug, Serialize)]
struct Results {
    /// What llama.cpp's server says of its version, where it was measured.
    llama_version: Option<String>,
    comparisons: Vec<Comparison>,
    readings: Vec<Reading>,
}

/// New tokens of turn 2, beside what the template adds.
const NEXT_TURN_TOKENS: u32 = 50;
/// Answers at once.
const AT_ONCE: u32 = 2;
/// Words of the prompts by which the length of others is found.
const TRIAL_WORDS: [usize; 2] = [16, 64];
/// Prompts of a round are numbered from its hundred on.
const NUMBERS_A_ROUND: u32 = 100;

/// Runs the rounds, prints the table and writes the files.
pub(super) async fn run(args: EngineArgs, interrupt: CancellationToken) -> anyhow::Result<()> {
    let environment = Environment::read();
    let model = model_file(&args).await?;
    let name = model.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut readings = Vec::new();
    let mut llama_version = None;
    let mut contenders = Vec::new();
    tokio::select! {
        bench = Bench::set_up(&args, model) => {
            let mut bench = bench?;
            contenders = bench.contenders();
            llama_version = bench.llama.as_ref().map(|llama| llama.version.clone());
            bench.measure(&args, &interrupt, &mut readings).await?;
        }
        () = interrupt.cancelled() => {}
    }
    let comparisons = compare(&readings, &args.contexts, &contenders);
    if comparisons.is_empty() {
        eprintln!("interrupted before the first round was complete");
        return Ok(());
    }
    let about = format!(
        "{name}; {} tokens an answer, greedy, on {} cores; the agent over QUIC{}.\n{}.",
        args.tokens,
        environment.cores,
        llama_version.as_ref().map(|version| format!("; llama.cpp {version}")).unwrap_or_default(),
        environment.summary()
    );
    let figures = format!("{}\n\n{about}", table(&comparisons, &contenders).markdown());
    println!("{figures}");
    let results = Results { llama_version, comparisons, readings };
    if let Some(out) = &args.out {
        Report::new("engine", &environment, &args, interrupt.is_cancelled(), &results).write(out)?;
    }
    match &args.publish {
        Some(_) if interrupt.is_cancelled() => eprintln!("not published: the measurement was interrupted"),
        Some(document) => publish_into(document, &figures)?,
        None => {}
    }
    Ok(())
}

struct Bench {
    model: PathBuf,
    /// As many as answer at once: two sequences in one engine corrupt each other on a CPU.
    alone: Vec<MistralAlone>,
    agent: ThroughAgent,
    llama: Option<LlamaServer>,
    cost: WordCost,
}

/// Between the looks at whether all are idle.
const LOOK: Duration = Duration::from_millis(200);
/// Processor time in that while which does not count as computing. The system counts in hundredths of a second.
const IDLE_CPU_S: f64 = 0.02;
/// How long an engine may still compute after its answer.
const IDLE_WITHIN: Duration = Duration::from_secs(60);

impl Bench {
    async fn set_up(args: &EngineArgs, model: PathBuf) -> anyhow::Result<Self> {
        let llama = match args.llama_server.clone().or_else(llama::in_cache) {
            Some(program) => Some(start_llama(&program, &model, args).await?),
            None => {
                eprintln!(
                    "llama.cpp is left out: scripts/llama-server.sh builds its server, or --llama-server names one"
                );
                None
            }
        };
        eprintln!("loading {} for mistral.rs alone and for the agent", model.display());
        let alone = load_alone(&model).await?;
        let agent = ThroughAgent::start(model.clone(), Lab::new()?, false, AT_ONCE as usize).await?;
        let cost = word_cost(&alone[0]).await.context("finding out how long prompts are")?;
        let bench = Self { model, alone, agent, llama, cost };
        for contender in bench.contenders() {
            bench.quiet().await?;
            bench
                .run(contender, Case::TwoAtOnce, WARM_UP_NUMBER, WARM_UP_TOKENS)
                .await
                .with_context(|| contender.label())?;
        }
        Ok(bench)
    }

    fn contenders(&self) -> Vec<Contender> {
        let llama = self.llama.as_ref().map(|_| Contender::Llama);
        [Contender::MistralAlone, Contender::Agent].into_iter().chain(llama).collect()
    }

    /// All rounds, or those that `interrupt` lets come.
    async fn measure(
        &mut self,
        args: &EngineArgs,
        interrupt: &CancellationToken,
        readings: &mut Vec<Reading>,
    ) -> anyhow::Result<()> {
        let contenders = self.contenders();
        let conversations = args.contexts.iter().map(|&context| Case::Conversation { context });
        let cases: Vec<Case> = [Case::ShortPrompt, Case::TwoAtOnce].into_iter().chain(conversations).collect();
        let progress = Progress::new(u64::from(args.rounds) * (cases.len() * contenders.len()) as u64);
        for round in 1..=args.rounds {
            progress.stage(format!("round {round} of {}", args.rounds));
            // mistral.rs alone never drops what it has cached.
            self.alone.clear();
            self.alone = load_alone(&self.model).await?;
            for (at, &case) in cases.iter().enumerate() {
                let number = round * NUMBERS_A_ROUND + u32::try_from(at)? * AT_ONCE;
                for contender in order(&contenders, round as usize + at) {
                    self.quiet().await?;
                    tokio::select! {
                        measured = self.run(contender, case, number, args.tokens) => {
                            let measured = measured.with_context(|| format!("{}, {case:?}", contender.label()))?;
                            readings.extend(measured.into_iter().map(|(measure, value, tokens)| Reading {
                                round, contender, measure, value, tokens,
                            }));
                        }
                        // mistral.rs does not like a caller who goes away, but here the process goes too.
                        () = interrupt.cancelled() => return Ok(()),
                    }
                    progress.step();
                }
            }
        }
        Ok(())
    }

    /// Prompts of a case are alike for all contenders: none knows another's.
    async fn run(
        &self,
        contender: Contender,
        case: Case,
        number: u32,
        answer_tokens: u32,
    ) -> anyhow::Result<Vec<(Measure, f64, Tokens)>> {
        match case {
            Case::ShortPrompt => {
                let (timing, tokens) = self.ask(contender, 0, &prompt(number, 0), answer_tokens).await?;
                let speed = timing.decode_tokens_per_second(tokens.completion);
                Ok(vec![(Measure::ShortPrompt, speed, tokens)])
            }
            Case::TwoAtOnce => {
                let (one, other) = (prompt(number, 0), prompt(number + 1, 0));
                let both = tokio::try_join!(
                    self.ask(contender, 0, &one, answer_tokens),
                    self.ask(contender, 1, &other, answer_tokens)
                )?;
                let both = [both.0, both.1];
                Ok(vec![(Measure::TwoAtOnce, tokens_per_second_together(&both), both[0].1)])
            }
            Case::Conversation { context } => {
                let first = prompt(number, self.cost.words_of_prompt(context));
                let (timing, tokens) = self.ask(contender, 0, &first, answer_tokens).await?;
                // Whoever reads an answer lets the engine come to rest meanwhile.
                self.quiet().await?;
                let second = next_turn(first, &timing.text, number, self.cost.words_of_text(NEXT_TURN_TOKENS));
                let (next, next_tokens) = self.ask(contender, 0, &second, answer_tokens).await?;
                Ok(vec![
                    (Measure::FirstToken { context }, timing.first_token_s(), tokens),
                    (Measure::Generation { context }, timing.decode_tokens_per_second(tokens.completion), tokens),
                    (Measure::NextTurn { context }, next.first_token_s(), next_tokens),
                ])
            }
        }
    }

    /// `engine`: which of mistral.rs' own; agent and llama.cpp choose for themselves.
    async fn ask(
        &self,
        contender: Contender,
        engine: usize,
        messages: &[Message],
        tokens: u32,
    ) -> anyhow::Result<(Timing, Tokens)> {
        let mut watch = Stopwatch::start();
        let counted = match (contender, &self.llama) {
            (Contender::MistralAlone, _) => self.alone[engine].generate(messages, tokens, &mut watch).await?,
            (Contender::Agent, _) => self.agent.generate(Wire::Quic, messages, tokens, &mut watch).await?,
            (Contender::Llama, Some(llama)) => llama.generate(messages, tokens, &mut watch).await?,
            (Contender::Llama, None) => anyhow::bail!("llama.cpp does not run"),
        };
        let timing = watch.timing().context("the model gave no text to measure: another --model may")?;
        Ok((timing, counted))
    }

    /// Waits until nothing computes, here and in llama.cpp's process.
    async fn quiet(&self) -> anyhow::Result<()> {
        let llama: Vec<u32> = self.llama.iter().map(LlamaServer::id).collect();
        let cpu_s = || anyhow::Ok(Usage::now()?.cpu_s() + Usage::of_processes(&llama)?.cpu_s());
        let patience = Instant::now() + IDLE_WITHIN;
        loop {
            let before = cpu_s()?;
            tokio::time::sleep(LOOK).await;
            // A process that gets no processor looks idle too: so the engines are asked as well.
            let engines_idle = self.agent.computing() == 0
                && match &self.llama {
                    Some(llama) => llama.is_idle().await?,
                    None => true,
                };
            if engines_idle && cpu_s()? - before < IDLE_CPU_S {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < patience,
                "an engine still computes {} s after its answer has ended: what comes next cannot be measured",
                IDLE_WITHIN.as_secs()
            );
        }
    }
}

/// In every `turn` another one is first.
fn order(contenders: &[Contender], turn: usize) -> Vec<Contender> {
    let mut order = contenders.to_vec();
    order.rotate_left(turn % contenders.len().max(1));
    order
}

async fn start_llama(program: &Path, model: &Path, args: &EngineArgs) -> anyhow::Result<LlamaServer> {
    let settings = Settings {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        slots: AT_ONCE,
        context_tokens: context_tokens(args),
    };
    eprintln!("starting llama.cpp: {}", program.display());
    LlamaServer::start(program, model, settings).await
}

/// Room for two turns, and for a template that takes more than is reckoned with.
fn context_tokens(args: &EngineArgs) -> u32 {
    let longest = args.contexts.iter().max().copied().unwrap_or(0);
    (longest + 2 * args.tokens + NEXT_TURN_TOKENS + 256).next_multiple_of(256)
}

/// As mistral.rs comes, with its prefix cache; each has answered once, so that its memory is there.
async fn load_alone(model: &Path) -> anyhow::Result<Vec<MistralAlone>> {
    let mut alone = Vec::new();
    for _ in 0..AT_ONCE {
        let engine = MistralAlone::load(model, true).await.context("loading the model into mistral.rs")?;
        engine.generate(&prompt(0, 0), WARM_UP_TOKENS, &mut Stopwatch::start()).await?;
        alone.push(engine);
    }
    Ok(alone)
}

const WARM_UP_TOKENS: u32 = 8;
/// Prompts before the rounds have numbers below a hundred, each its own.
const WARM_UP_NUMBER: u32 = 2;

async fn word_cost(engine: &MistralAlone) -> anyhow::Result<WordCost> {
    let mut counts = Vec::new();
    for words in TRIAL_WORDS {
        let counted = engine.generate(&prompt(1, words), WARM_UP_TOKENS, &mut Stopwatch::start()).await?;
        counts.push((words, counted.prompt));
    }
    Ok(WordCost::fit(counts[0], counts[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_is_first_equally_often() {
        let three = [Contender::MistralAlone, Contender::Agent, Contender::Llama];
        for contender in three {
            assert_eq!((0..6).filter(|&turn| order(&three, turn)[0] == contender).count(), 2, "{contender:?}");
        }
    }
}
