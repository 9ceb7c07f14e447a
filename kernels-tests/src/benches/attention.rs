//! Attention over prompts, bound by arithmetic, and over a cache for one token, bound by reading it.

use flashwave::DType::F16;
use flashwave::kernels::attention::{
    Attention, AttentionArgs, AttentionLayouts, CooperativeTuning, DecodeTuning, Documents, Mask,
    PrefillTuning, Tuning, alibi_slopes,
};
use flashwave::kernels::ceilings::Probe;
use flashwave::{Capabilities, Context, Result, Tensor};

use super::{Mark, Measure, Prepared, Row, Scale, random, sets};

/// One call: heads of `dim` channels, `queries` of them over `keys`.
#[derive(Clone, Copy)]
struct Problem {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    v_dim: usize,
    mask: Mask,
    extra: Extra,
}

/// What else a call has.
#[derive(Clone, Copy)]
enum Extra {
    None,
    Softcap,
    Alibi,
    Sinks,
    /// So many packed sequences of the same length.
    Documents(usize),
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
                    v_dim: dim,
                    mask,
                    extra: Extra::None,
                });
            }
        }
    }
    problems
}

/// Masks that skip most tiles, over 32K tokens, and what scores go through, over 8K.
fn masked(scale: Scale) -> Vec<Problem> {
    let window = |left, sinks| Mask::Window {
        left: scale.pick(left, 8),
        right: 0,
        sinks,
    };
    let problem = |length, mask, extra| Problem {
        batch: 1,
        heads: scale.pick(16, 2),
        kv_heads: scale.pick(16, 2),
        queries: scale.pick(length, 64),
        keys: scale.pick(length, 64),
        dim: 128,
        v_dim: 128,
        mask,
        extra,
    };
    let mut problems = Vec::new();
    for mask in [
        Mask::Causal,
        window(1024, 0),
        window(1024, 4),
        window(4096, 0),
    ] {
        problems.push(problem(32768, mask, Extra::None));
    }
    let packed = Extra::Documents(scale.pick(16, 4));
    problems.push(problem(32768, Mask::Causal, packed));
    for extra in [Extra::Softcap, Extra::Alibi, Extra::Sinks] {
        problems.push(problem(8192, Mask::Causal, extra));
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
        v_dim: 128,
        mask: Mask::Causal,
        extra: Extra::None,
    });
    each.collect()
}

/// Wide heads of one key head: multi-head latent attention with its weights absorbed, and 320 channels.
fn wide(scale: Scale) -> Vec<Problem> {
    let problem = |dim, v_dim| Problem {
        batch: 1,
        heads: scale.pick(16, 2),
        kv_heads: 1,
        queries: scale.pick(4096, 32),
        keys: scale.pick(4096, 32),
        dim,
        v_dim,
        mask: Mask::Causal,
        extra: Extra::None,
    };
    vec![problem(576, 512), problem(320, 256)]
}

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let problems = prefills(scale)
        .into_iter()
        .chain(masked(scale))
        .chain(wide(scale))
        .chain(decodes(scale));
    problems.map(|p| row(caps, p, None)).collect()
}

/// Every tiling of the prefills, every split of the decodes.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let mut rows = Vec::new();
    for p in prefills(scale).into_iter().chain(wide(scale)) {
        let default = Tuning::new(caps, p.dim, p.v_dim);
        for cooperative in CooperativeTuning::candidates(caps, p.dim, p.v_dim) {
            let cooperative = Some(cooperative);
            let tuning = Tuning {
                cooperative,
                ..default
            };
            rows.push(row(caps, p, Some(tuning)));
        }
        for prefill in PrefillTuning::candidates(caps, p.dim, p.v_dim) {
            let tuning = Tuning {
                prefill,
                cooperative: None,
                ..default
            };
            rows.push(row(caps, p, Some(tuning)));
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
        v_dim,
        mask,
        extra,
    } = p;
    let cache = (batch * kv_heads * keys * (dim + v_dim) * F16.size()) as f64;
    let own = (batch * heads * queries * (dim + v_dim) * F16.size()) as f64;
    let count = sets(caps, cache + own);
    let mut op = Attention::new(mask);
    if let Some(tuning) = tuning {
        op = op.tuning(tuning);
    }
    if matches!(extra, Extra::Softcap) {
        op = op.softcap(50.0);
    }
    let prepare = move |ctx: &Context| prepare(ctx, p, op, count);
    if queries == 1 {
        let work = format!("decode attention f16 h{heads}/{kv_heads} kv{keys} d{dim}");
        return Row::memory("attention", work, cache, prepare);
    }
    let what = match extra {
        Extra::None => String::new(),
        Extra::Softcap => " softcap".into(),
        Extra::Alibi => " alibi".into(),
        Extra::Sinks => " learned sinks".into(),
        Extra::Documents(n) => format!(" {n} documents"),
    };
    let (group, width) = match (heads / kv_heads, v_dim == dim) {
        (1, true) => (String::new(), String::new()),
        _ => (format!("/{kv_heads}"), format!("/{v_dim}")),
    };
    let work = format!("attention f16 b{batch} h{heads}{group} l{keys} d{dim}{width} {mask}{what}");
    // As the field counts: the diagonal's halves are half of a square.
    let parts = match extra {
        Extra::Documents(n) => n,
        _ => 1,
    };
    let pairs = match mask {
        Mask::Causal => (queries * keys / parts) as f64 / 2.0,
        _ => mask.band().pairs(queries / parts, keys / parts) as f64 * parts as f64,
    };
    let flops = 2.0 * pairs * (batch * heads * (dim + v_dim)) as f64;
    let ceiling = match Probe::Cooperative.missing(caps) {
        None => Probe::Cooperative,
        Some(_) => Probe::F32,
    };
    let mut row = Row::compute("attention", work, ceiling, flops, prepare);
    // Wider heads are timed at one length.
    if let (Mask::Full | Mask::Causal, Extra::None, None, ..=256) = (mask, extra, tuning, dim) {
        row.marks.push(Mark {
            figure: "attention-length",
            series: format!("f16 d{dim} {mask}"),
            x: keys as f64,
            y: Measure::Throughput,
        });
    }
    row
}

fn prepare(ctx: &Context, p: Problem, op: Attention, count: usize) -> Result<Prepared> {
    let sets: Vec<[Tensor; 4]> = (0..count)
        .map(|i| {
            let queries = [p.batch, p.heads, p.queries, p.dim];
            let keys = [p.batch, p.kv_heads, p.keys, p.dim];
            let values = [p.batch, p.kv_heads, p.keys, p.v_dim];
            Ok([
                random(ctx, F16, queries, 3 * i)?,
                random(ctx, F16, keys, 3 * i + 1)?,
                random(ctx, F16, values, 3 * i + 2)?,
                Tensor::empty(ctx, F16, [p.batch, p.heads, p.queries, p.v_dim])?,
            ])
        })
        .collect::<Result<_>>()?;
    let documents = match p.extra {
        Extra::Documents(n) => {
            let ends: Vec<u32> = (0..=n).map(|d| (d * p.keys / n) as u32).collect();
            Some(Documents::new(ctx, &ends, &ends)?)
        }
        _ => None,
    };
    let slopes = match p.extra {
        Extra::Alibi => {
            let slopes = alibi_slopes(p.heads, 8.0)?;
            Some(Tensor::from_slice(ctx, &slopes, [p.heads])?)
        }
        _ => None,
    };
    let sink_logits = match p.extra {
        Extra::Sinks => Some(Tensor::from_slice(ctx, &vec![1.0f32; p.heads], [p.heads])?),
        _ => None,
    };
    let [q, k, v, out] = sets[0].each_ref().map(Tensor::layout);
    let layouts = AttentionLayouts {
        documents: documents.as_ref().map(Documents::packing),
        slopes: slopes.as_ref().map(Tensor::layout),
        sink_logits: sink_logits.as_ref().map(Tensor::layout),
        ..AttentionLayouts::new(q, k, v, out)
    };
    let plan = op.plan(ctx.capabilities(), layouts)?;
    Ok(Prepared::new(plan, move |pass, run| {
        let [q, k, v, out] = &sets[run % sets.len()];
        let args = AttentionArgs {
            documents: documents.as_ref(),
            slopes: slopes.as_ref(),
            sink_logits: sink_logits.as_ref(),
            ..AttentionArgs::new(q, k, v, out)
        };
        op.run(pass, args)
    }))
}
