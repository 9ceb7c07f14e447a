//! What a layer does between its products: queries and keys rotated, keys and values into the cache, attention over it.

use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::kernels::attention::{
    Attention, AttentionArgs, AttentionPlan, Blocks, CacheArgs, KvStore, Mask, Tokens,
};
use crate::kernels::rope::{FusedQkv, FusedQkvArgs, Positions, RopeOut, RopeTable};
use crate::kernels::sparse::SparseLayout;
use crate::model::LlamaConfig;
use crate::model::cache::{CachedLayer, Memory, first, pages};
use crate::recipe::Launch;
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// The tensors of a step, the same for all layers.
pub(crate) struct Attend<'a> {
    rope: &'a RopeTable,
    /// [tokens, (heads + 2 kv_heads) * head_dim].
    qkv: &'a Tensor,
    /// [tokens, heads, head_dim].
    q_rows: Tensor,
    /// [1, heads, tokens, head_dim].
    q: Tensor,
    out: Tensor,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    start: usize,
    end: usize,
}

/// The dispatches of layers whose caches are alike.
pub(crate) struct AttendPlan<'a> {
    sparse: Option<&'a SparseLayout>,
    /// What writes to tensors; caches in formats of their own take it apart.
    rotate: Option<Launch>,
    attention: AttentionPlan,
}

impl AttendPlan<'_> {
    /// Whether they are those of a layer.
    pub(crate) fn serves(&self, layer: &CachedLayer) -> bool {
        match (self.sparse, layer.sparse()) {
            (None, None) => true,
            (Some(a), Some(b)) => a.is(b),
            _ => false,
        }
    }
}

impl<'a> Attend<'a> {
    /// Queries from `qkv`, rotated into `q`, and the result into `out`, [tokens, heads * head_dim], after `start` tokens.
    pub(crate) fn new(
        rope: &'a RopeTable,
        [qkv, q, out]: [&'a Tensor; 3],
        config: &LlamaConfig,
        start: usize,
    ) -> Result<Self> {
        let (n, heads, head_dim) = (qkv.shape()[0], config.heads, config.head_dim);
        let as_heads = |t: &Tensor| t.reshape([1, n, heads, head_dim])?.transpose(1, 2);
        Ok(Self {
            rope,
            qkv,
            q: as_heads(q)?,
            out: as_heads(out)?,
            q_rows: q.split_heads(heads)?,
            heads,
            kv_heads: config.kv_heads,
            head_dim,
            start,
            end: start + n,
        })
    }

    fn fused<'t>(&'t self, keys: &'t Tensor, values: &'t Tensor) -> FusedQkvArgs<&'t Tensor> {
        FusedQkvArgs {
            qkv: self.qkv,
            q_out: RopeOut::Into(&self.q_rows),
            k_cache: keys,
            v_cache: values,
        }
    }

    fn rotate(&self) -> FusedQkv {
        FusedQkv {
            heads: self.heads,
            kv_heads: self.kv_heads,
            start: self.start,
        }
    }

    /// `count` heads of `qkv` from `first` on, [1, heads, tokens, head_dim].
    fn part(&self, first: usize, count: usize) -> Result<Tensor> {
        let all = self.heads + 2 * self.kv_heads;
        self.qkv
            .reshape([1, self.end - self.start, all, self.head_dim])?
            .narrow(2, first..first + count)?
            .transpose(1, 2)
    }

    /// Queries, in `qkv`, and caches in formats of their own.
    fn over<'t>(&'t self, q: &'t Tensor, [keys, values]: [&'t KvStore; 2]) -> CacheArgs<'t> {
        CacheArgs {
            q,
            keys,
            values,
            tokens: Tokens::Contiguous(self.end),
            order: None,
            slopes: None,
            sink_logits: None,
            out: &self.out,
            lse: None,
        }
    }

    /// Plans what touches the cache of a layer.
    pub(crate) fn plan<'l>(
        &self,
        caps: &Capabilities,
        layer: &'l CachedLayer,
    ) -> Result<AttendPlan<'l>> {
        let causal = Attention::new(Mask::Causal);
        let (rotate, attention) = match (layer.memory(), layer.sparse()) {
            (Memory::Coded(keys, values), _) => {
                let q = self.part(0, self.heads)?;
                let over = self.over(&q, [keys, values]);
                (None, causal.plan_cached(caps, over.layouts())?)
            }
            (Memory::Tensors(keys, values), None) => {
                let (k, v) = (first(keys, self.end)?, first(values, self.end)?);
                let over = AttentionArgs::new(&self.q, &k, &v, &self.out);
                let args = self.fused(keys, values);
                let rotate = self
                    .rotate()
                    .plan(caps, self.rope.rope(), &args.layouts())?;
                (Some(rotate), causal.plan(caps, over.layouts())?)
            }
            (Memory::Tensors(keys, values), Some(layout)) => {
                let (k, v) = (pages(keys)?, pages(values)?);
                let over = AttentionArgs {
                    sparse: Some(Blocks::Pages {
                        layout,
                        keys: self.end,
                    }),
                    ..AttentionArgs::new(&self.q, &k, &v, &self.out)
                };
                let args = self.fused(keys, values).layouts();
                let rotate = self
                    .rotate()
                    .plan_pages(caps, self.rope.rope(), &args, layout)?;
                (Some(rotate), causal.plan(caps, over.layouts())?)
            }
        };
        Ok(AttendPlan {
            sparse: layer.sparse(),
            rotate,
            attention,
        })
    }

    /// Records what was planned for a layer like this one.
    pub(crate) fn launch(
        &self,
        pass: &mut Pass<'_>,
        plan: &AttendPlan<'_>,
        layer: &CachedLayer,
    ) -> Result<()> {
        match (layer.memory(), &plan.rotate) {
            (Memory::Coded(keys, values), _) => {
                let (heads, kv_heads) = (self.heads, self.kv_heads);
                let turning = self
                    .qkv
                    .narrow(1, 0..(heads + kv_heads) * self.head_dim)?
                    .split_heads(heads + kv_heads)?;
                let from = Positions::From(self.start);
                self.rope.run(pass, &turning, from, RopeOut::InPlace)?;
                let tokens = Tokens::Contiguous(self.end);
                keys.append(pass, &self.part(heads, kv_heads)?, tokens, None)?;
                values.append(pass, &self.part(heads + kv_heads, kv_heads)?, tokens, None)?;
                let q = self.part(0, heads)?;
                let over = self.over(&q, [keys, values]);
                plan.attention.launch_cached(pass, over)
            }
            (Memory::Tensors(keys, values), Some(rotate)) => {
                let mut over = AttentionArgs::new(&self.q, keys, values, &self.out);
                let args = self.fused(keys, values);
                match layer.sparse() {
                    None => args.launch(pass, self.rope, rotate)?,
                    Some(layout) => {
                        args.launch_pages(pass, self.rope, rotate, layout)?;
                        over.sparse = Some(Blocks::Pages {
                            layout,
                            keys: self.end,
                        });
                    }
                }
                plan.attention.launch(pass, over)
            }
            // Plans are made for layers like this one.
            (Memory::Tensors(..), None) => Ok(()),
        }
    }
}
