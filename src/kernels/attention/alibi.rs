//! Attention with linear biases.

use crate::error::{Error, Result};

/// The slopes of ALiBi (Press et al., arXiv 2108.12409), a geometric sequence from 2^(-max_bias / n) to 2^-max_bias
/// with `max_bias` 8 in the paper: for `heads` that are no power of two the sequence for the power n below, then
/// every other one of the sequence for 2n (as ggml and the paper's program have it). `max_bias` is from 0, which
/// makes all slopes one, to 64.
pub fn alibi_slopes(heads: usize, max_bias: f32) -> Result<Vec<f32>> {
    if !(0.0..=64.0).contains(&max_bias) {
        return Err(Error::argument("max_bias", max_bias, "0 to 64"));
    }
    let below = 1 << heads.max(1).ilog2();
    let slope = |h: usize| {
        let steps = match h < below {
            true => (h + 1) as f64,
            false => (h - below) as f64 + 0.5,
        };
        (-f64::from(max_bias) * steps / below as f64).exp2() as f32
    };
    Ok((0..heads).map(slope).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        let eight: Vec<f32> = (1..=8).map(|h| 0.5f32.powi(h)).collect();
        assert_eq!(alibi_slopes(8, 8.0).expect("slopes"), eight);
        let twelve = alibi_slopes(12, 8.0).expect("slopes");
        let sixteen = alibi_slopes(16, 8.0).expect("slopes");
        assert_eq!(twelve[..8], eight);
        assert_eq!(
            twelve[8..],
            [sixteen[0], sixteen[2], sixteen[4], sixteen[6]]
        );
        assert_eq!(alibi_slopes(3, 0.0).expect("slopes"), [1.0; 3]);
        assert!(alibi_slopes(8, f32::NAN).is_err() && alibi_slopes(8, -1.0).is_err());
        assert!(alibi_slopes(0, 8.0).expect("slopes").is_empty());
    }
}
