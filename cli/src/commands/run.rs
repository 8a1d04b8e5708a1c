//! `titan run`.

#[cfg(feature = "engines")]
mod cluster;
#[cfg(not(feature = "engines"))]
#[path = "run/no_cluster.rs"]
mod cluster;
mod output;
mod target;

use std::{
    io::{self, IsTerminal as _, Read as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use titan_client::{ClientStats, Feature, Format, Message, Prompt, TitanClient};
use titan_files::text;
use titan_proto::MAX_PROMPT_BYTES;

use self::{
    cluster::Cluster,
    output::{Connection, Figures, Flow, Output},
    target::Target,
};
use super::{Outcome, Usage, client};
use crate::{args::RunArgs, places, signals::Signals};

/// Longest wait at the end: for the sessions that the next process begins with, and for the agent to hear that the connection ends, which
/// only saves it a timeout.
const GOODBYE: Duration = Duration::from_secs(1);

/// Sends a prompt and prints its text.
pub(super) async fn run(args: RunArgs, verbose: u8, signals: &Signals) -> anyhow::Result<Outcome> {
    let opened = tokio::select! {
        opened = open(&args) => opened?,
        signal = signals.next() => return Ok(Outcome::Interrupted(signal)),
    };
    let mut output = Output::new(args.json, verbose > 0);
    let outcome = tokio::select! {
        printed = opened.generate(&args, &mut output) => printed,
        signal = signals.next() => {
            output.interrupted();
            Ok(Outcome::Interrupted(signal))
        }
    };
    // The generation is dropped by now; this lets the agent know at once.
    tokio::select! {
        () = opened.close() => outcome,
        signal = signals.next() => Ok(Outcome::Interrupted(signal)),
    }
}

/// A client, and what it shall ask.
struct Opened {
    client: TitanClient,
    prompt: Prompt,
    cluster: Option<Cluster>,
}

async fn open(args: &RunArgs) -> anyhow::Result<Opened> {
    let text = prompt(args).await?;
    let format = args.schema.as_deref().map(schema).transpose()?.unwrap_or_default();
    let Target { url, model, tls, cluster } = target::find(args).await?;
    let mut builder = client::builder(&url, args.wire, tls, &args.key, &args.without);
    if args.prefill_ahead {
        builder = builder.with(Feature::PrefillAhead);
    }
    // A cluster of our own ends with this process: nothing can be resumed there.
    if let Some(dir) = places::sessions().filter(|_| cluster.is_none()) {
        builder = builder.sessions(dir);
    }
    builder = builder.post_quantum(args.post_quantum);
    let mut prompt = match &args.system {
        None => Prompt::new(model, text),
        Some(system) => Prompt::conversation(model, [Message::system(system.as_str()), Message::user(text)]),
    };
    prompt.format = format;
    prompt.max_tokens = args.max_tokens.unwrap_or(u32::MAX);
    prompt.temperature = args.temperature;
    prompt.options = options(args)?;
    Ok(Opened { client: builder.build()?, prompt, cluster })
}

impl Opened {
    async fn generate(&self, args: &RunArgs, output: &mut Output) -> anyhow::Result<Outcome> {
        for turn in 0..args.repeat {
            if turn > 0 && args.reconnect {
                self.client.sessions_arrive().await;
                self.client.disconnect();
            }
            match self.generate_once(output).await {
                Ok(()) => {}
                // Nobody reads any more, as in `titan run … | head -1`.
                Err(error) if is_broken_pipe(&error) => break,
                Err(error) => {
                    output.failed(&error);
                    return Err(error);
                }
            }
        }
        Ok(Outcome::Done)
    }

    async fn generate_once(&self, output: &mut Output) -> anyhow::Result<()> {
        let before = self.client.stats();
        let mut generation = self.client.generate(self.prompt.clone()).await?;
        while let Some(piece) = generation.next_piece().await {
            let piece = piece?;
            if !piece.reasoning.is_empty() {
                output.reasoning(&piece.reasoning)?;
            }
            if !piece.text.is_empty() {
                output.text(&piece.text)?;
            }
        }
        let after = self.client.stats();
        let stored_session = after.quic.stored_sessions > before.quic.stored_sessions;
        let flow = Flow {
            repaired_messages: after.quic.repaired_messages - before.quic.repaired_messages,
            network_changes: after.quic.network_changes - before.quic.network_changes,
            copied_packets: after.copied_packets - before.copied_packets,
            congestion_window_bytes: generation.congestion_window(),
        };
        output.finish(&Figures::of(&generation, connection(&before, &after), stored_session, flow))?;
        Ok(())
    }

    async fn close(self) {
        // Too slow a goodbye is left unsaid.
        let _ = tokio::time::timeout(GOODBYE, self.client.close()).await;
        if let Some(cluster) = self.cluster {
            cluster.stop().await;
        }
    }
}

/// The prompt itself, what a file holds, or all of stdin.
async fn prompt(args: &RunArgs) -> anyhow::Result<String> {
    let from_stdin = match &args.prompt {
        Some(prompt) => prompt == "-",
        None => args.prompt_file.is_none() && !io::stdin().is_terminal(),
    };
    let text = match (&args.prompt, &args.prompt_file) {
        _ if from_stdin => tokio::task::spawn_blocking(|| bounded(io::stdin().lock()))
            .await?
            .context("cannot read the prompt from stdin")
            .and_then(|bytes| text(&bytes).map_err(|is| anyhow!("the prompt on stdin is {is}")))?,
        (Some(given), _) => given.clone(),
        (None, Some(file)) => {
            let shown = file.display();
            let path = file.clone();
            // A pipe may have nobody at its other end yet.
            let bytes = tokio::task::spawn_blocking(move || std::fs::File::open(path).and_then(bounded)).await?;
            let bytes = bytes.with_context(|| format!("cannot read the prompt in {shown} (--prompt-file)"))?;
            text(&bytes).map_err(|is| anyhow!("the prompt in {shown} is {is} (--prompt-file)"))?
        }
        (None, None) => String::new(),
    };
    if text.trim().is_empty() {
        bail!(Usage("the prompt is empty: titan run \"Why is the sky blue?\", or - to read it from stdin".to_owned()));
    }
    if text.len() > MAX_PROMPT_BYTES {
        bail!("the prompt is longer than {MAX_PROMPT_BYTES} bytes, the most that an agent takes: shorten it");
    }
    Ok(text)
}

/// One byte more than allowed shows that it is too long, without reading what never ends.
fn bounded(from: impl io::Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_PROMPT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The schema in a file. Whether it is one is for the agent to say; that it is JSON is seen here, before anything is sent.
fn schema(path: &Path) -> anyhow::Result<Format> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the schema {shown} (--schema)"))?;
    let text = text(&bytes).map_err(|is| anyhow!("the schema {shown} is {is} (--schema)"))?;
    match serde_json::from_str(&text) {
        Ok(serde_json::Value::Object(_)) => Ok(Format::JsonSchema(text)),
        Ok(_) => {
            bail!("the schema {shown} is no JSON object: give a JSON schema such as {{\"type\":\"object\"}} (--schema)")
        }
        Err(error) => bail!("the schema {shown} is not JSON: {error} (--schema)"),
    }
}

fn options(args: &RunArgs) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    let flags = [
        ("seed", args.seed.map(|seed| seed.to_string())),
        ("top_p", args.top_p.map(|top_p| top_p.to_string())),
        ("stop", args.stop.clone()),
    ];
    let flags = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let mut options = std::collections::BTreeMap::new();
    for (key, value) in flags.chain(args.options.iter().cloned()) {
        if options.insert(key.clone(), value).is_some() {
            bail!(Usage(format!("the option {key} is given twice")));
        }
    }
    Ok(options)
}

/// What the connection cost, from the counters around a request.
fn connection(before: &ClientStats, after: &ClientStats) -> Connection {
    if after.quic.early_data_accepted > before.quic.early_data_accepted {
        Connection::EarlyData
    } else if after.quic.full_handshakes > before.quic.full_handshakes {
        Connection::FullHandshake
    } else {
        Connection::Kept
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
