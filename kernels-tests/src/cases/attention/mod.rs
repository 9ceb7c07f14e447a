//! Attention: prefill and decode, every mask, head dimensions around the tiles, grouped heads, element types,
//! strided layouts, bias, documents, softcap, ALiBi, sinks, rows that see nothing, split keys.

mod flash;
mod long;
mod setups;

use flashwave::DType::{F16, F32, I8};
use flashwave::kernels::attention::{
    Attention, AttentionArgs, AttentionLayouts, AttentionPlan, CooperativeTuning, DecodeTuning,
    Documents, Mask, Packing, PrefillTuning, Tuning, alibi_slopes,
};
use flashwave::kernels::fragments;
use flashwave::reference::attention::{Modifiers, Place, Problem, attention, attention_with};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Tensor};

use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{Outcome, Ulps, check, check_in, farther};
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
    /// [length, heads, batch, channels].
    Turned,
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
    /// The kernel for matrix units, on an emulation of these.
    Emulated(CooperativeTuning),
}

/// Which of batch, heads, queries and keys a bias or mask has a dimension for.
pub(super) type Dims = [bool; 4];

/// What stands in a bias or mask.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hides {
    /// One key in sixteen by a bias, one in four and all of the first row by a mask.
    Some,
    /// Every key.
    All,
}

#[derive(Clone, Copy)]
struct Setup {
    /// Without modifiers: [`Setup::run`] has those that the fields below ask for.
    problem: Problem<'static>,
    /// q, k, v, out.
    types: [DType; 4],
    place: Storage,
    bias: Option<(DType, Dims)>,
    mask: Option<Dims>,
    hides: Hides,
    /// Queries and keys of packed sequences, whose sums are the problem's.
    documents: &'static [[usize; 2]],
    softcap: Option<f32>,
    /// ALiBi's max_bias.
    alibi: Option<f32>,
    /// The first head's learned sink; the other heads' are smaller, the last one's is minus infinity.
    sink: Option<f32>,
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
                modifiers: Modifiers::default(),
            },
            types: [F32; 4],
            place: Storage::Heads,
            bias: None,
            mask: None,
            hides: Hides::Some,
            documents: &[],
            softcap: None,
            alibi: None,
            sink: None,
            lse: true,
            sizes: Sizes::Default,
            sharpness: 1.0,
        }
    }

    /// Packed sequences of these queries and keys.
    fn packed(mask: Mask, heads: [usize; 2], documents: &'static [[usize; 2]], d: usize) -> Self {
        let lengths = [0, 1].map(|side| documents.iter().map(|d| d[side]).sum());
        Self {
            documents,
            ..Self::new(mask, heads, lengths, d)
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
        if self.hides == Hides::All {
            name += " hiding all";
        }
        if !self.documents.is_empty() {
            name += &format!(" documents {:?}", self.documents);
        }
        for (what, value) in [
            ("softcap", self.softcap),
            ("alibi", self.alibi),
            ("sink", self.sink),
        ] {
            if let Some(value) = value {
                name += &format!(" {what} {value}");
            }
        }
        match self.sizes {
            Sizes::Default => {}
            Sizes::Emulated(t) => {
                name += &format!(" emulated {}x{}", t.rows, t.keys);
            }
            sizes => name += &format!(" {sizes:?}"),
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
        .on_gpus(group.starts_with("large"))
    }

    fn operator(&self, caps: &Capabilities) -> Attention {
        let p = &self.problem;
        let mut operator = Attention::new(p.mask).scale(p.scale);
        if let Some(softcap) = self.softcap {
            operator = operator.softcap(softcap);
        }
        let mut tuning = Tuning::new(caps, p.head_dim, p.v_dim);
        match self.sizes {
            Sizes::Default => return operator,
            Sizes::Split(workgroups) => {
                tuning.decode.workgroups = workgroups;
                tuning.decode.split_keys = 1;
            }
            Sizes::Emulated(sizes) => tuning.cooperative = Some(sizes),
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
        let packing = packing(self.documents);
        let slopes = match self.alibi {
            Some(max_bias) => Some(alibi_slopes(self.problem.heads, max_bias)?),
            None => None,
        };
        let sink_logits = self.sink_logits();
        let p = &Problem {
            modifiers: Modifiers {
                documents: packing.as_ref(),
                softcap: self.softcap,
                slopes: slopes.as_deref(),
                sink_logits: sink_logits.as_deref(),
            },
            ..self.problem
        };
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
            Storage::Turned => [
                turned(ctx, tq, &q, q_shape)?,
                turned(ctx, tk, &k, k_shape)?,
                turned(ctx, tv, &v, v_shape)?,
            ],
        };
        let out = match self.place {
            Storage::Fused => {
                poisoned(ctx, to, [p.batch, p.q_len, p.heads, p.v_dim])?.transpose(1, 2)?
            }
            Storage::Turned => {
                poisoned(ctx, to, [p.q_len, p.heads, p.batch, p.v_dim])?.transpose(0, 2)?
            }
            _ => poisoned(ctx, to, [p.batch, p.heads, p.q_len, p.v_dim])?,
        };
        let full = [p.batch, p.heads, p.q_len, p.kv_len];
        let bias = self.bias.map(|(dtype, dims)| {
            let shape = kept(full, dims);
            let mut values = bias_values(random, dtype, shape);
            if self.hides == Hides::All {
                values.fill(f32::NEG_INFINITY);
            }
            (dtype, shape, values)
        });
        let mask = self.mask.map(|dims| {
            let shape = kept(full, dims);
            let mut values = mask_values(random, shape);
            if self.hides == Hides::All {
                values.fill(0);
            }
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
        let documents = match &packing {
            Some(packing) => Some(Documents::new(ctx, packing.queries(), packing.keys())?),
            None => None,
        };
        let a_head = |values: &Option<Vec<f32>>| match values {
            Some(values) => Tensor::from_slice(ctx, values, [p.heads]).map(Some),
            None => Ok(None),
        };
        let (slopes_dev, sink_dev) = (a_head(&slopes)?, a_head(&sink_logits)?);
        let args = AttentionArgs {
            bias: bias_dev.as_ref(),
            mask: mask_dev.as_ref(),
            documents: documents.as_ref(),
            slopes: slopes_dev.as_ref(),
            sink_logits: sink_dev.as_ref(),
            lse: lse.as_ref(),
            ..AttentionArgs::new(&q_dev, &k_dev, &v_dev, &out)
        };
        let operator = self.operator(ctx.capabilities());
        let plan = operator.plan(ctx.capabilities(), args.layouts())?;
        ctx.record(|pass| plan.launch(pass, args))?;

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
        let (naive, naive_lse) = naive(&plan, p, [&q, &k, &v], &exact, to, added);
        let values = match self.place {
            Storage::Fused => {
                let values = out.transpose(1, 2)?.to_f32_vec()?;
                heads_first(&values, [p.heads, p.q_len, p.v_dim])
            }
            Storage::Turned => {
                let [b, h, l, d] = [p.batch, p.heads, p.q_len, p.v_dim];
                batch_first(&out.transpose(0, 2)?.to_f32_vec()?, [l, h, b, d])
            }
            _ => out.to_f32_vec()?,
        };
        let bent = Ulps(self.softcap.map_or(0.0, |cap| 7.0 * f64::from(cap)));
        let slack = |slack: Ulps| Ulps(slack.0 + bent.0);
        let outcome = check_in(to, &values, &exact, &naive, slack(out_slack(p.kv_len)))?;
        let Some(lse) = lse else { return Ok(outcome) };
        let lse = check(
            &lse.to_f32_vec()?,
            &exact_lse,
            &naive_lse,
            slack(lse_slack(p.kv_len)),
        )?;
        Ok(outcome.and(lse))
    }

    fn sink_logits(&self) -> Option<Vec<f32>> {
        let heads = self.problem.heads;
        let mut logits: Vec<f32> = (0..heads)
            .map(|h| self.sink.unwrap_or(0.0) - h as f32)
            .collect();
        if heads > 1 {
            logits[heads - 1] = f32::NEG_INFINITY;
        }
        self.sink.is_some().then_some(logits)
    }
}

/// Naive arithmetic of the precision of a plan's kernel, rounded to the output's type `to`, and its logarithms: f32, and on
/// matrix units probabilities of f16, where an element's error is the largest with or without their rounding. A weight is
/// relative to a maximum that need not be the row's final one, and where it stands in its binade decides how it rounds:
/// naive weights are rounded at several.
pub(super) fn naive(
    plan: &AttentionPlan,
    p: &Problem<'_>,
    [q, k, v]: [&[f32]; 3],
    exact: &[f64],
    to: DType,
    added: impl Fn(Place) -> Option<f32>,
) -> (Vec<f32>, Vec<f32>) {
    let output = |values: Vec<f32>| values.into_iter().map(|x| round(x, to)).collect();
    let (plain, lse) = attention(p, q, k, v, &added);
    let halved = |l: &Launch| match l.recipe.shader() {
        "attention/flash" => true,
        // With two parts, what f16 leaves of them is there too.
        "attention/flash_decode" => l.recipe.constant("PARTS") == Some(1.into()),
        _ => false,
    };
    if !plan.launches().any(halved) {
        return (output(plain), lse);
    }
    let halves = [1.0f32, 0.875, 0.75, 0.625].map(|base| {
        let rounded = |w: f32| round(w * base, F16) / base;
        output(attention_with(p, [q, k, v], &added, Some(&rounded)).0)
    });
    let [a, b, c, d] = halves;
    (farther(exact, [output(plain), a, b, c, d]), lse)
}

/// What WGSL grants the exponentials, in half ulps. A weight 2^-x has a relative error of 3 + 2x ulp, and the output's
/// error is the mean of its weights' errors under the weights themselves, times values. The mean of x under weights
/// proportional to 2^-x is their entropy less the logarithm of their sum, at most log2 of their number. The rescaling
/// of running sums multiplies weights by 2^-(m' - m), whose exponents add up to the weight's x. 2.5 ulp more are the
/// division's.
///
/// A softcap's tanh is 1 - 2 / (e + 1) with e = exp2(x), x = 2.885 |s / cap|, granted 3 + 2x ulp: off by 2 / (e + 1)
/// times e / (e + 1) (3 + 2x) + 2.5 ulp, which is at most 3.5 ulp (at the polynomial's end, |s / cap| = 0.625). Times
/// cap it is the absolute error of a score, and that the relative one of its weight.
pub(super) fn out_slack(kv_len: usize) -> Ulps {
    Ulps(2.0 * (3.0 + 2.0 * (kv_len as f64).log2() + 2.5))
}

/// The sum's relative error as above is the logarithm's absolute one; log2 has 2^-21 near 1 or 3 ulp.
pub(super) fn lse_slack(kv_len: usize) -> Ulps {
    Ulps(2.0 * (3.0 + 2.0 * (kv_len as f64).log2()) + 8.0)
}

/// Packed sequences of these queries and keys; none if there are no documents.
pub(super) fn packing(documents: &[[usize; 2]]) -> Option<Packing> {
    let ends = |side: usize| {
        let end = |sum: &mut u32, d: &[usize; 2]| {
            *sum += d[side] as u32;
            Some(*sum)
        };
        let ends = documents.iter().scan(0, end);
        std::iter::once(0).chain(ends).collect::<Vec<_>>()
    };
    Packing::new(&ends(0), &ends(1)).ok()
}

/// Normal numbers, one in sixteen minus infinity.
pub(super) fn bias_values(random: &mut Random, dtype: DType, shape: [usize; 4]) -> Vec<f32> {
    let mut values = random.normals(count(shape), dtype);
    for _ in 0..count(shape) / 16 {
        values[random.below(count(shape))] = f32::NEG_INFINITY;
    }
    values
}

/// Zeros, which hide, for one key in four, and for all of the first row.
pub(super) fn mask_values(random: &mut Random, shape: [usize; 4]) -> Vec<i8> {
    let mut values: Vec<i8> = (0..count(shape))
        .map(|_| (random.below(4) > 0) as i8)
        .collect();
    values[..shape[3]].fill(0);
    values
}

pub(super) fn count(shape: [usize; 4]) -> usize {
    shape.iter().product()
}

pub(super) fn kept(full: [usize; 4], dims: Dims) -> [usize; 4] {
    std::array::from_fn(|d| if dims[d] { full[d] } else { 1 })
}

pub(super) fn at(shape: [usize; 4], place: Place) -> usize {
    (0..4).fold(0, |at, d| at * shape[d] + place[d] % shape[d])
}

/// q, k and v as views of one tensor [batch, length, (heads + 2 kv_heads) * channels].
pub(super) fn fused(
    ctx: &Context,
    p: &Problem<'_>,
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

/// [batch, heads, length, channels] as a view of [length, heads, batch, channels].
fn turned(
    ctx: &Context,
    dtype: DType,
    values: &[f32],
    shape: [usize; 4],
) -> Result<Tensor, Failure> {
    let [b, h, l, d] = shape;
    let host = batch_first(values, shape);
    Ok(Tensor::from_f32(ctx, dtype, &host, [l, h, b, d])?.transpose(0, 2)?)
}

/// [a, b, c, d] as [c, b, a, d].
fn batch_first(values: &[f32], [a, b, c, d]: [usize; 4]) -> Vec<f32> {
    let mut turned = Vec::with_capacity(values.len());
    for z in 0..c {
        for y in 0..b {
            for x in 0..a {
                turned.extend_from_slice(&values[((x * b + y) * c + z) * d..][..d]);
            }
        }
    }
    turned
}

/// [batch, length, heads, channels] as [batch, heads, length, channels].
pub(super) fn heads_first(values: &[f32], [heads, length, channels]: [usize; 3]) -> Vec<f32> {
    let mut turned = Vec::with_capacity(values.len());
    for sequence in values.chunks(length * heads * channels) {
        for h in 0..heads {
            for i in 0..length {
                turned.extend_from_slice(&sequence[(i * heads + h) * channels..][..channels]);
            }
        }
    }
    turned
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = long::cases();
    cases.extend(
        setups::all()
            .into_iter()
            .chain(flash::all())
            .map(|(group, setup)| setup.case(group)),
    );
    cases
}

/// The launches of the cases, and each tuning that a sweep would try.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches: Vec<Launch> = fragments::plan(caps).into_iter().collect();
    for (_, setup) in setups::all().into_iter().chain(flash::all()) {
        launches.extend(plan(caps, &setup, setup.operator(caps)));
    }
    for d in [64, 128, 256] {
        let defaults = Tuning::new(caps, d, d);
        for cooperative in CooperativeTuning::candidates(caps, d, d) {
            let cooperative = Some(cooperative);
            let mut setup = Setup::new(Mask::Causal, [8, 8], [2048, 2048], d);
            setup.types = [F16; 4];
            let tuning = Tuning {
                cooperative,
                ..defaults
            };
            launches.extend(plan(
                caps,
                &setup,
                Attention::new(Mask::Causal).tuning(tuning),
            ));
        }
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
            launches.extend(plan(caps, &setup, operator));
        }
        for decode in DecodeTuning::candidates(caps) {
            // The number of workgroups is not part of a variant.
            if decode.workgroups != defaults.decode.workgroups {
                continue;
            }
            // Each count of rows once.
            let heads: &[[usize; 2]] = match d {
                128 => &[[8, 8], [8, 2]],
                _ => &[[8, 1]],
            };
            for &heads in heads {
                let mut setup = Setup::new(Mask::Causal, heads, [1, 4096], d);
                setup.types = [F32, F16, F16, F32];
                let operator = Attention::new(Mask::Causal).tuning(Tuning { decode, ..defaults });
                launches.extend(plan(caps, &setup, operator));
            }
        }
    }
    launches
}

fn plan(caps: &Capabilities, setup: &Setup, operator: Attention) -> Vec<Launch> {
    let p = &setup.problem;
    let full = [p.batch, p.heads, p.q_len, p.kv_len];
    let [tq, tk, tv, to] = setup.types;
    let made = |dtype: DType, shape: &[usize]| Layout::contiguous(dtype, shape).expect("a layout");
    let q = made(tq, &[p.batch, p.heads, p.q_len, p.head_dim]);
    let k = made(tk, &[p.batch, p.kv_heads, p.kv_len, p.head_dim]);
    let v = made(tv, &[p.batch, p.kv_heads, p.kv_len, p.v_dim]);
    let out = made(to, &[p.batch, p.heads, p.q_len, p.v_dim]);
    let bias = setup
        .bias
        .map(|(dtype, dims)| made(dtype, &kept(full, dims)));
    let mask = setup.mask.map(|dims| made(I8, &kept(full, dims)));
    let packing = packing(setup.documents);
    let slopes = setup.alibi.map(|_| made(F32, &[p.heads]));
    let sink_logits = setup.sink.map(|_| made(F32, &[p.heads]));
    let lse = setup.lse.then(|| made(F32, &full[..3]));
    let layouts = AttentionLayouts {
        bias: bias.as_ref(),
        mask: mask.as_ref(),
        documents: packing.as_ref(),
        slopes: slopes.as_ref(),
        sink_logits: sink_logits.as_ref(),
        lse: lse.as_ref(),
        ..AttentionLayouts::new(&q, &k, &v, &out)
    };
    let plan = operator.plan(caps, layouts).expect("a valid problem");
    plan.launches().cloned().collect()
}
