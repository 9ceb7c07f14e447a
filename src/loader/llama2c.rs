//! llama2.c checkpoints, version 0 (the `.bin` that run.c reads): seven little-endian i32 (dim, hidden_dim,
//! n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative vocab_size says that the output projection
//! is stored separately), then all weights as f32, kind by kind, each for all layers. RoPE is on interleaved
//! pairs with base 10000; BOS is 1 and EOS 2, as in run.c.

use std::collections::BTreeMap;

use super::source::Blob;
use super::tensor::Stored;
use super::tokenizer::Tokenizer;
use super::{Entry, Parsed, check};
use crate::error::Result;
use crate::kernels::rope::{RopeConfig, RopeLayout, RopeScaling};
use crate::model::{LlamaConfig, ModelConfig};

/// First word of the later versions ("ak42"), which run.c does not read either.
const VERSIONED: u32 = 0x616b_3432;

pub(super) fn load(blob: Blob, tokenizer: Option<Blob>) -> Result<Parsed> {
    let config = header(&blob)?;
    check::llama(&config).map_err(|message| blob.error(message))?;
    let tensors = layout(&blob, &config)?;
    let tokenizer = tokenizer
        .map(|blob| Tokenizer::parse(&blob, config.vocab_size))
        .transpose()?;
    Ok(Parsed {
        path: blob.path.clone(),
        config: ModelConfig::Llama(config),
        tensors,
        files: vec![blob],
        tokenizer,
    })
}

fn header(blob: &Blob) -> Result<LlamaConfig> {
    if blob.is_empty() {
        return Err(blob.error("the file is empty; expected a model"));
    }
    let mut reader = blob.reader();
    if reader.clone().u32("the header")? == VERSIONED {
        return Err(blob.error("a llama2.c checkpoint of version 1 or later; allowed: version 0"));
    }
    let mut field = |name: &str| -> Result<usize> {
        let at = reader.clone();
        let value = reader.i32(name)?;
        usize::try_from(value)
            .ok()
            .filter(|&v| v > 0)
            .ok_or_else(|| {
                at.error(format_args!(
                    "{name} is {value}; expected a llama2.c checkpoint, with a positive one"
                ))
            })
    };
    let hidden_size = field("dim")?;
    let intermediate_size = field("hidden_dim")?;
    let layers = field("n_layers")?;
    let heads = field("n_heads")?;
    let kv_heads = field("n_kv_heads")?;
    let vocab_size = reader.i32("vocab_size")?;
    let max_positions = reader.i32("seq_len")?;
    let head_dim = check::whole_heads(hidden_size, heads).map_err(|message| blob.error(message))?;
    Ok(LlamaConfig {
        vocab_size: vocab_size.unsigned_abs() as usize,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        max_positions: usize::try_from(max_positions).unwrap_or(0),
        norm_eps: 1e-5,
        rope: RopeConfig {
            theta: 10000.0,
            dims: head_dim,
            layout: RopeLayout::Interleaved,
            scaling: RopeScaling::None,
        },
        attention: Vec::new(),
        sparsity: Vec::new(),
        tie_word_embeddings: vocab_size > 0,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    })
}

/// Where each tensor lies. The file's length must be what the header makes it.
fn layout(blob: &Blob, c: &LlamaConfig) -> Result<BTreeMap<String, Entry>> {
    let (dim, hidden) = (c.hidden_size, c.intermediate_size);
    let kv = c.kv_heads * c.head_dim;
    let per_layer: [(&str, &[usize]); 9] = [
        ("input_layernorm", &[dim]),
        ("self_attn.q_proj", &[dim, dim]),
        ("self_attn.k_proj", &[kv, dim]),
        ("self_attn.v_proj", &[kv, dim]),
        ("self_attn.o_proj", &[dim, dim]),
        ("post_attention_layernorm", &[dim]),
        ("mlp.gate_proj", &[hidden, dim]),
        ("mlp.down_proj", &[dim, hidden]),
        ("mlp.up_proj", &[hidden, dim]),
    ];
    // The tables of RoPE's cosines and sines, which run.c skips as well.
    let tables = [c.max_positions, c.head_dim];
    let head: &[usize] = if c.tie_word_embeddings {
        &[0]
    } else {
        &[c.vocab_size, dim]
    };

    // Sizes first, in 128 bits: a header can ask for anything.
    let size = |shape: &[usize]| {
        shape
            .iter()
            .fold(4, |n: u128, &d| n.saturating_mul(d as u128))
    };
    let layer = per_layer.iter().map(|(_, shape)| size(shape)).sum::<u128>();
    let ends = [&[c.vocab_size, dim][..], &[dim], &tables, head];
    let expected =
        28 + layer * c.layers as u128 + ends.iter().map(|shape| size(shape)).sum::<u128>();
    if expected != blob.len() as u128 {
        return Err(blob.error(format!(
            "the file has {} bytes; its header (dim {dim}, hidden_dim {hidden}, n_layers {}, n_heads {}, \
             n_kv_heads {}, vocab_size {}{}, seq_len {}) makes {expected}",
            blob.len(),
            c.layers,
            c.heads,
            c.kv_heads,
            c.vocab_size,
            if c.tie_word_embeddings { "" } else { ", untied" },
            c.max_positions,
        )));
    }

    // From here on every product is at most the file's length.
    let mut at = 28;
    let mut tensors = BTreeMap::new();
    let mut place = |name: String, shape: &[usize]| {
        let end = at + 4 * shape.iter().product::<usize>();
        tensors.insert(
            name,
            Entry {
                stored: Stored::F32,
                shape: shape.to_vec(),
                file: 0,
                range: at..end,
            },
        );
        at = end;
    };
    place("model.embed_tokens.weight".into(), &[c.vocab_size, dim]);
    for (name, shape) in per_layer {
        for i in 0..c.layers {
            place(format!("model.layers.{i}.{name}.weight"), shape);
        }
    }
    place("model.norm.weight".into(), &[dim]);
    if !c.tie_word_embeddings {
        place("rope tables".into(), &tables);
        place("lm_head.weight".into(), head);
        tensors.remove("rope tables");
    }
    Ok(tensors)
}
