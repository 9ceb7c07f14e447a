//! RMSNorm and LayerNorm.
//!
//! With a residual, `exact` normalises the sum itself and naive arithmetic the sum as it is stored: a kernel may do
//! either.

use super::Real;
use crate::kernels::norm::NormKind;

/// One normalised row, times `weight`, plus `bias` where given.
pub fn normalise<R: Real>(
    kind: NormKind,
    eps: R,
    row: &[R],
    weight: Option<&[R]>,
    bias: Option<&[R]>,
) -> Vec<R> {
    let count = R::of(row.len() as f64);
    let mean = match kind {
        NormKind::Rms => R::zero(),
        NormKind::Layer => row.iter().copied().sum::<R>() / count,
    };
    let square: R = row.iter().map(|&h| (h - mean) * (h - mean)).sum();
    let scale = R::one() / (square / count + eps).sqrt();
    let one = |(i, &h): (usize, &R)| {
        (h - mean) * scale * weight.map_or(R::one(), |w| w[i]) + bias.map_or(R::zero(), |b| b[i])
    };
    row.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_out_with_unit_power_and_without_mean() {
        let row: Vec<f64> = (0..37)
            .map(|i| (f64::from(i) * 1.7).sin() * 3.0 + 5.0)
            .collect();
        let power = |y: &[f64]| y.iter().map(|v| v * v).sum::<f64>() / y.len() as f64;
        let rms = normalise(NormKind::Rms, 0.0, &row, None, None);
        assert!((power(&rms) - 1.0).abs() < 1e-14);
        let layer = normalise(NormKind::Layer, 0.0, &row, None, None);
        assert!((power(&layer) - 1.0).abs() < 1e-14);
        assert!(layer.iter().sum::<f64>().abs() < 1e-12);
        // Invariant to scale; LayerNorm to shifts too.
        let scaled: Vec<f64> = row.iter().map(|h| h * 8.0).collect();
        let shifted: Vec<f64> = row.iter().map(|h| h + 11.0).collect();
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(
            &rms,
            &normalise(NormKind::Rms, 0.0, &scaled, None, None)
        ));
        assert!(near(
            &layer,
            &normalise(NormKind::Layer, 0.0, &shifted, None, None)
        ));
        let affine = normalise(
            NormKind::Rms,
            0.0,
            &row,
            Some(&vec![2.0; 37]),
            Some(&vec![1.0; 37]),
        );
        assert!(
            affine
                .iter()
                .zip(&rms)
                .all(|(a, r)| (a - (2.0 * r + 1.0)).abs() < 1e-14)
        );
        // eps bounds the result of a small row.
        assert!((normalise(NormKind::Rms, 1.0, &[1e-9f64], None, None)[0] - 1e-9).abs() < 1e-20);
    }
}
