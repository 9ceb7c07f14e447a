//! The keys and values of the tokens seen so far.

use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::LlamaConfig;
use crate::tensor::Tensor;

/// Keys and values of every layer, `[kv_heads, capacity, head_dim]` each, on the device.
pub struct KvCache {
    layers: Vec<CachedLayer>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// Room for `capacity` tokens, in `dtype` (f32, f16 or bf16).
    pub fn new(ctx: &Context, config: &LlamaConfig, capacity: usize, dtype: DType) -> Result<Self> {
        if !dtype.is_float() {
            return Err(Error::argument("kv dtype", dtype, "f32, f16 or bf16"));
        }
        let shape = [config.kv_heads, capacity, config.head_dim];
        let layer = |_| -> Result<CachedLayer> {
            Ok(CachedLayer {
                keys: Tensor::empty(ctx, dtype, shape)?,
                values: Tensor::empty(ctx, dtype, shape)?,
            })
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
            .map(|l| l.keys.layout().bytes() + l.values.layout().bytes())
            .sum()
    }

    pub(crate) fn layer(&self, layer: usize) -> &CachedLayer {
        &self.layers[layer]
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

/// One layer's keys and values.
pub(crate) struct CachedLayer {
    keys: Tensor,
    values: Tensor,
}

impl CachedLayer {
    /// The keys, `[kv_heads, capacity, head_dim]`.
    pub(crate) fn keys(&self) -> &Tensor {
        &self.keys
    }

    /// The values, `[kv_heads, capacity, head_dim]`.
    pub(crate) fn values(&self) -> &Tensor {
        &self.values
    }

    /// Keys and values of the first `len` positions, `[1, kv_heads, len, head_dim]`.
    pub(crate) fn first(&self, len: usize) -> Result<(Tensor, Tensor)> {
        let part = |t: &Tensor| {
            let &[heads, capacity, dim] = t.shape() else {
                return Err(Error::argument(
                    "cache",
                    format!("{t:?}"),
                    "three dimensions",
                ));
            };
            t.reshape([1, heads, capacity, dim])?.narrow(2, 0..len)
        };
        Ok((part(&self.keys)?, part(&self.values)?))
    }
}
