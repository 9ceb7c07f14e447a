//! `flashwave run attention`, as issues and other programs call it.

use flashwave::DType::{F16, F32};
use flashwave::kernels::attention::Mask;
use flashwave::reference::attention::{Problem, attention};
use kernels_tests::inputs::{Random, round, widen};
use safetensors::Dtype;

use crate::common::{Tensor, compare, fail, folder, integers, run, save};

const PROBLEM: Problem = Problem {
    batch: 2,
    heads: 4,
    kv_heads: 2,
    q_len: 5,
    kv_len: 9,
    head_dim: 16,
    v_dim: 8,
    mask: Mask::Full,
    scale: 0.25,
};

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    tensors: Vec<Tensor>,
}

fn inputs() -> Inputs {
    let mut random = Random::new(8);
    let p = PROBLEM;
    let mut make = |name: &str, shape: [usize; 4]| {
        let values = random.normals(shape.iter().product(), F16);
        (Tensor::float(name, F16, &shape, &values), values)
    };
    let (tq, q) = make("q", [p.batch, p.heads, p.q_len, p.head_dim]);
    let (tk, k) = make("k", [p.batch, p.kv_heads, p.kv_len, p.head_dim]);
    let (tv, v) = make("v", [p.batch, p.kv_heads, p.kv_len, p.v_dim]);
    Inputs {
        q,
        k,
        v,
        tensors: vec![tq, tk, tv],
    }
}

#[test]
fn causal_with_logarithms() {
    let Inputs { q, k, v, tensors } = inputs();
    let out = run(
        "attention",
        "attention",
        &["mask=causal", "lse=yes"],
        &tensors,
    );
    let problem = Problem {
        mask: Mask::Causal,
        ..PROBLEM
    };
    let (exact, lse) = attention(&problem, &widen(&q), &widen(&k), &widen(&v), |_| Some(0.0));
    let (naive, naive_lse) = attention(&problem, &q, &k, &v, |_| Some(0.0));
    let naive: Vec<f32> = naive.into_iter().map(|v| round(v, F16)).collect();
    compare(&out, "out", F16, &[2, 4, 5, 8], &exact, &naive);
    compare(&out, "lse", F32, &[2, 4, 5], &lse, &naive_lse);
}

#[test]
fn bias_and_boolean_mask() {
    let Inputs {
        q,
        k,
        v,
        mut tensors,
    } = inputs();
    // A bias a head and key, a mask a query and key: both repeat over the rest.
    let bias = Random::new(9).normals(4 * 9, F32);
    let mask: Vec<u8> = (0..5 * 9).map(|i| u8::from(i % 3 != 1)).collect();
    tensors.push(Tensor::float("bias", F32, &[4, 1, 9], &bias));
    tensors.push(integers("mask", Dtype::BOOL, &[1, 1, 5, 9], &mask));
    let out = run(
        "attention-mask",
        "attention",
        &["scale=0.5", "dtype=f32"],
        &tensors,
    );
    let problem = Problem {
        scale: 0.5,
        ..PROBLEM
    };
    let seen = |[_, h, i, j]: [usize; 4]| (mask[i * 9 + j] != 0).then(|| bias[h * 9 + j]);
    let exact = attention(&problem, &widen(&q), &widen(&k), &widen(&v), |at| {
        seen(at).map(f64::from)
    });
    let naive = attention(&problem, &q, &k, &v, seen);
    compare(&out, "out", F32, &[2, 4, 5, 8], &exact.0, &naive.0);
    assert_eq!(out.len(), 1);
}

#[test]
fn bad_inputs_are_named() {
    let folder = folder("attention-errors");
    let (input, output) = (
        folder.join("in.safetensors"),
        folder.join("out.safetensors"),
    );
    let call = |tensors: &[Tensor], set: &str| {
        save(&input, tensors);
        let (input, output) = (input.to_string_lossy(), output.to_string_lossy());
        fail(&[
            "run",
            "attention",
            "--input",
            &input,
            "--output",
            &output,
            "--set",
            set,
        ])
    };
    let good = inputs().tensors;
    let with = |extra: Tensor| [good.clone(), vec![extra]].concat();
    let bias =
        |shape: &[usize]| Tensor::float("bias", F32, shape, &vec![0.0; shape.iter().product()]);
    let flat = Tensor::float("q", F16, &[5, 16], &[0.0; 80]);
    for (error, part) in [
        (
            call(&good, "mask=window"),
            "mask: window; allowed: full, causal",
        ),
        (call(&good, "scale=nan"), "scale: nan"),
        (call(&with(bias(&[3, 9])), "mask=full"), "bias: "),
        (
            call(
                &with(Tensor::float("mask", F32, &[5, 9], &[1.0; 45])),
                "mask=full",
            ),
            "input mask: f32; allowed: bool",
        ),
        (
            call(&[flat, good[1].clone(), good[2].clone()], "mask=full"),
            "input q: shape [5, 16]",
        ),
        (call(&good[..2], "mask=full"), "input v: missing"),
    ] {
        assert!(error.contains(part), "{part}\n{error}");
    }
}
