//! `titan chat`: a conversation in the terminal.

mod commands;

use std::io::{self, Write as _};

use anyhow::{Context as _, bail};
use rustyline::{DefaultEditor, error::ReadlineError};
use titan_client::{Generation, Message, Prompt, TitanClient};

use self::commands::{Ask, parse};
use super::{Outcome, client};
use crate::{
    args::ChatArgs,
    places,
    rest::Rest,
    signals::{Signal, Signals},
    terminal::{harmless, one_line},
    trust,
};

/// What the line begins with.
const PROMPT: &str = "> ";

pub(super) async fn chat(args: ChatArgs, signals: &Signals) -> anyhow::Result<Outcome> {
    let mut chat = tokio::select! {
        opened = open(args) => opened?,
        signal = signals.next() => return Ok(Outcome::Interrupted(signal)),
    };
    say(&format!("{}: type a message, /help for what else there is, Ctrl-D to leave.\n", chat.model))?;
    let ended = chat.run(signals).await;
    tokio::select! {
        () = chat.client.close() => ended,
        signal = signals.next() => Ok(Outcome::Interrupted(signal)),
    }
}

async fn open(args: ChatArgs) -> anyhow::Result<Chat> {
    let key = args.key.api_key.as_deref();
    let tls = trust::client_with_key(&args.identity, key, &args.coordinator).await?;
    let rest = Rest::new(&args.coordinator, tls.as_ref(), key)?;
    rest.require().await?;
    let served = served(&rest).await?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => served.first().cloned().with_context(|| format!("no agent of {} serves a model", args.coordinator))?,
    };
    let client = client::builder(&args.coordinator, args.wire, tls, &args.key, &args.without).build()?;
    Ok(Chat { client, rest, model, messages: Vec::new(), system: args.system.clone(), args })
}

/// To stdout, which is all that a conversation is for: without it there is none.
fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to the terminal")
}

/// To stderr, where it can be written.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

async fn served(rest: &Rest) -> anyhow::Result<Vec<String>> {
    Ok(rest.models().await?.into_iter().map(|model| model.name).collect())
}

struct Chat {
    client: TitanClient,
    rest: Rest,
    model: String,
    messages: Vec<Message>,
    system: Option<String>,
    args: ChatArgs,
}

impl Chat {
    async fn run(&mut self, signals: &Signals) -> anyhow::Result<Outcome> {
        let mut editor = Some(DefaultEditor::new().context("cannot use this terminal")?);
        let history = places::history();
        if let (Some(editor), Some(file)) = (&mut editor, &history) {
            // There is none the first time.
            let _ = editor.load_history(file);
        }
        loop {
            let Some(mut reading) = editor.take() else { bail!("the terminal was lost") };
            let reading = tokio::task::spawn_blocking(move || {
                let line = reading.readline(PROMPT);
                (reading, line)
            });
            let (back, line) = tokio::select! {
                read = reading => read?,
                signal = signals.next() => return Ok(Outcome::Interrupted(signal)),
            };
            let editor_now = editor.insert(back);
            let line = match line {
                Ok(line) => line,
                // Ctrl-C at an empty line is how people find out how to leave.
                Err(ReadlineError::Interrupted) => {
                    say("Ctrl-D leaves\n")?;
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(Outcome::Done),
                Err(error) => return Err(error).context("cannot read from the terminal"),
            };
            if !line.trim().is_empty() {
                editor_now.add_history_entry(line.as_str()).context("cannot keep the line")?;
                if let Some(file) = &history
                    && let Err(error) = save_history(editor_now, file)
                {
                    tracing::debug!(%error, "the history is not kept");
                }
            }
            match parse(&line) {
                Ok(Ask::Nothing) => {}
                Ok(Ask::Leave) => return Ok(Outcome::Done),
                Ok(ask) => match self.act(ask, signals).await {
                    Ok(None) => {}
                    Ok(Some(signal)) => return Ok(Outcome::Interrupted(signal)),
                    // The conversation goes on.
                    Err(error) => complain(&format!("titan: {}", super::explain(&error))),
                },
                Err(message) => complain(&message),
            }
        }
    }

    /// Does what is asked. The signal that ends the program, if one came.
    async fn act(&mut self, ask: Ask, signals: &Signals) -> anyhow::Result<Option<Signal>> {
        match ask {
            Ask::Nothing | Ask::Leave => {}
            Ask::Help => say(&format!("{}\n", commands::HELP))?,
            Ask::Say(text) => {
                // One that got no answer is replaced: templates want the roles in turns.
                if self.messages.last().is_some_and(|message| message.role == "user") {
                    self.messages.pop();
                }
                self.messages.push(Message::user(text));
                return self.answer(signals).await;
            }
            Ask::Retry => {
                while self.messages.last().is_some_and(|message| message.role != "user") {
                    self.messages.pop();
                }
                if self.messages.is_empty() {
                    bail!("there is nothing to answer yet");
                }
                return self.answer(signals).await;
            }
            Ask::Model(None) => {
                for name in served(&self.rest).await? {
                    say(&format!("{} {}\n", if name == self.model { "*" } else { " " }, one_line(&name)))?;
                }
            }
            Ask::Model(Some(name)) => {
                let served = served(&self.rest).await?;
                if !served.contains(&name) {
                    bail!("there is no model {name}; there is {}", served.join(", "));
                }
                self.model = name;
            }
            Ask::System(text) => self.system = text,
            Ask::Clear => self.messages.clear(),
            Ask::Save(file) => {
                std::fs::write(&file, self.written()).with_context(|| format!("cannot write {file}"))?;
                say(&format!("{} messages in {file}\n", self.messages.len()))?;
            }
        }
        Ok(None)
    }

    /// Has the last message answered. Ctrl-C stops the answer; what has come of it stays. Other signals end the program too.
    async fn answer(&mut self, signals: &Signals) -> anyhow::Result<Option<Signal>> {
        let system = self.system.iter().map(Message::system);
        let messages: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
        let mut prompt = Prompt::conversation(&self.model, messages);
        prompt.max_tokens = self.args.max_tokens.unwrap_or(u32::MAX);
        prompt.temperature = self.args.temperature;
        let mut text = String::new();
        let shown = async { Self::show(self.client.generate(prompt).await?, &mut text).await };
        let ended = tokio::select! {
            shown = shown => shown.map(|()| None),
            signal = signals.next() => Ok(Some(signal).filter(|signal| *signal != Signal::Interrupt)),
        };
        // After a hangup there is nobody to say it to.
        let _ = say("\n");
        if !text.is_empty() {
            self.messages.push(Message::assistant(text));
        }
        ended
    }

    async fn show(mut generation: Generation, text: &mut String) -> anyhow::Result<()> {
        let mut stdout = io::stdout();
        loop {
            let Some(piece) = generation.next_piece().await.transpose()? else { break };
            for part in [&piece.reasoning, &piece.text] {
                stdout.write_all(harmless(part).as_bytes())?;
            }
            stdout.flush()?;
            text.push_str(&piece.text);
        }
        if let Some(usage) = generation.usage() {
            let (agent, wire) = (generation.agent_id(), generation.wire().as_str());
            let tokens = usage.completion_tokens;
            let speed = usage.tokens_per_second;
            // The answer is there, whether or not this can be written.
            let _ = write!(io::stderr(), "\n[{agent} · {wire} · {tokens} tokens · {speed:.1} tokens/s]");
        }
        Ok(())
    }

    /// The conversation as Markdown.
    fn written(&self) -> String {
        let system = self.system.iter().map(|text| ("system", text.as_str()));
        let said = self.messages.iter().map(|message| (message.role.as_str(), message.content.as_str()));
        system.chain(said).map(|(role, text)| format!("## {role}\n\n{text}\n\n")).collect()
    }
}

fn save_history(editor: &mut DefaultEditor, file: &std::path::Path) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    editor.save_history(file)?;
    Ok(())
}
