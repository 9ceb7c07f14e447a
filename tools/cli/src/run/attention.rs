//! Attention.

use anyhow::{Result, bail};
use flashwave::kernels::attention::{Attention, AttentionArgs, Documents, Mask, alibi_slopes};
use flashwave::{DType, Tensor};
use safetensors::Dtype;

use super::call::Call;
use super::entry::{
    DTYPE, Default, Entry, IDS, Input, Kind, Need, Output, Param, float, optional, optional_f32,
};

/// Added to scores.
pub(super) const BIAS: Input = optional(
    "bias",
    "broadcastable to [batch, heads, length, kv_length], added to the scaled scores",
);

/// Hides keys.
pub(super) const MASK: Input = Input {
    name: "mask",
    dtypes: &[Dtype::BOOL],
    shape: "of the same form; false hides a key",
    need: Need::Optional,
};

/// Where packed queries end.
pub(super) const CU_Q: Input = ends(
    "cu_q",
    "[documents + 1], cumulative lengths of packed sequences along length",
);

/// Where packed keys end.
pub(super) const CU_K: Input = ends("cu_k", "[documents + 1], the same along kv_length");

/// Of ALiBi.
pub(super) const SLOPES: Input = optional_f32("slopes", "[heads], ALiBi's");

/// Of a learned sink.
pub(super) const SINK_LOGITS: Input = optional_f32(
    "sink_logits",
    "[heads], scores of a key that all see, of value zero",
);

/// Which keys a query sees.
pub(super) const MASK_KIND: Param = Param {
    name: "mask",
    kind: Kind::Mask,
    default: Default::Value("full"),
    about: "which keys a query sees; the last query stands at the last key. window: left before its own, right \
            after it, and the first sinks ones; prefix: the first ones and those before",
};

/// Bends scores.
pub(super) const SOFTCAP: Param = Param {
    name: "softcap",
    kind: Kind::Number,
    default: Default::Derived("none"),
    about: "scores become softcap tanh(score / softcap)",
};

/// ALiBi's usual slopes.
pub(super) const ALIBI: Param = Param {
    name: "alibi",
    kind: Kind::Number,
    default: Default::Derived("none"),
    about: "max_bias of ALiBi's usual slopes, 8 in the paper; or give the input slopes",
};

/// The factor of the dot products.
pub(super) const SCALE: Param = Param {
    name: "scale",
    kind: Kind::Number,
    default: Default::Derived("1 / sqrt(dim)"),
    about: "multiplies q k^T",
};

/// Whether logarithms are wanted.
pub(super) const LSE: Param = Param {
    name: "lse",
    kind: Kind::Choice(&["no", "yes"]),
    default: Default::Value("no"),
    about: "whether to write the output lse",
};

/// What comes out.
pub(super) const OUTPUTS: &[Output] = &[
    Output {
        name: "out",
        shape: "[batch, heads, length, v_dim]",
    },
    Output {
        name: "lse",
        shape: "f32 [batch, heads, length]: logarithm of each row's sum of exponentials",
    },
];

/// The kernels.
pub const ENTRIES: &[Entry] = &[Entry {
    name: "attention",
    about: "softmax(scale q k^T + bias, masked) v for each head; heads share key heads evenly",
    inputs: &[
        float("q", "[batch, heads, length, dim]"),
        float("k", "[batch, kv_heads, kv_length, dim]"),
        float("v", "[batch, kv_heads, kv_length, v_dim]"),
        BIAS,
        MASK,
        CU_Q,
        CU_K,
        SLOPES,
        SINK_LOGITS,
    ],
    params: &[MASK_KIND, SOFTCAP, ALIBI, SCALE, LSE, DTYPE],
    outputs: OUTPUTS,
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
    let (&[batch, heads, length, _], &[.., v_dim]) = (q.shape(), v.shape()) else {
        bail!(
            "input q: shape {:?}; allowed: [batch, heads, length, dim]",
            q.shape()
        );
    };
    let op = operator(call)?;
    let options = Options::of(call, heads)?;
    let ctx = call.ctx();
    let out = Tensor::empty(ctx, call.dtype(&q)?, [batch, heads, length, v_dim])?;
    let lse = match call.choice("lse")? {
        Some("yes") => Some(Tensor::empty(ctx, DType::F32, [batch, heads, length])?),
        _ => None,
    };
    let args = AttentionArgs {
        lse: lse.as_ref(),
        ..options.args([&q, &k, &v], &out)
    };
    ctx.record(|pass| op.run(pass, args))?;
    call.output("out", out)?;
    match lse {
        Some(lse) => call.output("lse", lse),
        None => Ok(()),
    }
}

/// The operator that the parameters ask for.
pub(super) fn operator(call: &Call<'_>) -> Result<Attention> {
    let mut op = Attention::new(call.mask("mask")?.unwrap_or(Mask::Full));
    if let Some(scale) = call.number("scale")? {
        op = op.scale(scale as f32);
    }
    if let Some(softcap) = call.number("softcap")? {
        op = op.softcap(softcap as f32);
    }
    Ok(op)
}

/// The inputs that need not be there.
pub(super) struct Options {
    bias: Option<Tensor>,
    mask: Option<Tensor>,
    documents: Option<Documents>,
    slopes: Option<Tensor>,
    sink_logits: Option<Tensor>,
}

impl Options {
    /// Those of a call with so many query heads.
    pub(super) fn of(call: &Call<'_>, heads: usize) -> Result<Self> {
        Ok(Self {
            bias: call.optional("bias")?,
            mask: call.optional("mask")?,
            documents: documents(call)?,
            slopes: slopes(call, heads)?,
            sink_logits: call.optional("sink_logits")?,
        })
    }

    /// With them, and without logarithms.
    pub(super) fn args<'a>(
        &'a self,
        [q, k, v]: [&'a Tensor; 3],
        out: &'a Tensor,
    ) -> AttentionArgs<'a> {
        AttentionArgs {
            bias: self.bias.as_ref(),
            mask: self.mask.as_ref(),
            documents: self.documents.as_ref(),
            slopes: self.slopes.as_ref(),
            sink_logits: self.sink_logits.as_ref(),
            ..AttentionArgs::new(q, k, v, out)
        }
    }
}

/// ALiBi's, given or the usual ones, of so many query heads.
pub(super) fn slopes(call: &Call<'_>, heads: usize) -> Result<Option<Tensor>> {
    match (call.number("alibi")?, call.optional("slopes")?) {
        (Some(max_bias), None) => {
            let slopes = alibi_slopes(heads, max_bias as f32)?;
            Ok(Some(Tensor::from_slice(call.ctx(), &slopes, [heads])?))
        }
        (Some(max_bias), Some(_)) => {
            bail!("alibi: {max_bias} beside the input slopes; allowed: one of them")
        }
        (None, slopes) => Ok(slopes),
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
