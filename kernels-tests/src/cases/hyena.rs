//! Hyena's kernels: one token, a prompt up to its long convolution, a block of a convolution.

use flashwave::DType::F32;
use flashwave::kernels::hyena::{
    BlockConv, Output, Prompt, PromptArgs, Short, Step, StepArgs, accumulate, plan_accumulate,
};
use flashwave::reference::Real;
use flashwave::reference::hyena::{block_conv, short_filter};
use flashwave::{Capabilities, Context, Launch, Layout, Result, Tensor};

use crate::Case;
use crate::inputs::{Random, poisoned, widen};
use crate::tolerance::{Ulps, check, check_equal, farther};

/// Channels, taps of the short filter, position, earlier tokens of the block.
const STEPS: [(usize, usize, usize, usize); 6] = [
    (1, 1, 0, 0),
    (5, 3, 1, 1),
    (37, 4, 63, 63),
    (128, 3, 64, 0),
    (130, 2, 200, 17),
    (16, 16, 90, 33),
];
/// Channels, taps of the short filter, tokens.
const PROMPTS: [(usize, usize, usize); 5] = [
    (1, 1, 1),
    (5, 3, 2),
    (33, 4, 31),
    (64, 2, 65),
    (20, 16, 100),
];
/// Channels, inputs, outputs, lag, taps.
const BLOCKS: [(usize, usize, usize, usize, usize); 8] = [
    (1, 1, 1, 0, 1),
    (3, 64, 64, 64, 128),
    (2, 128, 100, 128, 300),
    (2, 256, 256, 256, 512),
    (3, 300, 411, 0, 411),
    (2, 37, 263, 0, 300),
    (1, 500, 90, 410, 77),
    (2, 70, 9, 0, 3),
];

/// The gate and the sum are each rounded before their product is: with few channels naive arithmetic may be lucky in
/// both, which are worth half an ulp of the product.
const GATED: Ulps = Ulps(2.0);

/// Rows of `cols` values, as many as `rows`.
fn rows<R: Real>(values: &[f32], cols: usize) -> Vec<Vec<R>> {
    let row = |row: &[f32]| row.iter().map(|&x| R::of(x.into())).collect();
    values.chunks_exact(cols).map(row).collect()
}

/// Weights `[rows, taps]` and biases out of `[rows, taps + 1]`.
fn unpack<R: Real>(packed: &[f32], taps: usize) -> (Vec<R>, Vec<R>) {
    let rows = rows::<R>(packed, taps + 1);
    let weights = rows.iter().flat_map(|r| r[..taps].to_vec()).collect();
    (weights, rows.iter().map(|r| r[taps]).collect())
}

/// A step on the host: its output and its x1 v, each in two orders of summation.
fn step<R: Real>(
    input: &StepInput,
    channels: usize,
    taps: usize,
    block: usize,
) -> [[Vec<R>; 2]; 2] {
    let mut projections = rows::<R>(&input.state, 3 * channels);
    if taps == 1 {
        projections.clear();
    }
    projections.extend(rows(&input.projection, 3 * channels));
    let (weights, bias) = unpack(&input.weights, taps);
    let short = short_filter(&projections, &weights, &bias);
    let rows = |values: &[f32]| rows::<R>(values, values.len() / channels);
    let (z, carried, long) = (rows(&input.z), rows(&input.carried), rows(&input.taps));
    let position = input.position;
    let values = short.each_ref().map(|s| -> Vec<R> {
        (0..channels)
            .map(|c| s[channels + c] * s[2 * channels + c])
            .collect()
    });
    // Summed from the nearest on, and from the farthest on.
    let out = |order: usize| -> Vec<R> {
        let channel = |c: usize| {
            let past = (1..=block).map(|lag| long[c][lag] * z[c][position - lag]);
            let mut terms = vec![long[c][0] * values[order][c]];
            terms.extend(past.chain([carried[c][position]]));
            if order == 1 {
                terms.reverse();
            }
            let sum = terms.into_iter().fold(R::zero(), |sum, term| sum + term);
            short[order][c] * sum
        };
        (0..channels).map(channel).collect()
    };
    [[out(0), out(1)], values]
}

struct StepInput {
    projection: Vec<f32>,
    weights: Vec<f32>,
    state: Vec<f32>,
    z: Vec<f32>,
    carried: Vec<f32>,
    taps: Vec<f32>,
    position: usize,
    columns: usize,
}

fn run_step(
    ctx: &Context,
    name: &str,
    case: (usize, usize, usize, usize),
) -> Result<(StepInput, [Vec<f32>; 3])> {
    let (channels, taps, position, block) = case;
    let (columns, past) = (position + 3, (taps - 1).max(1));
    let mut random = Random::new(Case::seed(name));
    let mut draw = |n: usize| random.normals(n, F32);
    let input = StepInput {
        projection: draw(3 * channels),
        weights: draw(3 * channels * (taps + 1)),
        state: draw(past * 3 * channels),
        z: draw(channels * columns),
        carried: draw(channels * columns),
        taps: draw(channels * (block + 1)),
        position,
        columns,
    };
    let put =
        |values: &[f32], rows: usize| Tensor::from_slice(ctx, values, [rows, values.len() / rows]);
    let (state, z) = (put(&input.state, past)?, put(&input.z, channels)?);
    let out = poisoned(ctx, F32, [1, channels])?;
    let args = StepArgs {
        projection: &put(&input.projection, 1)?,
        short: Short {
            weights: &put(&input.weights, 3 * channels)?,
            state: &state,
        },
        z: &z,
        carried: &put(&input.carried, channels)?,
        taps: &put(&input.taps, channels)?,
        out: &out,
    };
    ctx.record(|pass| Step { position, block }.run(pass, args))?;
    let outputs = [out.to_vec()?, z.to_vec()?, state.to_vec()?];
    Ok((input, outputs))
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for case in STEPS {
        let name = format!("step {case:?}");
        cases.push(Case::new("hyena", "step", name.clone(), move |ctx| {
            let (channels, taps, position, block) = case;
            let (input, [out, z, state]) = run_step(ctx, &name, case)?;
            let [[exact, _], [values, _]] = step::<f64>(&input, channels, taps, block);
            let [out_orders, value_orders] = step::<f32>(&input, channels, taps, block);
            // z and the state: this token's, and nothing else.
            let written: Vec<f32> = z.chunks_exact(input.columns).map(|r| r[position]).collect();
            let mut moved = [&input.state[..], &input.projection].concat();
            moved.drain(..3 * channels);
            let moved = if taps == 1 { &input.state } else { &moved };
            let others = check_equal(&state, moved)?;
            let naive = farther(&exact, out_orders);
            let naive_values = farther(&values, value_orders);
            Ok(check(&out, &exact, &naive, GATED)?
                .and(check(&written, &values, &naive_values, Ulps(0.0))?)
                .and(others))
        }));
    }
    for (channels, taps, tokens) in PROMPTS {
        let name = format!("prompt {channels} x {tokens}, {taps} taps");
        cases.push(Case::new("hyena", "prompt", name.clone(), move |ctx| {
            let mut random = Random::new(Case::seed(&name));
            let past = (taps - 1).max(1);
            let projection = random.normals(tokens * 3 * channels, F32);
            let weights = random.normals(3 * channels * (taps + 1), F32);
            let state = random.normals(past * 3 * channels, F32);
            let gate = poisoned(ctx, F32, [channels, tokens])?;
            // z is a part of a longer row, and longer than the text.
            let (after, width) = (35, tokens + 38);
            let kept = poisoned(ctx, F32, [channels, width])?;
            let z = kept.narrow(1, 2..2 + tokens + after)?;
            let args = PromptArgs {
                projection: &Tensor::from_slice(ctx, &projection, [tokens, 3 * channels])?,
                short: Short {
                    weights: &Tensor::from_slice(ctx, &weights, [3 * channels, taps + 1])?,
                    state: &Tensor::from_slice(ctx, &state, [past, 3 * channels])?,
                },
                gate: &gate,
                z: &z,
            };
            ctx.record(|pass| Prompt.run(pass, args))?;
            let (gate, kept) = (gate.to_vec::<f32>()?, kept.to_vec::<f32>()?);
            let columns = |from: usize, to: usize| -> Vec<f32> {
                let rows = kept.chunks_exact(width);
                rows.flat_map(|row| row[from..to].to_vec()).collect()
            };
            let z = columns(2, 2 + tokens);
            let zeros = columns(2 + tokens, 2 + tokens + after);
            let zeros = check_equal(&zeros, &vec![0.0; channels * after])?;
            let around = [columns(0, 2), columns(width - 1, width)].concat();
            if !around.iter().all(|x| x.is_nan()) {
                return Err(crate::Failure::Wrong(
                    "elements beside z are written".into(),
                ));
            }
            let [[gates, _], [zs, _]] =
                prompt::<f64>(&projection, &weights, &state, channels, taps);
            let [gate_orders, z_orders] =
                prompt::<f32>(&projection, &weights, &state, channels, taps);
            let (naive_gate, naive_z) = (farther(&gates, gate_orders), farther(&zs, z_orders));
            let gates = check(&gate, &gates, &naive_gate, Ulps(0.0))?;
            let z = check(&z, &zs, &naive_z, Ulps(0.0))?;
            Ok(gates.and(z).and(zeros))
        }));
    }
    for output in [Output::Store, Output::Add] {
        for (channels, inputs, outputs, lag, taps) in BLOCKS {
            let name = format!(
                "block {output:?} {channels} x {inputs} -> {outputs}, lag {lag}, {taps} taps"
            );
            let group = format!("block {output:?}").to_lowercase();
            cases.push(Case::new("hyena", group, name.clone(), move |ctx| {
                let mut random = Random::new(Case::seed(&name));
                let x = random.normals(channels * inputs, F32);
                let h = random.normals(channels * taps, F32);
                let before = random.normals(channels * outputs, F32);
                let y = match output {
                    Output::Store => poisoned(ctx, F32, [channels, outputs])?,
                    Output::Add => Tensor::from_slice(ctx, &before, [channels, outputs])?,
                };
                let input = Tensor::from_slice(ctx, &x, [channels, inputs])?;
                let filter = Tensor::from_slice(ctx, &h, [channels, taps])?;
                ctx.record(|pass| BlockConv { lag, output }.run(pass, &input, &filter, &y))?;
                let whole = |channel: usize| {
                    let (x, h) = (
                        &x[channel * inputs..][..inputs],
                        &h[channel * taps..][..taps],
                    );
                    (
                        block_conv(&widen(x), &widen(h), lag, outputs),
                        block_conv(x, h, lag, outputs),
                    )
                };
                let (mut exact, mut orders) = (Vec::new(), [Vec::new(), Vec::new()]);
                for ([e, _], [a, b]) in (0..channels).map(whole) {
                    exact.extend(e);
                    orders[0].extend(a);
                    orders[1].extend(b);
                }
                if output == Output::Add {
                    exact
                        .iter_mut()
                        .zip(&before)
                        .for_each(|(e, &b)| *e += f64::from(b));
                    for order in &mut orders {
                        order.iter_mut().zip(&before).for_each(|(e, &b)| *e += b);
                    }
                }
                let naive = farther(&exact, orders);
                check(&y.to_vec::<f32>()?, &exact, &naive, Ulps(0.0))
            }));
        }
    }
    cases.extend(accumulate_cases());
    cases
}

/// Rows added to rows, parts of longer ones.
fn accumulate_cases() -> Vec<Case> {
    let shapes = [(1, 1), (3, 255), (5, 300)];
    let case = |(rows, cols): (usize, usize)| {
        let name = format!("accumulate {rows} x {cols}");
        Case::new("hyena", "accumulate", name.clone(), move |ctx| {
            let mut random = Random::new(Case::seed(&name));
            let x = random.normals(rows * (cols + 2), F32);
            let y = random.normals(rows * (cols + 3), F32);
            let add = Tensor::from_slice(ctx, &x, [rows, cols + 2])?;
            let sum = Tensor::from_slice(ctx, &y, [rows, cols + 3])?;
            let (from, to) = (add.narrow(1, 1..cols + 1)?, sum.narrow(1, 2..cols + 2)?);
            ctx.record(|pass| accumulate(pass, &from, &to))?;
            let mut expected = y;
            for (y, x) in expected
                .chunks_exact_mut(cols + 3)
                .zip(x.chunks_exact(cols + 2))
            {
                for (y, x) in y[2..].iter_mut().zip(&x[1..=cols]) {
                    *y += x;
                }
            }
            check_equal(&sum.to_vec::<f32>()?, &expected)
        })
    };
    shapes.into_iter().map(case).collect()
}

/// x0 and x1 v of every token, channel by channel, each in two orders of summation.
fn prompt<R: Real>(
    projection: &[f32],
    weights: &[f32],
    state: &[f32],
    channels: usize,
    taps: usize,
) -> [[Vec<R>; 2]; 2] {
    let mut all = rows::<R>(state, 3 * channels);
    all.truncate(taps - 1);
    let past = all.len();
    all.extend(rows(projection, 3 * channels));
    let (weights, bias) = unpack(weights, taps);
    let short: Vec<[Vec<R>; 2]> = (past..all.len())
        .map(|t| short_filter(&all[..=t], &weights, &bias))
        .collect();
    let by_channel = |order: usize, f: &dyn Fn(&[R], usize) -> R| -> Vec<R> {
        let channel = |c| short.iter().map(move |s| f(&s[order], c));
        (0..channels).flat_map(channel).collect()
    };
    let gate = |order| by_channel(order, &|s, c| s[c]);
    let z = |order| by_channel(order, &|s, c| s[channels + c] * s[2 * channels + c]);
    [[gate(0), gate(1)], [z(0), z(1)]]
}

/// Every variant: taps of short filters, sizes of blocks.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let f32s = |rows: usize, cols: usize| Layout::contiguous(F32, [rows, cols]).ok();
    let mut launches = Vec::new();
    let mut add = |launch: Option<Result<Launch>>| launches.extend(launch.and_then(Result::ok));
    for taps in [1, 2, 3, 4, 16] {
        add((|| {
            let (weights, state) = (f32s(24, taps + 1)?, f32s((taps - 1).max(1), 24)?);
            let short = Short {
                weights: &weights,
                state: &state,
            };
            let args = StepArgs {
                projection: &f32s(1, 24)?,
                short,
                z: &f32s(8, 64)?,
                carried: &f32s(8, 64)?,
                taps: &f32s(8, 64)?,
                out: &f32s(1, 8)?,
            };
            let step = Step {
                position: 9,
                block: 9,
            };
            Some(step.plan(caps, &args))
        })());
        add((|| {
            let (weights, state) = (f32s(24, taps + 1)?, f32s((taps - 1).max(1), 24)?);
            let short = Short {
                weights: &weights,
                state: &state,
            };
            let args = PromptArgs {
                projection: &f32s(40, 24)?,
                short,
                gate: &f32s(8, 40)?,
                z: &f32s(8, 40)?,
            };
            Some(Prompt.plan(caps, &args))
        })());
    }
    add((|| {
        let x = f32s(8, 300)?;
        Some(plan_accumulate(caps, &x, &x))
    })());
    for (n, output) in [64, 128, 256]
        .into_iter()
        .flat_map(|n| [(n, Output::Store), (n, Output::Add)])
    {
        add((|| {
            let (x, taps) = (f32s(8, n)?, f32s(8, 2 * n)?);
            Some(BlockConv { lag: n, output }.plan(caps, &x, &taps, &x))
        })());
    }
    launches
}
