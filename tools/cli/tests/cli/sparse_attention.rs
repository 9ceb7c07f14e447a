//! `flashwave run sparse_attention`.

use flashwave::DType::F16;
use flashwave::kernels::attention::Mask;
use flashwave::kernels::sparse::{Pattern, SparseLayout};
use flashwave::reference::attention::{Modifiers, Problem, attention};
use kernels_tests::inputs::{Random, round, widen};
use safetensors::Dtype;

use crate::common::{Tensor, compare, fail, folder, run, save};

const PROBLEM: Problem<'static> = Problem {
    batch: 1,
    heads: 2,
    kv_heads: 1,
    q_len: 50,
    kv_len: 50,
    head_dim: 16,
    v_dim: 8,
    mask: Mask::Causal,
    scale: 0.25,
    modifiers: Modifiers {
        documents: None,
        softcap: None,
        slopes: None,
        sink_logits: None,
    },
};

#[test]
fn a_pattern_and_its_matrix_give_the_same() {
    let (p, mut random) = (PROBLEM, Random::new(3));
    let mut make = |name: &str, heads: usize, d: usize| {
        let values = random.normals(heads * p.kv_len * d, F16);
        (
            Tensor::float(name, F16, &[1, heads, p.kv_len, d], &values),
            values,
        )
    };
    let (tq, q) = make("q", 2, 16);
    let (tk, k) = make("k", 1, 16);
    let (tv, v) = make("v", 1, 8);
    let pattern = Pattern::s2(2, 1);
    let layout = SparseLayout::builder(2, 50, 50)
        .block(16)
        .pattern(&pattern)
        .expect("valid");
    let seen = |head: usize, i, j| layout.sees(head, i, j);
    let expected = |softcap| {
        let mut p = p;
        p.modifiers.softcap = softcap;
        let exact = attention(&p, &widen(&q), &widen(&k), &widen(&v), |[_, h, i, j]| {
            seen(h, i, j).then_some(0.0)
        });
        let naive = attention(&p, &q, &k, &v, |[_, h, i, j]| seen(h, i, j).then_some(0.0));
        let naive: Vec<f32> = naive.0.into_iter().map(|v| round(v, F16)).collect();
        (exact.0, naive)
    };
    let (exact, naive) = expected(None);
    let matrix = (0..2 * 16).map(|i| {
        let (head, line, block) = (i / 16, i / 4 % 4, i % 4);
        u8::from(layout.line(head, line).any(|e| e.block() == block))
    });
    let blocks = Tensor {
        name: "blocks".into(),
        dtype: Dtype::BOOL,
        shape: vec![2, 4, 4],
        bytes: matrix.collect(),
    };
    let sets = ["layout=s2:stride=2,window=1", "block=16"];
    let inputs = [tq, tk, tv];
    let out = run("sparse_pattern", "sparse_attention", &sets, &inputs);
    compare(&out, "out", F16, &[1, 2, 50, 8], &exact, &naive);
    let (bent, naive_bent) = expected(Some(1.0));
    let bending = [sets[0], sets[1], "softcap=1"];
    let out = run("sparse_bent", "sparse_attention", &bending, &inputs);
    compare(&out, "out", F16, &[1, 2, 50, 8], &bent, &naive_bent);
    let [tq, tk, tv] = inputs;
    let inputs = [tq, tk, tv, blocks];
    let out = run("sparse_matrix", "sparse_attention", &sets[1..], &inputs);
    compare(&out, "out", F16, &[1, 2, 50, 8], &exact, &naive);

    let input = folder("sparse_errors").join("in.safetensors");
    save(&input, &inputs);
    let input = input.to_string_lossy();
    for (set, part) in [
        ("layout=s2:stride=0", "stride: [0]; allowed:"),
        (
            "layout=s2:stride=2",
            "beside the input blocks; allowed: one of them",
        ),
        ("block=32", "matrix: 32 elements; allowed:"),
        ("lists=3", "matrix: 32 elements; allowed:"),
    ] {
        let arguments = ["run", "sparse_attention", "--input", &input, "--output"];
        let more = ["/dev/null", "--set", set];
        let error = fail(&[&arguments[..], &more[..]].concat());
        assert!(error.contains(part), "{set}: {error}");
    }
}
