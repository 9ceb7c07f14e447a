//! Gradients of attention: masks, lengths and head dimensions around the tiles, grouped heads, element types, strided
//! layouts, bias and boolean mask, rows and keys without a partner.

use flashwave::DType::{BF16, F16, F32, I8};
use flashwave::kernels::attention::{
    Attention, AttentionArgs, AttentionBackward, AttentionLayouts, BackwardArgs, BackwardLayouts,
    BackwardTuning, Blocks, Documents, FlashGradientTuning, Gradient, GradientTuning, Mask,
    alibi_slopes,
};
use flashwave::kernels::sparse::{Causality, SparseLayout};
use flashwave::reference::attention::{Modifiers, Place, Problem, attention};
use flashwave::reference::attention_backward::{
    Saved, attention_backward, attention_backward_with,
};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Tensor};

use super::attention::{
    Dims, at, bias_values, count, fused, heads_first, kept, mask_values, out_slack, packing,
};
use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{Outcome, Ulps, check_in, farther};
use crate::{Case, Failure};

/// How tensors lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Storage {
    /// [batch, heads, length, channels].
    Heads,
    /// [batch, length, heads, channels], q, k and v cut out of one fused projection.
    Fused,
}

/// Sizes that do not change the result.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sizes {
    /// The device's defaults.
    Default,
    /// The candidate of a sweep that is least like the defaults.
    Unusual,
    /// The kernels for matrix units, on an emulation of these.
    Emulated(FlashGradientTuning),
}

#[derive(Clone, Copy)]
struct Setup {
    /// Without modifiers: [`Setup::run`] has those that the fields below ask for.
    problem: Problem<'static>,
    /// q, k, v, out and its gradient, dq, dk, dv.
    types: [DType; 7],
    place: Storage,
    bias: Option<(DType, Dims)>,
    mask: Option<Dims>,
    /// Queries and keys of packed sequences, whose sums are the problem's.
    documents: &'static [[usize; 2]],
    softcap: Option<f32>,
    /// ALiBi's max_bias.
    alibi: Option<f32>,
    /// Every head's learned sink.
    sink: Option<f32>,
    /// Blocks, and heads that share a list, of a layout which lists every third block and the diagonal.
    sparse: Option<[usize; 2]>,
    sizes: Sizes,
    /// Multiplies q: larger scores.
    sharpness: f64,
}

/// The tensors' values as they are stored.
struct Values {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    out: Vec<f32>,
    lse: Vec<f32>,
    dout: Vec<f32>,
}

/// In which order naive arithmetic adds channels up.
#[derive(Clone, Copy)]
enum Order {
    /// From this quarter on, around to the channel before it.
    Quarter(usize),
    Backward,
    /// Every fourth from the first on, from the second, the third and the fourth: as sums of vectors of four are.
    ByFour,
}

impl Order {
    /// The channel that is added as number `i` of `width`.
    fn channel(self, i: usize, width: usize) -> usize {
        match self {
            Self::Quarter(n) => (i + n * width / 4) % width,
            Self::Backward => width - 1 - i,
            Self::ByFour => match width % 4 {
                0 => i % (width / 4) * 4 + i / (width / 4),
                _ => i,
            },
        }
    }
}

impl Values {
    /// dq, dk and dv by naive arithmetic that adds channels up in this order, with weights stored as `weights`.
    fn naive(
        &self,
        p: &Problem<'_>,
        order: Order,
        weights: DType,
        bias: impl Fn(Place) -> Option<f32>,
    ) -> [Vec<f32>; 3] {
        let turned = |x: &[f32], width| -> Vec<f32> {
            let row = |row: &[f32]| -> Vec<f32> {
                (0..width).map(|i| row[order.channel(i, width)]).collect()
            };
            x.chunks(width).flat_map(row).collect()
        };
        let back = |x: &[f32], width| -> Vec<f32> {
            let mut turned = x.to_vec();
            for (to, from) in turned.chunks_mut(width).zip(x.chunks(width)) {
                for (i, &value) in from.iter().enumerate() {
                    to[order.channel(i, width)] = value;
                }
            }
            turned
        };
        let (d, dv) = (p.head_dim, p.v_dim);
        let saved = Saved {
            q: &turned(&self.q, d)[..],
            k: &turned(&self.k, d),
            v: &turned(&self.v, dv),
            out: &turned(&self.out, dv),
            lse: &self.lse,
            dout: &turned(&self.dout, dv),
        };
        let found = attention_backward_with(p, &saved, bias, |w| round(w, weights));
        [back(&found.dq, d), back(&found.dk, d), back(&found.dv, dv)]
    }
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
            types: [F32; 7],
            place: Storage::Heads,
            bias: None,
            mask: None,
            documents: &[],
            softcap: None,
            alibi: None,
            sink: None,
            sparse: None,
            sizes: Sizes::Default,
            sharpness: 1.0,
        }
    }

    fn name(&self) -> String {
        let p = &self.problem;
        let [q, k, v, o, dq, dk, dv] = self.types;
        let mut name = format!(
            "{} b{} h{}/{} {}x{} d{}/{}",
            p.mask, p.batch, p.heads, p.kv_heads, p.q_len, p.kv_len, p.head_dim, p.v_dim
        );
        name += &format!(" {q} {k} {v} {o} -> {dq} {dk} {dv} {:?}", self.place);
        match self.sizes {
            Sizes::Default => {}
            Sizes::Emulated(t) => {
                name += &format!(" emulated {}x{} by {}", t.rows, t.walked, t.part);
            }
            sizes => name += &format!(" {sizes:?}"),
        }
        if let Some((dtype, dims)) = self.bias {
            name += &format!(" bias {dtype} {dims:?}");
        }
        if let Some(dims) = self.mask {
            name += &format!(" mask {dims:?}");
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
        if let Some([block, share]) = self.sparse {
            name += &format!(" blocks of {block}, {share} heads alike");
        }
        name
    }

    fn layout(&self) -> Option<SparseLayout> {
        let p = &self.problem;
        let [block, share] = self.sparse?;
        let causality = match p.mask {
            Mask::Causal => Causality::Causal,
            _ => Causality::Full,
        };
        SparseLayout::builder(p.heads / share, p.q_len, p.kv_len)
            .block(block)
            .causality(causality)
            .from_fn(|head, line, column| line == column || (line + column + head) % 3 == 1)
            .ok()
    }

    fn case(self, group: &str) -> Case {
        let name = self.name();
        Case::new("attention_backward", group, name.clone(), move |ctx| {
            self.run(ctx, &name)
        })
        .on_gpus(group.starts_with("large"))
    }

    fn operator(&self, caps: &Capabilities) -> AttentionBackward {
        let p = &self.problem;
        let mut forward = Attention::new(p.mask).scale(p.scale);
        if let Some(softcap) = self.softcap {
            forward = forward.softcap(softcap);
        }
        let operator = AttentionBackward::new(forward);
        match self.sizes {
            Sizes::Default => operator,
            Sizes::Unusual => {
                let most = |gradient| {
                    let default = GradientTuning::new(caps, gradient, p.head_dim, p.v_dim);
                    GradientTuning::candidates(caps, gradient, p.head_dim, p.v_dim)
                        .into_iter()
                        .max_by_key(|t| (t.rows, t.across))
                        .unwrap_or(default)
                };
                operator.tuning(BackwardTuning {
                    queries: most(Gradient::Queries),
                    keys: most(Gradient::KeysValues),
                    flash: None,
                })
            }
            Sizes::Emulated(sizes) => operator.tuning(BackwardTuning {
                flash: Some([sizes; 2]),
                ..BackwardTuning::new(caps, p.head_dim, p.v_dim)
            }),
        }
    }

    /// Shapes of q, k, v and out.
    fn shapes(&self) -> [[usize; 4]; 4] {
        let p = &self.problem;
        [
            [p.batch, p.heads, p.q_len, p.head_dim],
            [p.batch, p.kv_heads, p.kv_len, p.head_dim],
            [p.batch, p.kv_heads, p.kv_len, p.v_dim],
            [p.batch, p.heads, p.q_len, p.v_dim],
        ]
    }

    fn full(&self) -> [usize; 4] {
        let p = &self.problem;
        [p.batch, p.heads, p.q_len, p.kv_len]
    }

    /// Random inputs, and what the forward pass makes of them, rounded as it is stored.
    fn values(
        &self,
        p: &Problem<'_>,
        random: &mut Random,
        bias: impl Fn(Place) -> Option<f64>,
    ) -> Values {
        let [tq, tk, tv, to, ..] = self.types;
        let [sq, sk, sv, so] = self.shapes().map(count);
        let q = random.scaled_normals(sq, tq, self.sharpness);
        let (k, v) = (random.normals(sk, tk), random.normals(sv, tv));
        let dout = random.normals(so, to);
        let (out, lse) = attention::<f64>(p, &widen(&q), &widen(&k), &widen(&v), bias);
        Values {
            q,
            k,
            v,
            out: out.iter().map(|&x| round(x as f32, to)).collect(),
            lse: lse.iter().map(|&x| x as f32).collect(),
            dout,
        }
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<Outcome, Failure> {
        let heads = self.problem.heads;
        let packing = packing(self.documents);
        let slopes = match self.alibi {
            Some(max_bias) => Some(alibi_slopes(heads, max_bias)?),
            None => None,
        };
        let sink_logits = self.sink.map(|sink| vec![sink; heads]);
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
        let bias = self.bias.map(|(dtype, dims)| {
            let shape = kept(self.full(), dims);
            (dtype, shape, bias_values(random, dtype, shape))
        });
        let mask = self.mask.map(|dims| {
            let shape = kept(self.full(), dims);
            (shape, mask_values(random, shape))
        });
        let layout = self.layout();
        let share = self.sparse.map_or(1, |[_, share]| share);
        let added = |place: Place| -> Option<f32> {
            let [_, head, query, key] = place;
            if let Some(layout) = &layout
                && !layout.sees(head / share, query, key)
            {
                return None;
            }
            if let Some((shape, values)) = &mask
                && values[at(*shape, place)] == 0
            {
                return None;
            }
            let bias = bias.as_ref().map_or(0.0, |(_, s, x)| x[at(*s, place)]);
            (bias != f32::NEG_INFINITY).then_some(bias)
        };
        let values = self.values(p, random, |place| added(place).map(f64::from));

        let [tq, tk, tv, to, tdq, tdk, tdv] = self.types;
        let [q_shape, k_shape, v_shape, o_shape] = self.shapes();
        let [q, k, v] = match self.place {
            Storage::Heads => [
                Tensor::from_f32(ctx, tq, &values.q, q_shape)?,
                Tensor::from_f32(ctx, tk, &values.k, k_shape)?,
                Tensor::from_f32(ctx, tv, &values.v, v_shape)?,
            ],
            Storage::Fused => fused(ctx, p, tq, [&values.q, &values.k, &values.v])?,
        };
        let out = Tensor::from_f32(ctx, to, &values.out, o_shape)?;
        let dout = Tensor::from_f32(ctx, to, &values.dout, o_shape)?;
        let lse = Tensor::from_f32(ctx, F32, &values.lse, &o_shape[..3])?;
        let gradient = |dtype, [b, h, l, d]: [usize; 4]| match self.place {
            Storage::Heads => poisoned(ctx, dtype, [b, h, l, d]),
            Storage::Fused => poisoned(ctx, dtype, [b, l, h, d])?.transpose(1, 2),
        };
        let gradients = [
            gradient(tdq, q_shape)?,
            gradient(tdk, k_shape)?,
            gradient(tdv, v_shape)?,
        ];
        let [dq, dk, dv] = &gradients;
        let bias_dev = match &bias {
            Some((dtype, shape, values)) => Some(Tensor::from_f32(ctx, *dtype, values, shape)?),
            None => None,
        };
        let mask_dev = match &mask {
            Some((shape, values)) => Some(Tensor::from_slice(ctx, values, shape)?),
            None => None,
        };
        let documents = match &packing {
            Some(packing) => Some(Documents::new(ctx, packing.queries(), packing.keys())?),
            None => None,
        };
        let a_head = |values: &Option<Vec<f32>>| match values {
            Some(values) => Tensor::from_slice(ctx, values, [heads]).map(Some),
            None => Ok(None),
        };
        let (slopes_dev, sink_dev) = (a_head(&slopes)?, a_head(&sink_logits)?);
        let args = BackwardArgs {
            forward: AttentionArgs {
                bias: bias_dev.as_ref(),
                mask: mask_dev.as_ref(),
                documents: documents.as_ref(),
                slopes: slopes_dev.as_ref(),
                sink_logits: sink_dev.as_ref(),
                lse: Some(&lse),
                sparse: layout.as_ref().map(Blocks::Listed),
                ..AttentionArgs::new(&q, &k, &v, &out)
            },
            dout: &dout,
            dq,
            dk,
            dv,
        };
        let operator = self.operator(ctx.capabilities());
        let plan = operator.plan(ctx.capabilities(), args.layouts())?;
        ctx.record(|pass| plan.launch(pass, args))?;
        // Matrix units take the weights in f16.
        let flash = plan.launches().any(|l| l.recipe.shader().contains("flash"));
        let weights = if flash { F16 } else { F32 };

        let wide = [
            &values.q,
            &values.k,
            &values.v,
            &values.out,
            &values.lse,
            &values.dout,
        ]
        .map(|x| widen(x));
        let [q, k, v, out, lse, dout] = wide.each_ref().map(Vec::as_slice);
        let saved = Saved {
            q,
            k,
            v,
            out,
            lse,
            dout,
        };
        let exact = attention_backward(p, &saved, |place| added(place).map(f64::from));
        let exact = [exact.dq, exact.dk, exact.dv];
        // Where all weight is on a key or two, rounding a few scores decides everything: any order may be lucky in these.
        let more = if self.sharpness > 1.0 {
            [1, 2, 3]
        } else {
            [0; 3]
        };
        let naive = [
            Order::Quarter(0),
            Order::Backward,
            Order::ByFour,
            Order::Quarter(more[0]),
            Order::Quarter(more[1]),
            Order::Quarter(more[2]),
        ]
        .map(|order| values.naive(p, order, weights, added));
        let slack = slack(p.kv_len, self.softcap);
        let mut outcome = Outcome::default();
        for i in 0..3 {
            let found = match self.place {
                Storage::Heads => gradients[i].to_f32_vec()?,
                Storage::Fused => {
                    let stored = gradients[i].transpose(1, 2)?.to_f32_vec()?;
                    let &[_, heads, length, width] = gradients[i].shape() else {
                        return Err(Failure::Wrong("rank".into()));
                    };
                    heads_first(&stored, [heads, length, width])
                }
            };
            let rounded = |x: &Vec<f32>| x.iter().map(|&x| round(x, self.types[4 + i])).collect();
            let naive = farther(&exact[i], naive.each_ref().map(|g| rounded(&g[i])));
            let checked = check_in(self.types[4 + i], &found, &exact[i], &naive, slack);
            outcome = outcome.and(
                checked.map_err(|e| Failure::Wrong(format!("{}: {e}", ["dq", "dk", "dv"][i])))?,
            );
        }
        Ok(outcome)
    }

    fn plan(&self, caps: &Capabilities, operator: AttentionBackward) -> Vec<Launch> {
        let layout = |dtype, shape: &[usize]| Layout::contiguous(dtype, shape).expect("a layout");
        let [tq, tk, tv, to, tdq, tdk, tdv] = self.types;
        let [q, k, v, o] = self.shapes();
        let bias = self
            .bias
            .map(|(t, dims)| layout(t, &kept(self.full(), dims)));
        let mask = self.mask.map(|dims| layout(I8, &kept(self.full(), dims)));
        let [lq, lk] = [layout(tq, &q), layout(tk, &k)];
        let [lv, lo] = [layout(tv, &v), layout(to, &o)];
        let packing = packing(self.documents);
        let blocks = self.layout();
        let a_head = layout(F32, &[self.problem.heads]);
        let layouts = BackwardLayouts {
            forward: AttentionLayouts {
                bias: bias.as_ref(),
                mask: mask.as_ref(),
                documents: packing.as_ref(),
                slopes: self.alibi.map(|_| &a_head),
                sink_logits: self.sink.map(|_| &a_head),
                lse: Some(&layout(F32, &o[..3])),
                sparse: blocks.as_ref().map(Blocks::Listed),
                ..AttentionLayouts::new(&lq, &lk, &lv, &lo)
            },
            dout: &layout(to, &o),
            dq: &layout(tdq, &q),
            dk: &layout(tdk, &k),
            dv: &layout(tdv, &v),
        };
        let plan = operator.plan(caps, layouts).expect("a valid problem");
        plan.launches().cloned().collect()
    }
}

/// What WGSL grants the exponentials of the weights, and a softcap's tanh: as for the output (see [`out_slack`]), which
/// is a sum of weights times values as these gradients are. The softcap's derivative 1 - t^2 is off by twice what t is,
/// 3.5 ulp.
fn slack(kv_len: usize, softcap: Option<f32>) -> Ulps {
    let bent = softcap.map_or(0.0, |cap| 7.0 * f64::from(cap) + 14.0);
    Ulps(out_slack(kv_len).0 + bent)
}

/// Every setup, with its group.
fn setups() -> Vec<(&'static str, Setup)> {
    let mut setups = Vec::new();
    let mut add = |group, setup| setups.push((group, setup));
    // One variant each of mask and kernel serves all lengths.
    for pair in [
        [2, 3],
        [1, 239],
        [113, 203],
        [128, 217],
        [129, 129],
        [203, 113],
    ] {
        add("lengths causal", Setup::new(Mask::Causal, [2, 1], pair, 16));
        add("lengths full", Setup::new(Mask::Full, [2, 1], pair, 16));
    }
    let window = |left, right, sinks| Mask::Window { left, right, sinks };
    for mask in [
        window(20, 0, 0),
        window(3, 5, 0),
        window(64, 0, 4),
        window(30, 0, 70),
        Mask::Prefix(37),
        Mask::Prefix(300),
    ] {
        for pair in [[113, 203], [129, 129], [203, 113], [3, 147]] {
            add("windows and prefixes", Setup::new(mask, [2, 1], pair, 16));
        }
    }
    for d in [8, 40, 59, 128, 256] {
        add("channels", Setup::new(Mask::Causal, [1, 1], [67, 77], d));
    }
    for (d, v) in [(3, 7), (24, 128)] {
        let mut setup = Setup::new(Mask::Full, [1, 1], [41, 53], d);
        setup.problem.v_dim = v;
        add("values of another width", setup);
    }
    for heads in [[4, 4], [8, 2], [8, 1], [6, 2]] {
        let mut setup = Setup::new(Mask::Causal, heads, [33, 41], 16);
        setup.problem.batch = 2;
        add("grouped heads", setup);
    }
    for types in [
        [F16; 7],
        [BF16; 7],
        [F32, F16, F16, F32, F32, F16, BF16],
        [F16, F32, BF16, F16, BF16, F32, F16],
    ] {
        for d in [24, 13] {
            // Ragged rows differ in how they are stored: once for each type is enough.
            if d == 13 && types[0] == F32 {
                continue;
            }
            let mut setup = Setup::new(Mask::Causal, [2, 1], [37, 45], d);
            setup.types = types;
            add("types", setup);
        }
    }
    for d in [16, 15] {
        let mut setup = Setup::new(Mask::Causal, [4, 2], [39, 39], d);
        setup.problem.batch = 2;
        setup.place = Storage::Fused;
        add("strided", setup);
    }
    let forms: [Dims; 4] = [
        [true; 4],
        [false, false, true, true],
        [true, false, false, true],
        [false, true, true, false],
    ];
    for dims in forms {
        let mut setup = Setup::new(Mask::Causal, [4, 2], [35, 71], 16);
        setup.problem.batch = 2;
        setup.bias = Some((F32, dims));
        add("bias", setup);
        setup.bias = None;
        setup.mask = Some(dims);
        add("mask", setup);
    }
    const PACKED: &[[usize; 2]] = &[[33, 40], [1, 70], [64, 3], [21, 21]];
    let packed = |mask| {
        let lengths = [0, 1].map(|side| PACKED.iter().map(|d| d[side]).sum());
        Setup {
            documents: PACKED,
            ..Setup::new(mask, [2, 1], lengths, 16)
        }
    };
    for mask in [Mask::Full, Mask::Causal, window(9, 2, 3), Mask::Prefix(11)] {
        add("documents", packed(mask));
    }
    let plain = Setup::new(Mask::Causal, [4, 2], [50, 75], 16);
    for (softcap, alibi, sink) in [
        (Some(2.0), None, None),
        (None, Some(8.0), None),
        (None, None, Some(1.0)),
        (Some(20.0), Some(8.0), Some(-2.0)),
    ] {
        let setup = Setup {
            softcap,
            alibi,
            sink,
            ..plain
        };
        add("bent scores", setup);
    }
    for (mask, heads, lengths, sparse) in [
        (Mask::Causal, [4, 2], [150, 150], [16, 1]),
        (Mask::Full, [4, 2], [70, 203], [32, 2]),
        (Mask::Causal, [2, 2], [203, 290], [64, 2]),
        (Mask::Causal, [8, 2], [290, 290], [128, 2]),
    ] {
        let setup = Setup {
            sparse: Some(sparse),
            ..Setup::new(mask, heads, lengths, 16)
        };
        add("sparse", setup);
    }
    // Scores in the hundreds: all weight on a key or two.
    let mut setup = Setup::new(Mask::Full, [2, 1], [40, 90], 16);
    setup.sharpness = 30.0;
    add("sharp", setup);
    let mut setup = Setup::new(Mask::Causal, [2, 1], [100, 150], 72);
    setup.sizes = Sizes::Unusual;
    add("unusual sizes", setup);
    setups.extend(matrix_units());
    setups.extend(large());
    // A group's cases together, that they be one test.
    setups.sort_by_key(|&(group, _)| group);
    setups
}

/// Channels and lengths of flash-attention's grid as far as CPU references go, on GPUs alone.
fn large() -> Vec<(&'static str, Setup)> {
    let sixteen = |mask, heads, pair, d| Setup {
        types: [F16; 7],
        ..Setup::new(mask, heads, pair, d)
    };
    let mut setups = Vec::new();
    for (n, d) in [32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256]
        .into_iter()
        .enumerate()
    {
        let heads = [[4, 2], [2, 2], [2, 1]][n % 3];
        let mask = [Mask::Causal, Mask::Full][n % 2];
        setups.push(("large channels", sixteen(mask, heads, [113, 203], d)));
    }
    for pair in [
        [256, 512],
        [512, 256],
        [127, 513],
        [217, 128],
        [333, 444],
        [512, 500],
    ] {
        setups.push(("large lengths", sixteen(Mask::Causal, [2, 1], pair, 64)));
        setups.push(("large lengths", sixteen(Mask::Full, [1, 1], pair, 64)));
    }
    setups.push(("large", sixteen(Mask::Causal, [1, 1], [1023, 1024], 64)));
    setups
}

/// The kernels for matrix units: on an emulation of these everywhere, and on the device's own where it has any.
fn matrix_units() -> Vec<(&'static str, Setup)> {
    let base = FlashGradientTuning::EMULATED;
    let short = FlashGradientTuning { walked: 16, ..base };
    let wide = FlashGradientTuning { rows: 32, ..short };
    let long = FlashGradientTuning { part: 32, ..base };
    let window = |left, right, sinks| Mask::Window { left, right, sinks };
    let mut setups = Vec::new();
    for (mask, lengths, d, v_dim, sizes) in [
        (Mask::Full, [33, 70], 32, 32, base),
        (Mask::Causal, [70, 70], 32, 32, base),
        (Mask::Causal, [50, 20], 32, 32, base),
        (window(20, 0, 3), [67, 90], 32, 32, base),
        (window(9, 5, 40), [67, 90], 32, 32, base),
        (Mask::Prefix(37), [50, 50], 32, 32, long),
        (Mask::Causal, [45, 77], 40, 80, short),
        (Mask::Causal, [45, 77], 64, 64, wide),
        (Mask::Causal, [75, 77], 128, 16, short),
    ] {
        let mut setup = Setup::new(mask, [4, 2], lengths, d);
        setup.problem.v_dim = v_dim;
        setup.types = [F16; 7];
        setup.sizes = Sizes::Emulated(sizes);
        setups.push(setup);
    }
    let plain = setups[1];
    setups.push(Setup {
        place: Storage::Fused,
        ..plain
    });
    let sharp = Setup {
        sharpness: 30.0,
        sink: Some(1.0),
        ..plain
    };
    setups.push(sharp);
    let documents: &[[usize; 2]] = &[[20, 20], [17, 30], [33, 33]];
    let mut packed = Setup { documents, ..plain };
    packed.problem.kv_len = 83;
    setups.push(packed);
    let mut listed = Setup {
        sparse: Some([32, 2]),
        ..plain
    };
    listed.problem.q_len = 150;
    listed.problem.kv_len = 150;
    setups.push(listed);
    setups.push(Setup {
        sparse: Some([16, 1]),
        ..listed
    });
    let on_device = |setup: &Setup| Setup {
        sizes: Sizes::Default,
        ..*setup
    };
    let device: Vec<Setup> = setups.iter().map(on_device).collect();
    let emulated = setups.into_iter().map(|s| ("matrix units emulated", s));
    emulated
        .chain(device.into_iter().map(|s| ("matrix units", s)))
        .collect()
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
        launches.extend(setup.plan(caps, setup.operator(caps)));
    }
    let operator = AttentionBackward::new(Attention::new(Mask::Causal));
    for d in [64, 128, 256] {
        let setup = Setup::new(Mask::Causal, [8, 2], [2048, 2048], d);
        let default = BackwardTuning::new(caps, d, d);
        let of = |gradient| GradientTuning::candidates(caps, gradient, d, d);
        let tunings = of(Gradient::Queries)
            .into_iter()
            .map(|queries| BackwardTuning { queries, ..default })
            .chain(
                of(Gradient::KeysValues)
                    .into_iter()
                    .map(|keys| BackwardTuning { keys, ..default }),
            );
        // The kernels of f32, which f32 tensors are for.
        for tuning in tunings {
            launches.extend(setup.plan(caps, operator.tuning(tuning)));
        }
        let setup = Setup {
            types: [F16; 7],
            ..setup
        };
        let flash = |gradient| FlashGradientTuning::candidates(caps, gradient, d, d);
        let Some([queries, keys]) = default.flash else {
            continue;
        };
        let of_queries = flash(Gradient::Queries).into_iter().map(|q| [q, keys]);
        let of_keys = flash(Gradient::KeysValues)
            .into_iter()
            .map(|k| [queries, k]);
        for flash in of_queries.chain(of_keys) {
            let tuning = BackwardTuning {
                flash: Some(flash),
                ..default
            };
            launches.extend(setup.plan(caps, operator.tuning(tuning)));
        }
    }
    launches
}
