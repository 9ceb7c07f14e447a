//! `flashwave run` of embedding and rotary positions.

use flashwave::DType::{F16, F32};
use flashwave::kernels::rope::{RopeConfig, RopeLayout, RopeScaling};
use flashwave::reference::rope::rotate;
use kernels_tests::inputs::{Random, widen};
use safetensors::Dtype;

use crate::common::{Tensor, compare, fail, folder, integers, run, save};

#[test]
fn embedding_takes_ids_as_programs_write_them() {
    let table = Random::new(6).normals(10 * 6, F16);
    let input = Tensor::float("table", F16, &[10, 6], &table);
    let ids = [3i64, 0, 9, 3];
    let rows = ids
        .iter()
        .flat_map(|&id| table[id as usize * 6..][..6].to_vec());
    let expected: Vec<f32> = rows.collect();
    for ids in [
        integers("ids", Dtype::I64, &[2, 2], &ids),
        integers("ids", Dtype::U32, &[2, 2], &ids.map(|id| id as u32)),
    ] {
        let out = run(
            "embedding",
            "embedding",
            &["dtype=f32"],
            &[input.clone(), ids],
        );
        compare(&out, "out", F32, &[2, 2, 6], &widen(&expected), &expected);
    }
    let folder = folder("embedding-errors");
    let (input_path, output) = (
        folder.join("in.safetensors"),
        folder.join("out.safetensors"),
    );
    for (id, part) in [
        (10, "token id: 10 at place 0"),
        (-1, "input ids: -1 at place 0"),
    ] {
        save(
            &input_path,
            &[input.clone(), integers("ids", Dtype::I32, &[1], &[id])],
        );
        let (input, output) = (input_path.to_string_lossy(), output.to_string_lossy());
        let error = fail(&["run", "embedding", "--input", &input, "--output", &output]);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn rope_by_start_and_by_positions() {
    let (tokens, heads, dim) = (3, 2, 8);
    let x = Random::new(7).normals(tokens * heads * dim, F32);
    let input = Tensor::float("x", F32, &[tokens, heads, dim], &x);
    for (sets, positions, scaling, layout, dims) in [
        (
            &["position=5"][..],
            None,
            RopeScaling::None,
            RopeLayout::HalfSplit,
            8,
        ),
        (
            &["scaling=linear", "factor=4", "layout=interleaved", "dims=4"],
            Some([7u32, 0, 2]),
            RopeScaling::Linear { factor: 4.0 },
            RopeLayout::Interleaved,
            4,
        ),
    ] {
        let mut inputs = vec![input.clone()];
        inputs.extend(positions.map(|p| integers("positions", Dtype::U32, &[tokens], &p)));
        let out = run("rope", "rope", sets, &inputs);
        let config = RopeConfig {
            theta: 10000.0,
            dims,
            layout,
            scaling,
        };
        let frequencies = config.frequencies(dim).expect("a valid config");
        let places = positions.unwrap_or([5, 6, 7]);
        let (mut exact, mut naive) = (Vec::new(), Vec::new());
        for (i, head) in x.chunks(dim).enumerate() {
            let angles = frequencies.iter().map(|f| f * f64::from(places[i / heads]));
            let (sines, cosines): (Vec<f64>, Vec<f64>) = angles.map(f64::sin_cos).unzip();
            let narrow = |v: &[f64]| -> Vec<f32> { v.iter().map(|&v| v as f32).collect() };
            exact.extend(rotate(layout, &widen(head), &cosines, &sines));
            naive.extend(rotate(layout, head, &narrow(&cosines), &narrow(&sines)));
        }

        compare(&out, "out", F32, &[tokens, heads, dim], &exact, &naive);
    }
}

#[test]
fn a_fused_projection_fills_the_caches() {
    let (tokens, heads, kv_heads, dim, length) = (2, 4, 2, 8, 5);
    let width = (heads + 2 * kv_heads) * dim;
    let qkv = Random::new(10).normals(tokens * width, F32);
    let cache = vec![7.0f32; kv_heads * length * dim];
    let shape = [kv_heads, length, dim];
    let inputs = [
        Tensor::float("qkv", F32, &[tokens, width], &qkv),
        Tensor::float("k_cache", F32, &shape, &cache),
        Tensor::float("v_cache", F32, &shape, &cache),
    ];
    let out = run("rope_qkv", "rope_qkv", &["position=0"], &inputs);
    let mut values = cache;
    for (token, row) in qkv.chunks(width).enumerate() {
        for head in 0..kv_heads {
            let from = (heads + kv_heads + head) * dim;
            values[(head * length + token) * dim..][..dim].copy_from_slice(&row[from..from + dim]);
        }
    }
    compare(&out, "v_cache", F32, &shape, &widen(&values), &values);
    let find = |name: &str| {
        out.iter()
            .find(|t| t.name == name)
            .expect("an output")
            .values()
    };
    // Position 0 rotates by nothing; what lies behind the tokens stays.
    assert_eq!(find("q")[..heads * dim], qkv[..heads * dim]);
    assert_eq!(find("k_cache")[..dim], qkv[heads * dim..][..dim]);
    assert!(
        find("k_cache")[tokens * dim..length * dim]
            .iter()
            .all(|&v| v == 7.0)
    );
}
