//! `titan demo`.
//!
//! Reading order: this file; `script` (what happens when), `stage` (hosts and servers), `player` (a client) and `openai` (two others), `column` and `account`
//! (what a client has shown, and what is wrong with it), `screen` and `lines` (where it is shown), `summary`.

mod account;
mod column;
mod lines;
mod openai;
mod player;
mod screen;
mod script;
mod stage;
mod summary;

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use titan_agent::engine::synthetic::word;
use titan_emulator::Network;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    column::Column,
    lines::{Lines, told},
    player::{Player, Said, Side, What},
    screen::{Screen, View},
    script::{Cue, Script},
    stage::{Registration, Stage},
    summary::Summary,
};
use super::Outcome;
use crate::{
    args::demo::{DemoCommand, RoamingArgs},
    progress::Progress,
    signals::Signals,
};

/// Between two frames: the eye sees movement from about ten a second on.
const FRAME: Duration = Duration::from_millis(100);
/// For a client to be told by its agent that its request is accepted, on the worst of these networks.
const BEGIN_WITHIN: Duration = Duration::from_secs(60);
/// Once everything has happened, a client that hears nothing for so long is given up: readers have gone by then.
const PATIENCE: Duration = Duration::from_secs(8);

/// What must be done before there are threads.
pub(super) fn prepare(command: &DemoCommand) {
    let DemoCommand::Roaming(_) = command;
    // Where it does not help, making the network says what is needed.
    if let Err(error) = titan_emulator::acquire_rights() {
        tracing::debug!(%error, "no user namespace");
    }
}

/// Shows what was asked for.
pub(super) async fn demo(command: DemoCommand, signals: &Signals) -> anyhow::Result<Outcome> {
    let DemoCommand::Roaming(args) = command;
    signals.or_stop(roaming(&args)).await
}

async fn roaming(args: &RoamingArgs) -> anyhow::Result<Outcome> {
    let progress = Progress::new();
    progress.spin("setting up two hosts, a coordinator and an agent");
    let mut stage = Stage::set(args).await?;
    progress.done();
    let stop = CancellationToken::new();
    let _stop_at_the_end = stop.clone().drop_guard();
    let (tell, hear) = mpsc::unbounded_channel();
    for (lane, side) in (0..).zip(Side::pair(args.openai)) {
        // Applications know an address of an agent and no names of ours, and the agent has one.
        let server = Network::server_address(if args.openai { 0 } else { lane });
        let player = Player {
            side,
            server,
            tls: stage.tls.clone(),
            ca: stage.ca(),
            tokens: args.tokens,
            program: args.client.clone(),
        };
        player.start(stage.network.client(), tell.clone(), stop.clone())?;
    }
    let mut show = Show::new(args);
    show.run(&mut stage, hear).await?;
    let summary = Summary::new(args, &show.columns, &show.answer);
    match &mut show.out {
        Out::Screen(screen) => {
            screen.draw(&view(&show.title, show.sides, &show.columns, &show.events, show.answer.len()));
            writeln!(std::io::stdout(), "\n{}", summary.table())?;
        }
        Out::Lines(lines) => lines.finish(&summary.json(), &summary.table())?,
    }
    summary.verdict().map(|()| Outcome::Done)
}

/// Where it is shown.
enum Out {
    Screen(Screen),
    Lines(Lines),
}

/// One performance.
struct Show {
    title: String,
    sides: [Side; 2],
    answer: Vec<&'static str>,
    script: Script,
    columns: [Column; 2],
    /// Since the first client was accepted, for people.
    events: Vec<(Duration, String)>,
    started: Instant,
    /// When both had begun.
    begun: Option<Instant>,
    second_agent: Option<Registration>,
    last_event: Instant,
    out: Out,
}

impl Show {
    fn new(args: &RoamingArgs) -> Self {
        let interval = Duration::from_secs(1) / args.rate;
        let now = Instant::now();
        let sides = Side::pair(args.openai);
        let screen = if args.json { None } else { Screen::new() };
        let out = screen.map_or_else(|| Out::Lines(Lines::new(args.json, sides)), Out::Screen);
        Self {
            title: format!(
                "The same answer {}: RTT {} ms, {} lost each way, {} tokens/s",
                if args.openai {
                    "for an OpenAI client, over HTTPS straight from the agent and by titan proxy"
                } else {
                    "over standard gRPC and over Titan's QUIC"
                },
                args.rtt,
                args.loss,
                args.rate
            ),
            sides,
            answer: (0..args.tokens).map(word).collect(),
            script: Script::new(interval * args.tokens),
            columns: [Column::new(interval), Column::new(interval)],
            events: Vec::new(),
            started: now,
            begun: None,
            second_agent: None,
            last_event: now,
            out,
        }
    }

    /// Until both answers have ended or are given up.
    async fn run(&mut self, stage: &mut Stage, mut hear: UnboundedReceiver<Said>) -> anyhow::Result<()> {
        let mut frames = interval(FRAME);
        frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while self.columns.iter().any(|column| column.ended().is_none()) {
            let due = self.begun.zip(self.script.due()).map(|(begun, due)| begun + due);
            tokio::select! {
                Some(said) = hear.recv() => self.hears(said, stage)?,
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => self.next_cue(stage).await?,
                _ = frames.tick() => self.frame(),
            }
        }
        Ok(())
    }

    fn hears(&mut self, Said { side, at, what }: Said, stage: &mut Stage) -> anyhow::Result<()> {
        let since = at.saturating_duration_since(self.started);
        if let Out::Lines(lines) = &mut self.out {
            lines.heard(side, &what, since)?;
        }
        if !matches!(what, What::Text(_)) {
            self.events.push((since, told(side, &what)));
        }
        self.columns[side.place()].hears(what, at);
        if self.begun.is_none()
            && self.columns.iter().all(|column| column.agent().is_some() || column.ended().is_some())
        {
            // Only now: both are at the first agent, so that killing it hits both alike.
            self.second_agent = Some(stage.add_agent()?);
            self.begun = Some(Instant::now());
        }
        Ok(())
    }

    async fn next_cue(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        let Some(cue) = self.script.next() else { return Ok(()) };
        match cue {
            Cue::AddressChanges => stage.network.move_client()?,
            Cue::AgentDies => {
                if let Some(second_agent) = self.second_agent.take() {
                    stage.settled(second_agent).await?;
                }
                stage.kill_agent();
            }
        }
        self.last_event = Instant::now();
        let since = self.last_event.saturating_duration_since(self.started);
        self.events.push((since, cue.text().to_owned()));
        match &mut self.out {
            Out::Lines(lines) => Ok(lines.happened(cue, since)?),
            Out::Screen(_) => Ok(()),
        }
    }

    fn frame(&mut self) {
        let now = Instant::now();
        let nothing_more_happens = self.script.due().is_none();
        for column in &mut self.columns {
            let heard_last = column.last_at().unwrap_or(self.started).max(self.last_event);
            let never_began = self.begun.is_none() && now.duration_since(self.started) > BEGIN_WITHIN;
            if never_began || nothing_more_happens && now.saturating_duration_since(heard_last) > PATIENCE {
                column.give_up(now);
            }
        }
        if let Out::Screen(screen) = &mut self.out {
            screen.draw(&view(&self.title, self.sides, &self.columns, &self.events, self.answer.len()));
        }
    }
}

fn view<'a>(
    title: &'a str,
    sides: [Side; 2],
    columns: &'a [Column; 2],
    events: &'a [(Duration, String)],
    tokens: usize,
) -> View<'a> {
    View { title, tokens, sides, columns, events, now: Instant::now() }
}
