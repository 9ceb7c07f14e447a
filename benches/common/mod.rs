//! What the benches have in common: each times the rows of its family, which `flashwave bench` prints too.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use flashwave::Context;
use kernels_tests::benches::{BENCHES, Row, Scale, time_runs};

/// Runs of one pass at most: timestamps surround a pass, and a long one blocks the device.
const RUNS: u64 = 256;

/// Times the rows of `family`.
pub fn main(family: &str) {
    let ctx = Context::new().expect("an adapter: run `cargo xtask ensure-adapter`");
    let caps = ctx.capabilities();
    let mut criterion = Criterion::default().configure_from_args();
    let benches = BENCHES.iter().filter(|b| b.name == family);
    for row in benches.flat_map(|b| (b.rows)(caps, Scale::of(caps))) {
        bench(&mut criterion, &ctx, &row);
    }
    criterion.final_summary();
}

fn bench(criterion: &mut Criterion, ctx: &Context, row: &Row) {
    let mut group = criterion.benchmark_group(row.family);
    group.sample_size(10);
    group.throughput(if row.bytes > 0.0 {
        Throughput::Bytes(row.bytes as u64)
    } else {
        Throughput::Elements(row.flops as u64)
    });
    group.bench_function(&row.work, |bencher| {
        // Prepared here, so that a row that a filter leaves out takes no memory.
        let mut prepared = row.prepare(ctx).expect("the row's tensors");
        bencher.iter_custom(|runs| {
            let mut total = Duration::ZERO;
            for first in (0..runs).step_by(RUNS as usize) {
                let count = RUNS.min(runs - first) as usize;
                let timed = time_runs(ctx, &mut prepared, first as usize, count);
                total += timed.expect("the row runs").0;
            }
            total
        });
    });
    group.finish();
}
