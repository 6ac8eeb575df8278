//! The hot pieces, each at several sizes, so that what grows with the mesh shows. Their list is in
//! `cases`; their instruction counts are in the benchmark `instructions`.
//!
//! `cargo bench --bench hot`; `-- --test` runs each once.

mod cases;

use criterion::{Criterion, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn all(c: &mut Criterion) {
    let cases = cases::all();
    for cases in cases.chunk_by(|a, b| a.group == b.group) {
        let mut group = c.benchmark_group(cases[0].group);
        for case in cases {
            // Not made for a case that the filter leaves out, nor again for every sample.
            let mut call = None;
            group.bench_function(case.id, |b| b.iter(call.get_or_insert_with(|| case.make())));
        }
        group.finish();
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
