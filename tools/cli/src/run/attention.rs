//! Attention.

use anyhow::{Result, bail};
use flashwave::kernels::attention::{Attention, AttentionArgs, Mask};
use flashwave::{DType, Tensor};
use safetensors::Dtype;

use super::call::Call;
use super::entry::{DTYPE, Default, Entry, Input, Kind, Need, Output, Param, float, optional};

/// The kernels.
pub const ENTRIES: &[Entry] = &[Entry {
    name: "attention",
    about: "softmax(scale q k^T + bias, masked) v for each head; heads share key heads evenly",
    inputs: &[
        float("q", "[batch, heads, length, dim]"),
        float("k", "[batch, kv_heads, kv_length, dim]"),
        float("v", "[batch, kv_heads, kv_length, v_dim]"),
        optional(
            "bias",
            "broadcastable to [batch, heads, length, kv_length], added to the scaled scores",
        ),
        Input {
            name: "mask",
            dtypes: &[Dtype::BOOL],
            shape: "of the same form; false hides a key",
            need: Need::Optional,
        },
    ],
    params: &[
        Param {
            name: "mask",
            kind: Kind::Choice(&["full", "causal"]),
            default: Default::Value("full"),
            about: "which keys a query sees; causal: the last query sees all",
        },
        Param {
            name: "scale",
            kind: Kind::Number,
            default: Default::Derived("1 / sqrt(dim)"),
            about: "multiplies q k^T",
        },
        Param {
            name: "lse",
            kind: Kind::Choice(&["no", "yes"]),
            default: Default::Value("no"),
            about: "whether to write the output lse",
        },
        DTYPE,
    ],
    outputs: &[
        Output {
            name: "out",
            shape: "[batch, heads, length, v_dim]",
        },
        Output {
            name: "lse",
            shape: "f32 [batch, heads, length]: logarithm of each row's sum of exponentials",
        },
    ],
    run: attention,
}];

fn attention(call: &mut Call<'_>) -> Result<()> {
    let (q, k, v) = (call.tensor("q")?, call.tensor("k")?, call.tensor("v")?);
    let (bias, mask) = (call.optional("bias")?, call.optional("mask")?);
    let (&[batch, heads, length, _], &[.., v_dim]) = (q.shape(), v.shape()) else {
        bail!(
            "input q: shape {:?}; allowed: [batch, heads, length, dim]",
            q.shape()
        );
    };
    let mut op = Attention::new(match call.choice("mask")? {
        Some("causal") => Mask::Causal,
        _ => Mask::Full,
    });
    if let Some(scale) = call.number("scale")? {
        op = op.scale(scale as f32);
    }
    let ctx = call.ctx();
    let out = Tensor::empty(ctx, call.dtype(&q)?, [batch, heads, length, v_dim])?;
    let lse = match call.choice("lse")? {
        Some("yes") => Some(Tensor::empty(ctx, DType::F32, [batch, heads, length])?),
        _ => None,
    };
    let args = AttentionArgs {
        bias: bias.as_ref(),
        mask: mask.as_ref(),
        lse: lse.as_ref(),
        ..AttentionArgs::new(&q, &k, &v, &out)
    };
    ctx.record(|pass| op.run(pass, args))?;
    call.output("out", out)?;
    match lse {
        Some(lse) => call.output("lse", lse),
        None => Ok(()),
    }
}
