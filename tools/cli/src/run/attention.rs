//! Attention.

use anyhow::{Result, bail};
use flashwave::kernels::attention::{Attention, AttentionArgs, Documents, Mask, alibi_slopes};
use flashwave::{DType, Tensor};
use safetensors::Dtype;

use super::call::Call;
use super::entry::{
    DTYPE, Default, Entry, IDS, Input, Kind, Need, Output, Param, float, optional, optional_f32,
};

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
        ends(
            "cu_q",
            "[documents + 1], cumulative lengths of packed sequences along length",
        ),
        ends("cu_k", "[documents + 1], the same along kv_length"),
        optional_f32("slopes", "[heads], ALiBi's"),
        optional_f32(
            "sink_logits",
            "[heads], scores of a key that all see, of value zero",
        ),
    ],
    params: &[
        Param {
            name: "mask",
            kind: Kind::Mask,
            default: Default::Value("full"),
            about: "which keys a query sees; the last query stands at the last key. window: left before its own, right \
                    after it, and the first sinks ones; prefix: the first ones and those before",
        },
        Param {
            name: "softcap",
            kind: Kind::Number,
            default: Default::Derived("none"),
            about: "scores become softcap tanh(score / softcap)",
        },
        Param {
            name: "alibi",
            kind: Kind::Number,
            default: Default::Derived("none"),
            about: "max_bias of ALiBi's usual slopes, 8 in the paper; or give the input slopes",
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

const fn ends(name: &'static str, shape: &'static str) -> Input {
    Input {
        name,
        dtypes: IDS,
        shape,
        need: Need::Optional,
    }
}

fn attention(call: &mut Call<'_>) -> Result<()> {
    let (q, k, v) = (call.tensor("q")?, call.tensor("k")?, call.tensor("v")?);
    let (bias, mask) = (call.optional("bias")?, call.optional("mask")?);
    let (&[batch, heads, length, _], &[.., v_dim]) = (q.shape(), v.shape()) else {
        bail!(
            "input q: shape {:?}; allowed: [batch, heads, length, dim]",
            q.shape()
        );
    };
    let mut op = Attention::new(call.mask("mask")?.unwrap_or(Mask::Full));
    if let Some(scale) = call.number("scale")? {
        op = op.scale(scale as f32);
    }
    if let Some(softcap) = call.number("softcap")? {
        op = op.softcap(softcap as f32);
    }
    let ctx = call.ctx();
    let documents = documents(call)?;
    let slopes = match (call.number("alibi")?, call.optional("slopes")?) {
        (Some(max_bias), None) => {
            let slopes = alibi_slopes(heads, max_bias as f32)?;
            Some(Tensor::from_slice(ctx, &slopes, [heads])?)
        }
        (Some(max_bias), Some(_)) => {
            bail!("alibi: {max_bias} beside the input slopes; allowed: one of them")
        }
        (None, slopes) => slopes,
    };
    let sink_logits = call.optional("sink_logits")?;
    let out = Tensor::empty(ctx, call.dtype(&q)?, [batch, heads, length, v_dim])?;
    let lse = match call.choice("lse")? {
        Some("yes") => Some(Tensor::empty(ctx, DType::F32, [batch, heads, length])?),
        _ => None,
    };
    let args = AttentionArgs {
        bias: bias.as_ref(),
        mask: mask.as_ref(),
        documents: documents.as_ref(),
        slopes: slopes.as_ref(),
        sink_logits: sink_logits.as_ref(),
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

fn documents(call: &Call<'_>) -> Result<Option<Documents>> {
    match (call.ids("cu_q")?, call.ids("cu_k")?) {
        (Some((queries, _)), Some((keys, _))) => {
            Ok(Some(Documents::new(call.ctx(), &queries, &keys)?))
        }
        (None, None) => Ok(None),
        (Some(_), None) => bail!("input cu_k: missing beside cu_q"),
        (None, Some(_)) => bail!("input cu_q: missing beside cu_k"),
    }
}
