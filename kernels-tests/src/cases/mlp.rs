//! Sparse MLPs and products: none, some and all above the threshold, ties, ragged sizes, types, rows, lists, NaN.

use flashwave::DType::{BF16, F16, F32, I8, U32};
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::gemm::{Gating, Residual};
use flashwave::kernels::mlp::{
    BINS, Histogram, InputTuning, Keep, NeuronTuning, Predictor, SparseLinear, SparseLinearArgs,
    SparseMlp, SparseMlpArgs, StagedMlpArgs,
};
use flashwave::reference::Real;
use flashwave::reference::gemm::{Order, gate, rms_normed};
use flashwave::reference::mlp::{Neurons, by_inputs, keep};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Result, Tensor};

use super::elementwise::slack as activation_slack;
use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{Outcome, Ulps, check, check_equal, farther};
use crate::{Case, Failure};

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Passing {
    None,
    /// About this share, in percent: the threshold lies in the widest gap near it.
    Percent(u32),
    All,
    /// The threshold is the magnitude of one of the values, to the bit.
    Tie,
}

/// Everything that both operators can have.
#[derive(Clone, Copy, Debug)]
struct Setup {
    /// Of x, the weights and out.
    types: [DType; 3],
    /// Rows of x, columns of the result (of the MLP: neurons), k.
    size: [usize; 3],
    f: Activation,
    gating: Gating,
    norm: Option<DType>,
    residual: Option<DType>,
    passing: Passing,
    listed: bool,
}

const PLAIN: Setup = Setup {
    types: [F32; 3],
    size: [1, 96, 64],
    f: Activation::Silu,
    gating: Gating::None,
    norm: None,
    residual: None,
    passing: Passing::Percent(50),
    listed: false,
};

/// A threshold for values whose f32 counterparts differ by rounding: in the widest gap near the share that passes.
fn threshold(values: &[f64], passing: Passing) -> f32 {
    let mut sorted: Vec<f64> = values.iter().map(|v| v.abs()).collect();
    sorted.sort_by(f64::total_cmp);
    match passing {
        Passing::None => 1e30,
        Passing::All => 0.0,
        Passing::Tie => sorted[sorted.len() / 2] as f32,
        Passing::Percent(percent) => {
            let n = sorted.len();
            let at = n * (100 - percent as usize) / 100;
            let near = at.saturating_sub(n / 20 + 1)..(at + n / 20 + 1).min(n - 1);
            let widest = near.max_by(|&a, &b| {
                (sorted[a + 1] - sorted[a]).total_cmp(&(sorted[b + 1] - sorted[b]))
            });
            widest.map_or(0.0, |i| ((sorted[i] + sorted[i + 1]) / 2.0) as f32)
        }
    }
}

/// Weights of a type: what they are worth, what is stored, and the scale of each row of `width` for i8.
struct Stored {
    values: Vec<f32>,
    codes: Vec<f32>,
    scales: Vec<f32>,
}

fn weights(random: &mut Random, dtype: DType, rows: usize, width: usize, scale: f64) -> Stored {
    if dtype != I8 {
        let values = random.scaled_normals(rows * width, dtype, scale);
        return Stored {
            codes: values.clone(),
            values,
            scales: Vec::new(),
        };
    }
    // Powers of two: what a code is worth is then an f32.
    let scales: Vec<f32> = (0..rows)
        .map(|_| (scale.log2().floor() - 5.0 - random.below(3) as f64).exp2() as f32)
        .collect();
    let codes: Vec<f32> = (0..rows * width)
        .map(|_| random.below(255) as f32 - 127.0)
        .collect();
    let values = codes
        .iter()
        .enumerate()
        .map(|(i, c)| c * scales[i / width])
        .collect();
    Stored {
        values,
        codes,
        scales,
    }
}

fn upload(ctx: &Context, dtype: DType, codes: &[f32], shape: [usize; 2]) -> Result<Tensor> {
    if dtype != I8 {
        return Tensor::from_f32(ctx, dtype, codes, shape);
    }
    let bytes: Vec<i8> = codes.iter().map(|&c| c as i8).collect();
    Tensor::from_slice(ctx, &bytes, shape)
}

impl Setup {
    fn normed<R: Real>(&self, x: &[f32], norm: Option<&[f32]>) -> Vec<R> {
        let of = |v: &[f32]| -> Vec<R> { v.iter().map(|&x| R::of(x.into())).collect() };
        match norm {
            Some(weight) => rms_normed(&of(x), &of(weight), R::of(1e-5f32.into())),
            None => of(x),
        }
    }

    fn finish<R: Real>(&self, product: Vec<R>, residual: Option<&[f32]>) -> Vec<R> {
        match residual {
            Some(r) => product
                .iter()
                .zip(r)
                .map(|(&p, &r)| p + R::of(r.into()))
                .collect(),
            None => product,
        }
    }

    /// Slack of an activation where a norm and one are on the way.
    fn slack(&self) -> Ulps {
        let norm = if self.norm.is_some() { 8.0 } else { 0.0 };
        Ulps(activation_slack(self.f).0 + norm)
    }

    fn mlp(&self, ctx: &Context, tuning: Option<NeuronTuning>) -> Result<Outcome, Failure> {
        let ([tx, tw, ty], [m, n, k]) = (self.types, self.size);
        let mut random = Random::new(Case::seed(&format!("{self:?}")));
        // With dyadic inputs of few digits sums are exact: values at the threshold are there on every device.
        let dyadic = |v: &mut Vec<f32>, unit: f32| {
            v.iter_mut()
                .for_each(|v| *v = (*v / unit).round().clamp(-8.0, 8.0) * unit);
        };
        let tie = self.passing == Passing::Tie;
        let mut x = random.normals(m * k, tx);
        let size = 1.0 / (k as f64).sqrt();
        let mut g = weights(&mut random, tw, n, k, size);
        if tie {
            dyadic(&mut x, 0.5);
            dyadic(&mut g.values, 0.125);
            g.codes.clone_from(&g.values);
        }
        let up = weights(&mut random, tw, n, k, size);
        let down = weights(&mut random, tw, n, k, 1.0 / (n as f64).sqrt());
        let norm = self.norm.map(|t| random.normals(k, t));
        let residual = self.residual.map(|t| random.normals(m * k, t));
        let listed: Vec<usize> = (0..n).filter(|i| !self.listed || i % 3 != 1).collect();

        // Only the neurons that a list names.
        let of = |v: &[f32]| -> Vec<f32> {
            listed
                .iter()
                .flat_map(|&i| v[i * k..(i + 1) * k].to_vec())
                .collect()
        };
        let parts = [of(&g.values), of(&up.values), of(&down.values)];
        let wide = parts.each_ref().map(|p| widen(p));
        let exact_neurons = Neurons {
            gate: &wide[0],
            up: &wide[1],
            down: &wide[2],
            width: k,
        };
        let naive_neurons = Neurons {
            gate: &parts[0],
            up: &parts[1],
            down: &parts[2],
            width: k,
        };
        let exact_x: Vec<f64> = self.normed(&x, norm.as_deref());
        let active: Vec<Vec<f64>> = exact_x
            .chunks(k)
            .map(|row| exact_neurons.activations(row, self.f, Order::Forward))
            .collect();
        let t = threshold(&active.concat(), self.passing);
        let fires = |a: f64| a.abs() > f64::from(t);
        let exact: Vec<f64> = (exact_x.chunks(k).zip(&active))
            .flat_map(|(row, a)| exact_neurons.forward(row, a, fires, Order::Forward))
            .collect();
        let naive_x: Vec<f32> = self.normed(&x, norm.as_deref());
        let naive = [Order::Forward, Order::Backward].map(|order| {
            let row = |(r, row): (usize, &[f32])| {
                let a = naive_neurons.activations(row, self.f, order);
                // The neurons of the exact choice, at their naive values.
                let chosen: Vec<f32> = (a.iter().zip(&active[r]))
                    .map(|(&a, &e)| if fires(e) { a } else { 0.0 })
                    .collect();
                naive_neurons.forward(row, &chosen, |a| a != 0.0, order)
            };
            let product = naive_x.chunks(k).enumerate().flat_map(row).collect();
            let done = self.finish::<f32>(product, residual.as_deref());
            done.into_iter().map(|v| round(v, ty)).collect::<Vec<f32>>()
        });
        let exact = self.finish(exact, residual.as_deref());

        let input = Tensor::from_f32(ctx, tx, &x, [m, k])?;
        let gate = upload(ctx, tw, &g.codes, [n, k])?;
        let bundle: Vec<f32> = (0..n)
            .flat_map(|i| {
                [
                    &up.codes[i * k..(i + 1) * k],
                    &down.codes[i * k..(i + 1) * k],
                ]
                .concat()
            })
            .collect();
        let pairs = upload(ctx, tw, &bundle, [n, 2 * k])?;
        let scales: Vec<f32> = (0..g.scales.len())
            .flat_map(|i| [g.scales[i], up.scales[i], down.scales[i]])
            .collect();
        let scales = (tw == I8)
            .then(|| Tensor::from_slice(ctx, &scales, [n, 3]))
            .transpose()?;
        let weight = match (self.norm, &norm) {
            (Some(t), Some(v)) => Some(Tensor::from_f32(ctx, t, v, [k])?),
            _ => None,
        };
        let added = match (self.residual, &residual) {
            (Some(t), Some(v)) => Some(Tensor::from_f32(ctx, t, v, [m, k])?),
            _ => None,
        };
        let mut list = vec![0u32; n + 1];
        list[0] = listed.len() as u32;
        list.iter_mut()
            .skip(1)
            .zip(&listed)
            .for_each(|(to, &i)| *to = i as u32);
        let list = self
            .listed
            .then(|| Tensor::from_slice(ctx, &list, [n + 1]))
            .transpose()?;
        let out = poisoned(ctx, ty, [m, k])?;
        let args = SparseMlpArgs {
            scales: scales.as_ref(),
            norm: weight.as_ref().map(|w| (w, 1e-5)),
            listed: list.as_ref(),
            residual: added.as_ref().map_or(Residual::None, Residual::From),
            ..SparseMlpArgs::new(&input, &gate, &pairs, &out)
        };
        let op = SparseMlp {
            activation: self.f,
            threshold: t,
        };
        let plan = match &tuning {
            None => op.plan(ctx.capabilities(), &args.layouts())?,
            Some(tuning) => op.plan_with(ctx.capabilities(), &args.layouts(), tuning)?,
        };
        ctx.record(|pass| args.launch(pass, &plan))?;
        let naive = farther(&exact, naive);
        check(&out.to_f32_vec()?, &exact, &naive, self.slack())
    }

    fn linear(&self, ctx: &Context, tuning: Option<InputTuning>) -> Result<Outcome, Failure> {
        let ([tx, tw, ty], [m, n, k]) = (self.types, self.size);
        let both = n * if self.gating == Gating::GateUp { 2 } else { 1 };
        let mut random = Random::new(Case::seed(&format!("{self:?}")));
        let x = random.normals(m * k, tx);
        let w = weights(&mut random, tw, k, both, 1.0 / (k as f64).sqrt());
        let norm = self.norm.map(|t| random.normals(k, t));
        let residual = self.residual.map(|t| random.normals(m * n, t));
        let exact_x: Vec<f64> = self.normed(&x, norm.as_deref());
        let t = threshold(&exact_x, self.passing);
        let done = |product: Vec<f64>| -> Vec<f64> {
            let activated = match self.gating {
                Gating::GateUp => gate(&product, n, self.f),
                Gating::None => product
                    .iter()
                    .map(|&p| flashwave::reference::elementwise::activate(self.f, p))
                    .collect(),
            };
            self.finish(activated, residual.as_deref())
        };
        let done32 = |product: Vec<f32>| -> Vec<f32> {
            let activated = match self.gating {
                Gating::GateUp => gate(&product, n, self.f),
                Gating::None => product
                    .iter()
                    .map(|&p| flashwave::reference::elementwise::activate(self.f, p))
                    .collect(),
            };
            let all = self.finish(activated, residual.as_deref());
            all.into_iter().map(|v| round(v, ty)).collect()
        };
        let kept = keep(&exact_x, f64::from(t));
        let wide = widen(&w.values);
        let exact = done(
            kept.chunks(k)
                .flat_map(|row| by_inputs(row, &wide, both, Order::Forward))
                .collect(),
        );
        let naive_x: Vec<f32> = self.normed(&x, norm.as_deref());
        let chosen: Vec<f32> = (naive_x.iter().zip(&kept))
            .map(|(&v, &e)| if e == 0.0 { 0.0 } else { v })
            .collect();
        let naive = [Order::Forward, Order::Backward].map(|order| {
            done32(
                chosen
                    .chunks(k)
                    .flat_map(|row| by_inputs(row, &w.values, both, order))
                    .collect(),
            )
        });

        let input = Tensor::from_f32(ctx, tx, &x, [m, k])?;
        let weight = upload(ctx, tw, &w.codes, [k, both])?;
        let scales = (tw == I8)
            .then(|| Tensor::from_slice(ctx, &w.scales, [k]))
            .transpose()?;
        let norm_weight = match (self.norm, &norm) {
            (Some(t), Some(v)) => Some(Tensor::from_f32(ctx, t, v, [k])?),
            _ => None,
        };
        let added = match (self.residual, &residual) {
            (Some(t), Some(v)) => Some(Tensor::from_f32(ctx, t, v, [m, n])?),
            _ => None,
        };
        let out = poisoned(ctx, ty, [m, n])?;
        let args = SparseLinearArgs {
            scales: scales.as_ref(),
            norm: norm_weight.as_ref().map(|w| (w, 1e-5)),
            residual: added.as_ref().map_or(Residual::None, Residual::From),
            ..SparseLinearArgs::new(&input, &weight, &out)
        };
        let op = SparseLinear {
            activation: self.f,
            gating: self.gating,
            threshold: t,
        };
        let plan = match &tuning {
            None => op.plan(ctx.capabilities(), &args.layouts())?,
            Some(tuning) => op.plan_with(ctx.capabilities(), &args.layouts(), tuning)?,
        };
        ctx.record(|pass| args.launch(pass, &plan))?;
        let naive = farther(&exact, naive);
        check(&out.to_f32_vec()?, &exact, &naive, self.slack())
    }
}

const PASSING: [Passing; 5] = [
    Passing::None,
    Passing::Percent(10),
    Passing::Percent(50),
    Passing::All,
    Passing::Tie,
];

/// Setups of the MLP by group.
fn mlps() -> Vec<(&'static str, Setup, Option<NeuronTuning>)> {
    let mut all = Vec::new();
    for passing in PASSING {
        // Exact sums for ties: no exponential.
        let f = if passing == Passing::Tie {
            Activation::Relu
        } else {
            Activation::Silu
        };
        all.push((
            "passing",
            Setup {
                passing,
                f,
                ..PLAIN
            },
            None,
        ));
        all.push((
            "passing",
            Setup {
                passing,
                f,
                size: [3, 70, 48],
                ..PLAIN
            },
            None,
        ));
    }
    // What a ReLU silences costs nothing, and the result is the dense one.
    for f in [
        Activation::Relu,
        Activation::ReluSquared,
        Activation::GeluErf,
    ] {
        all.push((
            "exact",
            Setup {
                f,
                passing: Passing::All,
                ..PLAIN
            },
            None,
        ));
    }
    for size in [
        [1, 1, 1],
        [2, 33, 7],
        [5, 200, 36],
        [16, 65, 72],
        [1, 40, 2056],
    ] {
        all.push(("ragged", Setup { size, ..PLAIN }, None));
    }
    for types in [[F16; 3], [F32, BF16, F32], [F32, F16, BF16], [F32, I8, F32]] {
        let setup = Setup {
            types,
            size: [2, 90, 128],
            norm: Some(F32),
            residual: Some(types[2]),
            ..PLAIN
        };
        all.push(("types", setup, None));
    }
    all.push((
        "listed",
        Setup {
            listed: true,
            size: [1, 100, 64],
            ..PLAIN
        },
        None,
    ));
    all.push((
        "listed",
        Setup {
            listed: true,
            types: [F32, I8, F32],
            ..PLAIN
        },
        None,
    ));
    // Several blocks a workgroup, one workgroup, more workgroups than neurons.
    for (groups, block, unroll) in [(1, 32, 2), (3, 32, 4), (200, 32, 1)] {
        let tuning = NeuronTuning {
            workgroup: 64,
            groups,
            block,
            unroll,
            rows: 2,
        };
        all.push((
            "tunings",
            Setup {
                size: [3, 150, 520],
                ..PLAIN
            },
            Some(tuning),
        ));
    }
    all
}

/// Setups of the linear layer by group.
fn linears() -> Vec<(&'static str, Setup, Option<InputTuning>)> {
    let plain = Setup {
        f: Activation::None,
        ..PLAIN
    };
    let mut all = Vec::new();
    for passing in PASSING {
        all.push(("passing", Setup { passing, ..plain }, None));
        all.push((
            "passing",
            Setup {
                passing,
                size: [3, 40, 130],
                ..plain
            },
            None,
        ));
    }
    for size in [
        [1, 1, 1],
        [2, 7, 33],
        [5, 36, 200],
        [16, 72, 65],
        [1, 24, 5000],
    ] {
        all.push(("ragged", Setup { size, ..plain }, None));
    }
    for types in [[F16; 3], [F32, BF16, F32], [F32, F16, BF16], [F32, I8, F32]] {
        for gating in [Gating::None, Gating::GateUp] {
            let setup = Setup {
                types,
                size: [2, 128, 90],
                norm: Some(F32),
                residual: Some(types[2]),
                f: Activation::Silu,
                gating,
                ..PLAIN
            };
            all.push(("types", setup, None));
        }
    }
    for (lanes, splits, block) in [(1, 1, 32), (4, 3, 64), (64, 2, 96), (2, 5, 512)] {
        let tuning = InputTuning {
            workgroup: 64,
            lanes,
            splits,
            block,
            unroll: 3,
            rows: 2,
        };
        for gating in [Gating::None, Gating::GateUp] {
            let setup = Setup {
                size: [3, 50, 260],
                gating,
                residual: Some(F32),
                f: Activation::Silu,
                ..PLAIN
            };
            all.push(("tunings", setup, Some(tuning)));
        }
    }
    all
}

fn kept(ctx: &Context, with_b: bool) -> Result<Outcome, Failure> {
    let shape = [5, 36];
    let mut random = Random::new(Case::seed("keep"));
    let (a, b) = (random.normals(180, F32), random.normals(180, F16));
    let f = |v: f32| f64::from(v).max(0.0);
    let t = threshold(
        &a.iter().map(|&v| f(v)).collect::<Vec<f64>>(),
        Passing::Percent(30),
    );
    let exact: Vec<f64> = (a.iter().zip(&b))
        .map(|(&a, &b)| {
            let factor = if with_b { f64::from(b) } else { 1.0 };
            if f(a) > f64::from(t) {
                f(a) * factor
            } else {
                0.0
            }
        })
        .collect();
    let naive: Vec<f32> = exact.iter().map(|&v| v as f32).collect();
    let a = Tensor::from_f32(ctx, F32, &a, shape)?;
    let b = Tensor::from_f32(ctx, F16, &b, shape)?;
    let y = poisoned(ctx, F32, shape)?;
    let op = Keep {
        activation: Activation::Relu,
        threshold: t,
    };
    ctx.record(|pass| op.run(pass, &a, with_b.then_some(&b), &y))?;
    check(&y.to_f32_vec()?, &exact, &naive, Ulps(0.0))
}

fn counted(ctx: &Context) -> Result<Outcome, Failure> {
    let mut random = Random::new(Case::seed("histogram"));
    let mut a = random.normals(7 * 333, F32);
    // Far outside of what is counted in workgroup memory.
    a[..4].copy_from_slice(&[0.0, 1e-30, -1e25, -0.0]);
    let mut expected = vec![0u32; BINS];
    a.iter()
        .for_each(|v| expected[(v.abs().to_bits() >> 18) as usize] += 1);
    let x = Tensor::from_slice(ctx, &a, [7, 333])?;
    let bins = Histogram::bins(ctx)?;
    ctx.record(|pass| Histogram::count(pass, Activation::None, &x, &bins))?;
    let outcome = check_equal(&bins.to_vec::<u32>()?, &expected)?;
    let found = Histogram::read(&bins)?;
    let t = found.threshold(0.7)?;
    let below = a.iter().filter(|v| v.abs() <= t).count() as f64 / a.len() as f64;
    if (below - 0.7).abs() > 0.02 || (found.sparsity(t) - 0.7).abs() > 1e-6 {
        return Err(Failure::Wrong(format!(
            "{below} of the values are below {t}"
        )));
    }
    let nan = Tensor::from_slice(ctx, &[1.0, f32::NAN], [1, 2])?;
    ctx.record(|pass| Histogram::count(pass, Activation::None, &nan, &bins))?;
    match Histogram::read(&bins) {
        Err(e) if e.to_string().contains("1 infinite or NaN") => Ok(outcome),
        other => Err(Failure::Wrong(format!("{other:?} for NaN"))),
    }
}

/// NaN in x shows in the result, though it is above no threshold.
fn nan(ctx: &Context) -> Result<Outcome, Failure> {
    let x = Tensor::from_slice(ctx, &[1.0, f32::NAN, 0.0, 0.0], [1, 4])?;
    let ones = Tensor::from_slice(ctx, &[1.0f32; 8 * 4], [4, 8])?;
    let gate = ones.reshape([8, 4])?;
    let pairs = Tensor::from_slice(ctx, &[1.0f32; 8 * 8], [8, 8])?;
    let (y, z) = (
        poisoned(ctx, F32, [1, 8])?,
        Tensor::from_slice(ctx, &[0.0f32; 4], [1, 4])?,
    );
    let linear = SparseLinear {
        activation: Activation::None,
        gating: Gating::None,
        threshold: 1e9,
    };
    let mlp = SparseMlp {
        activation: Activation::Silu,
        threshold: 1e9,
    };
    ctx.record(|pass| {
        linear.run(pass, &SparseLinearArgs::new(&x, &ones, &y))?;
        mlp.run(pass, &SparseMlpArgs::new(&x, &gate, &pairs, &z))
    })?;
    let shows: Vec<bool> = [y.to_f32_vec()?, z.to_f32_vec()?]
        .concat()
        .iter()
        .map(|v| v.is_nan())
        .collect();
    check_equal(&shows, &[true; 12])
}

/// A planted predictor: its scores are the gates themselves, so with a ReLU what it lists is what fires.
fn predicted(ctx: &Context, rows: usize) -> Result<Outcome, Failure> {
    let (n, k) = (150, 24);
    let mut random = Random::new(Case::seed("predictor"));
    let x = random.normals(rows * k, F32);
    let gate = random.normals(n * k, F32);
    let eye: Vec<f32> = (0..k * k).map(|i| f32::from(i % (k + 1) == 0)).collect();
    let mut scores = vec![vec![0.0f64; n]; rows];
    for (row, scores) in x.chunks(k).zip(&mut scores) {
        for (score, weights) in scores.iter_mut().zip(gate.chunks(k)) {
            *score = (row.iter().zip(weights))
                .map(|(&x, &w)| f64::from(x * w))
                .sum();
        }
    }
    let t = threshold(&scores.concat(), Passing::Percent(30));
    let fires = |i: usize| scores.iter().any(|s| s[i] > f64::from(t));
    let expected: Vec<u32> = (0..n as u32).filter(|&i| fires(i as usize)).collect();
    let x = Tensor::from_slice(ctx, &x, [rows, k])?;
    let gate = Tensor::from_slice(ctx, &gate, [n, k])?;
    let predictor = Predictor::new(Tensor::from_slice(ctx, &eye, [k, k])?, gate, t)?;
    let to = predictor.memory(ctx, rows)?;
    ctx.record(|pass| predictor.run(pass, &x, None, &to))?;
    let listed = to.listed.to_vec::<u32>()?;
    let count = expected.len();
    check_equal(&listed[..=count], &[vec![count as u32], expected].concat())
}

/// In pieces, with the neurons in slots of another order, the result is that of the whole to the bit.
fn staged(ctx: &Context, dtype: DType, rows: usize) -> Result<Outcome, Failure> {
    let (n, k) = (150, 72);
    let mut random = Random::new(Case::seed("staged"));
    let size = 1.0 / (k as f64).sqrt();
    let x = Tensor::from_f32(ctx, F32, &random.normals(rows * k, F32), [rows, k])?;
    let norm = Tensor::from_f32(ctx, F32, &random.normals(k, F32), [k])?;
    let gate = random.scaled_normals(n * k, dtype, size);
    let gate = Tensor::from_f32(ctx, dtype, &gate, [n, k])?;
    let bundles = random.scaled_normals(2 * n * k, dtype, size);
    let pairs = Tensor::from_f32(ctx, dtype, &bundles, [n, 2 * k])?;
    // 7 and 150 have no common divisor.
    let places: Vec<u32> = (0..n as u32).map(|i| (7 * i + 3) % n as u32).collect();
    let mut moved = vec![0.0; bundles.len()];
    for (&place, bundle) in places.iter().zip(bundles.chunks(2 * k)) {
        moved[place as usize * 2 * k..][..2 * k].copy_from_slice(bundle);
    }
    let (whole, pieces) = (
        poisoned(ctx, F32, [rows, k])?,
        poisoned(ctx, F32, [rows, k])?,
    );
    let op = SparseMlp {
        activation: Activation::Silu,
        threshold: 0.2,
    };
    let args = SparseMlpArgs {
        norm: Some((&norm, 1e-5)),
        ..SparseMlpArgs::new(&x, &gate, &pairs, &whole)
    };
    let parts = StagedMlpArgs {
        x: &x,
        gate: &gate,
        activations: &poisoned(ctx, F32, [rows, n])?,
        pairs: &Tensor::from_f32(ctx, dtype, &moved, [n, 2 * k])?,
        places: &Tensor::from_slice(ctx, &places, [n])?,
        norm: Some((&norm, 1e-5)),
        residual: Residual::None,
        out: &pieces,
    };
    let len = op.partial_len(ctx.capabilities(), &parts.layouts())?;
    let partial = poisoned(ctx, F32, [len])?;
    ctx.record(|pass| {
        op.run(pass, &args)?;
        op.run_gates(pass, &parts)?;
        [0..40, 40..41, 41..n]
            .into_iter()
            .try_for_each(|range| op.run_rest(pass, &parts, range, &partial))
    })?;
    check_equal(&pieces.to_f32_vec()?, &whole.to_f32_vec()?)
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (group, setup, tuning) in mlps() {
        let name = format!("{setup:?} {tuning:?}");
        cases.push(Case::new(
            "mlp",
            format!("neurons {group}"),
            name,
            move |ctx| setup.mlp(ctx, tuning),
        ));
    }
    for (group, setup, tuning) in linears() {
        let name = format!("{setup:?} {tuning:?}");
        cases.push(Case::new(
            "mlp",
            format!("inputs {group}"),
            name,
            move |ctx| setup.linear(ctx, tuning),
        ));
    }
    for with_b in [false, true] {
        let name = format!("two operands: {with_b}");
        cases.push(Case::new("mlp", "keep", name, move |ctx| kept(ctx, with_b)));
    }
    for (dtype, rows) in [(F32, 1), (F16, 1), (BF16, 3)] {
        let name = format!("{dtype} {rows} rows");
        let run = move |ctx: &Context| staged(ctx, dtype, rows);
        cases.push(Case::new("mlp", "staged", name, run));
    }
    for rows in [1, 3] {
        let name = format!("{rows} rows");
        let run = move |ctx: &Context| predicted(ctx, rows);
        cases.push(Case::new("mlp", "predictor", name, run));
    }
    cases.push(Case::new("mlp", "histogram", "histogram", counted));
    cases.push(Case::new("mlp", "nan", "nan", nan));
    cases
}

/// Every kind of variant.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    planned(caps).expect("plans")
}

fn planned(caps: &Capabilities) -> Result<Vec<Launch>> {
    let mut launches = Vec::new();
    let layout = |dtype: DType, shape: &[usize]| Layout::contiguous(dtype, shape);
    for ([tx, tw, ty], [m, n, k]) in [
        ([F32, F16, F32], [1, 11008, 4096]),
        ([F32, I8, F32], [1, 688, 256]),
        ([F16, F16, F16], [4, 688, 256]),
        ([F32, F32, BF16], [16, 45, 13]),
        ([F32, BF16, F32], [3, 172, 64]),
    ] {
        let (x, y) = (layout(tx, &[m, k])?, layout(ty, &[m, k])?);
        let (gate, pairs) = (layout(tw, &[n, k])?, layout(tw, &[n, 2 * k])?);
        let (scales, per_input) = (layout(F32, &[n, 3])?, layout(F32, &[k])?);
        let (norm, listed) = (layout(F32, &[k])?, layout(U32, &[n + 1])?);
        for (fused, list) in [(false, false), (true, true)] {
            let args = SparseMlpArgs {
                scales: (tw == I8).then_some(&scales),
                norm: fused.then_some((&norm, 1e-5)),
                listed: list.then_some(&listed),
                residual: if fused {
                    Residual::InOut
                } else {
                    Residual::From(&x)
                },
                ..SparseMlpArgs::new(&x, &gate, &pairs, &y)
            };
            let op = SparseMlp {
                activation: Activation::Silu,
                threshold: 0.1,
            };
            launches.extend(op.plan(caps, &args)?.launches().cloned());
            if m == 1 && !fused {
                for tuning in SparseMlp::candidates(caps, k).iter().step_by(5) {
                    launches.extend(op.plan_with(caps, &args, tuning)?.launches().cloned());
                }
            }
            for gating in [Gating::None, Gating::GateUp] {
                let both = if gating == Gating::GateUp { 2 * n } else { n };
                let (weight, out) = (layout(tw, &[k, both])?, layout(ty, &[m, n])?);
                let args = SparseLinearArgs {
                    scales: (tw == I8).then_some(&per_input),
                    norm: fused.then_some((&norm, 1e-5)),
                    residual: if fused {
                        Residual::InOut
                    } else {
                        Residual::None
                    },
                    ..SparseLinearArgs::new(&x, &weight, &out)
                };
                let op = SparseLinear {
                    activation: Activation::Silu,
                    gating,
                    threshold: 0.1,
                };
                launches.extend(op.plan(caps, &args)?.launches().cloned());
                if m == 1 && !fused {
                    for tuning in SparseLinear::candidates(caps, k).iter().step_by(3) {
                        launches.extend(op.plan_with(caps, &args, tuning)?.launches().cloned());
                    }
                }
            }
        }
        let keep = Keep {
            activation: Activation::Silu,
            threshold: 0.1,
        };
        launches.push(keep.plan(caps, &x, None, &y)?);
        launches.push(keep.plan(caps, &x, Some(&x), &y)?);
        let scores = layout(F32, &[m, n])?;
        launches.push(Predictor::plan_list(caps, &scores, 0.5)?);
        if tw != I8 {
            let (slots, places) = (layout(tw, &[16, 2 * k])?, layout(U32, &[n])?);
            let staged = StagedMlpArgs {
                x: &x,
                gate: &gate,
                activations: &scores,
                pairs: &slots,
                places: &places,
                norm: Some((&norm, 1e-5)),
                residual: Residual::InOut,
                out: &y,
            };
            let op = SparseMlp {
                activation: Activation::Silu,
                threshold: 0.1,
            };
            launches.push(op.plan_gates(caps, &staged)?);
            launches.extend(op.plan_rest(caps, &staged, 0..n)?.launches().cloned());
        }
        launches.push(Histogram::plan(
            caps,
            Activation::Silu,
            &x,
            &layout(U32, &[BINS])?,
        )?);
    }
    Ok(launches)
}
