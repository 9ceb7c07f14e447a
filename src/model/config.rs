//! What a model file says about the model.

use crate::error::{Error, Result};
use crate::kernels::rope::RopeConfig;
use crate::kernels::sparse::{BLOCK_SIZES, Pattern};
use crate::model::LayerSparsity;

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
    /// Which weights each layer leaves unread; empty for none.
    pub sparsity: Vec<LayerSparsity>,
}

impl LlamaConfig {
    /// The attention of a layer.
    pub fn layer_attention(&self, layer: usize) -> &LayerAttention {
        self.attention.get(layer).unwrap_or(&LayerAttention::Full)
    }

    /// Which weights a layer leaves unread.
    pub fn layer_sparsity(&self, layer: usize) -> LayerSparsity {
        self.sparsity.get(layer).copied().unwrap_or_default()
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

/// Hyper-parameters of a Hyena decoder (RMSNorm, Hyena operator of order 2, SwiGLU; arXiv 2302.10866).
#[derive(Clone, Debug, PartialEq)]
pub struct HyenaConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream: the channels of the long convolution.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Longest context the model was made for: what the filters' positions are relative to.
    pub max_positions: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Taps of the short convolution, 1 to [`MAX_SHORT_FILTER`](Self::MAX_SHORT_FILTER).
    pub short_filter: usize,
    /// The implicit filters.
    pub filter: FilterConfig,
    /// Whether the output projection is the embedding table.
    pub tie_word_embeddings: bool,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_token_ids: Vec<u32>,
}

impl HyenaConfig {
    /// Most taps of the short convolution.
    pub const MAX_SHORT_FILTER: usize = 16;
}

/// The MLP that gives an implicit filter's taps: features of the position, layers of sines, one output a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FilterConfig {
    /// Features of a position: its share of the context, and a cosine and a sine for every frequency. Odd.
    pub features: usize,
    /// Width of the layers of sines.
    pub width: usize,
    /// Layers of sines after the first.
    pub inner_layers: usize,
    /// What the sines' arguments are multiplied by.
    pub sine_frequency: f64,
}

/// Hyper-parameters of any model that a file may hold.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelConfig {
    /// Attention.
    Llama(LlamaConfig),
    /// Long convolutions.
    Hyena(HyenaConfig),
}

macro_rules! of_either {
    ($self:ident, $c:ident => $value:expr) => {
        match $self {
            Self::Llama($c) => $value,
            Self::Hyena($c) => $value,
        }
    };
}

impl ModelConfig {
    /// What a Llama has.
    ///
    /// # Errors
    /// [`Error::Argument`] for another architecture.
    pub fn llama(&self) -> Result<&LlamaConfig> {
        match self {
            Self::Llama(config) => Ok(config),
            Self::Hyena(_) => Err(Error::argument("architecture", self.name(), "Llama")),
        }
    }

    /// What a Hyena has.
    ///
    /// # Errors
    /// [`Error::Argument`] for another architecture.
    pub fn hyena(&self) -> Result<&HyenaConfig> {
        match self {
            Self::Hyena(config) => Ok(config),
            Self::Llama(_) => Err(Error::argument("architecture", self.name(), "Hyena")),
        }
    }

    /// The architecture's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Llama(_) => "Llama",
            Self::Hyena(_) => "Hyena",
        }
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        of_either!(self, c => c.vocab_size)
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        of_either!(self, c => c.layers)
    }

    /// Longest context the model was made for.
    pub fn max_positions(&self) -> usize {
        of_either!(self, c => c.max_positions)
    }

    /// Beginning-of-sequence token.
    pub fn bos_token_id(&self) -> Option<u32> {
        of_either!(self, c => c.bos_token_id)
    }

    /// Tokens that end a text; may be empty.
    pub fn eos_token_ids(&self) -> &[u32] {
        of_either!(self, c => &c.eos_token_ids)
    }

    /// Whether the output projection is the embedding table.
    pub fn tie_word_embeddings(&self) -> bool {
        of_either!(self, c => c.tie_word_embeddings)
    }
}
