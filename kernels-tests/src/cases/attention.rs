//! Attention: prefill and decode, causal and full, head dimensions around the tiles, grouped heads, element types,
//! strided layouts, bias and mask, rows that see nothing, split keys.

use flashwave::DType::{BF16, F16, F32, I8};
use flashwave::kernels::attention::{
    Attention, AttentionArgs, AttentionLayouts, DecodeTuning, Mask, PrefillTuning, Tuning,
};
use flashwave::reference::attention::{Place, Problem, attention};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Tensor};

use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{Outcome, Ulps, check};
use crate::{Case, Failure};

/// How q, k, v and out lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Storage {
    /// [batch, heads, length, channels].
    Heads,
    /// [batch, length, heads, channels], q, k and v cut out of one fused projection.
    Fused,
    /// The first keys of a longer cache [batch, heads, length, channels], the rest of it NaN.
    Cache,
}

/// Sizes that do not change the result.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sizes {
    /// The device's defaults.
    Default,
    /// Keys split for so many workgroups.
    Split(u32),
    /// The candidate of a sweep that is least like the defaults.
    Unusual,
}

/// Which of batch, heads, queries and keys a bias or mask has a dimension for.
type Dims = [bool; 4];

#[derive(Clone, Copy)]
struct Setup {
    problem: Problem,
    /// q, k, v, out.
    types: [DType; 4],
    place: Storage,
    bias: Option<(DType, Dims)>,
    mask: Option<Dims>,
    /// Ask for the logarithms.
    lse: bool,
    sizes: Sizes,
    /// Multiplies q: larger scores.
    sharpness: f64,
}

impl Setup {
    fn new(
        mask: Mask,
        [heads, kv_heads]: [usize; 2],
        [q_len, kv_len]: [usize; 2],
        head_dim: usize,
    ) -> Self {
        Self {
            problem: Problem {
                batch: 1,
                heads,
                kv_heads,
                q_len,
                kv_len,
                head_dim,
                v_dim: head_dim,
                mask,
                scale: 1.0 / (head_dim as f32).sqrt(),
            },
            types: [F32; 4],
            place: Storage::Heads,
            bias: None,
            mask: None,
            lse: true,
            sizes: Sizes::Default,
            sharpness: 1.0,
        }
    }

    fn name(&self) -> String {
        let p = &self.problem;
        let [q, k, v, o] = self.types;
        let mut name = format!(
            "{} b{} h{}/{} {}x{} d{}",
            p.mask, p.batch, p.heads, p.kv_heads, p.q_len, p.kv_len, p.head_dim
        );
        if p.v_dim != p.head_dim {
            name += &format!("/{}", p.v_dim);
        }
        name += &format!(" {q} {k} {v} -> {o} {:?}", self.place);
        if let Some((dtype, dims)) = self.bias {
            name += &format!(" bias {dtype} {dims:?}");
        }
        if let Some(dims) = self.mask {
            name += &format!(" mask {dims:?}");
        }
        if self.sizes != Sizes::Default {
            name += &format!(" {:?}", self.sizes);
        }
        if self.lse {
            name += " lse";
        }
        name
    }

    fn case(self, group: &str) -> Case {
        let name = self.name();
        Case::new("attention", group, name.clone(), move |ctx| {
            self.run(ctx, &name)
        })
    }

    fn operator(&self, caps: &Capabilities) -> Attention {
        let p = &self.problem;
        let operator = Attention::new(p.mask).scale(p.scale);
        let mut tuning = Tuning::new(caps, p.head_dim, p.v_dim);
        match self.sizes {
            Sizes::Default => return operator,
            Sizes::Split(workgroups) => {
                tuning.decode.workgroups = workgroups;
                tuning.decode.split_keys = 1;
            }
            Sizes::Unusual => {
                let prefill = PrefillTuning::candidates(caps, p.head_dim, p.v_dim);
                let decode = DecodeTuning::candidates(caps);
                tuning.prefill = prefill
                    .into_iter()
                    .max_by_key(|t| (t.rows, t.key_threads))
                    .unwrap_or(tuning.prefill);
                tuning.decode = decode
                    .into_iter()
                    .max_by_key(|t| (t.workgroup, t.lanes))
                    .unwrap_or(tuning.decode);
            }
        }
        operator.tuning(tuning)
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<Outcome, Failure> {
        let p = &self.problem;
        let random = &mut Random::new(Case::seed(name));
        let [tq, tk, tv, to] = self.types;
        let q_shape = [p.batch, p.heads, p.q_len, p.head_dim];
        let k_shape = [p.batch, p.kv_heads, p.kv_len, p.head_dim];
        let v_shape = [p.batch, p.kv_heads, p.kv_len, p.v_dim];
        let q = random.scaled_normals(count(q_shape), tq, self.sharpness);
        let k = random.normals(count(k_shape), tk);
        let v = random.normals(count(v_shape), tv);
        let [q_dev, k_dev, v_dev] = match self.place {
            Storage::Heads => [
                Tensor::from_f32(ctx, tq, &q, q_shape)?,
                Tensor::from_f32(ctx, tk, &k, k_shape)?,
                Tensor::from_f32(ctx, tv, &v, v_shape)?,
            ],
            Storage::Fused => fused(ctx, p, tq, [&q, &k, &v])?,
            Storage::Cache => [
                Tensor::from_f32(ctx, tq, &q, q_shape)?,
                cache(ctx, tk, &k, k_shape)?,
                cache(ctx, tv, &v, v_shape)?,
            ],
        };
        let out = match self.place {
            Storage::Fused => {
                poisoned(ctx, to, [p.batch, p.q_len, p.heads, p.v_dim])?.transpose(1, 2)?
            }
            _ => poisoned(ctx, to, [p.batch, p.heads, p.q_len, p.v_dim])?,
        };
        let full = [p.batch, p.heads, p.q_len, p.kv_len];
        let bias = self.bias.map(|(dtype, dims)| {
            let shape = kept(full, dims);
            let mut values = random.normals(count(shape), dtype);
            for _ in 0..count(shape) / 16 {
                values[random.below(count(shape))] = f32::NEG_INFINITY;
            }
            (dtype, shape, values)
        });
        let mask = self.mask.map(|dims| {
            let shape = kept(full, dims);
            let mut values: Vec<i8> = (0..count(shape))
                .map(|_| (random.below(4) > 0) as i8)
                .collect();
            // Some rows see nothing at all.
            let row = shape[3];
            values[..row].fill(0);
            (shape, values)
        });
        let bias_dev = match &bias {
            Some((dtype, shape, values)) => Some(Tensor::from_f32(ctx, *dtype, values, shape)?),
            None => None,
        };
        let mask_dev = match &mask {
            Some((shape, values)) => Some(Tensor::from_slice(ctx, values, shape)?),
            None => None,
        };
        let lse = match self.lse {
            true => Some(poisoned(ctx, F32, [p.batch, p.heads, p.q_len])?),
            false => None,
        };
        let args = AttentionArgs {
            q: &q_dev,
            k: &k_dev,
            v: &v_dev,
            bias: bias_dev.as_ref(),
            mask: mask_dev.as_ref(),
            out: &out,
            lse: lse.as_ref(),
        };
        let operator = self.operator(ctx.capabilities());
        ctx.record(|pass| operator.run(pass, args))?;

        let added = |place: Place| -> Option<f32> {
            if let Some((shape, values)) = &mask
                && values[at(*shape, place)] == 0
            {
                return None;
            }
            match &bias {
                Some((_, shape, values)) => {
                    Some(values[at(*shape, place)]).filter(|&b| b != f32::NEG_INFINITY)
                }
                None => Some(0.0),
            }
        };
        let (exact, exact_lse) = attention(p, &widen(&q), &widen(&k), &widen(&v), |at| {
            added(at).map(f64::from)
        });
        let (naive, naive_lse) = attention(p, &q, &k, &v, added);
        let naive: Vec<f32> = naive.iter().map(|&x| round(x, to)).collect();
        let mut values = match self.place {
            Storage::Fused => out.transpose(1, 2)?.to_f32_vec()?,
            _ => out.to_f32_vec()?,
        };
        if self.place == Storage::Fused {
            values = heads_first(&values, p);
        }
        let outcome = check(&values, &exact, &naive, slack(p.kv_len))?;
        let Some(lse) = lse else { return Ok(outcome) };
        let lse = check(
            &lse.to_f32_vec()?,
            &exact_lse,
            &naive_lse,
            lse_slack(p.kv_len),
        )?;
        Ok(outcome.and(lse))
    }
}

/// What WGSL grants the exponentials, in half ulps. A weight 2^-x has a relative error of 3 + 2x ulp, and the output's
/// error is the mean of its weights' errors under the weights themselves, times values. The mean of x under weights
/// proportional to 2^-x is their entropy less the logarithm of their sum, at most log2 of their number. The rescaling
/// of running sums multiplies weights by 2^-(m' - m), whose exponents add up to the weight's x. 2.5 ulp more are the
/// division's.
pub(super) fn slack(kv_len: usize) -> Ulps {
    Ulps(2.0 * (3.0 + 2.0 * (kv_len as f64).log2() + 2.5))
}

/// The sum's relative error as above is the logarithm's absolute one; log2 has 2^-21 near 1 or 3 ulp.
pub(super) fn lse_slack(kv_len: usize) -> Ulps {
    Ulps(2.0 * (3.0 + 2.0 * (kv_len as f64).log2()) + 8.0)
}

fn count(shape: [usize; 4]) -> usize {
    shape.iter().product()
}

fn kept(full: [usize; 4], dims: Dims) -> [usize; 4] {
    std::array::from_fn(|d| if dims[d] { full[d] } else { 1 })
}

fn at(shape: [usize; 4], place: Place) -> usize {
    (0..4).fold(0, |at, d| at * shape[d] + place[d] % shape[d])
}

/// q, k and v as views of one tensor [batch, length, (heads + 2 kv_heads) * channels].
fn fused(
    ctx: &Context,
    p: &Problem,
    dtype: DType,
    parts: [&[f32]; 3],
) -> Result<[Tensor; 3], Failure> {
    let (d, all) = (p.head_dim, p.heads + 2 * p.kv_heads);
    let heads = [p.heads, p.kv_heads, p.kv_heads];
    let mut host = vec![f32::NAN; p.batch * p.q_len * all * d];
    let mut first = 0;
    for (part, heads) in parts.iter().zip(heads) {
        for (row, x) in part.chunks(d).enumerate() {
            let (b, h, i) = (row / p.q_len / heads, row / p.q_len % heads, row % p.q_len);
            host[((b * p.q_len + i) * all + first + h) * d..][..d].copy_from_slice(x);
        }
        first += heads;
    }
    let whole = Tensor::from_f32(ctx, dtype, &host, [p.batch, p.q_len, all * d])?;
    let cut = |from: usize, heads: usize| {
        whole
            .narrow(2, from * d..(from + heads) * d)?
            .split_heads(heads)?
            .transpose(1, 2)
    };
    Ok([
        cut(0, p.heads)?,
        cut(p.heads, p.kv_heads)?,
        cut(p.heads + p.kv_heads, p.kv_heads)?,
    ])
}

/// A cache with room for a few keys more, NaN for now.
fn cache(
    ctx: &Context,
    dtype: DType,
    values: &[f32],
    shape: [usize; 4],
) -> Result<Tensor, Failure> {
    let [b, h, l, d] = shape;
    let mut host = Vec::new();
    for head in values.chunks(l * d) {
        host.extend_from_slice(head);
        host.extend(vec![f32::NAN; 5 * d]);
    }
    Ok(Tensor::from_f32(ctx, dtype, &host, [b, h, l + 5, d])?.narrow(2, 0..l)?)
}

/// [batch, length, heads, channels] as [batch, heads, length, channels].
fn heads_first(values: &[f32], p: &Problem) -> Vec<f32> {
    let mut turned = Vec::with_capacity(values.len());
    for b in 0..p.batch {
        for h in 0..p.heads {
            for i in 0..p.q_len {
                let from = ((b * p.q_len + i) * p.heads + h) * p.v_dim;
                turned.extend_from_slice(&values[from..from + p.v_dim]);
            }
        }
    }
    turned
}

/// Every setup, with its group.
fn setups() -> Vec<(&'static str, Setup)> {
    let mut setups = Vec::new();
    let mut add = |group, setup| setups.push((group, setup));
    // Lengths: flash-attention's pairs, cut; one variant each of mask and kernel serves them all.
    let pairs = [
        [1, 1],
        [1, 239],
        [3, 799],
        [113, 203],
        [128, 217],
        [113, 211],
        [64, 128],
        [239, 1],
        [129, 129],
        [1, 147],
        [127, 513],
        [203, 113],
        [17, 17],
        [16, 16],
    ];
    for pair in pairs {
        add("lengths causal", Setup::new(Mask::Causal, [1, 1], pair, 16));
        add("lengths full", Setup::new(Mask::Full, [1, 1], pair, 16));
    }
    // Masks that hide keys on both sides: windows narrower and wider than tiles, sinks within and over a tile.
    let window = |left, right, sinks| Mask::Window { left, right, sinks };
    let masks = [
        window(20, 0, 0),
        window(3, 5, 0),
        window(64, 0, 4),
        window(30, 0, 70),
        Mask::Prefix(37),
        Mask::Prefix(300),
    ];
    for mask in masks {
        for pair in [[113, 203], [129, 129], [203, 113], [3, 239], [1, 147]] {
            add("windows and prefixes", Setup::new(mask, [2, 1], pair, 16));
        }
    }
    // Channels of a head, prefill and decode.
    for d in [8, 40, 59, 64, 80, 96, 111, 128, 192, 256] {
        add(
            "channels prefill",
            Setup::new(Mask::Causal, [1, 1], [67, 77], d),
        );
        let mut decode = Setup::new(Mask::Causal, [1, 1], [1, 147], d);
        decode.types = [F32, F16, F16, F32];
        // 80 and 96 are cut up as 40 and 64 are.
        if d != 80 && d != 96 {
            add("channels decode", decode);
        }
    }
    for d in [3, 64] {
        let mut setup = Setup::new(Mask::Full, [1, 1], [21, 33], d);
        setup.problem.v_dim = d + 4;
        add("values of another width", setup);
        setup.problem.q_len = 2;
        add("values of another width", setup);
    }
    // Query heads to a key head.
    for heads in [[4, 4], [8, 2], [8, 1], [6, 2]] {
        let mut setup = Setup::new(Mask::Causal, heads, [33, 41], 32);
        setup.problem.batch = 2;
        add("grouped heads", setup);
        setup.problem.q_len = 1;
        setup.types = [F32, F16, F16, F32];
        add("grouped heads", setup);
        setup.problem.q_len = 3;
        add("grouped heads", setup);
    }
    for types in [
        [F16; 4],
        [BF16; 4],
        [F32, F16, F16, F32],
        [F16, F32, BF16, F32],
        [F32, BF16, BF16, F16],
    ] {
        for (d, q_len) in [(24, 37), (24, 1), (13, 37), (13, 1)] {
            // Ragged rows differ in how they are stored: once for each type is enough.
            if d == 13 && types[0] != types[3] {
                continue;
            }
            let mut setup = Setup::new(Mask::Causal, [1, 1], [q_len, 45], d);
            setup.types = types;
            setup.lse = false;
            add("types", setup);
        }
    }
    for d in [32, 15] {
        for q_len in [39, 2] {
            let mut setup = Setup::new(Mask::Causal, [4, 2], [q_len, q_len], d);
            setup.problem.batch = 2;
            setup.place = Storage::Fused;
            add("strided", setup);
            if d == 32 {
                setup.place = Storage::Cache;
                setup.problem.kv_len = 83;
                setup.types = [F32, F16, F16, F32];
                add("strided", setup);
            }
        }
    }
    let forms: [Dims; 5] = [
        [true; 4],
        [false, false, true, true],
        [true, false, false, true],
        [false, true, true, false],
        [false; 4],
    ];
    for (q_len, mask) in [(35, Mask::Causal), (2, Mask::Full)] {
        for dims in forms {
            let mut setup = Setup::new(mask, [4, 2], [q_len, 71], 16);
            setup.problem.batch = 2;
            setup.bias = Some((F32, dims));
            add("bias", setup);
            setup.mask = Some([false, false, true, true]);
            add("bias and mask", setup);
            setup.bias = None;
            setup.mask = Some(dims);
            add("mask", setup);
        }
        let mut setup = Setup::new(mask, [4, 2], [q_len, 71], 16);
        setup.bias = Some((F16, [false, true, true, true]));
        add("bias", setup);
    }
    // Many splits, some of which see nothing; rows of several workgroups.
    for (heads, pair, d, split, kv) in [
        ([4, 1], [1, 799], 64, 64, F16),
        ([8, 8], [1, 300], 128, 64, F16),
        ([8, 1], [3, 513], 32, 100, F16),
        ([2, 2], [16, 203], 16, 64, F32),
        ([8, 2], [5, 3], 40, 64, F32),
        ([1, 1], [2, 1999], 256, 512, F32),
    ] {
        let mut setup = Setup::new(Mask::Causal, heads, pair, d);
        setup.sizes = Sizes::Split(split);
        setup.types = [F32, kv, kv, F32];
        add("split keys", setup);
    }
    // Scores in the hundreds: all weight on a key or two.
    for q_len in [1, 40] {
        let mut setup = Setup::new(Mask::Full, [2, 1], [q_len, 90], 16);
        setup.sharpness = 30.0;
        add("sharp", setup);
    }
    for (d, pair) in [(72, [100, 190]), (128, [1, 600])] {
        let mut setup = Setup::new(Mask::Causal, [2, 1], pair, d);
        setup.sizes = Sizes::Unusual;
        add("unusual sizes", setup);
    }
    // A group's cases together, that they be one test.
    setups.sort_by_key(|&(group, _)| group);
    setups
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    setups()
        .into_iter()
        .map(|(group, setup)| setup.case(group))
        .collect()
}

/// The launches of the cases, and each tuning that a sweep would try.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for (_, setup) in setups() {
        let full = [
            setup.problem.batch,
            setup.problem.heads,
            setup.problem.q_len,
            setup.problem.kv_len,
        ];
        let bias = setup
            .bias
            .map(|(dtype, dims)| Layout::contiguous(dtype, kept(full, dims)));
        let mask = setup
            .mask
            .map(|dims| Layout::contiguous(I8, kept(full, dims)));
        let (Ok(bias), Ok(mask)) = (bias.transpose(), mask.transpose()) else {
            continue;
        };
        launches.extend(plan(
            caps,
            &setup,
            setup.operator(caps),
            bias.as_ref(),
            mask.as_ref(),
        ));
    }
    for d in [128, 256] {
        let defaults = Tuning::new(caps, d, d);
        for prefill in PrefillTuning::candidates(caps, d, d) {
            let tuning = Tuning {
                prefill,
                ..defaults
            };
            let setup = Setup::new(Mask::Causal, [8, 8], [2048, 2048], d);
            let operator = Attention::new(Mask::Causal).tuning(tuning);
            launches.extend(plan(caps, &setup, operator, None, None));
        }
        for decode in DecodeTuning::candidates(caps) {
            // The number of workgroups is not part of a variant.
            if decode.workgroups != defaults.decode.workgroups {
                continue;
            }
            for heads in [[8, 8], [8, 2], [8, 1]] {
                let mut setup = Setup::new(Mask::Causal, heads, [1, 4096], d);
                setup.types = [F32, F16, F16, F32];
                let operator = Attention::new(Mask::Causal).tuning(Tuning { decode, ..defaults });
                launches.extend(plan(caps, &setup, operator, None, None));
            }
        }
    }
    launches
}

fn plan(
    caps: &Capabilities,
    setup: &Setup,
    operator: Attention,
    bias: Option<&Layout>,
    mask: Option<&Layout>,
) -> Vec<Launch> {
    let p = &setup.problem;
    let shapes = [
        [p.batch, p.heads, p.q_len, p.head_dim],
        [p.batch, p.kv_heads, p.kv_len, p.head_dim],
        [p.batch, p.kv_heads, p.kv_len, p.v_dim],
        [p.batch, p.heads, p.q_len, p.v_dim],
    ];
    let layouts: Vec<Layout> = setup
        .types
        .iter()
        .zip(shapes)
        .filter_map(|(&dtype, shape)| Layout::contiguous(dtype, shape).ok())
        .collect();
    let [q, k, v, out] = &layouts[..] else {
        return Vec::new();
    };
    let lse = Layout::contiguous(F32, [p.batch, p.heads, p.q_len])
        .ok()
        .filter(|_| setup.lse);
    let layouts = AttentionLayouts {
        q,
        k,
        v,
        bias,
        mask,
        out,
        lse: lse.as_ref(),
    };
    let plan = operator.plan(caps, layouts).expect("a valid problem");
    plan.launches().cloned().collect()
}
