//! Gated MLPs and products of what passes a threshold.

use super::Real;
use super::elementwise::activate;
use super::gemm::Order;
use crate::kernels::elementwise::Activation;

/// A gated MLP, neuron by neuron: its rows of the gate and up projections and its column of the down projection, k
/// elements each.
#[derive(Clone, Copy, Debug)]
pub struct Neurons<'a, R> {
    /// [n, k].
    pub gate: &'a [R],
    /// [n, k].
    pub up: &'a [R],
    /// [n, k].
    pub down: &'a [R],
    /// k.
    pub width: usize,
}

fn ordered(n: usize, order: Order) -> Box<dyn Iterator<Item = usize>> {
    match order {
        Order::Forward => Box::new(0..n),
        Order::Backward => Box::new((0..n).rev()),
    }
}

fn dot<R: Real>(a: &[R], b: &[R], order: Order) -> R {
    ordered(a.len(), order).fold(R::zero(), |sum, i| sum + a[i] * b[i])
}

impl<R: Real> Neurons<'_, R> {
    /// F(x . gate_i) of every neuron, for one row x.
    pub fn activations(&self, x: &[R], f: Activation, order: Order) -> Vec<R> {
        self.gate
            .chunks(self.width)
            .map(|row| activate(f, dot(row, x, order)))
            .collect()
    }

    /// sum over i of a_i (x . up_i) down_i for one row x, over the neurons of which `fires` says so of a_i.
    pub fn forward(
        &self,
        x: &[R],
        activations: &[R],
        fires: impl Fn(R) -> bool,
        order: Order,
    ) -> Vec<R> {
        let k = self.width;
        let mut y = vec![R::zero(); k];
        for i in ordered(activations.len(), order).filter(|&i| fires(activations[i])) {
            let neuron = i * k..(i + 1) * k;
            let factor = activations[i] * dot(&self.up[neuron.clone()], x, order);
            y.iter_mut()
                .zip(&self.down[neuron])
                .for_each(|(y, &d)| *y = *y + factor * d);
        }
        y
    }
}

/// x with zero in place of what is not above the threshold in magnitude.
pub fn keep<R: Real>(x: &[R], threshold: R) -> Vec<R> {
    let kept = |&v: &R| if v.abs() <= threshold { R::zero() } else { v };
    x.iter().map(kept).collect()
}

/// x W for one row x and input-major weights [k, n].
pub fn by_inputs<R: Real>(x: &[R], w: &[R], n: usize, order: Order) -> Vec<R> {
    let mut y = vec![R::zero(); n];
    for i in ordered(x.len(), order) {
        y.iter_mut()
            .zip(&w[i * n..(i + 1) * n])
            .for_each(|(y, &w)| *y = *y + x[i] * w);
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::gemm::{Matrix, gate, matmul};

    fn ramp(n: usize, step: f64) -> Vec<f64> {
        (0..n).map(|i| ((i as f64) * step).sin()).collect()
    }

    #[test]
    fn all_neurons_make_the_dense_mlp_and_none_make_zero() {
        let (n, k) = (7, 5);
        let (g, u, d) = (ramp(n * k, 0.7), ramp(n * k, 1.1), ramp(n * k, 0.3));
        let x = ramp(k, 2.3);
        let neurons = Neurons {
            gate: &g,
            up: &u,
            down: &d,
            width: k,
        };
        for f in Activation::ALL {
            let a = neurons.activations(&x, f, Order::Forward);
            let stacked = [g.clone(), u.clone()].concat();
            let both = matmul(
                Matrix::rows(&x, k),
                Matrix::rows(&stacked, k).transposed(),
                [1, 2 * n, k],
                Order::Forward,
            );
            let dense = by_inputs(&gate(&both, n, f), &d, k, Order::Forward);
            let all = neurons.forward(&x, &a, |_| true, Order::Backward);
            assert!(all.iter().zip(&dense).all(|(a, b)| (a - b).abs() < 1e-13));
            // What is zero adds nothing: with ReLU most are.
            let above = neurons.forward(&x, &a, |a| a.abs() > 0.0, Order::Backward);
            assert_eq!(all, above);
            let none = neurons.forward(&x, &a, |a| a.abs() > 1e9, Order::Forward);
            assert_eq!(none, [0.0; 5]);
        }
    }

    #[test]
    fn what_is_at_the_threshold_is_left_out_and_nan_is_not() {
        let kept = keep(&[1.0, -1.0, 1.5, -2.0, 0.5, f64::NAN], 1.0);
        assert_eq!(kept[..5], [0.0, 0.0, 1.5, -2.0, 0.0]);
        assert!(kept[5].is_nan());
        assert_eq!(
            by_inputs(&kept[..5], &ramp(10, 0.4), 2, Order::Forward).len(),
            2
        );
    }
}
