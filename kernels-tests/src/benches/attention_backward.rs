//! Gradients of attention, alone and after the forward pass: bound by arithmetic.

use flashwave::DType::{F16, F32};
use flashwave::kernels::attention::{
    Attention, AttentionArgs, AttentionBackward, BackwardArgs, BackwardTuning, FlashGradientTuning,
    Gradient, GradientTuning, Mask,
};
use flashwave::kernels::ceilings::Probe;
use flashwave::{Capabilities, Context, Result, Tensor};

use super::{Prepared, Row, Scale, random};

/// One call: as many keys as queries, 16384 tokens in all.
#[derive(Clone, Copy)]
struct Problem {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    length: usize,
    dim: usize,
    mask: Mask,
}

/// What is timed.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Backward,
    Both,
}

impl Problem {
    fn new(scale: Scale, length: usize, dim: usize, mask: Mask) -> Self {
        let length = scale.pick(length, 64);
        let heads = scale.pick(2048 / dim, 2);
        Self {
            batch: scale.pick((16384 / length).max(1), 1),
            heads,
            kv_heads: heads,
            length,
            dim,
            mask,
        }
    }
}

fn problems(scale: Scale) -> Vec<Problem> {
    let mut problems = Vec::new();
    for dim in [64, 128] {
        for &length in scale.pick(&[2048, 8192][..], &[64]) {
            for mask in [Mask::Full, Mask::Causal] {
                problems.push(Problem::new(scale, length, dim, mask));
            }
        }
        problems.push(Problem {
            kv_heads: scale.pick(4, 1),
            ..Problem::new(scale, 2048, dim, Mask::Causal)
        });
    }
    let window = Mask::Window {
        left: scale.pick(512, 16),
        right: 0,
        sinks: 4,
    };
    problems.push(Problem::new(scale, 8192, 128, window));
    problems
}

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    problems(scale)
        .into_iter()
        .flat_map(|p| {
            [
                row(caps, p, Pass::Backward, None),
                row(caps, p, Pass::Both, None),
            ]
        })
        .collect()
}

/// Every tiling of either kernel.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let mut rows = Vec::new();
    for dim in [64, 128, 256] {
        let p = Problem::new(scale, 2048, dim, Mask::Causal);
        let default = BackwardTuning::new(caps, dim, dim);
        if let Some([queries, keys]) = default.flash {
            let candidates = |side| FlashGradientTuning::candidates(caps, side, dim, dim);
            let of_queries = candidates(Gradient::Queries).into_iter().map(|q| [q, keys]);
            let of_keys = candidates(Gradient::KeysValues)
                .into_iter()
                .map(|k| [queries, k]);
            for flash in of_queries.chain(of_keys) {
                let flash = Some(flash);
                let tuning = BackwardTuning { flash, ..default };
                rows.push(row(
                    caps,
                    p,
                    Pass::Backward,
                    Some(("of matrix units", tuning)),
                ));
            }
        }
        // Those of the kernels for f32.
        let default = BackwardTuning {
            flash: None,
            ..default
        };
        for queries in GradientTuning::candidates(caps, Gradient::Queries, dim, dim) {
            let tuning = BackwardTuning { queries, ..default };
            rows.push(row(caps, p, Pass::Backward, Some(("of queries", tuning))));
        }
        for keys in GradientTuning::candidates(caps, Gradient::KeysValues, dim, dim) {
            let tuning = BackwardTuning { keys, ..default };
            rows.push(row(caps, p, Pass::Backward, Some(("of keys", tuning))));
        }
    }
    rows
}

fn row(caps: &Capabilities, p: Problem, pass: Pass, tuning: Option<(&str, BackwardTuning)>) -> Row {
    let Problem {
        batch,
        heads,
        kv_heads,
        length,
        dim,
        mask,
    } = p;
    let shared = match heads == kv_heads {
        true => String::new(),
        false => format!("/{kv_heads}"),
    };
    let name = match pass {
        Pass::Backward => "attention backward",
        Pass::Both => "attention forward and backward",
    };
    let mut work = format!("{name} f16 b{batch} h{heads}{shared} l{length} d{dim} {mask}");
    if let Some((side, _)) = tuning {
        work += &format!(", tiles {side}");
    }
    // As the field counts: five products backward, though the two kernels together compute seven, and two forward; the
    // diagonal's halves are half of a square.
    let pairs = match mask {
        Mask::Causal => (length * length) as f64 / 2.0,
        _ => mask.band().pairs(length, length) as f64,
    };
    let products = match pass {
        Pass::Backward => 5.0,
        Pass::Both => 7.0,
    };
    let flops = 2.0 * products * pairs * (batch * heads * dim) as f64;
    let tuning = tuning.map(|(_, tuning)| tuning);
    let ceiling = match Probe::Cooperative.missing(caps) {
        None => Probe::Cooperative,
        Some(_) => Probe::F32,
    };
    Row::compute("attention_backward", work, ceiling, flops, move |ctx| {
        prepare(ctx, p, pass, tuning)
    })
}

/// One set of tensors: arithmetic takes far longer than reading them.
fn prepare(
    ctx: &Context,
    p: Problem,
    pass: Pass,
    tuning: Option<BackwardTuning>,
) -> Result<Prepared> {
    let queries = [p.batch, p.heads, p.length, p.dim];
    let keys = [p.batch, p.kv_heads, p.length, p.dim];
    let filled = |shape, seed| random(ctx, F16, shape, seed);
    let [q, k, v, dout] = [
        filled(queries, 0)?,
        filled(keys, 1)?,
        filled(keys, 2)?,
        filled(queries, 3)?,
    ];
    let empty = |shape: [usize; 4]| Tensor::empty(ctx, F16, shape);
    let [out, dq, dk, dv] = [empty(queries)?, empty(queries)?, empty(keys)?, empty(keys)?];
    let lse = Tensor::empty(ctx, F32, &queries[..3])?;
    let forward = Attention::new(p.mask);
    let mut backward = AttentionBackward::new(forward);
    if let Some(tuning) = tuning {
        backward = backward.tuning(tuning);
    }
    let record = move |recorded: &mut flashwave::Pass<'_>, pass| {
        let saved = AttentionArgs {
            lse: Some(&lse),
            ..AttentionArgs::new(&q, &k, &v, &out)
        };
        if pass == Pass::Both {
            forward.run(recorded, saved)?;
        }
        let args = BackwardArgs {
            forward: saved,
            dout: &dout,
            dq: &dq,
            dk: &dk,
            dv: &dv,
        };
        let plan = backward.plan(recorded.capabilities(), args.layouts())?;
        plan.launch(recorded, args)?;
        Ok(plan)
    };
    // Once with the forward pass, so that there are an output and logarithms.
    let plan = ctx.record(|recorded| record(recorded, Pass::Both))?;
    Ok(Prepared::new(plan, move |recorded, _| {
        record(recorded, pass).map(drop)
    }))
}
