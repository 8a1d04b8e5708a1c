//! The scheduler alone: one choice among 1, 100 and 10,000 agents. `cargo bench -p titan-bench --bench scheduler`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use titan_coord::{Candidate, Weights, choose};

/// As many as `titan-bench route` registers.
const AGENTS: [usize; 3] = [1, 100, 10_000];

fn scheduler(criterion: &mut Criterion) {
    let weights = Weights::default().normalized().expect("the defaults are valid");
    let mut group = criterion.benchmark_group("choose");
    for agents in AGENTS {
        let candidates = fleet(agents);
        group.throughput(Throughput::Elements(agents as u64));
        group.bench_with_input(BenchmarkId::from_parameter(agents), &candidates, |bencher, candidates| {
            bencher.iter(|| choose(black_box(&weights), black_box(candidates).iter().copied()));
        });
    }
    group.finish();
}

/// Unequal agents, by fixed numbers; some have not been measured yet.
fn fleet(agents: usize) -> Vec<Candidate> {
    (0..agents)
        .map(|key| Candidate {
            key,
            free_memory: (key % 17) as f64 / 17.0,
            gpu: key % 2 == 0,
            load: (key % 5) as f64 / 5.0,
            rtt_ms: (key % 11 > 0).then_some((key % 11) as f64),
            tokens_per_second: (key % 13 > 0).then_some((key % 13) as f64 * 5.0),
            prefix_messages: 0,
            reserve: 0,
            last_chosen: (key % 19) as u64,
        })
        .collect()
}

criterion_group!(benches, scheduler);
criterion_main!(benches);
