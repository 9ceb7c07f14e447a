//! Gated MLPs of a 7B Llama for one token: dense, of the neurons that fire, of the inputs that are large.
//!
//! A row's bytes are those that its sparsity leaves to be read; thresholds are found by histograms of what the same
//! weights make of the same input.

use flashwave::DType::{F16, F32, I8};
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::gemm::{Gating, Residual};
use flashwave::kernels::linear::{GatedLinear, GatedLinearArgs, Linear, LinearArgs};
use flashwave::kernels::mlp::{
    Histogram, InputTuning, NeuronTuning, SparseLinear, SparseLinearArgs, SparseMlp, SparseMlpArgs,
};
use flashwave::{Capabilities, Context, DType, Layout, Result, Tensor};

use super::{Mark, Measure, Prepared, Row, Scale, random, sets};

const SILU: Activation = Activation::Silu;
const SPARSITIES: [f64; 3] = [0.5, 0.7, 0.9];

/// Hidden width, neurons.
fn shape(scale: Scale) -> [usize; 2] {
    scale.pick([4096, 11008], [256, 688])
}

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let mut rows = vec![dense(caps, scale)];
    for dtype in [F16, I8] {
        for sparsity in SPARSITIES {
            rows.push(neurons(caps, scale, dtype, sparsity, None));
        }
    }
    for dtype in [F16, I8] {
        for sparsity in SPARSITIES {
            rows.push(inputs(caps, scale, dtype, sparsity));
        }
    }
    for part in PARTS {
        rows.push(product(caps, scale, part, F16, 0.5, None));
    }
    rows
}

/// Every way to cut them.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let [k, _] = shape(scale);
    let mut rows = Vec::new();
    for (dtype, sparsity) in [(F16, 0.5), (F16, 0.9), (I8, 0.5)] {
        for tuning in SparseMlp::candidates(caps, k) {
            rows.push(neurons(caps, scale, dtype, sparsity, Some(tuning)));
        }
    }
    for part in PARTS {
        for dtype in [F16, I8] {
            for tuning in SparseLinear::candidates(caps, part.size(scale)[0]) {
                rows.push(product(caps, scale, part, dtype, 0.5, Some(tuning)));
            }
        }
    }
    rows
}

fn dense_name(scale: Scale) -> String {
    let [k, n] = shape(scale);
    format!("mlp dense f16 {k}x{n}")
}

fn dense(caps: &Capabilities, scale: Scale) -> Row {
    let [k, n] = shape(scale);
    let bytes = (3 * n * k * 2) as f64;
    let count = sets(caps, bytes);
    Row::memory("mlp", dense_name(scale), bytes, move |ctx| {
        let x = random(ctx, F32, [1, k], 0)?;
        let (h, y) = (
            Tensor::empty(ctx, F32, [1, n])?,
            Tensor::empty(ctx, F32, [1, k])?,
        );
        let weights: Vec<[Tensor; 2]> = (0..count)
            .map(|i| {
                Ok([
                    random(ctx, F16, [2 * n, k], 2 * i + 1)?,
                    random(ctx, F16, [k, n], 2 * i + 2)?,
                ])
            })
            .collect::<Result<_>>()?;
        Ok(Prepared::new("two products", move |pass, run| {
            let [both, down] = &weights[run % weights.len()];
            let args = GatedLinearArgs {
                x: &x,
                weight: both,
                norm: None,
                out: &h,
            };
            GatedLinear { activation: SILU }.run(pass, args)?;
            Linear {
                activation: Activation::None,
            }
            .run(pass, LinearArgs::new(&h, down, &y))
        }))
    })
}

/// Where the figure of speed against sparsity has a row.
fn marks(scale: Scale, series: String, sparsity: f64) -> Vec<Mark> {
    vec![Mark {
        figure: "mlp-speedup",
        series,
        x: 1.0 / (1.0 - sparsity),
        y: Measure::SpeedUp(dense_name(scale)),
    }]
}

/// Weights of any type: of i8, any bytes.
fn weights(ctx: &Context, dtype: DType, shape: [usize; 2], seed: usize) -> Result<Tensor> {
    if dtype != I8 {
        return random(ctx, dtype, shape, seed);
    }
    let mut state = seed as u64 + 1;
    let words = (0..shape[0] * shape[1] / 8).flat_map(|_| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state ^ (state >> 29)).to_le_bytes()
    });
    Tensor::from_bytes(ctx, I8, &words.collect::<Vec<u8>>(), shape)
}

/// A bound of the magnitude that the share `sparsity` of the values of `f` is not above.
fn quantile(ctx: &Context, f: Activation, values: &Tensor, sparsity: f64) -> Result<f32> {
    let bins = Histogram::bins(ctx)?;
    ctx.record(|pass| Histogram::count(pass, f, values, &bins))?;
    Histogram::read(&bins)?.threshold(sparsity)
}

fn neurons(
    caps: &Capabilities,
    scale: Scale,
    dtype: DType,
    sparsity: f64,
    tuning: Option<NeuronTuning>,
) -> Row {
    let [k, n] = shape(scale);
    let all = (n * k * dtype.size()) as f64;
    let bytes = all + 2.0 * all * (1.0 - sparsity);
    let count = sets(caps, bytes);
    let work = format!("mlp cats {dtype} {k}x{n} sparsity {sparsity}");
    let mut row = Row::memory("mlp", work, bytes, move |ctx| {
        let x = random(ctx, F32, [1, k], 0)?;
        let y = Tensor::empty(ctx, F32, [1, k])?;
        let sets: Vec<[Tensor; 2]> = (0..count)
            .map(|i| {
                let gate = weights(ctx, dtype, [n, k], 2 * i + 1)?;
                Ok([gate, weights(ctx, dtype, [n, 2 * k], 2 * i + 2)?])
            })
            .collect::<Result<_>>()?;
        let ones = Tensor::from_slice(ctx, &vec![1.0f32 / 128.0; 3 * n], [n, 3])?;
        let scales = (dtype == I8).then_some(ones);
        // What the kernel itself makes of gates, as floats: x times the first rows, which i8 rows are alike.
        let sample = if dtype == I8 {
            let bytes: Vec<i8> = sets[0][0].rows(0..2048.min(n))?.to_vec()?;
            let values: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 128.0).collect();
            Tensor::from_slice(ctx, &values, [2048.min(n), k])?
        } else {
            sets[0][0].clone()
        };
        let gates = Linear {
            activation: Activation::None,
        }
        .forward(&x, &sample)?;
        let op = SparseMlp {
            activation: SILU,
            threshold: quantile(ctx, SILU, &gates, sparsity)?,
        };
        let args = |i: usize| SparseMlpArgs {
            scales: scales.as_ref(),
            ..SparseMlpArgs::new(&x, &sets[i][0], &sets[i][1], &y)
        };
        let caps = ctx.capabilities();
        let plan = match &tuning {
            Some(tuning) => op.plan_with(caps, &args(0).layouts(), tuning)?,
            None => op.plan(caps, &args(0).layouts())?,
        };
        let recipe = format!("{} groups {}", plan.product.recipe, plan.product.grid[0]);
        Ok(Prepared::new(recipe, move |pass, run| {
            let args = SparseMlpArgs {
                scales: scales.as_ref(),
                ..SparseMlpArgs::new(
                    &x,
                    &sets[run % sets.len()][0],
                    &sets[run % sets.len()][1],
                    &y,
                )
            };
            match &tuning {
                Some(_) => args.launch(pass, &plan),
                None => op.run(pass, &args),
            }
        }))
    });
    row.marks = marks(scale, format!("neurons that fire, {dtype}"), sparsity);
    row
}

/// A whole MLP by inputs: gate and up, then down.
fn inputs(caps: &Capabilities, scale: Scale, dtype: DType, sparsity: f64) -> Row {
    let [k, n] = shape(scale);
    let bytes = (3 * n * k * dtype.size()) as f64 * (1.0 - sparsity);
    let count = sets(caps, bytes);
    let work = format!("mlp teal {dtype} {k}x{n} sparsity {sparsity}");
    let mut row = Row::memory("mlp", work, bytes, move |ctx| {
        let x = random(ctx, F32, [1, k], 0)?;
        let (h, y) = (
            Tensor::empty(ctx, F32, [1, n])?,
            Tensor::empty(ctx, F32, [1, k])?,
        );
        let sets: Vec<[Tensor; 2]> = (0..count)
            .map(|i| {
                let both = weights(ctx, dtype, [k, 2 * n], 2 * i + 1)?;
                Ok([both, weights(ctx, dtype, [n, k], 2 * i + 2)?])
            })
            .collect::<Result<_>>()?;
        let ones = |n: usize| Tensor::from_slice(ctx, &vec![1.0f32 / 128.0; n], [n]);
        let scales = [ones(k)?, ones(n)?];
        let scaled = move |i: usize| (dtype == I8).then(|| scales[i].clone());
        let up = SparseLinear {
            activation: SILU,
            gating: Gating::GateUp,
            threshold: quantile(ctx, Activation::None, &x, sparsity)?,
        };
        let both = scaled(0);
        let first = SparseLinearArgs {
            scales: both.as_ref(),
            ..SparseLinearArgs::new(&x, &sets[0][0], &h)
        };
        ctx.record(|pass| up.run(pass, &first))?;
        let down = SparseLinear {
            activation: Activation::None,
            gating: Gating::None,
            threshold: quantile(ctx, Activation::None, &h, sparsity)?,
        };
        let caps = ctx.capabilities();
        let one = up.plan(caps, &first.layouts())?;
        let recipe = format!("{} {:?}", one.product.recipe, one.product.grid);
        Ok(Prepared::new(recipe, move |pass, run| {
            let [both, back] = &sets[run % sets.len()];
            let (a, b) = (scaled(0), scaled(1));
            let first = SparseLinearArgs {
                scales: a.as_ref(),
                ..SparseLinearArgs::new(&x, both, &h)
            };
            up.run(pass, &first)?;
            let second = SparseLinearArgs {
                scales: b.as_ref(),
                ..SparseLinearArgs::new(&h, back, &y)
            };
            down.run(pass, &second)
        }))
    });
    row.marks = marks(scale, format!("inputs, {dtype}"), sparsity);
    row
}

/// A linear layer of a decoder block.
#[derive(Clone, Copy, Debug)]
enum Part {
    Qkv,
    Output,
    GateUp,
    Down,
}

const PARTS: [Part; 4] = [Part::Qkv, Part::Output, Part::GateUp, Part::Down];

impl Part {
    /// Inputs, columns of the output.
    fn size(self, scale: Scale) -> [usize; 2] {
        let [k, n] = shape(scale);
        match self {
            Self::Qkv => [k, 3 * k],
            Self::Output => [k, k],
            Self::GateUp => [k, n],
            Self::Down => [n, k],
        }
    }
}

fn product(
    caps: &Capabilities,
    scale: Scale,
    part: Part,
    dtype: DType,
    sparsity: f64,
    tuning: Option<InputTuning>,
) -> Row {
    let [k, n] = part.size(scale);
    let gating = if matches!(part, Part::GateUp) {
        Gating::GateUp
    } else {
        Gating::None
    };
    let both = if gating == Gating::GateUp { 2 * n } else { n };
    let bytes = (k * both * dtype.size()) as f64 * (1.0 - sparsity);
    let count = sets(caps, bytes);
    let work = format!("teal {part:?} {dtype} {k}->{both} sparsity {sparsity}");
    Row::memory("mlp", work, bytes, move |ctx| {
        let x = random(ctx, F32, [1, k], 0)?;
        let y = Tensor::empty(ctx, F32, [1, n])?;
        let sets: Vec<Tensor> = (0..count)
            .map(|i| weights(ctx, dtype, [k, both], i + 1))
            .collect::<Result<_>>()?;
        let ones = Tensor::from_slice(ctx, &vec![1.0f32 / 128.0; k], [k])?;
        let scales = (dtype == I8).then_some(ones);
        let norm = Tensor::from_slice(ctx, &vec![1.0f32; k], [k])?;
        // RMSNorm of uniform values makes them larger by the root of three.
        let normed = matches!(part, Part::Qkv | Part::GateUp);
        let grown = if normed { 3f32.sqrt() } else { 1.0 };
        let op = SparseLinear {
            activation: if gating == Gating::GateUp {
                SILU
            } else {
                Activation::None
            },
            gating,
            threshold: quantile(ctx, Activation::None, &x, sparsity)? * grown,
        };
        let args = |weight| SparseLinearArgs {
            scales: scales.as_ref(),
            norm: normed.then_some((&norm, 1e-5)),
            residual: if normed {
                Residual::None
            } else {
                Residual::InOut
            },
            ..SparseLinearArgs::new(&x, weight, &y)
        };
        let layouts: SparseLinearArgs<'_, Layout> = args(&sets[0]).layouts();
        let plan = match &tuning {
            Some(tuning) => op.plan_with(ctx.capabilities(), &layouts, tuning)?,
            None => op.plan(ctx.capabilities(), &layouts)?,
        };
        let recipe = format!("{} {:?}", plan.product.recipe, plan.product.grid);
        Ok(Prepared::new(recipe, move |pass, run| {
            let args = SparseLinearArgs {
                scales: scales.as_ref(),
                norm: normed.then_some((&norm, 1e-5)),
                residual: if normed {
                    Residual::None
                } else {
                    Residual::InOut
                },
                ..SparseLinearArgs::new(&x, &sets[run % sets.len()], &y)
            };
            match &tuning {
                Some(_) => args.launch(pass, &plan),
                None => op.run(pass, &args),
            }
        }))
    })
}
