//! Gradients of long convolutions: of u, both gates, the filter and the skip term, against their sums; and that a directional
//! derivative of the reference agrees with them.

use flashwave::DType::{F16, F32};
use flashwave::kernels::fftconv::{Backward, Boundary, FftConv, Tuning};
use flashwave::reference::Real;
use flashwave::reference::fftconv::{by_fft, convolve};
use flashwave::{Context, DType, Tensor};

use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{Outcome, Ulps, check, farther};
use crate::{Case, Failure};

/// A gradient of a filter is three transforms, where a convolution with a planned one is two: unit roots as in fftconv.rs, twice.
const SLACK: Ulps = Ulps(2.0 * 2.236);

#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub boundary: Boundary,
    pub batch: usize,
    pub channels: usize,
    pub length: usize,
    pub taps: usize,
    pub dtype: DType,
    pub gated: bool,
    pub tuning: Option<Tuning>,
}

/// Gradients of u, v, w, k, d; those of one batch row and channel for u, v and w.
struct Gradients<R> {
    of: [Vec<R>; 5],
}

type Convolve<R> = fn(Boundary, &[R], &[R]) -> Vec<R>;

/// y[n] = sum over m of k[m - n] g[m].
fn correlate<R: Real>(conv: Convolve<R>, boundary: Boundary, g: &[R], k: &[R]) -> Vec<R> {
    let reversed: Vec<R> = g.iter().rev().copied().collect();
    let mut y = conv(boundary, &reversed, k);
    y.reverse();
    y
}

fn times<R: Real>(a: &[R], b: &[R]) -> Vec<R> {
    a.iter().zip(b).map(|(&a, &b)| a * b).collect()
}

/// By the chain rule; rows of u, v, w and dy are [batch][channel][time].
fn gradients<R: Real>(
    setup: &Setup,
    conv: Convolve<R>,
    [u, v, w, dy, k, d]: [&[R]; 6],
) -> Gradients<R> {
    let Setup {
        boundary,
        batch,
        channels,
        length,
        taps,
        ..
    } = *setup;
    let mut of = [
        Vec::new(),
        Vec::new(),
        Vec::new(),
        vec![R::zero(); channels * taps],
        vec![R::zero(); channels],
    ];
    for row in 0..batch * channels {
        let (c, range) = (row % channels, row * length..(row + 1) * length);
        let [u, v, w, dy] = [u, v, w, dy].map(|x| &x[range.clone()]);
        let (k, d) = (&k[c * taps..][..taps], d[c]);
        let (s, g) = (times(u, v), times(dy, w));
        let plus =
            |x: Vec<R>, s: &[R]| -> Vec<R> { x.iter().zip(s).map(|(&x, &s)| x + d * s).collect() };
        let ds = plus(correlate(conv, boundary, &g, k), &g);
        of[0].extend(times(v, &ds));
        of[1].extend(times(u, &ds));
        of[2].extend(times(dy, &plus(conv(boundary, &s, k), &s)));
        let dk = correlate(conv, boundary, &g, &s);
        for (sum, &x) in of[3][c * taps..][..taps].iter_mut().zip(&dk) {
            *sum = *sum + x;
        }
        of[4][c] = of[4][c] + dk[0];
    }
    Gradients { of }
}

impl Setup {
    pub fn case(self) -> Case {
        Case::new("fftconv", "backward", format!("{self:?}"), move |ctx| {
            self.run(ctx)
        })
    }

    fn run(&self, ctx: &Context) -> Result<Outcome, Failure> {
        let Self {
            boundary,
            batch,
            channels,
            length,
            taps,
            dtype,
            gated,
            tuning,
        } = *self;
        let mut random = Random::new(Case::seed(&format!("{self:?}")));
        let n = batch * channels * length;
        let ones = vec![1.0f32; n];
        let u = random.normals(n, dtype);
        let v = if gated {
            random.normals(n, dtype)
        } else {
            ones.clone()
        };
        let w = if gated {
            random.normals(n, dtype)
        } else {
            ones
        };
        let dy = random.normals(n, dtype);
        let k = random.normals(channels * taps, F32);
        let d = random.normals(channels, F32);
        let shape = [batch, channels, length];
        let tensor = |x: &[f32]| Tensor::from_f32(ctx, dtype, x, shape);
        let (u_in, v_in, w_in, dy_in) = (tensor(&u)?, tensor(&v)?, tensor(&w)?, tensor(&dy)?);
        let k_in = Tensor::from_slice(ctx, &k, [channels, taps])?;
        let d_in = Tensor::from_slice(ctx, &d, [channels])?;
        let conv = FftConv::new(boundary);
        let filter = match tuning {
            None => conv.filter(&k_in, Some(&d_in), length)?,
            Some(tuning) => conv.filter_with(&k_in, Some(&d_in), length, tuning)?,
        };
        let [du, dv, dw] = [0; 3].map(|_| poisoned(ctx, dtype, shape));
        let (du, dv, dw) = (du?, dv?, dw?);
        let (dk, dd) = (
            poisoned(ctx, F32, [channels, taps])?,
            poisoned(ctx, F32, [channels])?,
        );
        let args = Backward {
            u: &u_in,
            gate_in: gated.then_some(&v_in),
            gate_out: gated.then_some(&w_in),
            dy: &dy_in,
            du: Some(&du),
            d_gate_in: gated.then_some(&dv),
            d_gate_out: gated.then_some(&dw),
            dk: Some(&dk),
            dd: Some(&dd),
        };
        ctx.record(|pass| filter.backward(pass, &args))?;

        let inputs = [&u, &v, &w, &dy, &k, &d];
        let wide = inputs.map(|x| widen(x));
        let exact = gradients::<f64>(
            self,
            convolve,
            [&wide[0], &wide[1], &wide[2], &wide[3], &wide[4], &wide[5]],
        );
        let narrow = |conv| gradients::<f32>(self, conv, [&u, &v, &w, &dy, &k, &d]);
        let (by_sum, transformed) = (narrow(convolve), narrow(by_fft));
        // d's gradient is a tap of the correlation that k's is, and as exact as that.
        let whole = |g: &Gradients<f32>| [&g.of[3][..], &g.of[4][..]].concat();
        let mut out = dk.to_f32_vec()?;
        out.extend(dd.to_f32_vec()?);
        let oracle = [&exact.of[3][..], &exact.of[4][..]].concat();
        let naive = farther(&oracle, [whole(&by_sum), whole(&transformed)]);
        let found = check(&out, &oracle, &naive, SLACK);
        let mut outcome = found.map_err(|e| Failure::Wrong(format!("dk, dd: {e}")))?;
        for (i, tensor) in [&du, &dv, &dw].into_iter().enumerate() {
            if !gated && i > 0 {
                continue;
            }
            let rounded = |x: &Vec<f32>| x.iter().map(|&x| round(x, dtype)).collect();
            let mut naive = farther(
                &exact.of[i],
                [rounded(&by_sum.of[i]), rounded(&transformed.of[i])],
            );
            if gated {
                let factor = [&v, &u, &dy][i];
                for row in (0..n).step_by(length) {
                    let row = row..row + length;
                    let results = [&transformed.of[i][row.clone()], &factor[row.clone()]];
                    meet_largest(&mut naive[row.clone()], &exact.of[i][row], results);
                }
            }
            let name = ["du", "dv", "dw"][i];
            let found = check(&tensor.to_f32_vec()?, &exact.of[i], &naive, SLACK);
            outcome = outcome.and(found.map_err(|e| Failure::Wrong(format!("{name}: {e}")))?);
        }
        Ok(outcome)
    }
}

/// A transform's errors are spread evenly over its outputs: the largest of a row, before the factor that it is multiplied
/// by, may meet the row's largest factor.
fn meet_largest(naive: &mut [f32], exact: &[f64], [result, factor]: [&[f32]; 2]) {
    let before = (result.iter().zip(exact).zip(factor))
        .filter(|(_, factor)| **factor != 0.0)
        .map(|((&r, e), &f)| ((f64::from(r) - e) / f64::from(f)).abs())
        .fold(0.0f64, f64::max);
    let largest = (0..factor.len()).max_by(|&a, &b| factor[a].abs().total_cmp(&factor[b].abs()));
    if let Some(at) = largest {
        let worst = exact[at] + before * f64::from(factor[at].abs());
        naive[at] = farther(&exact[at..=at], [vec![naive[at]], vec![worst as f32]])[0];
    }
}

/// The matrix.
pub fn cases(long: Tuning) -> Vec<Case> {
    let (causal, circular) = (Boundary::Causal, Boundary::Circular);
    let setup = |boundary, length, taps| Setup {
        boundary,
        batch: 3,
        channels: 3,
        length,
        taps,
        dtype: F32,
        gated: true,
        tuning: None,
    };
    vec![
        setup(causal, 128, 128).case(),
        setup(circular, 128, 128).case(),
        Setup {
            dtype: F16,
            ..setup(causal, 200, 50)
        }
        .case(),
        Setup {
            gated: false,
            ..setup(causal, 1100, 20)
        }
        .case(),
        Setup {
            gated: false,
            tuning: Some(long),
            ..setup(causal, 900, 900)
        }
        .case(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of dy y, whose gradients those are, along a direction of all inputs together.
    #[test]
    fn a_directional_derivative_agrees() {
        for boundary in [Boundary::Causal, Boundary::Circular] {
            let setup = Setup {
                boundary,
                batch: 2,
                channels: 2,
                length: 8,
                taps: 5,
                dtype: F32,
                gated: true,
                tuning: None,
            };
            let mut random = Random::new(7);
            let mut draw = |n: usize| -> Vec<f64> { (0..n).map(|_| random.normal()).collect() };
            let x = [draw(32), draw(32), draw(32), draw(32), draw(10), draw(2)];
            let step = [
                draw(32),
                draw(32),
                draw(32),
                vec![0.0; 32],
                draw(10),
                draw(2),
            ];
            let loss = |h: f64| -> f64 {
                let at: Vec<Vec<f64>> = (0..6)
                    .map(|i| x[i].iter().zip(&step[i]).map(|(x, s)| x + h * s).collect())
                    .collect();
                (0..4)
                    .map(|row| {
                        let (c, r) = (row % 2, row * 8..row * 8 + 8);
                        let s = times(&at[0][r.clone()], &at[1][r.clone()]);
                        let y = convolve(boundary, &s, &at[4][c * 5..][..5]);
                        (0..8)
                            .map(|t| {
                                at[3][r.start + t] * at[2][r.start + t] * (y[t] + at[5][c] * s[t])
                            })
                            .sum::<f64>()
                    })
                    .sum()
            };
            let of =
                gradients::<f64>(&setup, convolve, [&x[0], &x[1], &x[2], &x[3], &x[4], &x[5]]).of;
            let along: f64 = [0, 1, 2]
                .iter()
                .map(|&i| times(&of[i], &step[i]).iter().sum::<f64>())
                .sum::<f64>()
                + times(&of[3], &step[4]).iter().sum::<f64>()
                + times(&of[4], &step[5]).iter().sum::<f64>();
            let measured = (loss(1e-5) - loss(-1e-5)) / 2e-5;
            assert!(
                (along - measured).abs() < 1e-6 * along.abs().max(1.0),
                "{along} {measured}"
            );
        }
    }
}
