//! Errors and what caused them.

use std::{error::Error, io, iter::successors};

/// An error and its sources, outermost first. What an `io::Error` wraps is not its source but itself, so it is looked at too.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}

/// An error and what caused it, in one line, each said once: many messages hold their cause's already.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error).map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn a_cause_is_said_once() {
        for text in ["cannot read x", "cannot read x: disk on fire"] {
            let error = Outer { text, source: io::Error::other("disk on fire") };
            assert_eq!(with_causes(&error), "cannot read x: disk on fire");
        }
    }

    #[test]
    fn what_an_io_error_wraps_is_a_cause() {
        let error = Outer { text: "TLS", source: io::Error::other(rustls::Error::DecryptError) };
        let last = causes(&error).last().unwrap();
        assert_eq!(last.downcast_ref(), Some(&rustls::Error::DecryptError));
    }
}
