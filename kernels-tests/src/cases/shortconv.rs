//! Short convolutions: taps, types, activations, strides, sequences in parts through their state.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::shortconv::{Gradients, ShortConv, ShortConvArgs, State};
use flashwave::reference::Real;
use flashwave::reference::elementwise::activate;
use flashwave::{Capabilities, Context, DType, Launch, Layout, Tensor};

use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{Outcome, Ulps, check, farther};
use crate::{Case, Failure};

/// exp of up to a dozen, and a division (Activation::Silu).
const SLACK: Ulps = Ulps(2.0 * (3.0 + 2.0 * 12.0 + 2.5));

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Time,
    /// [batch, length, channels], transposed.
    Channels,
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    batch: usize,
    channels: usize,
    length: usize,
    taps: usize,
    activation: Activation,
    /// x, weight, y.
    types: [DType; 3],
    places: [Place; 2],
    /// Lengths of the parts; one part has no state.
    parts: &'static [usize],
}

fn reference<R: Real>(x: &[R], weight: &[R], bias: R, f: Activation) -> Vec<R> {
    (0..x.len())
        .map(|t| {
            let taps = weight.iter().enumerate().filter(|(j, _)| *j <= t);
            activate(f, taps.fold(bias, |sum, (j, &w)| sum + w * x[t - j]))
        })
        .collect()
}

impl Setup {
    fn run(&self, ctx: &Context) -> Result<Outcome, Failure> {
        let Self {
            batch,
            channels,
            length,
            taps,
            activation,
            types: [tx, tw, ty],
            places,
            parts,
        } = *self;
        let mut random = Random::new(Case::seed(&format!("{self:?}")));
        let x = random.normals(batch * channels * length, tx);
        let weight = random.normals(channels * taps, tw);
        let bias = random.normals(channels, tw);
        let tensor = |place: Place, data: &[f32], dtype: DType| -> flashwave::Result<Tensor> {
            match place {
                Place::Time => Tensor::from_f32(ctx, dtype, data, [batch, channels, length]),
                Place::Channels => Tensor::from_f32(
                    ctx,
                    dtype,
                    &turned(data, channels, length),
                    [batch, length, channels],
                )?
                .transpose(1, 2),
            }
        };
        let x_in = tensor(places[0], &x, tx)?;
        let y = match places[1] {
            Place::Time => poisoned(ctx, ty, [batch, channels, length])?,
            Place::Channels => poisoned(ctx, ty, [batch, length, channels])?,
        };
        let y_out = if places[1] == Place::Channels {
            y.transpose(1, 2)?
        } else {
            y.clone()
        };
        let weight_in = Tensor::from_f32(ctx, tw, &weight, [channels, taps])?;
        let bias_in = Tensor::from_f32(ctx, tw, &bias, [channels])?;
        let zeros = vec![0.0f32; batch * channels * (taps - 1)];
        let state = Tensor::from_slice(ctx, &zeros, [batch, channels, taps - 1])?;
        let mut from = 0;
        for &part in parts {
            let (x, y) = (
                x_in.narrow(2, from..from + part)?,
                y_out.narrow(2, from..from + part)?,
            );
            let state = if parts.len() > 1 {
                State::Update(&state)
            } else {
                State::None
            };
            let args = ShortConvArgs {
                x: &x,
                weight: &weight_in,
                bias: Some(&bias_in),
                state,
                y: &y,
            };
            ctx.record(|pass| ShortConv { activation }.run(pass, &args))?;
            from += part;
        }
        let mut out = y.to_f32_vec()?;
        if places[1] == Place::Channels {
            out = turned(&out, length, channels);
        }
        let (mut exact, mut naive) = (Vec::new(), Vec::new());
        for (row, x) in x.chunks(length).enumerate() {
            let c = row % channels;
            let w = &weight[c * taps..][..taps];
            exact.extend(reference(
                &widen(x),
                &widen(w),
                f64::from(bias[c]),
                activation,
            ));
            naive.extend(
                reference(x, w, bias[c], activation)
                    .into_iter()
                    .map(|y| round(y, ty)),
            );
        }
        check(
            &out,
            &exact,
            &naive,
            if activation == Activation::None {
                Ulps(0.0)
            } else {
                SLACK
            },
        )
    }
}

/// dx, dweight and dbias of a batch of rows by channel; sums in the order of time, or in the reverse.
fn gradients<R: Real>(
    [batch, channels, length, taps]: [usize; 4],
    [x, weight, dy]: [&[R]; 3],
    backwards: bool,
) -> [Vec<R>; 3] {
    let mut dx = vec![R::zero(); x.len()];
    let mut dweight = vec![R::zero(); channels * taps];
    let mut dbias = vec![R::zero(); channels];
    for i in 0..batch * length {
        let i = if backwards { batch * length - 1 - i } else { i };
        let (b, t) = (i / length, i % length);
        for c in 0..channels {
            let row = (b * channels + c) * length;
            let g = dy[row + t];
            dbias[c] = dbias[c] + g;
            for j in 0..taps.min(t + 1) {
                let sum = &mut dweight[c * taps + j];
                *sum = *sum + g * x[row + t - j];
                dx[row + t - j] = dx[row + t - j] + g * weight[c * taps + j];
            }
        }
    }
    [dx, dweight, dbias]
}

/// Gradients of tensors of one type, token-major or not.
fn backward(
    ctx: &Context,
    sizes: [usize; 4],
    dtype: DType,
    place: Place,
) -> Result<Outcome, Failure> {
    let [batch, channels, length, taps] = sizes;
    let mut random = Random::new(Case::seed(&format!("{sizes:?} {dtype} {place:?}")));
    let n = batch * channels * length;
    let (x, dy) = (random.normals(n, dtype), random.normals(n, dtype));
    let weight = random.normals(channels * taps, F32);
    let time = [batch, channels, length];
    let tensor = |data: &[f32]| match place {
        Place::Time => Tensor::from_f32(ctx, dtype, data, time),
        Place::Channels => {
            let shape = [batch, length, channels];
            Tensor::from_f32(ctx, dtype, &turned(data, channels, length), shape)?.transpose(1, 2)
        }
    };
    let weight_in = Tensor::from_slice(ctx, &weight, [channels, taps])?;
    let dx = poisoned(ctx, dtype, time)?;
    let (dweight, dbias) = (
        poisoned(ctx, F32, [channels, taps])?,
        poisoned(ctx, F32, [channels])?,
    );
    let args = Gradients {
        x: &tensor(&x)?,
        weight: &weight_in,
        dy: &tensor(&dy)?,
        dx: Some(&dx),
        dweight: Some(&dweight),
        dbias: Some(&dbias),
    };
    ctx.record(|pass| args.run(pass))?;
    let exact = gradients::<f64>(sizes, [&widen(&x), &widen(&weight), &widen(&dy)], false);
    let naive = [false, true].map(|order| gradients::<f32>(sizes, [&x, &weight, &dy], order));
    let mut outcome = Outcome::default();
    for (i, (tensor, dtype)) in [(&dx, dtype), (&dweight, F32), (&dbias, F32)]
        .into_iter()
        .enumerate()
    {
        let [a, b] = [0, 1].map(|o| naive[o][i].iter().map(|&v| round(v, dtype)).collect());
        let naive = farther(&exact[i], [a, b]);
        outcome = outcome.and(check(&tensor.to_f32_vec()?, &exact[i], &naive, Ulps(0.0))?);
    }
    Ok(outcome)
}

/// Matrices of `rows` rows, turned.
fn turned(data: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let each = |matrix: &[f32]| -> Vec<f32> {
        (0..cols)
            .flat_map(|c| (0..rows).map(move |r| (r, c)))
            .map(|(r, c)| matrix[r * cols + c])
            .collect()
    };
    data.chunks(rows * cols).flat_map(each).collect()
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut push = |group: &str, setup: Setup| {
        cases.push(Case::new(
            "shortconv",
            group,
            format!("{setup:?}"),
            move |ctx| setup.run(ctx),
        ));
    };
    let plain = Setup {
        batch: 2,
        channels: 7,
        length: 64,
        taps: 3,
        activation: Activation::None,
        types: [F32; 3],
        places: [Place::Time; 2],
        parts: &[64],
    };
    for taps in [2, 3, 4, 7, 16] {
        push("taps", Setup { taps, ..plain });
        push(
            "taps",
            Setup {
                taps,
                length: 37,
                parts: &[37],
                types: [F16, F32, F16],
                ..plain
            },
        );
        push(
            "state",
            Setup {
                taps,
                length: 37,
                parts: &[1, 1, 2, 20, 4, 3, 6],
                ..plain
            },
        );
    }
    for places in [
        [Place::Channels, Place::Time],
        [Place::Time, Place::Channels],
        [Place::Channels; 2],
    ] {
        push("strided", Setup { places, ..plain });
        push(
            "strided",
            Setup {
                places,
                types: [BF16, F16, F16],
                ..plain
            },
        );
    }
    push(
        "activations",
        Setup {
            activation: Activation::Silu,
            ..plain
        },
    );
    push(
        "activations",
        Setup {
            activation: Activation::Silu,
            types: [F16, F16, F32],
            ..plain
        },
    );
    for (sizes, dtype, place) in [
        ([2, 3, 70, 3], F32, Place::Time),
        ([2, 5, 200, 16], F16, Place::Time),
        ([3, 4, 9, 4], F32, Place::Channels),
        ([1, 2, 3, 7], BF16, Place::Channels),
    ] {
        let name = format!("{sizes:?} {dtype} {place:?}");
        cases.push(Case::new("shortconv", "backward", name, move |ctx| {
            backward(ctx, sizes, dtype, place)
        }));
    }
    cases
}

/// Every kind of variant.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for (dtype, weight, bias) in [(F32, true, true), (F16, true, false), (BF16, false, true)] {
        let found = (|| {
            let x = Layout::contiguous(dtype, [2, 5, 9])?;
            let w = Layout::contiguous(F32, [5, 3])?;
            let b = Layout::contiguous(F32, [5])?;
            let args = Gradients {
                x: &x,
                weight: &w,
                dy: &x,
                dx: Some(&x),
                dweight: weight.then_some(&w),
                dbias: bias.then_some(&b),
            };
            args.plan(caps)
        })();
        let plan = found.expect("plans");
        launches.extend(plan.x.into_iter().chain(plan.weight));
    }
    for taps in [2, 3, 16] {
        for (length, types) in [(1, [F32; 3]), (64, [F16, F32, F16]), (37, [BF16, F16, F32])] {
            for stated in [false, true] {
                let found = (|| {
                    let x = Layout::contiguous(types[0], [2, 5, length])?;
                    let turned = Layout::contiguous(types[2], [2, length, 5])?.transpose(1, 2)?;
                    let y = Layout::contiguous(types[2], [2, 5, length])?;
                    let weight = Layout::contiguous(types[1], [5, taps])?;
                    let state = Layout::contiguous(F32, [2, 5, taps - 1])?;
                    let state = if stated {
                        State::Update(&state)
                    } else {
                        State::None
                    };
                    let conv = ShortConv {
                        activation: Activation::Silu,
                    };
                    let args = ShortConvArgs {
                        x: &x,
                        weight: &weight,
                        bias: None,
                        state,
                        y: &y,
                    };
                    let mut plans = vec![conv.plan(caps, &args)?];
                    plans.push(conv.plan(
                        caps,
                        &ShortConvArgs {
                            x: &turned,
                            y: &x,
                            ..args
                        },
                    )?);
                    Ok::<_, flashwave::Error>(plans)
                })();
                launches.extend(
                    found
                        .expect("plans")
                        .into_iter()
                        .flat_map(|p| [Some(p.convolve), p.update])
                        .flatten(),
                );
            }
        }
    }
    launches
}
