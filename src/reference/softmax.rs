//! Softmax and log-softmax.

use super::Real;
use crate::kernels::softmax::SoftmaxKind;

/// The softmax of a row, or its logarithm. A row of -inf alone gives zeros, and -inf for the logarithm.
pub fn softmax<R: Real>(kind: SoftmaxKind, row: &[R]) -> Vec<R> {
    let top = row.iter().copied().fold(R::neg_infinity(), R::max);
    if top == R::neg_infinity() {
        let all = match kind {
            SoftmaxKind::Softmax => R::zero(),
            SoftmaxKind::Log => R::neg_infinity(),
        };
        return vec![all; row.len()];
    }
    let total: R = row.iter().map(|&v| (v - top).exp()).sum();
    let one = |&v: &R| match kind {
        SoftmaxKind::Softmax => (v - top).exp() / total,
        SoftmaxKind::Log => v - top - total.ln(),
    };
    row.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sum_to_one_and_shifts_do_not_matter() {
        let row: Vec<f64> = (0..29).map(|i| (f64::from(i) * 2.3).sin() * 9.0).collect();
        let y = softmax(SoftmaxKind::Softmax, &row);
        assert!((y.iter().sum::<f64>() - 1.0).abs() < 1e-14);
        let shifted: Vec<f64> = row.iter().map(|v| v + 1e3).collect();
        let again = softmax(SoftmaxKind::Softmax, &shifted);
        assert!(y.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-12));
        let log = softmax(SoftmaxKind::Log, &row);
        assert!(y.iter().zip(&log).all(|(y, l)| (y.ln() - l).abs() < 1e-13));
        let ninf = f64::NEG_INFINITY;
        assert_eq!(
            softmax(SoftmaxKind::Softmax, &[ninf, 0.0, ninf]),
            [0.0, 1.0, 0.0]
        );
        assert_eq!(softmax(SoftmaxKind::Softmax, &[ninf; 3]), [0.0; 3]);
        assert_eq!(softmax(SoftmaxKind::Log, &[ninf; 3]), [ninf; 3]);
    }
}
