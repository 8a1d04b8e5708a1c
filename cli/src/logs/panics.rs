//! A panic as a line of the log.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    panic::{self, PanicHookInfo},
    time::Duration,
};

use super::queue::Queue;

/// Longest wait for the line to be written: in a `Drop` the process may end right after it.
const FLUSH_WITHIN: Duration = Duration::from_millis(200);

/// Reports every panic from now on. The hook cannot panic itself: it writes to no stream, takes no lock, and waits for nobody for long.
pub(super) fn report(queue: Queue) {
    panic::set_hook(Box::new(move |panic| {
        queue.say("ERROR", &told(panic));
        // Taken only where RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            queue.say_lines("ERROR", &backtrace.to_string());
        }
        queue.flush(FLUSH_WITHIN);
    }));
}

fn told(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let message =
        payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
    let message = message.unwrap_or("(no message)");
    match panic.location() {
        Some(place) => format!("panicked at {place}: {message}"),
        None => format!("panicked: {message}"),
    }
}
