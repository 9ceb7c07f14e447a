//! Gradients of attention.

use anyhow::{Result, bail};
use flashwave::kernels::attention::{AttentionArgs, AttentionBackward, BackwardArgs};
use flashwave::{DType, Tensor};

use super::attention::{
    ALIBI, BIAS, CU_K, CU_Q, MASK, MASK_KIND, Options, SCALE, SINK_LOGITS, SLOPES, SOFTCAP,
    operator,
};
use super::call::Call;
use super::entry::{DTYPE, Entry, Output, float, optional, optional_f32};

/// The kernels.
pub const ENTRIES: &[Entry] = &[Entry {
    name: "attention_backward",
    about: "gradients of attention with respect to q, k and v, out of dout, that with respect to its output",
    inputs: &[
        float("q", "[batch, heads, length, dim]"),
        float("k", "[batch, kv_heads, kv_length, dim]"),
        float("v", "[batch, kv_heads, kv_length, v_dim]"),
        float("dout", "[batch, heads, length, v_dim]"),
        optional(
            "out",
            "of dout's shape: the output of attention; computed if missing",
        ),
        optional_f32(
            "lse",
            "[batch, heads, length]: that of attention; computed if missing",
        ),
        BIAS,
        MASK,
        CU_Q,
        CU_K,
        SLOPES,
        SINK_LOGITS,
    ],
    params: &[MASK_KIND, SOFTCAP, ALIBI, SCALE, DTYPE],
    outputs: &[
        Output {
            name: "dq",
            shape: "of q's shape",
        },
        Output {
            name: "dk",
            shape: "of k's shape, summed over the heads that share a key head",
        },
        Output {
            name: "dv",
            shape: "of v's shape, summed alike",
        },
    ],
    run: backward,
}];

fn backward(call: &mut Call<'_>) -> Result<()> {
    let (q, k, v) = (call.tensor("q")?, call.tensor("k")?, call.tensor("v")?);
    let dout = call.tensor("dout")?;
    let &[batch, heads, length, _] = dout.shape() else {
        bail!(
            "input dout: shape {:?}; allowed: [batch, heads, length, v_dim]",
            dout.shape()
        );
    };
    let forward = operator(call)?;
    let options = Options::of(call, heads)?;
    let ctx = call.ctx();
    let (out, lse) = match (call.optional("out")?, call.optional("lse")?) {
        (Some(out), Some(lse)) => (out, lse),
        (None, None) => {
            let out = Tensor::empty(ctx, dout.dtype(), dout.shape())?;
            let lse = Tensor::empty(ctx, DType::F32, [batch, heads, length])?;
            ctx.record(|pass| forward.run(pass, saved(&options, [&q, &k, &v], [&out, &lse])))?;
            (out, lse)
        }
        _ => bail!("inputs out and lse: one of the two; allowed: both or neither"),
    };
    let like =
        |t: &Tensor| -> Result<Tensor> { Ok(Tensor::empty(ctx, call.dtype(t)?, t.shape())?) };
    let (dq, dk, dv) = (like(&q)?, like(&k)?, like(&v)?);
    let args = BackwardArgs {
        forward: saved(&options, [&q, &k, &v], [&out, &lse]),
        dout: &dout,
        dq: &dq,
        dk: &dk,
        dv: &dv,
    };
    ctx.record(|pass| AttentionBackward::new(forward).run(pass, args))?;
    call.output("dq", dq)?;
    call.output("dk", dk)?;
    call.output("dv", dv)
}

fn saved<'a>(
    options: &'a Options,
    inputs: [&'a Tensor; 3],
    [out, lse]: [&'a Tensor; 2],
) -> AttentionArgs<'a> {
    AttentionArgs {
        lse: Some(lse),
        ..options.args(inputs, out)
    }
}
