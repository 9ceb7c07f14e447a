//! The steps of a power-of-two transform whose points stay in registers between exchanges: geometry and twiddle
//! factors, read by the shader templates (`fft_steps`) and by the planners that make the tables.
//!
//! N = R1 R2 … RS. Point n has the digits n1 … nS, n1 the most significant; step s replaces digit ns by ks, in place, and
//! frequency k has the digits in reverse, k1 the least significant. A step of radix R takes its input times w^0, w^1 …
//! w^(R-1), where w depends on the digits before (forward) or after (inverse); every level of its two-point butterflies
//! then is `a ± w' b`, fused multiply-adds alone (Goedecker, SIAM J. Sci. Comput. 18(6), 1997).

use std::f64::consts::TAU;

/// One step of a transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Points of a butterfly.
    pub radix: usize,
    /// Distance of the points of a butterfly: the product of the later radices.
    pub stride: usize,
    /// The product of the earlier radices.
    pub high: usize,
    /// Where its twiddles are in the forward table: [`stored`] rows of `high`.
    pub forward: usize,
    /// Where they are in the inverse table, rows of `stride`; both times `spread`.
    pub inverse: usize,
}

/// The twiddles of a radix that are kept: level l (from 1) of its butterflies and the rotation k of the level's base,
/// below a quarter turn; the rest follow by swapping real and imaginary parts.
pub fn stored(radix: usize) -> impl Iterator<Item = (usize, usize)> {
    (1..=radix.ilog2() as usize)
        .flat_map(|level| (0..(1 << level >> 2).max(1)).map(move |k| (level, k)))
}

/// The steps of a transform of these radices (powers of two).
pub fn steps(radices: &[usize]) -> Vec<Step> {
    let (mut stride, mut high) = (radices.iter().product::<usize>(), 1);
    let mut steps: Vec<Step> = radices
        .iter()
        .map(|&radix| {
            stride /= radix;
            let step = Step {
                radix,
                stride,
                high,
                forward: 0,
                inverse: 0,
            };
            high *= radix;
            step
        })
        .collect();
    let (mut forward, mut inverse) = (0, 0);
    for step in &mut steps {
        (step.forward, step.inverse) = (forward, inverse);
        forward += stored(step.radix).count() * step.high;
        inverse += stored(step.radix).count() * step.stride;
    }
    steps
}

/// Complex numbers in a forward table.
pub fn forward_len(steps: &[Step]) -> usize {
    steps
        .last()
        .map_or(0, |s| s.forward + stored(s.radix).count() * s.high)
}

/// Complex numbers in an inverse table of spread 1.
pub fn inverse_len(steps: &[Step]) -> usize {
    steps
        .last()
        .map_or(0, |s| s.inverse + stored(s.radix).count() * s.stride)
}

/// The digit-reversed number: `high` counts the digits before step `s` with the first the most significant, the result
/// with the first the least significant.
pub fn reversed(steps: &[Step], s: usize, mut high: usize) -> usize {
    let mut k = 0;
    for step in steps[..s].iter().rev() {
        k += high % step.radix * step.high;
        high /= step.radix;
    }
    k
}

fn cis(turns: f64) -> [f32; 2] {
    let (sin, cos) = (turns.fract() * TAU).sin_cos();
    [cos as f32, sin as f32]
}

fn rotation(level: usize, k: usize) -> f64 {
    k as f64 / (1u64 << level) as f64
}

/// The twiddles of the transform sum x\[n\] e^(-2 pi i n (k + phase) / N).
pub fn forward_table(steps: &[Step], phase: f64) -> Vec<[f32; 2]> {
    let mut table = Vec::with_capacity(forward_len(steps));
    for (s, step) in steps.iter().enumerate() {
        for (level, k) in stored(step.radix) {
            let power = (step.radix >> level) as f64;
            table.extend((0..step.high).map(|high| {
                let base =
                    (reversed(steps, s, high) as f64 + phase) / (step.radix * step.high) as f64;
                cis(-(base * power + rotation(level, k)))
            }));
        }
    }
    table
}

/// The twiddles of the inverse over the first digits of a number whose last ones count `spread`: of the whole
/// transform with spread 1.
pub fn inverse_table(steps: &[Step], spread: usize) -> Vec<[f32; 2]> {
    let mut table = Vec::with_capacity(inverse_len(steps) * spread);
    for step in steps {
        for (level, k) in stored(step.radix) {
            let power = (step.radix >> level) as f64;
            let places = step.stride * spread;
            table.extend((0..places).map(|low| {
                let base = low as f64 / (step.radix * places) as f64;
                cis(base * power + rotation(level, k))
            }));
        }
    }
    table
}

/// e^(2 pi i phase n / N) for the points n below the first step's stride.
pub fn twist_table(steps: &[Step], spread: usize, phase: f64) -> Vec<[f32; 2]> {
    let Some(first) = steps.first() else {
        return Vec::new();
    };
    let places = first.stride * spread;
    let turns = phase / (places * first.radix) as f64;
    (0..places).map(|n| cis(turns * n as f64)).collect()
}

/// (cos, sin) of `numerator / denominator` turns, exact at the eighths' axes.
pub fn turn(numerator: i64, denominator: i64) -> (f64, f64) {
    let n = numerator.rem_euclid(denominator);
    match 4 * n {
        0 => (1.0, 0.0),
        q if q == denominator => (0.0, 1.0),
        q if q == 2 * denominator => (-1.0, 0.0),
        q if q == 3 * denominator => (0.0, -1.0),
        _ => {
            let (sin, cos) = (n as f64 / denominator as f64 * TAU).sin_cos();
            (cos, sin)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_tables_do_not_overlap() {
        for radices in [&[16][..], &[4, 16, 16], &[8, 8, 16], &[2], &[4, 8, 2]] {
            let steps = steps(radices);
            assert_eq!(forward_table(&steps, 0.25).len(), forward_len(&steps));
            assert_eq!(inverse_table(&steps, 3).len(), 3 * inverse_len(&steps));
            assert_eq!(steps[steps.len() - 1].stride, 1);
        }
    }

    #[test]
    fn digits_reverse() {
        let steps = steps(&[4, 8, 2]);
        // k1 = 3, k2 = 5: 3 + 4 * 5.
        assert_eq!(reversed(&steps, 2, 3 * 8 + 5), 23);
    }
}
