//! What a request has met, for the error that says so.

use std::fmt::{self, Display};

/// Kinds of faults that an error tells; a request meets few.
const MAX_TOLD: usize = 8;

/// Errors and how often each came, the first one first.
#[derive(Debug, Default)]
pub(crate) struct Tried(Vec<(String, u32)>);

impl Tried {
    /// Takes note of an error.
    pub(crate) fn note(&mut self, error: &impl Display) {
        let error = error.to_string();
        if let Some((_, times)) = self.0.iter_mut().find(|(told, _)| *told == error) {
            *times += 1;
        } else if self.0.len() < MAX_TOLD {
            self.0.push((error, 1));
        }
    }
}

impl Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (error, times) in &self.0 {
            f.write_str(error)?;
            if *times > 1 {
                write!(f, " ({times} times)")?;
            }
            f.write_str("; ")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_is_told_once_with_its_number() {
        let mut tried = Tried::default();
        for error in ["full", "gone", "full"] {
            tried.note(&error);
        }
        assert_eq!(tried.to_string(), "full (2 times); gone; ");
        for n in 0..100 {
            tried.note(&n);
        }
        assert_eq!(tried.0.len(), MAX_TOLD);
    }
}
