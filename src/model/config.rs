//! What a model file says about the model.

use crate::error::{Error, Result};
use crate::kernels::rope::RopeConfig;
use crate::kernels::sparse::{BLOCK_SIZES, Pattern};

/// Which keys the queries of a layer meet.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum LayerAttention {
    /// All up to their own.
    #[default]
    Full,
    /// Those of listed blocks. The cache of such a layer keeps only what some later query meets.
    Sparse {
        /// Which blocks; sizes in blocks. S2's shards move on from layer to layer (see [`Pattern::for_layer`]).
        pattern: Pattern,
        /// Tokens of a block: 16, 32, 64 or 128.
        block: usize,
    },
}

impl LayerAttention {
    /// LongGen's hybrid (arXiv 2410.01485) for a stack of `layers`: the middle third full, the others of `pattern`.
    pub fn hybrid(layers: usize, pattern: &Pattern, block: usize) -> Vec<Self> {
        let full = layers.div_ceil(3);
        let first = (layers - full) / 2;
        let layer = |i| match (first..first + full).contains(&i) {
            true => Self::Full,
            false => Self::Sparse {
                pattern: pattern.clone(),
                block,
            },
        };
        (0..layers).map(layer).collect()
    }
}

/// Hyper-parameters of a Llama-family decoder (RMSNorm, RoPE, grouped-query attention, SwiGLU).
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Longest context the model was made for.
    pub max_positions: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// Each layer's attention; empty for full in all.
    pub attention: Vec<LayerAttention>,
}

impl LlamaConfig {
    /// The attention of a layer.
    pub fn layer_attention(&self, layer: usize) -> &LayerAttention {
        self.attention.get(layer).unwrap_or(&LayerAttention::Full)
    }

    /// The pattern of a sparse layer, and the tokens of its blocks.
    pub(crate) fn layer_pattern(&self, layer: usize) -> Option<(Pattern, usize)> {
        let LayerAttention::Sparse { pattern, block } = self.layer_attention(layer) else {
            return None;
        };
        // Of the layers before, those that are sparse have taken their shards.
        let before = (0..layer).filter(|&l| *self.layer_attention(l) != LayerAttention::Full);
        Some((pattern.for_layer(before.count(), self.heads), *block))
    }

    /// Errors unless `attention` is empty or has an entry for each layer, with block sizes that there are.
    pub(crate) fn check_attention(&self) -> Result<()> {
        if !self.attention.is_empty() && self.attention.len() != self.layers {
            return Err(Error::argument(
                "attention",
                format!("{} layers", self.attention.len()),
                format!("none, or the model's {}", self.layers),
            ));
        }
        for layer in &self.attention {
            if let LayerAttention::Sparse { block, .. } = layer
                && !BLOCK_SIZES.contains(block)
            {
                return Err(Error::argument(
                    "attention block",
                    block,
                    "16, 32, 64 or 128",
                ));
            }
        }
        Ok(())
    }
}
