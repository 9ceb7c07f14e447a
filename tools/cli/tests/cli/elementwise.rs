//! `flashwave run` of the elementwise kernels, through files, against the reference.

use crate::common::{Tensor, compare, run};
use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::elementwise::{Activation, BinaryOp};
use flashwave::reference::elementwise::{activate, combine};
use kernels_tests::inputs::{Random, round, widen};

const SHAPE: [usize; 2] = [3, 5];

#[test]
fn activations_and_casts() {
    for (kernel, sets, f, x, y) in [
        ("silu", &[][..], Activation::Silu, F32, F32),
        ("gelu", &[], Activation::GeluErf, F16, F16),
        (
            "gelu",
            &["approximate=tanh"],
            Activation::GeluTanh,
            F32,
            F32,
        ),
        ("relu", &["dtype=bf16"], Activation::Relu, F16, BF16),
        ("cast", &["dtype=f32"], Activation::None, BF16, F32),
    ] {
        let host = Random::new(7).normals(15, x);
        let inputs = [Tensor::float("x", x, &SHAPE, &host)];
        let out = run(&format!("elementwise-{kernel}"), kernel, sets, &inputs);
        let exact: Vec<f64> = widen(&host).iter().map(|&v| activate(f, v)).collect();
        let naive: Vec<f32> = host.iter().map(|&v| round(activate(f, v), y)).collect();
        assert_eq!(out.len(), 1, "{kernel}");
        compare(&out, "out", y, &SHAPE, &exact, &naive);
    }
}

#[test]
fn binary_operations() {
    for (kernel, names, op, dtype) in [
        ("add", ["a", "b"], BinaryOp::Add, F32),
        ("mul", ["a", "b"], BinaryOp::Mul, BF16),
        (
            "swiglu",
            ["gate", "up"],
            BinaryOp::Gated(Activation::Silu),
            F16,
        ),
    ] {
        let mut random = Random::new(9);
        let [a, b] = names.map(|_| random.normals(15, dtype));
        let inputs = [
            Tensor::float(names[0], dtype, &SHAPE, &a),
            Tensor::float(names[1], dtype, &SHAPE, &b),
        ];
        let out = run(&format!("elementwise-{kernel}"), kernel, &[], &inputs);
        let pairs = widen(&a).into_iter().zip(widen(&b));
        let exact: Vec<f64> = pairs.map(|(a, b)| combine(op, a, b)).collect();
        let pairs = a.iter().zip(&b);
        let naive: Vec<f32> = pairs
            .map(|(&a, &b)| round(combine(op, a, b), dtype))
            .collect();
        compare(&out, "out", dtype, &SHAPE, &exact, &naive);
    }
}
