//! `flashwave run` of products of 8-bit operands.

use flashwave::DType::F32;
use flashwave::kernels::gemm8::Quantize;
use flashwave::reference::gemm8::quantize;
use kernels_tests::inputs::Random;
use safetensors::Dtype;

use crate::common::{Tensor, compare, integers, run};

#[test]
fn rows_are_quantised_and_multiplied() {
    const SIZES: [usize; 3] = [3, 4, 24];
    let [m, n, k] = SIZES;
    let mut random = Random::new(8);
    let x = random.normals(m * k, F32);
    let out = run(
        "quantize_int8",
        "quantize_int8",
        &[],
        &[Tensor::float("x", F32, &[m, k], &x)],
    );
    let rows: Vec<_> = x
        .chunks(k)
        .map(|row| quantize(row, Quantize::Symmetric))
        .collect();
    let codes: Vec<u8> = rows
        .iter()
        .flat_map(|r| r.codes.iter().map(|&c| c as u8))
        .collect();
    let found = out.iter().find(|t| t.name == "codes").expect("codes");
    assert_eq!(found.bytes, codes);

    let weights: Vec<i8> = (0..n * k).map(|_| random.bits() as i8).collect();
    let scales: Vec<f32> = rows.iter().map(|r| r.scale).collect();
    let by: Vec<f32> = (0..n).map(|_| random.uniform() as f32 + 0.5).collect();
    let inputs = [
        integers("a", Dtype::I8, &[m, k], &codes),
        integers("b", Dtype::I8, &[n, k], &weights),
        Tensor::float("a_scales", F32, &[m], &scales),
        Tensor::float("b_scales", F32, &[n], &by),
    ];
    let out = run("gemm8", "gemm8", &[], &inputs);
    let sum = |i: usize| -> i32 {
        let (row, col) = (i / n, i % n);
        let of = |l: usize| i32::from(rows[row].codes[l]) * i32::from(weights[col * k + l]);
        (0..k).map(of).sum()
    };
    let exact: Vec<f64> = (0..m * n)
        .map(|i| f64::from(sum(i)) * f64::from(scales[i / n]) * f64::from(by[i % n]))
        .collect();
    let naive: Vec<f32> = (0..m * n)
        .map(|i| sum(i) as f32 * scales[i / n] * by[i % n])
        .collect();
    compare(&out, "out", F32, &[m, n], &exact, &naive);

    // No outliers: the same product.
    let small: Vec<f32> = x.iter().map(|v| v.clamp(-5.0, 5.0)).collect();
    let inputs = [
        Tensor::float("x", F32, &[m, k], &small),
        integers("weight", Dtype::I8, &[n, k], &weights),
        Tensor::float("scales", F32, &[n], &by),
    ];
    let whole = run("llm_int8", "llm_int8", &[], &inputs);
    assert_eq!(whole[0].shape, [m, n]);
    let near = |i: usize| -> f64 {
        let (row, col) = (i / n, i % n);
        let of = |l: usize| f64::from(small[row * k + l]) * f64::from(weights[col * k + l]);
        (0..k).map(of).sum::<f64>() * f64::from(by[col])
    };
    // Half a step for each of k numbers at most.
    for (i, v) in whole[0].values().into_iter().enumerate() {
        let bound = k as f64 * 128.0 * 1.5 * 5.0 / 127.0 / 1.9;
        assert!((f64::from(v) - near(i)).abs() < bound, "{v} {}", near(i));
    }
}
