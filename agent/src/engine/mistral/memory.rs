//! How many engines the machine has room for.

/// Memory that a model takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// Weights as they are in memory.
    pub(super) weight_bytes: u64,
    /// Of the KV cache, for each token of context.
    pub(super) token_bytes: u64,
}

impl Needs {
    /// An engine whose KV cache is full: it is grown by copying, so the last step holds it almost twice, but for one layer at a time.
    pub(super) fn engine_bytes(&self, context_tokens: usize) -> u64 {
        let cache = self.token_bytes.saturating_mul(context_tokens as u64);
        self.weight_bytes.saturating_add(cache).saturating_add(ENGINE_BYTES)
    }
}

/// KV caches and unpacked embeddings are 32-bit on a CPU.
pub(super) const F32: u64 = 4;
/// A KV cache has both.
pub(super) const KEY_AND_VALUE: u64 = 2;
/// Tokenizer, runtime and scratch memory of an engine, measured with a model of 135 million parameters.
const ENGINE_BYTES: u64 = 64 << 20;
/// Share of the free memory that engines may take; the rest is the system's and the requests'.
const MEMORY_SHARE: f64 = 0.8;

/// Engines for as many jobs, as far as cores and memory go; at least one.
pub(super) fn fitting_engines(max_jobs: usize, memory_bytes: u64, engine_bytes: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let fitting = (memory_bytes as f64 * MEMORY_SHARE) as u64 / engine_bytes.max(1);
    max_jobs.min(cores).min(usize::try_from(fitting).unwrap_or(usize::MAX)).max(1)
}

/// Tokens of conversations that an engine keeps beside what it computes: a whole context where the memory is there.
pub(super) fn cache_tokens(context_tokens: usize, memory_bytes: u64, needs: Needs) -> usize {
    let left = ((memory_bytes as f64 * MEMORY_SHARE) as u64).saturating_sub(needs.engine_bytes(context_tokens));
    let fitting = usize::try_from(left / needs.token_bytes.max(1)).unwrap_or(usize::MAX);
    fitting.min(context_tokens).max(MIN_CACHE_TOKENS)
}

/// A conversation of a few turns, and the pieces in which it is read.
const MIN_CACHE_TOKENS: usize = 2048;

/// Memory that is free now.
pub(super) fn available_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    // A container's limit, where there is one, lies below the machine's memory.
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    system.available_memory().min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_bounded_by_jobs_cores_and_memory() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(fitting_engines(1, u64::MAX, 1), 1);
        assert_eq!(fitting_engines(1_000_000, u64::MAX, 1), cores);
        assert_eq!(fitting_engines(8, 1000, 900), 1, "memory for less than one still gives one");
        assert_eq!(fitting_engines(0, 0, 0), 1);
    }

    #[test]
    fn what_is_kept_is_a_context_where_the_memory_is_there() {
        let needs = Needs { weight_bytes: 1 << 30, token_bytes: 1 << 10 };
        assert_eq!(cache_tokens(8192, u64::MAX, needs), 8192);
        assert_eq!(cache_tokens(8192, 0, needs), MIN_CACHE_TOKENS);
        assert_eq!(cache_tokens(512, u64::MAX, needs), MIN_CACHE_TOKENS);
    }
}
