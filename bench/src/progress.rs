//! A line that says what runs and how long it still takes.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

/// On a terminal a bar with the time left; otherwise a line for each stage.
pub(crate) struct Progress(ProgressBar);

/// How often the bar moves while something runs for a known time.
const TICK: Duration = Duration::from_millis(250);

impl Progress {
    /// For so many steps: runs, or milliseconds.
    pub(crate) fn new(steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        // The template is a constant; should it be wrong, the default bar will do.
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent:>3} %  {eta} left  {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// What runs now.
    pub(crate) fn stage(&self, stage: String) {
        if self.0.is_hidden() {
            eprintln!("{stage}");
        }
        self.0.set_message(stage);
    }

    /// One step is done.
    pub(crate) fn step(&self) {
        self.steps(1);
    }

    /// So many steps are done.
    pub(crate) fn steps(&self, steps: u64) {
        self.0.inc(steps);
    }

    /// So much of the time reckoned with, in milliseconds, has gone by.
    pub(crate) fn advance(&self, time: Duration) {
        self.0.inc(u64::try_from(time.as_millis()).unwrap_or(0));
    }

    /// Waits, counting milliseconds as steps.
    pub(crate) async fn sleep_until(&self, deadline: Instant) {
        let mut counted = Instant::now();
        while counted < deadline {
            tokio::time::sleep_until(deadline.min(counted + TICK)).await;
            let now = Instant::now();
            self.0.inc(u64::try_from((now.min(deadline) - counted).as_millis()).unwrap_or(0));
            counted = now;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
