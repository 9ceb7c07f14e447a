//! `flashwave run` of matrix products.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::elementwise::Activation;
use flashwave::reference::Real;
use flashwave::reference::gemm::{Matrix, Order, finish, gate, matmul};
use kernels_tests::inputs::{Random, round, widen};

use crate::common::{Tensor, compare, fail, folder, run, save, succeed};

#[test]
fn gemm_with_everything() {
    const M: usize = 3;
    const N: usize = 5;
    const K: usize = 7;
    fn reference<R: Real>(a: &[R], b: &[R], bias: &[R], residual: &[R]) -> Vec<R> {
        let batch = |i: usize| {
            let a = Matrix::rows(&a[i * M * K..(i + 1) * M * K], M).transposed();
            let b = Matrix::rows(b, K).transposed();
            let product = matmul(a, b, [M, N, K], Order::Forward);
            let residual = &residual[i * M * N..(i + 1) * M * N];
            finish(
                &product,
                N,
                R::of(0.5),
                Some(bias),
                Activation::Silu,
                Some(residual),
            )
        };
        (0..2).flat_map(batch).collect()
    }
    let mut random = Random::new(1);
    let a = random.normals(2 * K * M, F32);
    let b = random.normals(N * K, F16);
    let bias = random.normals(N, F32);
    let residual = random.normals(2 * M * N, F32);
    let inputs = [
        Tensor::float("a", F32, &[2, K, M], &a),
        Tensor::float("b", F16, &[N, K], &b),
        Tensor::float("bias", F32, &[N], &bias),
        Tensor::float("residual", F32, &[2, M, N], &residual),
    ];
    let sets = [
        "transpose_a=yes",
        "transpose_b=yes",
        "alpha=0.5",
        "activation=silu",
    ];
    let out = run("gemm", "gemm", &sets, &inputs);
    let wide = [&a, &b, &bias, &residual].map(|v| widen(v));
    let exact = reference(&wide[0], &wide[1], &wide[2], &wide[3]);
    let naive = reference(&a, &b, &bias, &residual);
    compare(&out, "out", F32, &[2, M, N], &exact, &naive);
}

#[test]
fn linear_layers() {
    fn reference<R: Real>(x: &[R], w: &[R], [m, n, k]: [usize; 3]) -> Vec<R> {
        matmul(
            Matrix::rows(x, k),
            Matrix::rows(w, k).transposed(),
            [m, n, k],
            Order::Forward,
        )
    }
    let mut random = Random::new(2);
    for (kernel, dtype, [m, n, k]) in [
        ("linear", F16, [40, 6, 12]),
        ("linear", F32, [2, 9, 5]),
        ("gemv", BF16, [3, 10, 8]),
        ("gated_linear", F32, [2, 6, 5]),
    ] {
        let x = random.normals(m * k, dtype);
        let w = random.normals(n * k, dtype);
        let inputs = [
            Tensor::float("x", dtype, &[1, m, k], &x),
            Tensor::float("weight", dtype, &[n, k], &w),
        ];
        let out = run(&format!("linear-{kernel}-{dtype}"), kernel, &[], &inputs);
        let mut exact = reference(&widen(&x), &widen(&w), [m, n, k]);
        let mut naive = reference(&x, &w, [m, n, k]);
        let mut columns = n;
        if kernel == "gated_linear" {
            columns = n / 2;
            exact = gate(&exact, columns, Activation::Silu);
            naive = gate(&naive, columns, Activation::Silu);
        }
        let naive: Vec<f32> = naive.into_iter().map(|v| round(v, dtype)).collect();
        compare(&out, "out", dtype, &[1, m, columns], &exact, &naive);
    }
}

#[test]
fn mismatched_operands_are_named() {
    let folder = folder("gemm-errors");
    let (input, output) = (
        folder.join("in.safetensors"),
        folder.join("out.safetensors"),
    );
    let (input_name, output) = (input.to_string_lossy(), output.to_string_lossy());
    let call = |kernel: &str, tensors: &[Tensor], sets: &[&str]| {
        save(&input, tensors);
        let mut arguments = vec!["run", kernel, "--input", &input_name, "--output", &output];
        arguments.extend(sets.iter().flat_map(|s| ["--set", s]));
        fail(&arguments)
    };
    let tensor = |name: &str, shape: &[usize]| {
        Tensor::float(name, F32, shape, &vec![1.0; shape.iter().product()])
    };
    for (error, part) in [
        (
            call("gemm", &[tensor("a", &[2, 3]), tensor("b", &[4, 5])], &[]),
            "b: ",
        ),
        (
            call("gemm", &[tensor("a", &[3]), tensor("b", &[3, 5])], &[]),
            "a: ",
        ),
        (
            call("gemm", &[tensor("a", &[2, 3])], &[]),
            "input b: missing",
        ),
        (
            call(
                "gemm",
                &[tensor("a", &[2, 3]), tensor("b", &[3, 5])],
                &["alpha=inf"],
            ),
            "alpha: inf; allowed: a finite number",
        ),
        (
            call(
                "linear",
                &[tensor("x", &[2, 3]), tensor("weight", &[4, 5])],
                &[],
            ),
            "weight: ",
        ),
        (
            call(
                "gated_linear",
                &[tensor("x", &[2, 3]), tensor("weight", &[1, 3])],
                &[],
            ),
            "shape",
        ),
    ] {
        assert!(error.contains(part), "{part}\n{error}");
    }
}

#[test]
fn weights_are_quantised_on_the_way_and_models_written_and_run() {
    let folder = folder("quantised");
    let (input, output) = (
        folder.join("in.safetensors"),
        folder.join("out.safetensors"),
    );
    let x: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
    save(&input, &[Tensor::float("x", F32, &[1, 64], &x)]);
    let names = [&input, &output].map(|p| p.to_string_lossy().into_owned());
    let arguments = |format| {
        [
            "run", "quantize", "--input", &names[0], "--output", &names[1], "--set", format,
        ]
    };
    succeed(&arguments("format=int8"));
    let error = fail(&arguments("format=none"));
    assert!(error.contains("format: none"), "{error}");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/default-model");
    let target = folder.join("model").to_string_lossy().into_owned();
    let said = succeed(&[
        "quantize", "--model", model, "--format", "q8_0", "--out", &target,
    ]);
    assert!(said.contains("matrices q8_0"), "{said}");
    let text = succeed(&["generate", "--model", &target, "--max-tokens", "12"]);
    assert!(!text.trim().is_empty());
    let error = fail(&[
        "quantize", "--model", model, "--format", "q4_k", "--out", &target,
    ]);
    assert!(error.contains("q4_k"), "{error}");
    let table = succeed(&["study", "formats"]);
    assert!(table.contains("mxfp4") && table.contains("E2M5"), "{table}");
}
