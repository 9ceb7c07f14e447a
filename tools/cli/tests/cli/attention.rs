//! `flashwave run attention`, as issues and other programs call it.

use flashwave::DType::{F16, F32};
use flashwave::kernels::attention::{Mask, Packing, alibi_slopes};
use flashwave::reference::attention::{Modifiers, Problem, attention};
use kernels_tests::inputs::{Random, round, widen};
use safetensors::Dtype;

use crate::common::{Tensor, compare, fail, folder, integers, run, save};

const PROBLEM: Problem<'static> = Problem {
    batch: 2,
    heads: 4,
    kv_heads: 2,
    q_len: 5,
    kv_len: 9,
    head_dim: 16,
    v_dim: 8,
    mask: Mask::Full,
    scale: 0.25,
    modifiers: Modifiers {
        documents: None,
        softcap: None,
        slopes: None,
        sink_logits: None,
    },
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
fn a_window_over_documents_with_softcap_alibi_and_sinks() {
    let Inputs {
        q,
        k,
        v,
        mut tensors,
    } = inputs();
    let logits = [0.5, -1.0, f32::NEG_INFINITY, 2.0];
    tensors.push(integers("cu_q", Dtype::I64, &[3], &[0i64, 2, 5]));
    tensors.push(integers("cu_k", Dtype::I32, &[3], &[0i32, 6, 9]));
    tensors.push(Tensor::float("sink_logits", F32, &[4], &logits));
    let out = run(
        "attention-documents",
        "attention",
        &[
            "mask=window:left=3,sinks=1",
            "softcap=5",
            "alibi=8",
            "dtype=f32",
        ],
        &tensors,
    );
    let packing = Packing::new(&[0, 2, 5], &[0, 6, 9]).expect("lengths");
    let slopes = alibi_slopes(4, 8.0).expect("slopes");
    let problem = Problem {
        mask: Mask::Window {
            left: 3,
            right: 0,
            sinks: 1,
        },
        modifiers: Modifiers {
            documents: Some(&packing),
            softcap: Some(5.0),
            slopes: Some(&slopes),
            sink_logits: Some(&logits),
        },
        ..PROBLEM
    };
    let exact = attention(&problem, &widen(&q), &widen(&k), &widen(&v), |_| Some(0.0));
    let naive = attention(&problem, &q, &k, &v, |_| Some(0.0));
    compare(&out, "out", F32, &[2, 4, 5, 8], &exact.0, &naive.0);
    // Slopes by tensor are the same.
    tensors.push(Tensor::float("slopes", F32, &[4], &slopes));
    let again = run(
        "attention-slopes",
        "attention",
        &["mask=window:left=3,sinks=1", "softcap=5", "dtype=f32"],
        &tensors,
    );
    assert_eq!(out, again);
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
    let ends = |name: &str, ends: &[u32]| integers(name, Dtype::U32, &[ends.len()], ends);
    let packed =
        |q: &[u32], k: &[u32]| [good.clone(), vec![ends("cu_q", q), ends("cu_k", k)]].concat();
    let flat = Tensor::float("q", F16, &[5, 16], &[0.0; 80]);
    for (error, part) in [
        (
            call(&good, "mask=window"),
            "mask: window; allowed: full, causal, window:left=N,right=N,sinks=N",
        ),
        (call(&good, "mask=prefix:x"), "mask: prefix:x; allowed: "),
        (
            call(&good, "softcap=0"),
            "softcap: 0.0; allowed: 1e-30 to 1e30",
        ),
        (call(&good, "alibi=-1"), "max_bias: -1; allowed: 0 to 64"),
        (
            call(&with(ends("cu_q", &[0, 5])), "mask=full"),
            "input cu_k: missing beside cu_q",
        ),
        (
            call(&packed(&[0, 5], &[0, 9, 9]), "mask=full"),
            "cu_k: 9 after 9 at 2; allowed: ",
        ),
        (
            call(&packed(&[0, 5], &[0, 8]), "mask=full"),
            "documents: 5 queries and 8 keys; allowed: q's 5 and k's 9",
        ),
        (
            call(
                &with(Tensor::float("slopes", F32, &[2], &[1.0; 2])),
                "mask=full",
            ),
            "slopes: ",
        ),
        (
            call(
                &with(Tensor::float("slopes", F32, &[4], &[1.0; 4])),
                "alibi=8",
            ),
            "alibi: 8 beside the input slopes; allowed: one of them",
        ),
        (
            call(
                &with(Tensor::float("sink_logits", F16, &[4], &[1.0; 4])),
                "mask=full",
            ),
            "input sink_logits: f16; allowed: f32",
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
