//! Products of 8-bit operands, and quantisation of rows to int8.

use super::Real;
use super::gemm::Order;
use crate::dtype::DType;
use crate::kernels::gemm8::Quantize;

/// What a code of eight bits means: int8, or FP8 of the OCP's two kinds. 0 for other types.
pub fn decode(code: u8, dtype: DType) -> f64 {
    let (fraction, bias) = match dtype {
        DType::I8 => return f64::from(code as i8),
        DType::F8E4M3 => (3, 7),
        DType::F8E5M2 => (2, 15),
        _ => return 0.0,
    };
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (
        i32::from(code & 0x7f) >> fraction,
        i32::from(code) & ((1 << fraction) - 1),
    );
    let special = match dtype {
        DType::F8E4M3 => code & 0x7f == 0x7f,
        _ => exponent == 31,
    };
    match (special, mantissa) {
        (true, 0) => sign * f64::INFINITY,
        (true, _) => f64::NAN,
        (false, _) if exponent == 0 => sign * f64::from(mantissa) * 2f64.powi(1 - bias - fraction),
        (false, _) => {
            sign * f64::from(mantissa + (1 << fraction)) * 2f64.powi(exponent - bias - fraction)
        }
    }
}

/// One side of a product: rows of k codes as numbers, with their scales and zero points.
pub struct Side<'a> {
    /// The codes' numbers.
    pub codes: &'a [f64],
    /// The scale of a row and a group of `group` steps along k.
    pub scale: &'a (dyn Fn(usize, usize) -> f64 + Sync),
    /// The code of zero of a row.
    pub zero: &'a (dyn Fn(usize) -> f64 + Sync),
}

/// `sum over groups of s_a s_b (sum over k in the group of (a - z_a) (b - z_b))`, [m, n]: sums of integers exact, others in the
/// arithmetic's precision and this order.
pub fn product<R: Real>(
    [a, b]: [&Side<'_>; 2],
    [m, n, k]: [usize; 3],
    group: usize,
    integers: bool,
    order: Order,
) -> Vec<R> {
    let element = |i: usize| {
        let (row, col) = (i / n, i % n);
        let (za, zb) = ((a.zero)(row), (b.zero)(col));
        let mut total = R::zero();
        for g in 0..k.div_ceil(group) {
            let steps = g * group..k.min((g + 1) * group);
            let x = |l: usize| a.codes[row * k + l] - za;
            let y = |l: usize| b.codes[col * k + l] - zb;
            let sum = if integers {
                R::of(steps.map(|l| x(l) * y(l)).sum())
            } else {
                let add = |s: R, l: usize| s + R::of(x(l)) * R::of(y(l));
                match order {
                    Order::Forward => steps.fold(R::zero(), add),
                    Order::Backward => steps.rev().fold(R::zero(), add),
                }
            };
            total = total + sum * R::of((a.scale)(row, g)) * R::of((b.scale)(col, g));
        }
        total
    };
    (0..m * n).map(element).collect()
}

/// A row as int8.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Row {
    /// The codes.
    pub codes: Vec<i8>,
    /// A number is scale * (code - zero).
    pub scale: f32,
    /// The code of zero.
    pub zero: i32,
    /// Of the codes.
    pub sum: i32,
}

/// 2^-100: no product with it is subnormal.
const LEAST_SCALE: u32 = 27 << 23;

fn scale_for(range: f32, inverse: f32) -> f32 {
    if range.to_bits() >= 0x7f7f_ffff {
        return f32::NAN;
    }
    let scale = (range * inverse).to_bits().max(LEAST_SCALE);
    f32::from_bits((scale + 0x1fff) & !0x1fff)
}

/// The integer nearest to x / scale, of two the even one: the scale has 11 significant bits, so that what is left of x is exact.
fn nearest(x: f32, scale: f32) -> f32 {
    if scale.is_nan() {
        return 0.0;
    }
    let code = (x * (1.0 / scale)).round_ties_even();
    let (rest, half) = (x - code * scale, 0.5 * scale);
    let odd = (code * 0.5).fract() != 0.0;
    if rest.abs() > half || (rest.abs() == half && odd) {
        code + rest.signum()
    } else {
        code
    }
}

/// A row as the GPU codes it, bit by bit.
pub fn quantize(row: &[f32], symmetry: Quantize) -> Int8Row {
    let finite = |x: f32| if x.is_finite() { x } else { f32::MAX };
    let high = row.iter().fold(0f32, |m, &x| m.max(finite(x)));
    let low = row.iter().fold(0f32, |m, &x| m.min(finite(x)));
    let (scale, zero, least) = match symmetry {
        Quantize::Symmetric => (scale_for(high.max(-low), 1.0 / 127.0), 0.0, -127.0),
        Quantize::Asymmetric => {
            let scale = scale_for((high - low).min(f32::MAX), 1.0 / 255.0);
            let zero = (-128.0 - nearest(low, scale)).clamp(-128.0, 127.0);
            (scale, zero, -128.0)
        }
    };
    let code = |&x: &f32| (nearest(x, scale) + zero).clamp(least, 127.0) as i8;
    let codes: Vec<i8> = row.iter().map(code).collect();
    let sum = codes.iter().map(|&c| i32::from(c)).sum();
    Int8Row {
        codes,
        scale,
        zero: zero as i32,
        sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_what_the_formats_say() {
        let e4m3 = |code| decode(code, DType::F8E4M3);
        let e5m2 = |code| decode(code, DType::F8E5M2);
        assert_eq!(
            [e4m3(0x38), e4m3(0x7e), e4m3(1)],
            [1.0, 448.0, 2f64.powi(-9)]
        );
        assert_eq!(
            [e5m2(0x3c), e5m2(0x7b), e5m2(1)],
            [1.0, 57344.0, 2f64.powi(-16)]
        );
        assert!(e4m3(0xff).is_nan() && e5m2(0x7d).is_nan());
        assert_eq!(e5m2(0xfc), f64::NEG_INFINITY);
        // E5M2 is the upper half of f16.
        for code in 0..=255u8 {
            let half = half::f16::from_bits(u16::from(code) << 8).to_f64();
            assert!(e5m2(code) == half || half.is_nan() && e5m2(code).is_nan());
            assert!(e4m3(code) == -e4m3(code ^ 0x80) || e4m3(code).is_nan());
        }
    }

    #[test]
    fn numbers_come_back_within_half_a_step() {
        let row: Vec<f32> = (0..301)
            .map(|i| (i as f32 * 0.71).sin() * 3.0 + 1.0)
            .collect();
        for symmetry in [Quantize::Symmetric, Quantize::Asymmetric] {
            let coded = quantize(&row, symmetry);
            for (&x, &code) in row.iter().zip(&coded.codes) {
                let back = coded.scale * (i32::from(code) - coded.zero) as f32;
                assert!(
                    (x - back).abs() <= coded.scale * 0.5001,
                    "{symmetry:?} {x} {back}"
                );
            }
            // Steps as wide as the range asks for.
            let range = match symmetry {
                Quantize::Symmetric => 4.0 / 127.0,
                Quantize::Asymmetric => 6.0 / 255.0,
            };
            assert!((coded.scale / range - 1.0).abs() < 2e-3, "{}", coded.scale);
        }
        let coded = quantize(&[0.0; 4], Quantize::Asymmetric);
        assert_eq!((coded.codes, coded.zero), (vec![-128; 4], -128));
        assert!(
            quantize(&[1.0, f32::NAN], Quantize::Symmetric)
                .scale
                .is_nan()
        );
        assert_eq!(
            quantize(&[2.5, 127.0, -0.5], Quantize::Symmetric).codes,
            [2, 127, 0]
        );
    }

    #[test]
    fn products_satisfy_their_identities() {
        let (m, n, k) = (3, 2, 40);
        let codes: Vec<f64> = (0..m * k)
            .map(|i| f64::from(i as i32 * 37 % 255 - 127))
            .collect();
        let (one, none) = (|_: usize, _: usize| 1.0, |_: usize| 0.0);
        let plain = |codes| Side {
            codes,
            scale: &one,
            zero: &none,
        };
        let run = |a: &Side<'_>, b: &Side<'_>, group| {
            product::<f64>([a, b], [m, n, k], group, true, Order::Forward)
        };
        let (a, b) = (plain(&codes[..]), plain(&codes[..n * k]));
        let ab = run(&a, &b, k);
        assert_eq!(ab, run(&a, &b, 16), "groups add up");
        // A zero point is what is added to all codes.
        let moved: Vec<f64> = codes.iter().map(|c| c + 5.0).collect();
        let five = |_: usize| 5.0;
        let c = Side {
            codes: &moved,
            scale: &one,
            zero: &five,
        };
        assert_eq!(ab, run(&c, &b, k));
        let two = |_: usize, _: usize| 2.0;
        let d = Side {
            codes: &codes,
            scale: &two,
            zero: &none,
        };
        assert_eq!(
            ab.iter().map(|x| x * 2.0).collect::<Vec<_>>(),
            run(&d, &b, 16)
        );
    }
}
