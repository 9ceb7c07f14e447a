//! Whether a config makes sense, and whether the tensors are those it calls for.

use std::collections::BTreeSet;

use super::{Parsed, near};
use crate::error::{Error, Result};
use crate::kernels::rope::RopeScaling;
use crate::model::{HyenaConfig, LlamaConfig, ModelConfig};

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
        let what = match &parsed.config {
            ModelConfig::Llama(c) => format!("Llama of {} layers without biases", c.layers),
            ModelConfig::Hyena(c) => format!("Hyena of {} layers", c.layers),
        };
        return fail(format!(
            "tensor {name} {:?} is no part of a {what}",
            entry.shape
        ));
    }
    Ok(())
}

/// Every tensor of a model, with its shape.
fn tensors_of(config: &ModelConfig) -> Box<dyn Iterator<Item = (String, Vec<usize>)> + '_> {
    match config {
        ModelConfig::Llama(c) => Box::new(tensors_of_llama(c)),
        ModelConfig::Hyena(c) => Box::new(tensors_of_hyena(c)),
    }
}

fn tensors_of_llama(c: &LlamaConfig) -> impl Iterator<Item = (String, Vec<usize>)> {
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

fn tensors_of_hyena(c: &HyenaConfig) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (hidden, mlp, f) = (c.hidden_size, c.intermediate_size, c.filter);
    let head =
        (!c.tie_word_embeddings).then(|| ("lm_head.weight".to_owned(), vec![c.vocab_size, hidden]));
    let layers = (0..c.layers).flat_map(move |i| {
        let blocks = [
            ("input_layernorm.weight", vec![hidden]),
            ("hyena.in_proj.weight", vec![3 * hidden, hidden]),
            (
                "hyena.short_filter.weight",
                vec![3 * hidden, c.short_filter],
            ),
            ("hyena.short_filter.bias", vec![3 * hidden]),
            ("hyena.filter.out.weight", vec![hidden, f.width]),
            ("hyena.filter.decay", vec![hidden]),
            ("hyena.skip", vec![hidden]),
            ("hyena.out_proj.weight", vec![hidden, hidden]),
            ("post_hyena_layernorm.weight", vec![hidden]),
            ("mlp.gate_proj.weight", vec![mlp, hidden]),
            ("mlp.up_proj.weight", vec![mlp, hidden]),
            ("mlp.down_proj.weight", vec![hidden, mlp]),
        ]
        .map(|(part, shape)| (part.to_owned(), shape));
        let sines = (0..=f.inner_layers).flat_map(move |j| {
            let inputs = if j == 0 { f.features } else { f.width };
            [("weight", vec![f.width, inputs]), ("bias", vec![f.width])]
                .map(|(part, shape)| (format!("hyena.filter.layers.{j}.{part}"), shape))
        });
        blocks
            .into_iter()
            .chain(sines)
            .map(move |(part, shape)| (format!("model.layers.{i}.{part}"), shape))
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
pub(super) fn config(config: &ModelConfig) -> Result<(), String> {
    match config {
        ModelConfig::Llama(c) => llama(c),
        ModelConfig::Hyena(c) => hyena(c),
    }
}

fn token_ids(vocab_size: usize, bos: Option<u32>, eos: &[u32]) -> Result<(), String> {
    match bos.iter().chain(eos).find(|id| **id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => Err(format!(
            "BOS or EOS is {id}; allowed: ids under the vocabulary's {vocab_size}"
        )),
    }
}

/// Errors unless every size is at least 1, and with headroom in 32 bits.
fn sizes(named: &[(&str, usize)]) -> Result<(), String> {
    const MAX: usize = i32::MAX as usize;
    match named.iter().find(|(_, value)| !(1..=MAX).contains(value)) {
        None => Ok(()),
        Some((name, value)) => Err(format!("{name} is {value}; allowed: 1 to {MAX}")),
    }
}

fn epsilon(eps: f32) -> Result<(), String> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(format!(
        "the norm's epsilon is {eps}; allowed: finite, not negative"
    ))
}

fn hyena(c: &HyenaConfig) -> Result<(), String> {
    let f = &c.filter;
    sizes(&[
        ("vocab_size", c.vocab_size),
        ("hidden_size", c.hidden_size),
        ("three times hidden_size", c.hidden_size.saturating_mul(3)),
        ("intermediate_size", c.intermediate_size),
        ("layers", c.layers),
        ("max_positions", c.max_positions),
        ("filter_order", f.width),
        ("filter_emb_dim", f.features),
    ])?;
    if !(1..=HyenaConfig::MAX_SHORT_FILTER).contains(&c.short_filter) {
        return Err(format!(
            "short_filter_size is {}; allowed: 1 to {}",
            c.short_filter,
            HyenaConfig::MAX_SHORT_FILTER
        ));
    }
    if f.features.is_multiple_of(2) {
        return Err(format!(
            "filter_emb_dim is {}; allowed: an odd number",
            f.features
        ));
    }
    if f.inner_layers > 64 {
        return Err(format!(
            "filter_inner_layers is {}; allowed: 0 to 64",
            f.inner_layers
        ));
    }
    if !(f.sine_frequency.is_finite() && f.sine_frequency > 0.0) {
        return Err(format!(
            "filter_sine_frequency is {}; allowed: positive",
            f.sine_frequency
        ));
    }
    token_ids(c.vocab_size, c.bos_token_id, &c.eos_token_ids)?;
    epsilon(c.norm_eps)
}

pub(super) fn llama(c: &LlamaConfig) -> Result<(), String> {
    sizes(&[
        ("vocab_size", c.vocab_size),
        ("hidden_size", c.hidden_size),
        ("intermediate_size", c.intermediate_size),
        ("layers", c.layers),
        ("heads", c.heads),
        ("kv_heads", c.kv_heads),
        ("head_dim", c.head_dim),
        ("max_positions", c.max_positions),
        ("heads times head_dim", c.heads.saturating_mul(c.head_dim)),
    ])?;
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
    token_ids(c.vocab_size, c.bos_token_id, &c.eos_token_ids)?;
    epsilon(c.norm_eps)?;
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
