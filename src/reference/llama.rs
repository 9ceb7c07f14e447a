//! A whole Llama on the CPU, token by token, generic over the arithmetic.

use super::Real;
use super::elementwise::combine;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::attention::{KvFormat, KvLayout};
use crate::kernels::elementwise::{Activation, BinaryOp};
use crate::kernels::rope::RopeLayout;
use crate::kernels::sparse::SparseLayout;
use crate::loader::Weights;
use crate::model::{LayerAttention, LlamaConfig};
use crate::reference::kv::{decode, encode};
use crate::reference::widen_as;

/// A Llama in host memory. Weights and cache entries are rounded to `storage` and then widened, as a device
/// model that stores them so sees them.
pub struct Llama<R> {
    config: LlamaConfig,
    /// How a head's keys, and values, of a position are cached.
    row: KvLayout,
    frequencies: Vec<f64>,
    embedding: Vec<R>,
    layers: Vec<Layer<R>>,
    norm: Vec<R>,
    head: Vec<R>,
    /// Keys and values by layer, position by position, `kv_heads * head_dim` each.
    cache: Vec<(Vec<R>, Vec<R>)>,
    position: usize,
    /// What the queries of sparse layers meet, by layer.
    layouts: Vec<Option<SparseLayout>>,
}

struct Layer<R> {
    attention_norm: Vec<R>,
    q: Vec<R>,
    k: Vec<R>,
    v: Vec<R>,
    output: Vec<R>,
    mlp_norm: Vec<R>,
    gate: Vec<R>,
    up: Vec<R>,
    down: Vec<R>,
}

impl<R: Real> Llama<R> {
    /// The model of these weights. RoPE must be unscaled.
    pub fn new(weights: &Weights, storage: DType) -> Result<Self> {
        let config = weights.config().llama()?.clone();
        let matrix = |name: &str| -> Result<Vec<R>> {
            Ok(widen_as(
                &weights.tensor(&format!("{name}.weight"))?.to_f32()?,
                storage,
            ))
        };
        // Norm weights stay f32 on the device.
        let vector = |name: &str| -> Result<Vec<R>> {
            Ok(widen_as(
                &weights.tensor(&format!("{name}.weight"))?.to_f32()?,
                DType::F32,
            ))
        };
        let layer = |i: usize| -> Result<Layer<R>> {
            let of = |part: &str| format!("model.layers.{i}.{part}");
            Ok(Layer {
                attention_norm: vector(&of("input_layernorm"))?,
                q: matrix(&of("self_attn.q_proj"))?,
                k: matrix(&of("self_attn.k_proj"))?,
                v: matrix(&of("self_attn.v_proj"))?,
                output: matrix(&of("self_attn.o_proj"))?,
                mlp_norm: vector(&of("post_attention_layernorm"))?,
                gate: matrix(&of("mlp.gate_proj"))?,
                up: matrix(&of("mlp.up_proj"))?,
                down: matrix(&of("mlp.down_proj"))?,
            })
        };
        let embedding = matrix("model.embed_tokens")?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            matrix("lm_head")?
        };
        Ok(Self {
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            norm: vector("model.norm")?,
            cache: (0..config.layers).map(|_| Default::default()).collect(),
            position: 0,
            layouts: vec![None; config.layers],
            frequencies: config.rope.frequencies(config.head_dim)?,
            row: KvLayout::new(KvFormat::of(storage)?, 1, 1, 1, config.head_dim)?,
            config,
            embedding,
            head,
        })
    }

    /// With keys and values cached in `format`.
    pub fn cache(mut self, format: KvFormat) -> Result<Self> {
        self.row = KvLayout::new(format, 1, 1, 1, self.config.head_dim)?;
        Ok(self)
    }

    /// With each layer's attention in place of the file's.
    pub fn attention(mut self, attention: Vec<LayerAttention>) -> Result<Self> {
        self.config.attention = attention;
        self.config.check_attention()?;
        let c = &self.config;
        let layout = |layer| {
            let Some((pattern, block)) = c.layer_pattern(layer) else {
                return Ok(None);
            };
            let layout = SparseLayout::builder(c.heads, c.max_positions, c.max_positions);
            layout.block(block).pattern(&pattern).map(Some)
        };
        self.layouts = (0..c.layers).map(layout).collect::<Result<_>>()?;
        Ok(self)
    }

    /// Logits after one more token.
    pub fn feed(&mut self, token: u32) -> Vec<R> {
        let c = self.config.clone();
        let (width, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let mut hidden = self.embedding[token as usize * c.hidden_size..][..c.hidden_size].to_vec();
        let layers = self.layers.iter().zip(&self.layouts).zip(&mut self.cache);
        for ((layer, layout), (keys, values)) in layers {
            let x = rms_norm(&hidden, &layer.attention_norm, c.norm_eps);
            let (mut q, mut k, v) = (
                product(&layer.q, &x),
                product(&layer.k, &x),
                product(&layer.v, &x),
            );
            debug_assert_eq!((q.len(), k.len()), (width, kv));
            rotate(&mut q, &c, &self.frequencies, self.position);
            rotate(&mut k, &c, &self.frequencies, self.position);
            keys.extend(stored(&k, &self.row));
            values.extend(stored(&v, &self.row));
            let attended = attend(&c, &q, keys, values, |head, key| {
                layout
                    .as_ref()
                    .is_none_or(|l| l.sees(head, self.position, key))
            });
            add(&mut hidden, &product(&layer.output, &attended));
            let x = rms_norm(&hidden, &layer.mlp_norm, c.norm_eps);
            let (gate, up) = (product(&layer.gate, &x), product(&layer.up, &x));
            let silu = BinaryOp::Gated(Activation::Silu);
            let gated: Vec<R> = gate
                .iter()
                .zip(&up)
                .map(|(&g, &u)| combine(silu, g, u))
                .collect();
            add(&mut hidden, &product(&layer.down, &gated));
        }
        self.position += 1;
        product(&self.head, &rms_norm(&hidden, &self.norm, c.norm_eps))
    }
}

/// What a cache makes of the heads of a position; in f32, any precision stays.
fn stored<R: Real>(x: &[R], row: &KvLayout) -> Vec<R> {
    if row.format == KvFormat::F32 {
        return x.to_vec();
    }
    let head = |head: &[R]| {
        let head: Vec<f32> = head.iter().map(|x| x.to() as f32).collect();
        decode(row, &encode(row, &head))
    };
    let all = x.chunks(row.dim).flat_map(head);
    all.map(|x| R::of(x.into())).collect()
}

pub(super) fn add<R: Real>(x: &mut [R], y: &[R]) {
    x.iter_mut().zip(y).for_each(|(x, &y)| *x = *x + y);
}

/// `weights [out, in]` times `x [in]`.
pub(super) fn product<R: Real>(weights: &[R], x: &[R]) -> Vec<R> {
    let dot = |row: &[R]| {
        row.iter()
            .zip(x)
            .fold(R::zero(), |sum, (&w, &x)| sum + w * x)
    };
    weights.chunks_exact(x.len()).map(dot).collect()
}

pub(super) fn rms_norm<R: Real>(x: &[R], weight: &[R], eps: f32) -> Vec<R> {
    let square = x.iter().fold(R::zero(), |sum, &x| sum + x * x) / R::of(x.len() as f64);
    let scale = (square + R::of(f64::from(eps))).sqrt().recip();
    x.iter().zip(weight).map(|(&x, &w)| x * scale * w).collect()
}

fn rotate<R: Real>(x: &mut [R], c: &LlamaConfig, frequencies: &[f64], position: usize) {
    let half = c.rope.dims / 2;
    for head in x.chunks_exact_mut(c.head_dim) {
        for (i, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (sin, cos) = (R::of(sin), R::of(cos));
            let (a, b) = match c.rope.layout {
                RopeLayout::HalfSplit => (i, i + half),
                RopeLayout::Interleaved => (2 * i, 2 * i + 1),
            };
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
    }
}

fn attend<R: Real>(
    c: &LlamaConfig,
    q: &[R],
    keys: &[R],
    values: &[R],
    sees: impl Fn(usize, usize) -> bool,
) -> Vec<R> {
    let (d, kv) = (c.head_dim, c.kv_heads * c.head_dim);
    let scale = R::of(d as f64).sqrt().recip();
    let mut out = Vec::with_capacity(q.len());
    for (h, q) in q.chunks_exact(d).enumerate() {
        let at = h / (c.heads / c.kv_heads) * d;
        let dot = |key: &[R]| {
            q.iter()
                .zip(&key[at..at + d])
                .fold(R::zero(), |sum, (&q, &k)| sum + q * k)
        };
        let score = |(j, key)| match sees(h, j) {
            true => dot(key) * scale,
            false => R::neg_infinity(),
        };
        let scores: Vec<R> = keys.chunks_exact(kv).enumerate().map(score).collect();
        let top = scores.iter().copied().fold(R::neg_infinity(), R::max);
        let weights: Vec<R> = scores.iter().map(|&s| (s - top).exp()).collect();
        let total: R = weights.iter().copied().sum();
        out.extend((0..d).map(|i| {
            let rows = values.chunks_exact(kv).zip(&weights);
            rows.fold(R::zero(), |sum, (row, &w)| sum + w * row[at + i]) / total
        }));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rms_norm_makes_the_mean_square_one() {
        let x: Vec<f64> = (1..=7).map(|i| f64::from(i) - 3.3).collect();
        let y = rms_norm(&x, &[1.0; 7], 0.0);
        assert!((y.iter().map(|y| y * y).sum::<f64>() / 7.0 - 1.0).abs() < 1e-14);
    }
}
