//! `flashwave run` of sparse products, and thresholds: found, used, refused.

use flashwave::DType::F32;
use flashwave::reference::gemm::Order;
use flashwave::reference::mlp::{Neurons, by_inputs, keep};
use kernels_tests::inputs::{Random, widen};

use crate::common::{Tensor, compare, fail, folder, run, save, succeed};

#[test]
fn sparse_products_run_by_name() {
    const K: usize = 24;
    const N: usize = 40;
    let mut random = Random::new(5);
    let x = random.normals(K, F32);
    let [g, u, d] = [0, 1, 2].map(|_| random.scaled_normals(N * K, F32, 0.2));
    let bundle: Vec<f32> = (0..N)
        .flat_map(|i| [&u[i * K..(i + 1) * K], &d[i * K..(i + 1) * K]].concat())
        .collect();
    let wide = [&x, &g, &u, &d].map(|v| widen(v));
    let exact = Neurons {
        gate: &wide[1],
        up: &wide[2],
        down: &wide[3],
        width: K,
    };
    let naive = Neurons {
        gate: &g,
        up: &u,
        down: &d,
        width: K,
    };
    let silu = flashwave::kernels::elementwise::Activation::Silu;
    let a = exact.activations(&wide[0], silu, Order::Forward);
    let b = naive.activations(&x, silu, Order::Forward);
    let (exact, naive) = (
        exact.forward(&wide[0], &a, |a| a.abs() > 0.1, Order::Forward),
        naive.forward(&x, &b, |a| a.abs() > 0.1, Order::Forward),
    );
    let inputs = [
        Tensor::float("x", F32, &[1, K], &x),
        Tensor::float("gate", F32, &[N, K], &g),
        Tensor::float("pairs", F32, &[N, 2 * K], &bundle),
    ];
    let out = run("sparse_mlp", "sparse_mlp", &["threshold=0.1"], &inputs);
    compare(&out, "out", F32, &[1, K], &exact, &naive);

    let t = 0.5f32;
    let (exact, naive) = (
        by_inputs(&keep(&wide[0], f64::from(t)), &wide[1], N, Order::Forward),
        by_inputs(&keep(&x, t), &g, N, Order::Forward),
    );
    let inputs = [
        Tensor::float("x", F32, &[1, K], &x),
        Tensor::float("weight", F32, &[K, N], &g),
    ];
    let out = run(
        "sparse_linear",
        "sparse_linear",
        &["threshold=0.5"],
        &inputs,
    );
    compare(&out, "out", F32, &[1, N], &exact, &naive);
    let inputs = [Tensor::float("a", F32, &[1, K], &x)];
    let out = run("keep", "keep", &["threshold=0.5"], &inputs);
    compare(
        &out,
        "out",
        F32,
        &[1, K],
        &keep(&wide[0], f64::from(t)),
        &keep(&x, t),
    );

    let folder = folder("sparse_refused");
    let file = folder.join("in.safetensors");
    save(&file, &inputs);
    let (file, out) = (
        file.to_string_lossy(),
        folder.join("out").to_string_lossy().into_owned(),
    );
    let refused = fail(&[
        "run",
        "keep",
        "--input",
        &file,
        "--output",
        &out,
        "--set",
        "threshold=-1",
    ]);
    assert!(
        refused.contains("threshold: -1; allowed: finite and not negative"),
        "{refused}"
    );
}

#[test]
fn thresholds_are_found_and_used() {
    let folder = folder("calibrate");
    let text = folder.join("text.txt");
    let story = succeed(&["generate", "--max-tokens", "120"]);
    std::fs::write(&text, story).expect("writes");
    let (text, output) = (text.to_string_lossy(), folder.to_string_lossy());
    for method in ["cats", "teal"] {
        let table = succeed(&[
            "calibrate",
            "--text",
            &text,
            "--method",
            method,
            "--sparsity",
            "0,0.5",
            "--output",
            &output,
            "--plot",
            &output,
        ]);
        assert!(table.contains("target  reached  loss"), "{table}");
        for name in ["histograms", "loss"] {
            assert!(
                folder.join(format!("{method}-{name}.svg")).exists(),
                "{table}"
            );
        }
        let file = folder.join(format!("thresholds-{method}-0.5.json"));
        let written = succeed(&[
            "generate",
            "--max-tokens",
            "24",
            "--thresholds",
            &file.to_string_lossy(),
        ]);
        assert!(written.split_whitespace().count() > 4, "{written}");
    }
    let refused = fail(&["calibrate", "--text", &text, "--sparsity", "1.5"]);
    assert!(
        refused.contains("--sparsity: 1.5; allowed: 0 to 1"),
        "{refused}"
    );
}
