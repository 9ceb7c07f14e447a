//! Elementwise kernels: every function and pair of types, ragged lengths, strided rows.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::elementwise::{Activation, Binary, BinaryOp, Unary};
use flashwave::reference::Real;
use flashwave::reference::elementwise::{activate, combine};
use flashwave::{Capabilities, DType, Launch, Layout, Tensor};

use crate::Case;
use crate::inputs::{Random, poisoned, round, widen};
use crate::tolerance::{HALF_ULP, Ulps, check};

const OPS: [BinaryOp; 4] = [
    BinaryOp::Add,
    BinaryOp::Mul,
    BinaryOp::Gated(Activation::Silu),
    BinaryOp::Gated(Activation::GeluTanh),
];
const TYPES: [(DType, DType); 6] = [
    (F32, F32),
    (F16, F16),
    (BF16, BF16),
    (F32, F16),
    (F16, F32),
    (F32, BF16),
];
/// Lengths around the vector width, the workgroup and the grid; ggml's glu shape {5, 7, 11, 13}.
const SHAPES: [&[usize]; 6] = [
    &[1],
    &[3, 5],
    &[5, 7, 11, 13],
    &[4096],
    &[4, 1028],
    &[2, 5001],
];

/// Relative error of the fit in lib/activation.wgsl.
const FIT: f64 = 1.6e-7;

/// What WGSL grants: exp(u) with |u| at most 90 before it saturates is 3 + 2|u| ulp, but its share of the result
/// fades as exp(-u) falls under 1: the worst is near |u| = 8, then a division of 2.5 ulp.
pub(super) fn slack(f: Activation) -> Ulps {
    match f {
        Activation::None | Activation::Relu | Activation::ReluSquared => Ulps(0.0),
        Activation::Silu | Activation::GeluTanh => Ulps(2.0 * (3.0 + 2.0 * 8.0 + 2.5)),
        // exp2(v) is 3 + 2|v| ulp, |v| = 8 log2(e) < 12 there; v has three roundings (the factor's, two products'), each
        // |u| half ulps of the result; a division; the fit's own error (a test below).
        Activation::GeluErf => Ulps(2.0 * (3.0 + 2.0 * 12.0 + 2.5) + 3.0 * 8.0 + FIT / HALF_ULP),
    }
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for f in Activation::ALL {
        for (x, y) in TYPES {
            for shape in SHAPES {
                let group = if f == Activation::None {
                    "cast"
                } else {
                    f.name()
                };
                let name = format!("{group} {x} -> {y} {shape:?}");
                cases.push(Case::new("elementwise", group, name.clone(), move |ctx| {
                    let n = shape.iter().product();
                    let mut random = Random::new(Case::seed(&name));
                    let host = random.normals(n, x);
                    let out = poisoned(ctx, y, shape)?;
                    let input = Tensor::from_f32(ctx, x, &host, shape)?;
                    ctx.record(|pass| Unary(f).run(pass, &input, &out))?;
                    let exact: Vec<f64> = widen(&host).iter().map(|&x| activate(f, x)).collect();
                    let naive: Vec<f32> = host.iter().map(|&x| round(activate(f, x), y)).collect();
                    check(&out.to_f32_vec()?, &exact, &naive, slack(f))
                }));
            }
        }
    }
    for op in OPS {
        for (a, y) in TYPES {
            for shape in SHAPES {
                let name = format!("{op:?} {a} -> {y} {shape:?}");
                let group = format!("{op:?}").to_lowercase();
                cases.push(Case::new("elementwise", group, name.clone(), move |ctx| {
                    let n = shape.iter().product();
                    let mut random = Random::new(Case::seed(&name));
                    let (ha, hb) = (random.normals(n, a), random.normals(n, y));
                    let (ta, tb) = (
                        Tensor::from_f32(ctx, a, &ha, shape)?,
                        Tensor::from_f32(ctx, y, &hb, shape)?,
                    );
                    let out = poisoned(ctx, y, shape)?;
                    ctx.record(|pass| Binary(op).run(pass, &ta, &tb, &out))?;
                    let (exact, naive) = (pairs(op, &widen(&ha), &widen(&hb)), pairs(op, &ha, &hb));
                    let naive: Vec<f32> = naive.iter().map(|&v| round(v, y)).collect();
                    check(&out.to_f32_vec()?, &exact, &naive, op_slack(op))
                }));
            }
        }
    }
    for (rows, half) in [(1, 8), (3, 172), (5, 37)] {
        for dtype in [F32, F16] {
            let name = format!("halves of a row {rows}x{half} {dtype}");
            cases.push(Case::new(
                "elementwise",
                "strided",
                name.clone(),
                move |ctx| {
                    let host = Random::new(Case::seed(&name)).normals(rows * half * 2, dtype);
                    let both = Tensor::from_f32(ctx, dtype, &host, [rows, 2 * half])?;
                    let (gate, up) = (both.narrow(1, 0..half)?, both.narrow(1, half..2 * half)?);
                    let out = poisoned(ctx, dtype, [rows, half])?;
                    let op = BinaryOp::Gated(Activation::Silu);
                    ctx.record(|pass| Binary(op).run(pass, &gate, &up, &out))?;
                    let split = |from: usize| -> Vec<f32> {
                        host.chunks(2 * half)
                            .flat_map(|row| row[from..from + half].to_vec())
                            .collect()
                    };
                    let (g, u) = (split(0), split(half));
                    let naive: Vec<f32> =
                        pairs(op, &g, &u).iter().map(|&v| round(v, dtype)).collect();
                    check(
                        &out.to_f32_vec()?,
                        &pairs(op, &widen(&g), &widen(&u)),
                        &naive,
                        op_slack(op),
                    )
                },
            ));
        }
    }
    cases
}

fn op_slack(op: BinaryOp) -> Ulps {
    match op {
        BinaryOp::Gated(f) => slack(f),
        BinaryOp::Add | BinaryOp::Mul => Ulps(0.0),
    }
}

fn pairs<R: Real>(op: BinaryOp, a: &[R], b: &[R]) -> Vec<R> {
    a.iter().zip(b).map(|(&a, &b)| combine(op, a, b)).collect()
}

/// Every variant: functions, types, wide and ragged.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for (x, y) in TYPES {
        for n in [4096, 4099] {
            let layouts =
                Layout::contiguous(x, [n]).and_then(|x| Ok((x, Layout::contiguous(y, [n])?)));
            let Ok((x, y)) = layouts else { continue };
            launches.extend(
                Activation::ALL
                    .iter()
                    .filter_map(|&f| Unary(f).plan(caps, &x, &y).ok()),
            );
            launches.extend(
                OPS.iter()
                    .filter_map(|&op| Binary(op).plan(caps, &x, &y, &y).ok()),
            );
        }
    }
    launches
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashwave::capabilities::Capabilities;
    use flashwave::shader::link;

    /// The shader's own coefficients, in f64: the error is the fit's alone.
    #[test]
    fn the_fit_of_erfc_is_as_close_as_it_says() {
        let caps = Capabilities::webgpu_default();
        let x = Layout::contiguous(F32, [4]).expect("a layout");
        let launch = Unary(Activation::GeluErf)
            .plan(&caps, &x, &x)
            .expect("a plan");
        let wgsl = link(&launch.recipe, caps.params_tier()).expect("links");
        let body = wgsl.split("fn activate4").nth(1).expect("the function");
        let body = body.split("exp2").next().expect("its polynomial");
        let coefficients: Vec<f64> = body
            .split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'))
            .filter_map(|n| n.contains('.').then(|| n.parse::<f32>().ok()).flatten())
            .map(f64::from)
            .collect();
        // 1.0 / (1.0 + c a), then the polynomial from the lowest degree on.
        let [_, _, c, poly @ ..] = &coefficients[..] else {
            panic!("{coefficients:?}");
        };
        assert_eq!(poly.len(), 8);
        let mut worst = 0.0f64;
        for i in 0..=130_000 {
            let a = f64::from(i) * 1e-4;
            let s = 1.0 / (1.0 + c * a);
            let p = poly.iter().rev().fold(0.0, |sum, k| sum * s + k);
            let h = s * p * (-0.5 * a * a).exp();
            let exact = 0.5 * Real::erfc(a * std::f64::consts::FRAC_1_SQRT_2);
            worst = worst.max((h / exact - 1.0).abs());
        }
        assert!(worst < FIT && worst > 0.5 * FIT, "{worst:e}");
    }
}
