//! Attention over listed blocks beside the dense kernel: speed-up by density at one length, and a long context.

use flashwave::DType::F16;
use flashwave::kernels::attention::{
    Attention, AttentionArgs, Blocks, CooperativeTuning, Mask, Tuning,
};
use flashwave::kernels::ceilings::Probe;
use flashwave::kernels::sparse::{Pattern, SparseLayout};
use flashwave::{Capabilities, Context, Result, Tensor};

use super::{Mark, Measure, Prepared, Row, Scale, random};

const HEADS: usize = 8;
const DIM: usize = 128;

/// Length, side of a block, and S2's stride and window; `None` for the dense kernel.
#[derive(Clone, Copy)]
struct Problem {
    length: usize,
    s2: Option<(usize, usize, usize)>,
}

/// Half of what is met strided, half in the window: densities 1/4 to 1/32 of 32K tokens. Then 128K tokens.
fn problems(scale: Scale) -> Vec<Problem> {
    let length = scale.pick(32768, 256);
    let sparse = |length, block, stride, window| Problem {
        length,
        s2: Some((block, stride, window)),
    };
    let mut problems = vec![Problem { length, s2: None }];
    let sizes: &[usize] = scale.pick(&[64, 128], &[16]);
    for &block in sizes {
        for stride in [8, 16, 32, 64] {
            // Of n / 2 blocks on average a share of n / 2 / stride, and as many in the window.
            let window = (length / block / 2 / stride).max(1);
            problems.push(sparse(length, block, stride, window));
        }
    }
    let long = scale.pick(131_072, 512);
    let blocks: &[usize] = scale.pick(&[64, 128], &[32]);
    for &block in blocks {
        for stride in [16, 32] {
            problems.push(sparse(long, block, stride, 4));
        }
    }
    problems
}

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let problems = problems(scale).into_iter();
    problems.map(|p| row(caps, p, None)).collect()
}

/// Every tiling on matrix units.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let default = Tuning::new(caps, DIM, DIM);
    let mut rows = Vec::new();
    for p in problems(scale) {
        for cooperative in CooperativeTuning::candidates(caps, DIM, DIM) {
            let cooperative = Some(cooperative);
            let tuning = Tuning {
                cooperative,
                ..default
            };
            rows.push(row(caps, p, Some(tuning)));
        }
    }
    rows
}

/// As `torch_baseline.py` names the dense one.
fn dense_work(length: usize) -> String {
    format!("attention f16 b1 h{HEADS} l{length} d{DIM} causal")
}

fn layout(length: usize, s2: (usize, usize, usize)) -> Option<(Pattern, SparseLayout)> {
    let (block, stride, window) = s2;
    let pattern = Pattern::s2(stride, window);
    let layout = SparseLayout::builder(HEADS, length, length).block(block);
    Some((pattern.clone(), layout.pattern(&pattern).ok()?))
}

fn row(caps: &Capabilities, p: Problem, tuning: Option<Tuning>) -> Row {
    let made = p.s2.and_then(|s2| layout(p.length, s2));
    let dense = (HEADS * p.length * p.length) as f64 / 2.0;
    let (work, pairs) = match &made {
        None => (dense_work(p.length), dense),
        Some((pattern, layout)) => {
            let work = format!(
                "{} {pattern} block {} density 1/{:.1}",
                dense_work(p.length),
                layout.block(),
                1.0 / layout.density()
            );
            (work, layout.pairs() as f64)
        }
    };
    let ceiling = match Probe::Cooperative.missing(caps) {
        None => Probe::Cooperative,
        Some(_) => Probe::F32,
    };
    let sparse = made.map(|(_, layout)| layout);
    let mark = sparse.as_ref().map(|layout| Mark {
        figure: "sparse-speedup",
        series: format!("S2, {} tokens, blocks of {}", p.length, layout.block()),
        x: 1.0 / layout.density(),
        y: Measure::SpeedUp(dense_work(p.length)),
    });
    let mut op = Attention::new(Mask::Causal);
    if let Some(tuning) = tuning {
        op = op.tuning(tuning);
    }
    let prepare = move |ctx: &Context| prepare(ctx, op, p.length, sparse.clone());
    let mut row = Row::compute(
        "sparse_attention",
        work,
        ceiling,
        4.0 * pairs * DIM as f64,
        prepare,
    );
    row.marks.extend(mark);
    row
}

fn prepare(
    ctx: &Context,
    op: Attention,
    length: usize,
    layout: Option<SparseLayout>,
) -> Result<Prepared> {
    let shape = [1, HEADS, length, DIM];
    let [q, k, v] = [0, 1, 2].map(|seed| random(ctx, F16, shape, seed));
    let (q, k, v, out) = (q?, k?, v?, Tensor::empty(ctx, F16, shape)?);
    let args = AttentionArgs {
        sparse: layout.as_ref().map(Blocks::Listed),
        ..AttentionArgs::new(&q, &k, &v, &out)
    };
    let plan = op.plan(ctx.capabilities(), args.layouts())?;
    Ok(Prepared::new(plan, move |pass, _| {
        let args = AttentionArgs {
            sparse: layout.as_ref().map(Blocks::Listed),
            ..AttentionArgs::new(&q, &k, &v, &out)
        };
        op.run(pass, args)
    }))
}
