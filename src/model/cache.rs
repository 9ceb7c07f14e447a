//! The keys and values of the tokens seen so far.

use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::LlamaConfig;
use crate::tensor::Tensor;

/// Keys and values of every layer, `[1, kv_heads, capacity, head_dim]` each, on the device.
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// Room for `capacity` tokens, in `dtype` (f32, f16 or bf16).
    pub fn new(ctx: &Context, config: &LlamaConfig, capacity: usize, dtype: DType) -> Result<Self> {
        if !dtype.is_float() {
            return Err(Error::argument("kv dtype", dtype, "f32, f16 or bf16"));
        }
        let shape = [1, config.kv_heads, capacity, config.head_dim];
        let layer = |_| {
            Ok((
                Tensor::empty(ctx, dtype, shape)?,
                Tensor::empty(ctx, dtype, shape)?,
            ))
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self {
            layers,
            len: 0,
            capacity,
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
            .map(|(k, v)| k.layout().bytes() + v.layout().bytes())
            .sum()
    }

    /// Keys and values of a layer, the whole capacity.
    pub(crate) fn layer(&self, layer: usize) -> (&Tensor, &Tensor) {
        let (k, v) = &self.layers[layer];
        (k, v)
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
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
    }
}
