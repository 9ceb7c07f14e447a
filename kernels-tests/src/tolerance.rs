//! How far a kernel may be from the oracle.
//!
//! The rule: at most twice as far from `exact` (f64) as naive arithmetic of the kernel's own precision is, in
//! ||out - exact|| / ||exact|| and in the largest element error (naive arithmetic being granted the half ulp that
//! rounding the largest element may cost). Where a kernel calls built-in functions whose
//! accuracy WGSL leaves to the device, what the specification grants them is added ([`Ulps`]): naive arithmetic
//! on the CPU has correctly rounded ones.

use flashwave::DType;

use crate::Failure;

/// Relative error in units of 2^-24 (half an f32 ulp) that the built-in functions on a value's way may add.
///
/// From "Accuracy of concrete floating point expressions" of the WGSL specification: exp(x) 3 + 2|x| ulp,
/// x / y 2.5 ulp, inverseSqrt 2 ulp, sqrt as 1 / inverseSqrt.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ulps(pub f64);

/// Half an ulp of f32, relative.
pub const HALF_ULP: f64 = 1.0 / (1u64 << 24) as f64;

/// A comparison that held.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Elements compared.
    pub elements: usize,
    /// The larger of the two errors' shares of their bounds; 1 is the limit.
    pub share: f64,
    /// What the device lacks, if that is why nothing was compared.
    pub missing: Option<&'static str>,
}

impl Outcome {
    /// So many elements, the worst of them with this share of its bound.
    pub fn held(elements: usize, share: f64) -> Self {
        Self {
            elements,
            share,
            missing: None,
        }
    }

    /// Nothing compared, for want of this.
    pub fn skipped(missing: &'static str) -> Self {
        Self {
            missing: Some(missing),
            ..Self::default()
        }
    }

    /// Both outcomes together.
    pub fn and(self, other: Self) -> Self {
        Self {
            elements: self.elements + other.elements,
            share: self.share.max(other.share),
            missing: self.missing.or(other.missing),
        }
    }
}

/// Distance from the oracle.
#[derive(Clone, Copy, Debug)]
struct Distance {
    /// ||a - exact|| / ||exact||.
    norm: f64,
    /// max |a - exact|.
    max: f64,
}

fn distance(values: &[f32], exact: &[f64]) -> Distance {
    let (mut square, mut scale, mut max) = (0.0, 0.0, 0.0f64);
    for (&a, &e) in values.iter().zip(exact) {
        let d = if f64::from(a) == e {
            0.0
        } else {
            (f64::from(a) - e).abs()
        };
        square += d * d;
        scale += e * e;
        max = max.max(d);
    }
    let norm = if square == 0.0 {
        0.0
    } else {
        (square / scale.max(f64::MIN_POSITIVE)).sqrt()
    };
    Distance { norm, max }
}

/// Of several naive results, element by element the one farthest from `exact`: naive arithmetic may sum in any order, and
/// one order alone is lucky now and then.
pub fn farther<const N: usize>(exact: &[f64], results: [Vec<f32>; N]) -> Vec<f32> {
    let far = |x: f32, e: f64| (f64::from(x) - e).abs();
    let farthest = |(i, &e): (usize, &f64)| {
        let all = results.iter().map(|r| r[i]);
        let one = all.reduce(|a, b| if far(a, e) < far(b, e) { b } else { a });
        one.unwrap_or(e as f32)
    };
    exact.iter().enumerate().map(farthest).collect()
}

/// Half the distance between neighbouring numbers of a type of the size of `x`: what rounding a result to it may cost.
fn half_ulp(x: f64, dtype: DType) -> f64 {
    let bits = match dtype {
        DType::F16 => 11.0,
        DType::BF16 => 8.0,
        _ => 24.0,
    };
    if x == 0.0 {
        0.0
    } else {
        (x.abs().log2().floor() - bits).exp2()
    }
}

/// Compares a kernel's `out` with `exact`, given the output of naive arithmetic rounded to the output's type; of
/// outputs of a 16-bit type, the largest is granted the half ulp of f32 alone ([`check_in`] grants its own).
pub fn check(out: &[f32], exact: &[f64], naive: &[f32], slack: Ulps) -> Result<Outcome, Failure> {
    check_in(DType::F32, out, exact, naive, slack)
}

/// [`check`] of an output of type `dtype`.
pub fn check_in(
    dtype: DType,
    out: &[f32],
    exact: &[f64],
    naive: &[f32],
    slack: Ulps,
) -> Result<Outcome, Failure> {
    if out.len() != exact.len() || naive.len() != exact.len() {
        let (o, e, n) = (out.len(), exact.len(), naive.len());
        return Err(Failure::Wrong(format!(
            "{o} elements out, {e} exact, {n} naive"
        )));
    }
    for (i, (&o, &e)) in out.iter().zip(exact).enumerate() {
        let same = (o.is_nan() && e.is_nan()) || (f64::from(o) == e);
        if !same && (!o.is_finite() || !e.is_finite()) && naive[i].is_finite() {
            return Err(Failure::Wrong(format!("element {i} is {o}, exact {e}")));
        }
    }
    let finite: Vec<usize> = (0..out.len())
        .filter(|&i| exact[i].is_finite() && naive[i].is_finite())
        .collect();
    let out: Vec<f32> = finite.iter().map(|&i| out[i]).collect();
    let naive: Vec<f32> = finite.iter().map(|&i| naive[i]).collect();
    let exact: Vec<f64> = finite.iter().map(|&i| exact[i]).collect();
    let largest = exact.iter().fold(0.0f64, |m, e| m.max(e.abs()));
    let (ours, theirs) = (distance(&out, &exact), distance(&naive, &exact));
    // Over few elements naive rounding may be lucky throughout: where it rounds at all, the largest element may be off
    // by half an ulp whatever computes it.
    let theirs_max = match theirs.max {
        0.0 => 0.0,
        max => max.max(half_ulp(largest, dtype)),
    };
    let bound = Distance {
        norm: 2.0 * theirs.norm + slack.0 * HALF_ULP,
        max: 2.0 * theirs_max + slack.0 * HALF_ULP * largest,
    };
    let share = |error: f64, bound: f64| if error == 0.0 { 0.0 } else { error / bound };
    let worst = share(ours.norm, bound.norm).max(share(ours.max, bound.max));
    if worst > 1.0 || worst.is_nan() {
        let at = (0..out.len()).max_by(|&a, &b| {
            (f64::from(out[a]) - exact[a])
                .abs()
                .total_cmp(&(f64::from(out[b]) - exact[b]).abs())
        });
        let at = at.unwrap_or(0);
        return Err(Failure::Wrong(format!(
            "error {:.3e} (bound {:.3e}), largest {:.3e} (bound {:.3e}) at {}: {} for {}",
            ours.norm, bound.norm, ours.max, bound.max, finite[at], out[at], exact[at]
        )));
    }
    Ok(Outcome::held(out.len(), worst))
}

/// Compares integers, or anything else that has to be equal.
pub fn check_equal<T: PartialEq + std::fmt::Debug>(
    out: &[T],
    expected: &[T],
) -> Result<Outcome, Failure> {
    match out.iter().zip(expected).position(|(o, e)| o != e) {
        Some(i) => Err(Failure::Wrong(format!(
            "element {i} is {:?}, expected {:?}",
            out[i], expected[i]
        ))),
        None if out.len() != expected.len() => Err(Failure::Wrong(format!(
            "{} elements, expected {}",
            out.len(),
            expected.len()
        ))),
        None => Ok(Outcome::held(out.len(), 0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_and_error_are_caught() {
        let exact = [1.0, 2.0, 3.0];
        let naive = [1.0f32, 2.0, 3.0 + 1e-6];
        assert!(check(&[1.0, 2.0, 3.0], &exact, &naive, Ulps(0.0)).is_ok());
        assert!(check(&[1.0, f32::NAN, 3.0], &exact, &naive, Ulps(0.0)).is_err());
        assert!(check(&[1.0, 2.0, 3.0 + 4e-6], &exact, &naive, Ulps(0.0)).is_err());
        assert!(check(&[1.0, 2.0], &exact, &naive, Ulps(0.0)).is_err());
        assert!(check(&[0.0, 0.0, 0.0], &exact, &naive, Ulps(100.0)).is_err());
        assert!(check_equal(&[1, 2], &[1, 3]).is_err());
    }
}
