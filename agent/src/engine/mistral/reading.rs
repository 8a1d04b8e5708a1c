//! Reading a prompt: what the engine holds of it already is not computed again, and the rest is read in pieces, between which a reader who
//! went away ends it.
//!
//! mistral.rs' prefix cache keeps an entry for each finished sequence and finds one by the longest common beginning. On a CPU it never drops
//! any, and knows no owners. So each engine's entries are accounted for here ([`Held`]): they are of one owner, so that nobody can tell from the
//! time to the first token what others have said, and of bounded size. They are dropped by a step that is made to fail on purpose, after which
//! mistral.rs drops them all.
//!
//! A piece is a sequence of its own that ends with its first token and leaves its entry behind. mistral.rs counts that token to the entry although it
//! was never computed: it is a [`Vocabulary::sentinel`], which does not come next in the prompt.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mistralrs::{CustomLogitsProcessor, Model, Tensor};
use parking_lot::{Condvar, Mutex};

use super::{
    request::{self, Outcome, Sequence, only},
    vocabulary::Vocabulary,
};

/// What an engine's cache holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    owner: String,
    /// The tokens of each entry that were computed.
    entries: Vec<Vec<u32>>,
    /// Digests of the conversations that the entries are of, the most recent last.
    digests: Vec<u64>,
}

/// Digests kept of one engine: turns of a conversation.
const MAX_DIGESTS: usize = 128;

impl Held {
    /// How good this engine is for these tokens: one that need not compute some of them again is best, then one that holds nothing, since what
    /// another holds would be lost.
    pub(super) fn worth(&self, owner: &str, tokens: &[u32]) -> usize {
        match () {
            () if self.is_empty() => 1,
            () if self.owner == owner => self.longest(tokens),
            () => 0,
        }
    }

    fn longest(&self, tokens: &[u32]) -> usize {
        let common = |entry: &Vec<u32>| entry.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.entries.iter().map(common).max().unwrap_or(0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A sequence has ended, with these tokens computed.
    pub(super) fn add(&mut self, owner: &str, tokens: Vec<u32>) {
        owner.clone_into(&mut self.owner);
        self.entries.push(tokens);
    }

    /// What the last entry is of.
    pub(super) fn set_digests(&mut self, digests: &[u64]) {
        self.digests.retain(|digest| !digests.contains(digest));
        self.digests.extend(digests);
        let surplus = self.digests.len().saturating_sub(MAX_DIGESTS);
        self.digests.drain(..surplus);
    }

    /// The most recent first.
    pub(super) fn digests(&self) -> Vec<u64> {
        self.digests.iter().rev().copied().collect()
    }

    /// The engine has dropped everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Tokens for which the entries have memory.
    fn allocated(&self) -> usize {
        self.entries.iter().map(|entry| allocated(entry.len())).sum()
    }
}

/// mistral.rs' caches grow by so many tokens.
const CACHE_STEP: usize = 512;

fn allocated(tokens: usize) -> usize {
    tokens.next_multiple_of(CACHE_STEP)
}

/// How long a piece may take: what a reader who goes away, or a request that waits, waits for at most. Each piece copies the cache of all
/// before it, so that shorter ones would cost more than they read.
const PIECE_TIME: Duration = Duration::from_millis(500);
/// Tokens of a piece: not so few that the work around a piece is more than the piece, nor one token, which mistral.rs computes in another way and
/// rounds differently.
const PIECE_TOKENS: std::ops::RangeInclusive<usize> = 16..=512;

/// What is worth a piece of its own. Its request reads the last token, so that its logits are there.
const MIN_PIECE: usize = 3;

/// How fast a model reads.
#[derive(Debug)]
pub(super) struct ReadingSpeed {
    nanoseconds_per_token: AtomicU64,
}

impl Default for ReadingSpeed {
    fn default() -> Self {
        // A guess for the first piece, on the safe side.
        Self { nanoseconds_per_token: AtomicU64::new(5_000_000) }
    }
}

impl ReadingSpeed {
    fn piece(&self) -> usize {
        let tokens = PIECE_TIME.as_nanos() as u64 / self.nanoseconds_per_token.load(Relaxed).max(1);
        usize::try_from(tokens).unwrap_or(usize::MAX).clamp(*PIECE_TOKENS.start(), *PIECE_TOKENS.end())
    }

    /// The longest time that an engine should take for a step: a piece and a half.
    pub(super) fn longest_step(&self) -> Duration {
        let nanoseconds = self.nanoseconds_per_token.load(Relaxed);
        Duration::from_nanos(nanoseconds.saturating_mul(self.piece() as u64)).mul_f64(1.5)
    }

    fn read(&self, tokens: usize, took: Duration) {
        let each = took.as_nanos() as u64 / tokens.max(1) as u64;
        self.nanoseconds_per_token.store(each.max(1), Relaxed);
    }
}

/// Reads prompts with one engine.
pub(super) struct PromptReader<'a> {
    pub(super) model: &'a Model,
    pub(super) held: &'a Mutex<Held>,
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) speed: &'a ReadingSpeed,
    /// Tokens for which entries may have memory, all together.
    pub(super) budget: usize,
}

impl PromptReader<'_> {
    /// Has the engine read all but the last piece of `tokens`, until `cancelled` says so. Returns how many were known before.
    pub(super) async fn read(
        &self,
        owner: &str,
        tokens: &[u32],
        cancelled: impl Fn() -> bool,
    ) -> Result<usize, Outcome> {
        let foreign = {
            let held = self.held.lock();
            !held.is_empty() && held.owner != owner
        };
        // An entry that holds the whole prompt is of no use to mistral.rs: it then reads all of it, in one piece.
        if foreign || self.held.lock().longest(tokens) >= tokens.len() {
            self.forget().await?;
        }
        let known = self.held.lock().longest(tokens);
        let mut read = known;
        while !cancelled() {
            let piece = self.speed.piece();
            let left = tokens.len() - read;
            // The last piece is read by the request itself, unless room has to be made: only a piece can do that and keep what it goes on from.
            let until = match left {
                left if left > piece + piece / 2 => read + piece,
                left if self.is_full(tokens.len()) && left > MIN_PIECE => tokens.len() - 1,
                _ => break,
            };
            let began = Instant::now();
            self.piece(owner, &tokens[..until], tokens[until]).await?;
            self.speed.read(until - read, began.elapsed());
            read = until;
        }
        if self.is_full(tokens.len()) && read == known {
            self.forget().await?;
            return Ok(0);
        }
        Ok(known)
    }

    fn is_full(&self, tokens: usize) -> bool {
        self.held.lock().allocated() + allocated(tokens) > self.budget
    }

    async fn piece(&self, owner: &str, tokens: &[u32], next: u32) -> Result<(), Outcome> {
        let Some(sentinel) = self.vocabulary.sentinel(Some(next)) else { return Ok(()) };
        let make_room = self.is_full(tokens.len()) && !self.held.lock().is_empty();
        let begin = || {
            request::begin(
                self.model,
                tokens.to_vec(),
                PIECE_CHOICES,
                std::slice::from_ref(&sentinel),
                Arc::new(EndWith(sentinel)),
            )
        };
        let outcome = match make_room {
            true => self.instead_of_all_others(begin()).await,
            false => begin().await?.finish().await,
        };
        let mut held = self.held.lock();
        if make_room || outcome != Outcome::Finished {
            held.clear();
        }
        match outcome {
            Outcome::Finished => {
                held.add(owner, tokens.to_vec());
                Ok(())
            }
            other => Err(other),
        }
    }

    /// Drops all entries.
    pub(super) async fn forget(&self) -> Result<(), Outcome> {
        if self.held.lock().is_empty() {
            return Ok(());
        }
        let outcome = self.fail().await?.finish().await;
        self.held.lock().clear();
        dropped(outcome)
    }

    /// Begins a step that fails: its token is none. (An error of a [`CustomLogitsProcessor`] would not do: it ends its own sequence only.)
    async fn fail(&self) -> Result<Sequence, Outcome> {
        request::begin(self.model, vec![NO_TOKEN], PIECE_CHOICES, &[], Arc::new(EndWith(0))).await
    }

    /// Runs a sequence, and drops all entries that were there before. The engine finds what a sequence shares with an entry when it is added, and the
    /// sequence holds it from then on; so it is added together with one that fails, while a third one still runs. Of two that wait, mistral.rs runs
    /// the shorter one first: the one that fails has one token, and the other one more than that.
    async fn instead_of_all_others(&self, kept: impl Future<Output = Result<Sequence, Outcome>>) -> Outcome {
        let gate = Arc::new(Gate::default());
        let any = self.vocabulary.sentinel(None).unwrap_or_default();
        let open = OpenAtLast(&gate);
        let first = Arc::new(WaitThenEnd { with: any, gate: gate.clone() });
        let outcome = async |sequence: Result<Sequence, Outcome>| match sequence {
            Ok(sequence) => sequence.finish().await,
            Err(outcome) => outcome,
        };
        let first = outcome(request::begin(self.model, vec![any], PIECE_CHOICES, &[any], first).await);
        tokio::pin!(first);
        // Only when the first one runs: mistral.rs would take it and the one that fails, of the same length, together.
        tokio::select! {
            early = &mut first => return early,
            () = gate.entered.notified() => {}
        }
        let kept = kept.await;
        let failing = self.fail().await;
        drop(open);
        let (first, failed, kept) = (first.await, outcome(failing).await, outcome(kept).await);
        match (first, dropped(failed), kept) {
            (Outcome::Finished, Ok(()), kept) => kept,
            (Outcome::Finished, Err(outcome), _) | (outcome, ..) => outcome,
        }
    }
}

/// A token that no model has. Not the largest number: candle takes that for a row of zeros.
const NO_TOKEN: u32 = u32::MAX / 2;

fn dropped(outcome: Outcome) -> Result<(), Outcome> {
    match outcome {
        Outcome::Failed(_) => Ok(()),
        Outcome::Finished => Err(Outcome::Failed("the cache of prompts could not be dropped".to_owned())),
        Outcome::Crashed => Err(Outcome::Crashed),
    }
}

/// Tokens that a piece may choose: it chooses one.
const PIECE_CHOICES: usize = 4;

/// Ends its sequence with its first token.
struct EndWith(u32);

impl CustomLogitsProcessor for EndWith {
    fn apply(&self, logits: &Tensor, _context: &[u32]) -> mistralrs::Result<Tensor> {
        only(self.0, logits)
    }
}

/// The same, when everything is there that has to be behind it.
struct WaitThenEnd {
    with: u32,
    gate: Arc<Gate>,
}

impl CustomLogitsProcessor for WaitThenEnd {
    fn apply(&self, logits: &Tensor, _context: &[u32]) -> mistralrs::Result<Tensor> {
        self.gate.entered.notify_one();
        self.gate.wait();
        only(self.with, logits)
    }
}

#[derive(Default)]
struct Gate {
    entered: tokio::sync::Notify,
    open: Mutex<bool>,
    opened: Condvar,
}

/// The gate opens within microseconds; this is for a task that was dropped before it could do so.
const GATE_TIMEOUT: Duration = Duration::from_secs(10);

impl Gate {
    fn wait(&self) {
        let mut open = self.open.lock();
        if !*open {
            self.opened.wait_for(&mut open, GATE_TIMEOUT);
        }
    }
}

struct OpenAtLast<'a>(&'a Gate);

impl Drop for OpenAtLast<'_> {
    fn drop(&mut self) {
        *self.0.open.lock() = true;
        self.0.opened.notify_all();
    }
}
