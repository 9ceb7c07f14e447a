//! Block-sparse attention.

use anyhow::{Result, bail};
use flashwave::kernels::attention::{AttentionArgs, Blocks, Mask};
use flashwave::kernels::sparse::{Causality, SparseLayout};
use flashwave::{DType, Tensor};
use safetensors::Dtype;

use super::attention::{
    ALIBI, BIAS, CU_K, CU_Q, LSE, MASK, OUTPUTS, Options, SCALE, SINK_LOGITS, SLOPES, SOFTCAP,
    operator,
};
use super::call::Call;
use super::entry::{DTYPE, Default, Entry, Input, Kind, Need, Param, float};

/// The kernels.
pub const ENTRIES: &[Entry] = &[Entry {
    name: "sparse_attention",
    about: "attention over listed blocks of keys alone: by a pattern, or by a matrix of blocks",
    inputs: &[
        float("q", "[batch, heads, length, dim]"),
        float("k", "[batch, kv_heads, kv_length, dim]"),
        float("v", "[batch, kv_heads, kv_length, v_dim]"),
        Input {
            name: "blocks",
            dtypes: &[Dtype::BOOL],
            shape: "[lists, blocks of length, blocks of kv_length]: false leaves a block out; in place of layout",
            need: Need::Optional,
        },
        BIAS,
        MASK,
        CU_Q,
        CU_K,
        SLOPES,
        SINK_LOGITS,
    ],
    params: &[
        Param {
            name: "layout",
            kind: Kind::Pattern,
            default: Default::Derived("the input blocks"),
            about: "which blocks of keys a block of queries meets; flashwave sparsity draws it",
        },
        Param {
            name: "block",
            kind: Kind::Choice(&["16", "32", "64", "128"]),
            default: Default::Value("64"),
            about: "side of a block",
        },
        Param {
            name: "lists",
            kind: Kind::Count,
            default: Default::Derived("q's heads"),
            about: "heads with blocks of their own, a divisor of q's",
        },
        Param {
            name: "mask",
            kind: Kind::Mask,
            default: Default::Value("causal"),
            about: "which keys of those blocks a query sees",
        },
        SOFTCAP,
        ALIBI,
        SCALE,
        LSE,
        DTYPE,
    ],
    outputs: OUTPUTS,
    run: sparse_attention,
}];

fn sparse_attention(call: &mut Call<'_>) -> Result<()> {
    let (q, k, v) = (call.tensor("q")?, call.tensor("k")?, call.tensor("v")?);
    let (&[batch, heads, length, _], &[.., kv_length, v_dim]) = (q.shape(), v.shape()) else {
        bail!(
            "input q: shape {:?}; allowed: [batch, heads, length, dim]",
            q.shape()
        );
    };
    let mask = call.mask("mask")?.unwrap_or(Mask::Causal);
    let causality = match mask {
        Mask::Causal => Causality::Causal,
        _ => Causality::Full,
    };
    let matrix = call.stored("blocks");
    let lists = match (call.count("lists")?, matrix.map(|m| m.shape.as_slice())) {
        (Some(lists), _) => lists,
        (None, Some(&[lists, ..])) => lists,
        _ => heads,
    };
    // The parameter has only such values.
    let block = call.choice("block")?.and_then(|b| b.parse().ok());
    let builder = SparseLayout::builder(lists, length, kv_length)
        .block(block.unwrap_or(64))
        .causality(causality);
    let layout = match (call.pattern("layout")?, matrix) {
        (Some(pattern), None) => builder.pattern(&pattern)?,
        (None, Some(matrix)) => builder.dense(&matrix.bytes)?,
        (Some(pattern), Some(_)) => {
            bail!("layout: {pattern} beside the input blocks; allowed: one of them")
        }
        (None, None) => bail!("layout: not set; allowed: a pattern, or the input blocks"),
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
        sparse: Some(Blocks::Listed(&layout)),
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
