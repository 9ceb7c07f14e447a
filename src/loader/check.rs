//! Whether a config makes sense, and whether the tensors are those it calls for.

use std::collections::BTreeSet;

use super::{Parsed, near};
use crate::error::{Error, Result};
use crate::kernels::rope::RopeScaling;
use crate::model::LlamaConfig;

/// Checks the tensors against the config: all there, each of its shape, none besides.
pub(super) fn tensors(parsed: &Parsed) -> Result<()> {
    let fail = |message: String| Err(Error::format(&parsed.path, message));
    let mut expected = BTreeSet::new();
    for (name, shape) in tensors_of(&parsed.config) {
        let Some(entry) = parsed.tensors.get(&name) else {
            return fail(format!(
                "tensor {name} is missing, {shape:?} by the config{}",
                near(&name, parsed.tensors.keys())
            ));
        };
        if entry.shape != shape {
            return fail(format!(
                "tensor {name} is {:?}, by the config it is {shape:?}",
                entry.shape
            ));
        }
        match entry.stored.bytes(&shape) {
            Ok(bytes) if bytes == entry.range.len() => {}
            Ok(bytes) => {
                return fail(format!(
                    "tensor {name} has {} bytes, by its shape {bytes}",
                    entry.range.len()
                ));
            }
            Err(message) => return fail(format!("tensor {name}: {message}")),
        }
        // One layer at a time is added only after all before were found, so a config with absurdly many
        // layers ends at the first that the file does not have.
        expected.insert(name);
    }
    if let Some((name, entry)) = parsed
        .tensors
        .iter()
        .find(|(name, _)| !expected.contains(*name))
    {
        return fail(format!(
            "tensor {name} {:?} is no part of a Llama of {} layers without biases",
            entry.shape, parsed.config.layers
        ));
    }
    Ok(())
}

/// Every tensor of a Llama, with its shape.
fn tensors_of(c: &LlamaConfig) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (hidden, mlp) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let head =
        (!c.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), vec![c.vocab_size, hidden]));
    let layers = (0..c.layers).flat_map(move |i| {
        [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![q, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, q]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![mlp, hidden]),
            ("mlp.up_proj", vec![mlp, hidden]),
            ("mlp.down_proj", vec![hidden, mlp]),
        ]
        .map(|(part, shape)| (format!("model.layers.{i}.{part}.weight"), shape))
    });
    std::iter::once((
        "model.embed_tokens.weight".to_owned(),
        vec![c.vocab_size, hidden],
    ))
    .chain(layers)
    .chain([("model.norm.weight".to_owned(), vec![hidden])])
    .chain(head)
}

/// Channels of a head where only the sum of all heads is given.
pub(super) fn whole_heads(hidden_size: usize, heads: usize) -> Result<usize, String> {
    let dim = hidden_size
        .checked_div(heads)
        .filter(|dim| dim * heads == hidden_size);
    dim.ok_or_else(|| format!("{heads} heads do not divide the hidden size {hidden_size}"))
}

/// Checks a config for itself; after this, products of two of its sizes do not overflow 64 bits.
pub(super) fn config(c: &LlamaConfig) -> Result<(), String> {
    const MAX: usize = i32::MAX as usize;
    for (name, value) in [
        ("vocab_size", c.vocab_size),
        ("hidden_size", c.hidden_size),
        ("intermediate_size", c.intermediate_size),
        ("layers", c.layers),
        ("heads", c.heads),
        ("kv_heads", c.kv_heads),
        ("head_dim", c.head_dim),
        ("max_positions", c.max_positions),
        ("heads times head_dim", c.heads.saturating_mul(c.head_dim)),
    ] {
        if !(1..=MAX).contains(&value) {
            return Err(format!("{name} is {value}; allowed: 1 to {MAX}"));
        }
    }
    if c.kv_heads > c.heads || !c.heads.is_multiple_of(c.kv_heads) {
        return Err(format!(
            "{} key/value heads; allowed: a divisor of the {} heads",
            c.kv_heads, c.heads
        ));
    }
    if c.rope.dims == 0 || !c.rope.dims.is_multiple_of(2) || c.rope.dims > c.head_dim {
        return Err(format!(
            "RoPE turns {} channels of a head; allowed: an even number up to {}",
            c.rope.dims, c.head_dim
        ));
    }
    if !(c.rope.theta.is_finite() && c.rope.theta > 0.0) {
        return Err(format!(
            "RoPE's theta is {}; allowed: positive",
            c.rope.theta
        ));
    }
    if !(c.norm_eps.is_finite() && c.norm_eps >= 0.0) {
        return Err(format!(
            "the norm's epsilon is {}; allowed: finite, not negative",
            c.norm_eps
        ));
    }
    for &id in c.bos_token_id.iter().chain(&c.eos_token_ids) {
        if id as usize >= c.vocab_size {
            return Err(format!(
                "BOS or EOS is {id}; allowed: ids under the vocabulary's {}",
                c.vocab_size
            ));
        }
    }
    scaling(&c.rope.scaling)
}

fn scaling(scaling: &RopeScaling) -> Result<(), String> {
    let (factor, valid) = match *scaling {
        RopeScaling::None => (1.0, true),
        RopeScaling::Linear { factor } | RopeScaling::Ntk { factor } => (factor, true),
        RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast,
            beta_slow,
            attention_factor,
        } => {
            let betas = beta_slow.is_finite() && beta_slow > 0.0 && beta_fast.is_finite();
            let attention = attention_factor.is_none_or(|a| a.is_finite() && a > 0.0);
            (
                factor,
                original_max_positions > 0 && betas && beta_fast > beta_slow && attention,
            )
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_positions,
        } => (
            factor,
            original_max_positions > 0 && low > 0.0 && high > low && high.is_finite(),
        ),
    };
    if valid && factor.is_finite() && factor >= 1.0 {
        return Ok(());
    }
    Err(format!(
        "RoPE scaling is {scaling:?}; allowed: finite positive parameters, a factor of at least 1"
    ))
}
