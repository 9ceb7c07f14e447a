//! `flashwave run attention_backward`, as issues and other programs call it.

use flashwave::DType::F32;
use flashwave::kernels::attention::Mask;
use flashwave::reference::attention::{Modifiers, Problem, attention};
use flashwave::reference::attention_backward::{Saved, attention_backward};
use kernels_tests::inputs::{Random, widen};

use crate::common::{Tensor, compare, fail, folder, run, save};

const PROBLEM: Problem<'static> = Problem {
    batch: 1,
    heads: 4,
    kv_heads: 2,
    q_len: 6,
    kv_len: 9,
    head_dim: 16,
    v_dim: 8,
    mask: Mask::Window {
        left: 4,
        right: 0,
        sinks: 1,
    },
    scale: 0.25,
    modifiers: Modifiers {
        documents: None,
        softcap: Some(3.0),
        slopes: None,
        sink_logits: None,
    },
};

/// q, k, v and dout, and their tensors.
fn inputs() -> ([Vec<f32>; 4], Vec<Tensor>) {
    let mut random = Random::new(9);
    let p = PROBLEM;
    let shapes = [
        [p.batch, p.heads, p.q_len, p.head_dim],
        [p.batch, p.kv_heads, p.kv_len, p.head_dim],
        [p.batch, p.kv_heads, p.kv_len, p.v_dim],
        [p.batch, p.heads, p.q_len, p.v_dim],
    ];
    let values = shapes.map(|shape| random.normals(shape.iter().product(), F32));
    let tensors = ["q", "k", "v", "dout"]
        .iter()
        .zip(&shapes)
        .zip(&values)
        .map(|((name, shape), values)| Tensor::float(name, F32, shape, values))
        .collect();
    (values, tensors)
}

#[test]
fn the_forward_pass_is_made_up_for() {
    let ([q, k, v, dout], tensors) = inputs();
    let sets = ["mask=window:left=4,right=0,sinks=1", "softcap=3"];
    let found = run("backward", "attention_backward", &sets, &tensors);
    let wide = [&q, &k, &v, &dout].map(|x| widen(x));
    let [wq, wk, wv, wdout] = wide.each_ref().map(Vec::as_slice);
    let (out, lse) = attention(&PROBLEM, wq, wk, wv, |_| Some(0.0));
    let saved = Saved {
        q: wq,
        k: wk,
        v: wv,
        out: &out,
        lse: &lse,
        dout: wdout,
    };
    let exact = attention_backward(&PROBLEM, &saved, |_| Some(0.0));
    let (out, lse) = attention(&PROBLEM, &q, &k, &v, |_| Some(0.0));
    let saved = Saved {
        q: &q[..],
        k: &k,
        v: &v,
        out: &out,
        lse: &lse,
        dout: &dout,
    };
    let naive = attention_backward(&PROBLEM, &saved, |_| Some(0.0));
    compare(&found, "dq", F32, &[1, 4, 6, 16], &exact.dq, &naive.dq);
    compare(&found, "dk", F32, &[1, 2, 9, 16], &exact.dk, &naive.dk);
    compare(&found, "dv", F32, &[1, 2, 9, 8], &exact.dv, &naive.dv);
}

#[test]
fn half_of_a_forward_pass_is_an_error() {
    let (_, mut tensors) = inputs();
    tensors.push(Tensor::float("lse", F32, &[1, 4, 6], &[0.0; 24]));
    let input = folder("backward_lse").join("in.safetensors");
    save(&input, &tensors);
    let input = input.to_string_lossy();
    let errors = fail(&[
        "run",
        "attention_backward",
        "--input",
        &input,
        "--output",
        "unused.safetensors",
    ]);
    assert!(errors.contains("out and lse"), "{errors}");
}
