//! `flashwave run` of what works on rows: norms, softmax, arg-max.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::norm::NormKind;
use flashwave::kernels::softmax::SoftmaxKind;
use flashwave::reference::Real;
use flashwave::reference::norm::normalise;
use flashwave::reference::softmax::softmax;
use kernels_tests::inputs::{Random, round, widen};
use safetensors::Dtype;

use crate::common::{Tensor, compare, run};

const ROWS: usize = 3;
const COLS: usize = 13;
const SHAPE: [usize; 2] = [ROWS, COLS];

#[test]
fn norms() {
    let mut random = Random::new(3);
    for (kernel, kind, dtype) in [
        ("rms_norm", NormKind::Rms, F16),
        ("layer_norm", NormKind::Layer, F32),
    ] {
        let [x, residual] = [(); 2].map(|()| random.normals(ROWS * COLS, dtype));
        let [weight, bias] = [(); 2].map(|()| random.normals(COLS, F32));
        let inputs = [
            Tensor::float("x", dtype, &SHAPE, &x),
            Tensor::float("residual", dtype, &SHAPE, &residual),
            Tensor::float("weight", F32, &[COLS], &weight),
            Tensor::float("bias", F32, &[COLS], &bias),
        ];
        let sets = ["eps=1e-3", "dtype=f32"];
        let out = run(kernel, kernel, &sets, &inputs);
        let sum: Vec<f32> = x
            .iter()
            .zip(&residual)
            .map(|(a, b)| round(a + b, dtype))
            .collect();
        let exact_sum: Vec<f64> = x
            .iter()
            .zip(&residual)
            .map(|(&a, &b)| a as f64 + b as f64)
            .collect();
        compare(&out, "sum", dtype, &SHAPE, &exact_sum, &sum);
        fn all<R: Real>(kind: NormKind, h: &[R], weight: &[R], bias: &[R]) -> Vec<R> {
            let rows = h.chunks(COLS);
            rows.flat_map(|row| normalise(kind, R::of(1e-3), row, Some(weight), Some(bias)))
                .collect()
        }
        let exact = all(kind, &exact_sum, &widen(&weight), &widen(&bias));
        compare(
            &out,
            "out",
            F32,
            &SHAPE,
            &exact,
            &all(kind, &sum, &weight, &bias),
        );
    }
}

#[test]
fn softmaxes() {
    let mut random = Random::new(4);
    for (kernel, kind, dtype) in [
        ("softmax", SoftmaxKind::Softmax, BF16),
        ("log_softmax", SoftmaxKind::Log, F32),
    ] {
        let x = random.normals(ROWS * COLS, dtype);
        let mask = random.normals(COLS, F32);
        let inputs = [
            Tensor::float("x", dtype, &SHAPE, &x),
            Tensor::float("mask", F32, &[1, COLS], &mask),
        ];
        let out = run(kernel, kernel, &["scale=0.25"], &inputs);
        fn all<R: Real>(kind: SoftmaxKind, x: &[R], mask: &[R]) -> Vec<R> {
            let scaled = |row: &[R]| -> Vec<R> {
                row.iter()
                    .zip(mask)
                    .map(|(&x, &m)| x * R::of(0.25) + m)
                    .collect()
            };
            x.chunks(COLS)
                .flat_map(|row| softmax(kind, &scaled(row)))
                .collect()
        }
        let exact = all(kind, &widen(&x), &widen(&mask));
        let naive = all(kind, &x, &mask).into_iter().map(|v| round(v, dtype));
        compare(
            &out,
            "out",
            dtype,
            &SHAPE,
            &exact,
            &naive.collect::<Vec<_>>(),
        );
    }
}

#[test]
fn argmax() {
    let x = Random::new(5).normals(ROWS * COLS, F16);
    let out = run(
        "argmax",
        "argmax",
        &[],
        &[Tensor::float("x", F16, &SHAPE, &x)],
    );
    let index = out.iter().find(|t| t.name == "index").expect("the index");
    assert_eq!((index.dtype, &index.shape[..]), (Dtype::U32, &[ROWS][..]));
    let places: Vec<u32> = bytemuck::pod_collect_to_vec(&index.bytes);
    let value = out.iter().find(|t| t.name == "value").expect("the value");
    for ((row, place), value) in x.chunks(COLS).zip(places).zip(value.values()) {
        assert_eq!(row[place as usize], value);
        assert!(row.iter().all(|&v| v <= value));
    }
}

#[test]
fn top_k() {
    let x = Random::new(5).normals(ROWS * COLS, F16);
    let inputs = [Tensor::float("x", F16, &SHAPE, &x)];
    let out = run("top_k", "top_k", &["k=4"], &inputs);
    let places = x
        .chunks(COLS)
        .map(|row| flashwave::reference::select::top_k(row, 4));
    let values: Vec<f32> = x
        .chunks(COLS)
        .zip(places)
        .flat_map(|(row, places)| places.into_iter().map(|at| row[at]))
        .collect();
    compare(&out, "values", F32, &[ROWS, 4], &widen(&values), &values);
    let indices = out
        .iter()
        .find(|t| t.name == "indices")
        .expect("the indices");
    let indices: Vec<u32> = bytemuck::pod_collect_to_vec(&indices.bytes);
    for (i, (at, value)) in indices.into_iter().zip(values).enumerate() {
        assert_eq!(x[i / 4 * COLS + at as usize], value);
    }
}
