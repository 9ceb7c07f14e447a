//! The keys and values of the tokens seen so far.
//!
//! A layer that is sparse keeps only blocks that some later query of a head meets: its layout says for every block when
//! the last one comes, and so, before the first token, in which page each block goes.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::kernels::attention::{KvFormat, KvLayout, KvStore};
use crate::kernels::sparse::{Pattern, SparseLayout};
use crate::model::LlamaConfig;
use crate::tensor::Tensor;

/// Keys and values of every layer on the device: `[kv_heads, capacity, head_dim]` each, in a [`KvFormat`], or pages of
/// blocks.
pub struct KvCache {
    layers: Vec<CachedLayer>,
    len: usize,
    capacity: usize,
    /// Bytes if nothing were dropped.
    full_bytes: u64,
    /// Tokens that may be forgotten after a block was dropped.
    reach: usize,
    /// The most tokens that were in it since it was empty.
    longest: usize,
}

impl KvCache {
    /// Room for `capacity` tokens in `format`, for passes over at most `chunk` of them. Layers that drop blocks take f32, f16
    /// or bf16.
    pub fn new(
        ctx: &Context,
        config: &LlamaConfig,
        capacity: usize,
        format: KvFormat,
        chunk: usize,
    ) -> Result<Self> {
        let full = [config.kv_heads, capacity, config.head_dim];
        let stored = KvLayout::new(format, 1, config.kv_heads, capacity, config.head_dim)?;
        let dtype = format.float();
        let mut layouts: Vec<(Pattern, SparseLayout)> = Vec::new();
        let mut layers = Vec::with_capacity(config.layers);
        for i in 0..config.layers {
            let sparse = sparse_layout(config, i, capacity, chunk, &mut layouts)?;
            let memory = match (dtype, sparse.as_ref().and_then(|s| Some((s, s.pages()?)))) {
                (Some(dtype), pages) => {
                    let shape = match pages {
                        Some((s, pages)) => [1, pages.total_pages() * s.block(), config.head_dim],
                        None => full,
                    };
                    let tensor = || Tensor::empty(ctx, dtype, shape);
                    Memory::Tensors(tensor()?, tensor()?)
                }
                (None, None) => {
                    let store = || KvStore::empty(ctx, stored);
                    Memory::Coded(store()?, store()?)
                }
                (None, Some(_)) => {
                    let allowed = "f32, f16 or bf16 for layers that drop blocks";
                    return Err(Error::argument("kv", format, allowed));
                }
            };
            layers.push(CachedLayer { memory, sparse });
        }
        let of_layer = match dtype {
            Some(dtype) => 2 * (full.iter().product::<usize>() * dtype.size()) as u64,
            None => 2 * stored.bytes(),
        };
        Ok(Self {
            layers,
            len: 0,
            capacity,
            full_bytes: config.layers as u64 * of_layer,
            reach: chunk,
            longest: 0,
        })
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.layers
            .iter()
            .map(|l| match &l.memory {
                Memory::Tensors(keys, values) => keys.layout().bytes() + values.layout().bytes(),
                Memory::Coded(keys, values) => keys.layout().bytes() + values.layout().bytes(),
            })
            .sum()
    }

    /// Bytes that a cache of as many tokens takes which drops nothing.
    pub fn full_bytes(&self) -> u64 {
        self.full_bytes
    }

    /// Bytes that sparse layers save.
    pub fn saved_bytes(&self) -> u64 {
        self.full_bytes.saturating_sub(self.bytes())
    }

    pub(crate) fn layer(&self, layer: usize) -> &CachedLayer {
        &self.layers[layer]
    }

    /// Forgets all tokens from `len` on.
    ///
    /// Errors where sparse layers have dropped keys that tokens from `len` on meet: they may forget all tokens, or as many
    /// of the last as go through the model at a time.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        let drops = self.layers.iter().any(|l| l.sparse.is_some());
        if drops && len > 0 && len + self.reach < self.longest {
            return Err(Error::argument(
                "len",
                format!("{len} of {} tokens", self.longest),
                format!(
                    "0, or {} on: sparse layers drop keys",
                    self.longest - self.reach
                ),
            ));
        }
        self.len = self.len.min(len);
        if self.len == 0 {
            self.longest = 0;
        }
        Ok(())
    }

    /// Errors unless `tokens` more fit.
    pub(crate) fn require_room(&self, tokens: usize) -> Result<()> {
        if self.len + tokens <= self.capacity {
            return Ok(());
        }
        Err(Error::argument(
            "tokens",
            format!("{tokens} more after {}", self.len),
            format!("{} in all, the capacity of the KV cache", self.capacity),
        ))
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        self.longest = self.longest.max(self.len);
    }
}

/// One layer's keys and values.
pub(crate) struct CachedLayer {
    memory: Memory,
    sparse: Option<SparseLayout>,
}

/// Keys and values.
pub(crate) enum Memory {
    /// Floating-point numbers, `[kv_heads, capacity, head_dim]`, or pages `[1, pages * block, head_dim]`.
    Tensors(Tensor, Tensor),
    /// In a format of their own, a page of all tokens.
    Coded(KvStore, KvStore),
}

/// The layout of a layer with the pages of its cache; one for all layers that are alike.
fn sparse_layout(
    config: &LlamaConfig,
    layer: usize,
    capacity: usize,
    chunk: usize,
    made: &mut Vec<(Pattern, SparseLayout)>,
) -> Result<Option<SparseLayout>> {
    let Some((pattern, block)) = config.layer_pattern(layer) else {
        return Ok(None);
    };
    if let Some((_, layout)) = made
        .iter()
        .find(|(p, l)| *p == pattern && l.block() == block)
    {
        return Ok(Some(layout.clone()));
    }
    let heads = if pattern.is_alike() { 1 } else { config.heads };
    let layout = SparseLayout::builder(heads, capacity, capacity)
        .block(block)
        .pattern(&pattern)?
        .resident(config.kv_heads, chunk)?;
    made.push((pattern, layout.clone()));
    Ok(Some(layout))
}

impl CachedLayer {
    /// The blocks that its queries meet, and the pages of its keys, if not all.
    pub(crate) fn sparse(&self) -> Option<&SparseLayout> {
        self.sparse.as_ref()
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }
}

/// Pages of a layer, `[1, 1, pages * block, head_dim]`, of its tensor.
pub(crate) fn pages(of: &Tensor) -> Result<Tensor> {
    of.reshape([&[1], of.shape()].concat())
}

/// The first `len` positions, `[1, kv_heads, len, head_dim]`, of a layer's tensor.
pub(crate) fn first(of: &Tensor, len: usize) -> Result<Tensor> {
    pages(of)?.narrow(2, 0..len)
}
