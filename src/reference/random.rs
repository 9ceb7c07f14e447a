//! The hash behind random tensors.

use super::Real;

/// PCG's output permutation as a hash.
pub fn hash(x: u32) -> u32 {
    let state = x.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
    (word >> 22) ^ word
}

/// The bits of element `i`.
pub fn bits(seed: u32, i: u32) -> u32 {
    hash(i ^ hash(seed))
}

/// Element `i` as a number in [-scale, scale).
pub fn uniform<R: Real>(seed: u32, scale: f32, i: u32) -> R {
    let unit = f64::from(bits(seed, i) >> 8) / f64::from(1u32 << 23) - 1.0;
    R::of(unit) * R::of(scale.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_spread_over_the_range() {
        let values: Vec<f64> = (0..10_000).map(|i| uniform(7, 2.0, i)).collect();
        let mean = values.iter().sum::<f64>() / 1e4;
        let square = values.iter().map(|x| x * x).sum::<f64>() / 1e4;
        assert!(values.iter().all(|x| (-2.0..2.0).contains(x)));
        // The mean's deviation is 2 / sqrt(3 * 10^4); of the squares, 4 sqrt(4 / 45) / 100.
        assert!(
            mean.abs() < 0.06 && (square - 4.0 / 3.0).abs() < 0.06,
            "{mean} {square}"
        );
        assert_ne!(bits(1, 0), bits(2, 0));
    }
}
