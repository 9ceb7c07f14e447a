//! Attention over prompts, bound by arithmetic, and over a cache for one token, bound by reading it.

use flashwave::DType::F16;
use flashwave::kernels::attention::{
    Attention, AttentionArgs, AttentionLayouts, DecodeTuning, Mask, PrefillTuning, Tuning,
};
use flashwave::kernels::ceilings::Probe;
use flashwave::{Capabilities, Context, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

/// One call: heads of `dim` channels, `queries` of them over `keys`.
#[derive(Clone, Copy)]
struct Problem {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    mask: Mask,
}

/// Those of `torch_baseline.py`.
fn prefills(scale: Scale) -> Vec<Problem> {
    let lengths: &[usize] = scale.pick(&[2048, 8192, 16384], &[64]);
    let mut problems = Vec::new();
    for (dim, heads) in [(64, 32), (128, 16)] {
        for &length in lengths {
            for mask in [Mask::Full, Mask::Causal] {
                problems.push(Problem {
                    batch: scale.pick((16384 / length).max(1), 1),
                    heads: scale.pick(heads, 2),
                    kv_heads: scale.pick(heads, 2),
                    queries: length,
                    keys: length,
                    dim,
                    mask,
                });
            }
        }
    }
    problems
}

fn decodes(scale: Scale) -> Vec<Problem> {
    let lengths: &[usize] = scale.pick(&[512, 4096, 16384, 131_072], &[256]);
    let each = lengths.iter().map(|&keys| Problem {
        batch: 1,
        heads: 32,
        kv_heads: 8,
        queries: 1,
        keys,
        dim: 128,
        mask: Mask::Causal,
    });
    each.collect()
}

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let problems = prefills(scale).into_iter().chain(decodes(scale));
    problems.map(|p| row(caps, p, None)).collect()
}

/// Every tiling of the prefills, every split of the decodes.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let mut rows = Vec::new();
    for p in prefills(scale) {
        for prefill in PrefillTuning::candidates(caps, p.dim, p.dim) {
            let default = Tuning::new(caps, p.dim, p.dim);
            rows.push(row(caps, p, Some(Tuning { prefill, ..default })));
        }
    }
    for p in decodes(scale) {
        for decode in DecodeTuning::candidates(caps) {
            let default = Tuning::new(caps, p.dim, p.dim);
            rows.push(row(caps, p, Some(Tuning { decode, ..default })));
        }
    }
    rows
}

fn row(caps: &Capabilities, p: Problem, tuning: Option<Tuning>) -> Row {
    let Problem {
        batch,
        heads,
        kv_heads,
        queries,
        keys,
        dim,
        mask,
    } = p;
    let cache = (2 * batch * kv_heads * keys * dim * F16.size()) as f64;
    let own = (2 * batch * heads * queries * dim * F16.size()) as f64;
    let count = sets(caps, cache + own);
    let op = match tuning {
        Some(tuning) => Attention::new(mask).tuning(tuning),
        None => Attention::new(mask),
    };
    let prepare = move |ctx: &Context| prepare(ctx, p, op, count);
    if queries == 1 {
        let work = format!("decode attention f16 h{heads}/{kv_heads} kv{keys} d{dim}");
        return Row::memory("attention", work, cache, prepare);
    }
    let work = format!("attention f16 b{batch} h{heads} l{keys} d{dim} {mask}");
    // As the field counts: the diagonal's halves are half of a square.
    let pairs = match mask {
        Mask::Causal => (queries * keys) as f64 / 2.0,
        _ => mask.band().pairs(queries, keys) as f64,
    };
    let flops = 4.0 * pairs * (batch * heads * dim) as f64;
    let ceiling = match Probe::Cooperative.missing(caps) {
        None => Probe::Cooperative,
        Some(_) => Probe::F32,
    };
    Row::compute("attention", work, ceiling, flops, prepare)
}

fn prepare(ctx: &Context, p: Problem, op: Attention, count: usize) -> Result<Prepared> {
    let sets: Vec<[Tensor; 4]> = (0..count)
        .map(|i| {
            let queries = [p.batch, p.heads, p.queries, p.dim];
            let keys = [p.batch, p.kv_heads, p.keys, p.dim];
            Ok([
                random(ctx, F16, queries, 3 * i)?,
                random(ctx, F16, keys, 3 * i + 1)?,
                random(ctx, F16, keys, 3 * i + 2)?,
                Tensor::empty(ctx, F16, queries)?,
            ])
        })
        .collect::<Result<_>>()?;
    let [q, k, v, out] = sets[0].each_ref().map(Tensor::layout);
    let layouts = AttentionLayouts::new(q, k, v, out);
    let plan = op.plan(ctx.capabilities(), layouts)?;
    Ok(Prepared::new(plan, move |pass, run| {
        let [q, k, v, out] = &sets[run % sets.len()];
        op.run(pass, AttentionArgs::new(q, k, v, out))
    }))
}
