//! Hyena: long convolutions with implicit filters instead of attention (arXiv 2302.10866).
//!
//! ```text
//! mod.rs       the weights: loading, random ones
//! filters.rs   the long filters of a length: evaluated on the host, kept and transformed on the device
//! session.rs   a text under way: prompts by convolution, tokens by the relaxed convolution
//! ```

mod filters;
mod session;

use std::sync::Arc;

use crate::context::Context;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::gemm::Gating;
use crate::kernels::hyena::Relaxed;
use crate::loader::Weights;
use crate::model::HyenaConfig;
use crate::model::generate::Generation;
use crate::model::matrix::Matrix;
use crate::model::random::Random;
use crate::model::sampling::Sampling;
use crate::model::weights::{Loader, Progress};
use crate::tensor::Tensor;
use filters::{FilterBank, Filters};

pub use session::HyenaSession;

struct Layer {
    hyena_norm: Tensor,
    in_proj: Matrix,
    /// The short convolutions, `[3 hidden, taps + 1]`.
    short: Tensor,
    /// Whole: prompts multiply it by columns of tokens.
    out_proj: Matrix,
    mlp_norm: Tensor,
    gate_up: Matrix,
    down: Matrix,
}

/// A model on the device. Activations, filters and what a session keeps are f32; matrices are what
/// [`load_with`](Self::load_with) is told.
#[derive(Clone)]
pub struct Hyena {
    inner: Arc<Model>,
}

struct Model {
    ctx: Context,
    config: HyenaConfig,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Matrix,
    filters: FilterBank,
}

impl Hyena {
    /// Loads a model with its weights as stored.
    pub fn load(ctx: &Context, weights: &Weights) -> Result<Self> {
        Self::load_with(ctx, weights, None, &mut |_| ())
    }

    /// Loads a model with its matrices as `dtype` (f32, f16 or bf16; as stored where it is `None`), telling `progress`
    /// after every tensor.
    pub fn load_with(
        ctx: &Context,
        weights: &Weights,
        dtype: Option<DType>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self> {
        let config = weights.config().hyena()?.clone();
        let mut load = Loader::new(ctx, weights, dtype, progress)?;
        let embedding = load.matrix(&["model.embed_tokens.weight".into()], Gating::None)?;
        let mut layers = Vec::with_capacity(config.layers);
        for i in 0..config.layers {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let gate_up = ["mlp.gate_proj.weight", "mlp.up_proj.weight"].map(name);
            let taps = load.values(&name("hyena.short_filter.weight"))?;
            let bias = load.values(&name("hyena.short_filter.bias"))?;
            layers.push(Layer {
                hyena_norm: load.vector(&name("input_layernorm.weight"))?,
                in_proj: load.matrix(&[name("hyena.in_proj.weight")], Gating::None)?,
                short: short_weights(ctx, &taps, &bias)?,
                out_proj: load
                    .matrix(&[name("hyena.out_proj.weight")], Gating::None)?
                    .require_whole(&name("hyena.out_proj.weight"))?,
                mlp_norm: load.vector(&name("post_hyena_layernorm.weight"))?,
                gate_up: load.matrix(&gate_up, Gating::GateUp)?,
                down: load.matrix(&[name("mlp.down_proj.weight")], Gating::None)?,
            });
        }
        let norm = load.vector("model.norm.weight")?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            load.matrix(&["lm_head.weight".into()], Gating::None)?
        };
        ctx.flush()?;
        let model = Model {
            ctx: ctx.clone(),
            filters: FilterBank::implicit(weights)?,
            config,
            embedding,
            layers,
            norm,
            head,
        };
        Ok(Self {
            inner: Arc::new(model),
        })
    }

    /// A model of random weights, uniform and of unit gain, and random decaying filters: for measuring shapes that nobody
    /// has at hand. All matrices hold the same sequence of values, each in memory of its own.
    pub fn random(ctx: &Context, config: HyenaConfig, dtype: DType) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let rows = [config.vocab_size, 2 * inner, 3 * hidden];
        let random = Random::new(ctx, dtype, &rows, hidden)?;
        let ones = || Tensor::from_slice(ctx, &vec![1.0f32; hidden], [hidden]);
        let taps: Vec<f32> = (0..3 * hidden * config.short_filter)
            .map(|i| 1.0 / (1 + i % config.short_filter) as f32)
            .collect();
        let mut layers = Vec::with_capacity(config.layers);
        for _ in 0..config.layers {
            layers.push(Layer {
                hyena_norm: ones()?,
                in_proj: random.matrix(3 * hidden, hidden, Gating::None)?,
                short: short_weights(ctx, &taps, &vec![0.0; 3 * hidden])?,
                out_proj: Matrix::whole(random.tensor(hidden, hidden)?),
                mlp_norm: ones()?,
                gate_up: random.matrix(2 * inner, hidden, Gating::GateUp)?,
                down: random.matrix(hidden, inner, Gating::None)?,
            });
        }
        let embedding = random.matrix(config.vocab_size, hidden, Gating::None)?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            random.matrix(config.vocab_size, hidden, Gating::None)?
        };
        let model = Model {
            ctx: ctx.clone(),
            filters: FilterBank::random(&config),
            config,
            embedding,
            layers,
            norm: ones()?,
            head,
        };
        Ok(Self {
            inner: Arc::new(model),
        })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &HyenaConfig {
        &self.inner.config
    }

    /// The context it lives on.
    pub fn context(&self) -> &Context {
        &self.inner.ctx
    }

    /// Bytes of weights that one decode step reads: all but the embedding table, of which it reads a row (a tied table is
    /// read as the output projection), and the long filters, of which it reads little.
    pub fn bytes_per_token(&self) -> u64 {
        let model = &self.inner;
        let layer = |l: &Layer| {
            let read = [&l.in_proj, &l.out_proj, &l.gate_up, &l.down];
            l.short.layout().bytes() + read.map(Matrix::bytes).iter().sum::<u64>()
        };
        model.layers.iter().map(layer).sum::<u64>() + model.head.bytes()
    }

    /// A text under way with room for `capacity` tokens. The first session of a capacity evaluates the filters for it.
    ///
    /// Errors if `capacity` is zero, over the model's positions, or too large for the device.
    pub fn session(&self, capacity: usize) -> Result<HyenaSession> {
        self.session_with(capacity, Relaxed::default())
    }

    /// As [`session`](Self::session), with a cut of the relaxed convolution of the caller's.
    pub fn session_with(&self, capacity: usize, relaxed: Relaxed) -> Result<HyenaSession> {
        HyenaSession::new(self.clone(), capacity, relaxed)
    }

    /// Continues `prompt` in a session of its own, with room up to the model's longest context.
    pub fn generate(&self, prompt: &[u32], sampling: &Sampling) -> Result<Generation<'static>> {
        let session = self.session(self.config().max_positions)?;
        Generation::owning(Box::new(session), prompt, sampling)
    }

    fn filters(&self, length: usize, relaxed: Relaxed) -> Result<Arc<Filters>> {
        self.inner.filters.of(&self.inner.ctx, length, relaxed)
    }
}

/// Taps `[channels, taps]` and their bias side by side.
fn short_weights(ctx: &Context, taps: &[f32], bias: &[f32]) -> Result<Tensor> {
    let count = taps.len() / bias.len();
    let rows = taps.chunks_exact(count).zip(bias);
    let packed: Vec<f32> = rows
        .flat_map(|(taps, bias)| taps.iter().chain([bias]).copied())
        .collect();
    Tensor::from_slice(ctx, &packed, [bias.len(), count + 1])
}
