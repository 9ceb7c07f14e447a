//! Matrix products and what linear layers put around them.

use super::Real;
use super::elementwise::activate;
use crate::kernels::elementwise::Activation;

/// A matrix over a slice: rows and columns are any distances apart.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, R> {
    /// The elements.
    pub data: &'a [R],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

impl<'a, R: Real> Matrix<'a, R> {
    /// Rows of `cols` adjacent elements.
    pub fn rows(data: &'a [R], cols: usize) -> Self {
        Self {
            data,
            row: cols,
            col: 1,
        }
    }

    /// With rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self {
            row: self.col,
            col: self.row,
            ..self
        }
    }

    /// The element of a row and a column.
    pub fn at(&self, row: usize, col: usize) -> R {
        self.data[row * self.row + col * self.col]
    }
}

/// In which order a sum is taken: naive arithmetic has no preference, and its rounding depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// First term first.
    Forward,
    /// Last term first.
    Backward,
}

/// A[m, k] B[k, n] in row-major order, each element summed along k in this order.
pub fn matmul<R: Real>(
    a: Matrix<'_, R>,
    b: Matrix<'_, R>,
    [m, n, k]: [usize; 3],
    order: Order,
) -> Vec<R> {
    let element = |i: usize| {
        let (row, col) = (i / n, i % n);
        let add = |sum: R, l: usize| sum + a.at(row, l) * b.at(l, col);
        match order {
            Order::Forward => (0..k).fold(R::zero(), add),
            Order::Backward => (0..k).rev().fold(R::zero(), add),
        }
    };
    (0..m * n).map(element).collect()
}

/// F(alpha * product + bias) + residual, for rows of `n` elements.
pub fn finish<R: Real>(
    product: &[R],
    n: usize,
    alpha: R,
    bias: Option<&[R]>,
    f: Activation,
    residual: Option<&[R]>,
) -> Vec<R> {
    let element = |(i, &p): (usize, &R)| {
        let y = alpha * p + bias.map_or(R::zero(), |b| b[i % n]);
        activate(f, y) + residual.map_or(R::zero(), |r| r[i])
    };
    product.iter().enumerate().map(element).collect()
}

/// F(gate) * up for rows of n gates followed by n ups.
pub fn gate<R: Real>(product: &[R], n: usize, f: Activation) -> Vec<R> {
    product
        .chunks(2 * n)
        .flat_map(|row| (0..n).map(|i| activate(f, row[i]) * row[n + i]))
        .collect()
}

/// `x[k] weight[k] / sqrt(mean(x^2) + eps)` for rows of k elements: RMSNorm (arXiv 1910.07467).
pub fn rms_normed<R: Real>(x: &[R], weight: &[R], eps: R) -> Vec<R> {
    let k = weight.len();
    x.chunks(k)
        .flat_map(|row| {
            let mean = row.iter().fold(R::zero(), |s, &v| s + v * v) / R::of(k as f64);
            let scale = R::one() / (mean + eps).sqrt();
            row.iter().zip(weight).map(move |(&v, &w)| v * w * scale)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize, step: f64) -> Vec<f64> {
        (0..n).map(|i| ((i as f64) * step).sin()).collect()
    }

    #[test]
    fn products_satisfy_their_identities() {
        let (m, n, k) = (3, 4, 5);
        let (a, b) = (ramp(m * k, 0.7), ramp(k * n, 1.3));
        let (am, bm) = (Matrix::rows(&a, k), Matrix::rows(&b, n));
        let ab = matmul(am, bm, [m, n, k], Order::Forward);
        // (A B)^T = B^T A^T.
        let turned = matmul(bm.transposed(), am.transposed(), [n, m, k], Order::Forward);
        for i in 0..m {
            for j in 0..n {
                assert!((ab[i * n + j] - turned[j * m + i]).abs() < 1e-15);
            }
        }
        // A I = A.
        let mut identity = vec![0.0; k * k];
        (0..k).for_each(|i| identity[i * k + i] = 1.0);
        assert_eq!(
            matmul(am, Matrix::rows(&identity, k), [m, k, k], Order::Backward),
            a
        );
        // Linear in alpha; bias and residual are added.
        let twice = finish(&ab, n, 2.0, None, Activation::None, Some(&ab));
        assert!(
            twice
                .iter()
                .zip(&ab)
                .all(|(t, p)| (t - 3.0 * p).abs() < 1e-14)
        );
        let bias = ramp(n, 0.1);
        let zeros = vec![0.0; m * n];
        let biased = finish(&zeros, n, 1.0, Some(&bias), Activation::None, None);
        assert!(biased.chunks(n).all(|row| row == bias));
    }

    #[test]
    fn normed_rows_have_unit_mean_square_and_gates_multiply() {
        let x = ramp(12, 0.9);
        let normed = rms_normed(&x, &[1.0; 6], 0.0);
        for row in normed.chunks(6) {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / 6.0;
            assert!((mean - 1.0).abs() < 1e-14);
        }
        assert_eq!(
            gate(&[2.0, 3.0, 5.0, 7.0], 2, Activation::None),
            [10.0, 21.0]
        );
    }
}
