//! What the matrix does not show of attention.

use flashwave::kernels::attention::{Attention, AttentionArgs, Mask};
use flashwave::{Context, DType, Tensor};

fn filled(ctx: &Context, shape: [usize; 4], value: impl Fn(usize) -> f32) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::from_slice(ctx, &values, shape).expect("uploads")
}

/// Scores beyond f32 are cut: neither their sum nor anything else becomes NaN.
#[test]
fn scores_beyond_f32_stay_numbers() {
    let ctx = Context::new().expect("an adapter");
    for q_len in [1, 40] {
        let q = filled(&ctx, [1, 1, q_len, 16], |_| 1e30);
        // Every other key is as far below as the others are above.
        let k = filled(&ctx, [1, 1, 64, 16], |i| [1e30, -1e30][i / 16 % 2]);
        let v = filled(&ctx, [1, 1, 64, 16], |i| [2.0, 5.0][i / 16 % 2]);
        let out = Attention::new(Mask::Full)
            .forward(&q, &k, &v)
            .expect("runs");
        let out = out.to_vec::<f32>().expect("reads");
        assert!(out.iter().all(|&x| x == 2.0), "{q_len}: {out:?}");
    }
}

/// Bytes of device memory that a causal call takes beside its tensors.
fn memory_beside(ctx: &Context, q_len: usize, kv_len: usize) -> u64 {
    let q = filled(ctx, [1, 4, q_len, 32], |i| (i as f32).sin());
    let k = filled(ctx, [1, 2, kv_len, 32], |i| (i as f32).cos());
    let out = Tensor::empty(ctx, DType::F32, [1, 4, q_len, 32]).expect("allocates");
    ctx.trim();
    let before = ctx.memory_bytes();
    let args = AttentionArgs::new(&q, &k, &k, &out);
    ctx.record(|pass| Attention::new(Mask::Causal).run(pass, args))
        .expect("runs");
    ctx.memory_bytes() - before
}

/// The intermediate results of a decode step are a matter of heads and queries, not of the keys.
#[test]
fn decoding_takes_the_same_memory_however_many_keys() {
    let ctx = Context::new().expect("an adapter");
    let taken = [512, 4096].map(|kv_len| memory_beside(&ctx, 2, kv_len));
    assert_eq!(taken[0], taken[1]);
}

/// No scores are kept: what a prompt takes beside its tensors does not grow with it.
#[test]
fn prompts_take_the_same_memory_however_long() {
    let ctx = Context::new().expect("an adapter");
    let taken = [200, 900].map(|length| memory_beside(&ctx, length, length));
    assert_eq!(taken[0], taken[1]);
}

/// Sums have one owner and one order.
#[test]
fn gradients_are_the_same_every_time() {
    let ctx = Context::new().expect("an adapter");
    let q = filled(&ctx, [1, 4, 90, 16], |i| (i as f32).sin());
    let k = filled(&ctx, [1, 2, 110, 16], |i| (i as f32 * 0.7).cos());
    let v = filled(&ctx, [1, 2, 110, 16], |i| (i as f32 * 1.3).sin());
    let dout = filled(&ctx, [1, 4, 90, 16], |i| (i as f32 * 0.3).cos());
    let attention = Attention::new(Mask::Causal);
    let [out, lse] = attention.forward_with_lse(&q, &k, &v).expect("runs");
    let gradients = || {
        let g = attention
            .backward([&q, &k, &v], [&out, &lse], &dout)
            .expect("runs");
        [g.dq, g.dk, g.dv].map(|t| t.to_vec::<f32>().expect("reads"))
    };
    let first = gradients();
    assert!(first.iter().flatten().all(|x| x.is_finite()));
    assert_eq!(gradients(), first);
}
