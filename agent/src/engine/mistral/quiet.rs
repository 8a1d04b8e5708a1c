//! What goes wrong inside mistral.rs, in one line: its panics, and its errors, which hold a backtrace where the environment asks for one.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
    thread,
};

use tokio::sync::oneshot;

thread_local! {
    /// Panics of this thread are told by what it was doing, and not printed.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Characters of a message; what is longer is no sentence.
const MAX_CHARACTERS: usize = 400;

/// Runs what blocks on a thread of its own, and gives the message of its panic as an error. The panic prints nothing, whatever `RUST_BACKTRACE` is.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    silence();
    let (done, result) = oneshot::channel();
    let running = thread::Builder::new().name("model-loading".to_owned()).spawn(move || {
        QUIET.set(true);
        let result = panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message(panic.as_ref()));
        // Whoever waited may have gone.
        let _ = done.send(result);
    });
    running.map_err(|error| error.to_string())?;
    result.await.unwrap_or_else(|_| Err("the thread that loads models ended".to_owned()))
}

/// The hook of the process stays for all other threads.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                previous(panic);
            }
        }));
    });
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.map_or_else(|| "no message".to_owned(), one_line)
}

/// The message in one line, without the frames of a backtrace.
pub(super) fn one_line(text: &str) -> String {
    let is_frame = |line: &str| {
        let line = line.trim_start();
        line.starts_with("stack backtrace")
            || line.split_once(": ").is_some_and(|(number, _)| number.parse::<u32>().is_ok())
    };
    let lines = text.lines().take_while(|line| !is_frame(line)).map(str::trim).filter(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join("; ");
    match line.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_of_one_line() {
        assert_eq!(run(|| 7).await, Ok(7));
        let failed = run(|| -> () { panic!("a\nb") }).await.unwrap_err();
        assert!(!failed.contains('\n') && failed.contains("a"), "{failed}");
        let id = 7;
        assert_eq!(
            run(move || panic!("Unable to decode id {id}")).await.map(|()| 0),
            Err("Unable to decode id 7".to_owned())
        );
    }

    #[test]
    fn a_backtrace_is_cut_off() {
        let text = "Unknown GGUF architecture `bert`\n   0: candle_core::error::Error::bt\n             at /src/error.rs:1\n   1: main";
        assert_eq!(one_line(text), "Unknown GGUF architecture `bert`");
        assert_eq!(one_line("cannot find tensor\nblk.0: none"), "cannot find tensor; blk.0: none");
        assert_eq!(one_line(&"x".repeat(9_000)).chars().count(), MAX_CHARACTERS + 1);
    }
}
