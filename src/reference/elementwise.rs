//! Activations, sums and products.

use super::Real;
use crate::kernels::elementwise::{Activation, BinaryOp};

/// The activation of one value.
pub fn activate<R: Real>(f: Activation, x: R) -> R {
    let (one, half) = (R::one(), R::of(0.5));
    match f {
        Activation::None => x,
        Activation::Relu => x.max(R::zero()),
        Activation::ReluSquared => x.max(R::zero()) * x.max(R::zero()),
        Activation::Silu => x / (one + (-x).exp()),
        Activation::GeluTanh => {
            // x sigmoid(2u): 1 + tanh(u) would cancel for negative x.
            let u = R::of(std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2)
                * (x + R::of(0.044715) * x * x * x);
            x / (one + (-u - u).exp())
        }
        Activation::GeluErf => half * x * (-x * R::of(std::f64::consts::FRAC_1_SQRT_2)).erfc(),
    }
}

/// One element of a binary operation.
pub fn combine<R: Real>(op: BinaryOp, a: R, b: R) -> R {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Mul => a * b,
        BinaryOp::Gated(f) => activate(f, a) * b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_satisfy_their_identities() {
        for i in -400..=400 {
            let x = f64::from(i) / 37.0;
            let odd = |f| activate(f, x) - activate(f, -x);
            // x f(x) with f(x) + f(-x) = 1: the difference of the two branches is x.
            for f in [
                Activation::Silu,
                Activation::GeluTanh,
                Activation::GeluErf,
                Activation::Relu,
            ] {
                assert!((odd(f) - x).abs() <= 1e-13 * x.abs().max(1.0), "{f:?} {x}");
            }
            assert!(
                (activate(Activation::GeluErf, x) - activate(Activation::GeluTanh, x)).abs() < 1e-3
            );
            assert_eq!(activate(Activation::None, x), x);
            let gated = combine(BinaryOp::Gated(Activation::Silu), x, 2.0);
            assert!((gated - 2.0 * activate(Activation::Silu, x)).abs() <= 1e-15);
        }
        assert_eq!(combine(BinaryOp::Add, 2.0, 3.0), 5.0);
        assert_eq!(combine(BinaryOp::Mul, 2.0, 3.0), 6.0);
    }
}
