//! Attention over a cache: keys and values are stored in a format, in one piece or in pages, and decoded in the kernel.

use anyhow::{Result, anyhow, bail};
use flashwave::kernels::attention::{
    Attention, BlockTable, CacheArgs, ChannelOrder, KvFormat, KvLayout, KvStore, Mask, Tokens,
};
use flashwave::{DType, Tensor};
use safetensors::Dtype;

use super::attention::{ALIBI, SCALE, SINK_LOGITS, SLOPES, SOFTCAP, slopes};
use super::call::Call;
use super::entry::{DTYPE, Default, Entry, Input, Kind, Need, Output, Param, float};

const FORMATS: &[&str] = &["f32", "f16", "bf16", "int8", "f8e4m3", "f8e5m2", "block8"];
const IDS: &[Dtype] = &[Dtype::I64, Dtype::I32, Dtype::U32];

const fn ids(name: &'static str, shape: &'static str) -> Input {
    Input {
        name,
        dtypes: IDS,
        shape,
        need: Need::Optional,
    }
}

/// The kernels.
pub const ENTRIES: &[Entry] = &[Entry {
    name: "decode_attention",
    about: "attention of a few queries over a cache, whose keys and values are first stored in a format",
    inputs: &[
        float("q", "[batch, heads, queries, dim]"),
        float("k", "[batch, kv_heads, tokens, dim]"),
        float("v", "[batch, kv_heads, tokens, v_dim]"),
        ids(
            "lengths",
            "[batch]: tokens of each sequence, of those in k and v",
        ),
        ids(
            "blocks",
            "[batch, blocks]: the page of each block of page_size tokens",
        ),
        ids(
            "order",
            "[kv_heads, dim]: the order that keys' channels are stored in",
        ),
        SLOPES,
        SINK_LOGITS,
    ],
    params: &[
        Param {
            name: "format",
            kind: Kind::Choice(FORMATS),
            default: Default::Value("f16"),
            about: "how keys are stored",
        },
        Param {
            name: "values",
            kind: Kind::Choice(FORMATS),
            default: Default::Derived("as keys"),
            about: "how values are stored",
        },
        Param {
            name: "block",
            kind: Kind::Count,
            default: Default::Value("32"),
            about: "channels that share an exponent in block8",
        },
        Param {
            name: "page_size",
            kind: Kind::Count,
            default: Default::Derived("one page a sequence"),
            about: "tokens of a page",
        },
        Param {
            name: "pages",
            kind: Kind::Count,
            default: Default::Derived("what blocks need"),
            about: "pages of the pool",
        },
        Param {
            name: "mask",
            kind: Kind::Mask,
            default: Default::Value("causal"),
            about: "which keys a query sees; the last query is the last token",
        },
        SCALE,
        SOFTCAP,
        ALIBI,
        DTYPE,
    ],
    outputs: &[
        Output {
            name: "out",
            shape: "[batch, heads, queries, v_dim]",
        },
        Output {
            name: "lse",
            shape: "f32 [batch, heads, queries]: logarithm of each row's sum of exponentials",
        },
    ],
    run: decode_attention,
}];

fn format(call: &Call<'_>, name: &str) -> Result<Option<KvFormat>> {
    Ok(match call.choice(name)? {
        None => None,
        Some("f32") => Some(KvFormat::F32),
        Some("bf16") => Some(KvFormat::BF16),
        Some("int8") => Some(KvFormat::Int8),
        Some("f8e4m3") => Some(KvFormat::F8E4M3),
        Some("f8e5m2") => Some(KvFormat::F8E5M2),
        Some("block8") => Some(KvFormat::Block8(call.count("block")?.unwrap_or(32) as u32)),
        Some(_) => Some(KvFormat::F16),
    })
}

fn decode_attention(call: &mut Call<'_>) -> Result<()> {
    let ctx = call.ctx();
    let (q, k, v) = (call.tensor("q")?, call.tensor("k")?, call.tensor("v")?);
    let (&[batch, heads, queries, _], &[_, kv_heads, tokens, dim], &[.., v_dim]) =
        (q.shape(), k.shape(), v.shape())
    else {
        bail!(
            "input q: shape {:?}; allowed: [batch, heads, queries, dim], and k and v alike",
            q.shape()
        );
    };
    let lengths = match call.ids("lengths")? {
        Some((lengths, _)) => lengths,
        None => vec![tokens as u32; batch],
    };
    if lengths.len() != batch || lengths.iter().any(|&n| n as usize > tokens) {
        bail!("input lengths: {lengths:?}; allowed: {batch} numbers up to {tokens}");
    }
    let page_size = call.count("page_size")?.unwrap_or(tokens);
    if page_size == 0 {
        bail!("page_size: 0; allowed: 1 or more");
    }
    let blocks = match call.ids("blocks")? {
        Some((blocks, _)) => blocks,
        None => (0..(batch * tokens.div_ceil(page_size)) as u32).collect(),
    };
    let needed = blocks.iter().max().map_or(1, |&page| page as usize + 1);
    let pages = call.count("pages")?.unwrap_or(needed);
    let keys = format(call, "format")?.unwrap_or(KvFormat::F16);
    let values = format(call, "values")?.unwrap_or(keys);
    let order = match call.ids("order")? {
        Some((order, _)) => Some(ChannelOrder::new(ctx, &order, kv_heads, dim)?),
        None => None,
    };
    let store = |format, dim| -> Result<KvStore> {
        let layout = KvLayout::new(format, pages, kv_heads, page_size, dim)?;
        Ok(KvStore::empty(ctx, layout)?)
    };
    let (keys, values) = (store(keys, dim)?, store(values, v_dim)?);
    let table = BlockTable::new(ctx, &keys.layout(), &lengths, &blocks)?;
    let of_each = blocks.len() / batch;
    for (b, &length) in lengths.iter().enumerate().filter(|(_, n)| **n > 0) {
        let own = blocks
            .get(b * of_each..(b + 1) * of_each)
            .ok_or_else(|| anyhow!("input blocks: {} pages for {batch} sequences", blocks.len()))?;
        let own = BlockTable::new(ctx, &keys.layout(), &[length], own)?;
        let part = |t: &Tensor| t.narrow(0, b..b + 1)?.narrow(2, 0..length as usize);
        let (k, v) = (part(&k)?, part(&v)?);
        ctx.record(|pass| {
            keys.append(pass, &k, Tokens::Paged(&own), order.as_ref())?;
            values.append(pass, &v, Tokens::Paged(&own), None)
        })?;
    }
    let mut op = Attention::new(call.mask("mask")?.unwrap_or(Mask::Causal));
    if let Some(scale) = call.number("scale")? {
        op = op.scale(scale as f32);
    }
    if let Some(softcap) = call.number("softcap")? {
        op = op.softcap(softcap as f32);
    }
    let (slopes, sink_logits) = (slopes(call, heads)?, call.optional("sink_logits")?);
    let out = Tensor::empty(ctx, call.dtype(&q)?, [batch, heads, queries, v_dim])?;
    let lse = Tensor::empty(ctx, DType::F32, [batch, heads, queries])?;
    let args = CacheArgs {
        q: &q,
        keys: &keys,
        values: &values,
        tokens: Tokens::Paged(&table),
        order: order.as_ref(),
        slopes: slopes.as_ref(),
        sink_logits: sink_logits.as_ref(),
        out: &out,
        lse: Some(&lse),
    };
    ctx.record(|pass| op.run_cached(pass, args))?;
    call.output("out", out)?;
    call.output("lse", lse)
}
