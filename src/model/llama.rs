//! Llama: RMSNorm, rotary embedding, grouped-query attention, SwiGLU (arXiv 2302.13971, 2307.09288).

use std::sync::Arc;

use crate::capabilities::{Capabilities, DeviceClass, MatrixTier};
use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::attention::KvFormat;
use crate::kernels::elementwise::Activation;
use crate::kernels::embedding;
use crate::kernels::gemm::Residual;
use crate::kernels::linear::{
    GatedLinear, GatedLinearArgs, Linear, LinearArgs, fuses_norm, streamed_rows,
};
use crate::kernels::norm::{Norm, NormArgs};
use crate::kernels::rope::RopeTable;
use crate::loader::Weights;
use crate::model::attend::{Attend, AttendPlan};
use crate::model::cache::KvCache;
use crate::model::generate::{Decode, Generation, Then};
use crate::model::random::Random;
use crate::model::sampling::Sampling;
use crate::model::weights::{Loader, Progress};
use crate::model::{LayerAttention, LlamaConfig};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Prompt tokens that go through the model at a time: bounds the memory of the intermediate results. A graphics card
/// has work for all its processors only with more than a processor needs.
fn chunk(caps: &Capabilities) -> usize {
    match caps.class {
        DeviceClass::Software => 256,
        _ => 1024,
    }
}

/// Element types of a model on the device, and how its layers attend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LlamaOptions {
    /// Of the weights: f32, f16, bf16 or a quantised format; `None` keeps what the file has.
    pub weights: Option<DType>,
    /// How keys and values are cached; `None` for the weights' own type, f16 if they are quantised.
    pub kv: Option<KvFormat>,
    /// Of what products and attention of a prompt take: f32, f16 or bf16. `None`: f16 where weights and cache are f16
    /// and the device multiplies these by its matrix units, else f32. Rounding x in w x adds an error as large as that of
    /// rounding w, and independent of it: sqrt 2 times the error in all. The residual stream is f32, and tokens one
    /// by one are f32 all through.
    pub activations: Option<DType>,
    /// Each layer's attention in place of the file's; empty for the file's own.
    pub attention: Vec<LayerAttention>,
}

/// How keys and values are cached where [`LlamaOptions::kv`] says nothing.
fn usual_cache(weights: DType) -> Result<KvFormat> {
    match weights.is_float() {
        true => KvFormat::of(weights),
        false => Ok(KvFormat::F16),
    }
}

/// The type that prompts take where [`LlamaOptions::activations`] says nothing.
fn usual_activations(caps: &Capabilities, weights: DType, kv: KvFormat) -> DType {
    match caps.matrix_tier() {
        MatrixTier::Cooperative if (weights, kv) == (DType::F16, KvFormat::F16) => DType::F16,
        _ => DType::F32,
    }
}

struct Layer {
    attention_norm: Tensor,
    qkv: Tensor,
    output: Tensor,
    mlp_norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
}

/// A model on the device, in the types that [`LlamaOptions`] says.
#[derive(Clone)]
pub struct Llama {
    inner: Arc<Model>,
}

struct Model {
    ctx: Context,
    config: LlamaConfig,
    types: Types,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
}

/// Types of what is not weights.
#[derive(Clone, Copy)]
struct Types {
    kv: KvFormat,
    activations: DType,
}

impl Llama {
    /// Loads a model with its weights as stored.
    pub fn load(ctx: &Context, weights: &Weights) -> Result<Self> {
        Self::load_with(ctx, weights, LlamaOptions::default(), &mut |_| ())
    }

    /// Loads a model, telling `progress` after every tensor.
    pub fn load_with(
        ctx: &Context,
        weights: &Weights,
        options: LlamaOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self> {
        let mut config = weights.config().llama()?.clone();
        if !options.attention.is_empty() {
            config.attention = options.attention;
        }
        let mut load = Loader::new(ctx, weights, options.weights, progress)?;
        let names = |layer: usize, parts: &[&str]| -> Vec<String> {
            parts
                .iter()
                .map(|p| format!("model.layers.{layer}.{p}.weight"))
                .collect()
        };
        let embedding = load.matrix(&["model.embed_tokens.weight".into()])?;
        let mut layers = Vec::with_capacity(config.layers);
        for i in 0..config.layers {
            let attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
            layers.push(Layer {
                attention_norm: load.vector(&names(i, &["input_layernorm"])[0])?,
                qkv: load.matrix(&names(i, &attention))?,
                output: load.matrix(&names(i, &["self_attn.o_proj"]))?,
                mlp_norm: load.vector(&names(i, &["post_attention_layernorm"])[0])?,
                gate_up: load.matrix(&names(i, &["mlp.gate_proj", "mlp.up_proj"]))?,
                down: load.matrix(&names(i, &["mlp.down_proj"]))?,
            });
        }
        let norm = load.vector("model.norm.weight")?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            load.matrix(&["lm_head.weight".into()])?
        };
        ctx.flush()?;
        let own = embedding.dtype();
        let kv = options.kv.map_or_else(|| usual_cache(own), Ok)?;
        let usual = usual_activations(ctx.capabilities(), own, kv);
        let activations = options.activations.unwrap_or(usual);
        if !activations.is_float() {
            let allowed = "f32, f16 or bf16";
            return Err(Error::argument("activations", activations, allowed));
        }
        Self::assemble(
            ctx,
            config,
            Types { kv, activations },
            Parts {
                embedding,
                layers,
                norm,
                head,
            },
        )
    }

    /// A model of random weights, uniform and of unit gain: for measuring shapes that nobody has at hand. All
    /// matrices hold the same sequence of values, each in memory of its own.
    pub fn random(ctx: &Context, config: LlamaConfig, dtype: DType) -> Result<Self> {
        let (hidden, inner, head_dim) = (
            config.hidden_size,
            config.intermediate_size,
            config.head_dim,
        );
        let qkv_rows = (config.heads + 2 * config.kv_heads) * head_dim;
        let rows = [config.vocab_size, 2 * inner, qkv_rows];
        let random = Random::new(ctx, dtype, &rows, hidden)?;
        let matrix = |rows: usize, cols: usize| random.matrix(rows, cols);
        let ones = || Tensor::from_slice(ctx, &vec![1.0f32; hidden], [hidden]);
        let mut layers = Vec::with_capacity(config.layers);
        for _ in 0..config.layers {
            layers.push(Layer {
                attention_norm: ones()?,
                qkv: matrix(qkv_rows, hidden)?,
                output: matrix(hidden, config.heads * head_dim)?,
                mlp_norm: ones()?,
                gate_up: matrix(2 * inner, hidden)?,
                down: matrix(hidden, inner)?,
            });
        }
        let embedding = matrix(config.vocab_size, hidden)?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            matrix(config.vocab_size, hidden)?
        };
        let kv = usual_cache(dtype)?;
        let types = Types {
            kv,
            activations: usual_activations(ctx.capabilities(), dtype, kv),
        };
        Self::assemble(
            ctx,
            config,
            types,
            Parts {
                embedding,
                layers,
                norm: ones()?,
                head,
            },
        )
    }

    fn assemble(ctx: &Context, config: LlamaConfig, types: Types, parts: Parts) -> Result<Self> {
        config.check_attention()?;
        let Parts {
            embedding,
            layers,
            norm,
            head,
        } = parts;
        let inner = Model {
            ctx: ctx.clone(),
            config,
            types,
            embedding,
            layers,
            norm,
            head,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &LlamaConfig {
        &self.inner.config
    }

    /// The context it lives on.
    pub fn context(&self) -> &Context {
        &self.inner.ctx
    }

    /// Bytes of weights that one decode step reads: all but the embedding table, of which it reads a row (a
    /// tied table is read as the output projection).
    pub fn bytes_per_token(&self) -> u64 {
        let model = &self.inner;
        let layer = |l: &Layer| {
            [&l.qkv, &l.output, &l.gate_up, &l.down]
                .iter()
                .map(|t| t.layout().bytes())
                .sum::<u64>()
        };
        model.layers.iter().map(layer).sum::<u64>() + model.head.layout().bytes()
    }

    /// A text under way with room for `capacity` tokens.
    ///
    /// Errors if `capacity` is zero, over the model's positions, or too large for the device.
    pub fn session(&self, capacity: usize) -> Result<Session> {
        Session::new(self.clone(), capacity)
    }

    /// Continues `prompt` in a session of its own, with room up to the model's longest context.
    pub fn generate(&self, prompt: &[u32], sampling: &Sampling) -> Result<Generation<'static>> {
        let session = self.session(self.config().max_positions)?;
        Generation::owning(Box::new(session), prompt, sampling)
    }
}

struct Parts {
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
}

/// Which logits a pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// Of the last token.
    Last,
    /// Of every token.
    All,
}

/// A text under way: a KV cache and the memory for intermediate results.
pub struct Session {
    model: Llama,
    cache: KvCache,
    rope: RopeTable,
    work: Work,
}

/// Intermediate results of a chunk, allocated once.
struct Work {
    ids: Tensor,
    hidden: Tensor,
    qkv: Tensor,
    logits: Tensor,
    /// Of many tokens.
    prompt: Operands,
    /// Of as many as the kernels for few take.
    few: Operands,
}

/// What products and attention take and give, rows of tokens.
struct Operands {
    normed: Tensor,
    q: Tensor,
    attended: Tensor,
    gated: Tensor,
}

impl Operands {
    fn new(ctx: &Context, c: &LlamaConfig, dtype: DType, rows: usize) -> Result<Self> {
        let made = |cols: usize| Tensor::empty(ctx, dtype, [rows, cols]);
        let heads = c.heads * c.head_dim;
        Ok(Self {
            normed: made(c.hidden_size)?,
            q: made(heads)?,
            attended: made(heads)?,
            gated: made(c.intermediate_size)?,
        })
    }
}

impl Session {
    fn new(model: Llama, capacity: usize) -> Result<Self> {
        let c = model.config().clone();
        if capacity == 0 || capacity > c.max_positions {
            return Err(Error::argument(
                "capacity",
                format!("{capacity} tokens"),
                format!(
                    "1 to {}, the positions the model was made for",
                    c.max_positions
                ),
            ));
        }
        let ctx = model.context().clone();
        let chunk = chunk(ctx.capabilities());
        let rows = chunk.min(capacity);
        let few = rows.min(streamed_rows(ctx.capabilities()));
        let f32s = |rows: usize, cols: usize| Tensor::empty(&ctx, DType::F32, [rows, cols]);
        let Types { kv, activations } = model.inner.types;
        let work = Work {
            ids: Tensor::empty(&ctx, DType::U32, [rows])?,
            hidden: f32s(rows, c.hidden_size)?,
            qkv: f32s(rows, (c.heads + 2 * c.kv_heads) * c.head_dim)?,
            logits: f32s(1, c.vocab_size)?,
            prompt: Operands::new(&ctx, &c, activations, rows)?,
            few: Operands::new(&ctx, &c, DType::F32, few)?,
        };
        let cache = KvCache::new(&ctx, &c, capacity, kv, chunk)?;
        let rope = RopeTable::new(&ctx, &c.rope, c.head_dim, capacity)?;
        Ok(Self {
            model,
            cache,
            rope,
            work,
        })
    }

    /// The model.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// The KV cache: how much is in it, and how much it holds.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The most tokens of one pass.
    pub fn chunk(&self) -> usize {
        self.work.ids.len()
    }

    /// Forgets all tokens from `len` on; errors as [`KvCache::truncate`].
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.cache.truncate(len)
    }

    /// Runs `tokens` through the model after those before, and gives the last one's logits `[1, vocab]`, on the
    /// device; overwritten by the next call. Submits without waiting.
    ///
    /// Errors on no tokens, a token outside the vocabulary, or more tokens than the cache has room for; the
    /// session is then as before.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<&Tensor> {
        self.feed_then(tokens, &|_, _| Ok(()))
    }

    /// Continues the text with `prompt` and what follows it.
    ///
    /// Errors if a parameter of `sampling` or a token of `prompt` is out of range, or if the prompt does not fit
    /// in the cache.
    pub fn generate(&mut self, prompt: &[u32], sampling: &Sampling) -> Result<Generation<'_>> {
        Generation::of(self, prompt, sampling)
    }

    /// As [`feed`](Self::feed), with the logits of every token, `[tokens, vocab]`.
    pub fn feed_all(&mut self, tokens: &[u32]) -> Result<Tensor> {
        self.check(tokens)?;
        let vocab = self.model.config().vocab_size;
        let ctx = self.model.context().clone();
        let all = Tensor::empty(&ctx, DType::F32, [tokens.len(), vocab])?;
        let most = self.chunk();
        for (i, chunk) in tokens.chunks(most).enumerate() {
            let ids = self.work.ids.rows(0..chunk.len())?;
            ids.write(chunk)?;
            let rows = all.rows(i * most..i * most + chunk.len())?;
            ctx.record(|pass| self.forward(pass, &ids, Some((Logits::All, &rows))))?;
            self.cache.advance(chunk.len());
        }
        Ok(all)
    }

    /// Records the pass of the token ids `ids` (u32, on the device) after the tokens in the cache, without counting
    /// them in: [`feed`](Self::feed) does both. The hot loop of decoding; at most [`chunk`](Self::chunk) tokens.
    pub fn forward(
        &self,
        pass: &mut Pass<'_>,
        ids: &Tensor,
        logits: Option<(Logits, &Tensor)>,
    ) -> Result<()> {
        let (model, c, n) = (&*self.model.inner, self.model.config(), ids.len());
        self.cache.require_room(n)?;
        let caps = pass.capabilities();
        let fused = fuses_norm(caps, n);
        let part = |t: &Tensor| t.rows(0..n);
        let w = &self.work;
        let operands = if fused { &w.few } else { &w.prompt };
        let (hidden, qkv) = (part(&w.hidden)?, part(&w.qkv)?);
        let (normed, q) = (part(&operands.normed)?, part(&operands.q)?);
        let (attended, gated) = (part(&operands.attended)?, part(&operands.gated)?);
        let attend = Attend::new(&self.rope, [&qkv, &q, &attended], c, self.cache.len())?;
        let linear = Linear {
            activation: Activation::None,
        };
        let gated_linear = GatedLinear {
            activation: Activation::Silu,
        };
        // All layers have the same layouts: each product is planned once a step and launched for every layer.
        let eps = c.norm_eps;
        // In a dispatch of its own for many rows; for few it is fused into the product after it.
        let norm = Norm::rms(eps);
        let input = |weight| match fused {
            true => Input {
                tensor: &hidden,
                norm: Some((weight, eps)),
            },
            false => Input {
                tensor: &normed,
                norm: None,
            },
        };
        let steps = |i: usize| {
            let layer = &model.layers[i];
            let (first, second) = (input(&layer.attention_norm), input(&layer.mlp_norm));
            Steps {
                qkv: LinearArgs {
                    norm: first.norm,
                    ..LinearArgs::new(first.tensor, &layer.qkv, &qkv)
                },
                output: LinearArgs {
                    residual: Residual::InOut,
                    ..LinearArgs::new(&attended, &layer.output, &hidden)
                },
                gate_up: GatedLinearArgs {
                    x: second.tensor,
                    weight: &layer.gate_up,
                    norm: second.norm,
                    out: &gated,
                },
                down: LinearArgs {
                    residual: Residual::InOut,
                    ..LinearArgs::new(&gated, &layer.down, &hidden)
                },
            }
        };
        let plan = steps(0);
        // Layers whose caches are alike share a plan of what touches them.
        let mut cached_plans: Vec<AttendPlan<'_>> = Vec::new();
        for i in 0..c.layers {
            let cached = self.cache.layer(i);
            if !cached_plans.iter().any(|p| p.serves(cached)) {
                cached_plans.push(attend.plan(caps, cached)?);
            }
        }
        let first = linear.plan(caps, &plan.qkv.layouts())?;
        let output = linear.plan(caps, &plan.output.layouts())?;
        let gate_up = gated_linear.plan(caps, &plan.gate_up.layouts())?;
        let down = linear.plan(caps, &plan.down.layouts())?;

        embedding::gather(pass, &model.embedding, ids, &hidden)?;
        for (i, layer) in model.layers.iter().enumerate() {
            let step = steps(i);
            if !fused {
                norm.run(pass, NormArgs::new(&hidden, &layer.attention_norm, &normed))?;
            }
            step.qkv.launch(pass, &first)?;
            let cached = self.cache.layer(i);
            if let Some(plan) = cached_plans.iter().find(|p| p.serves(cached)) {
                attend.launch(pass, plan, cached)?;
            }
            step.output.launch(pass, &output)?;
            if !fused {
                norm.run(pass, NormArgs::new(&hidden, &layer.mlp_norm, &normed))?;
            }
            step.gate_up.launch(pass, &gate_up)?;
            step.down.launch(pass, &down)?;
        }
        if let Some((which, logits)) = logits {
            let rows = match which {
                Logits::Last => n - 1..n,
                Logits::All => 0..n,
            };
            let (hidden, normed) = (hidden.rows(rows.clone())?, normed.rows(rows.clone())?);
            let mut args = LinearArgs::new(&hidden, &model.head, logits);
            if fuses_norm(caps, rows.len()) {
                args.norm = Some((&model.norm, eps));
            } else {
                norm.run(pass, NormArgs::new(&hidden, &model.norm, &normed))?;
                args.x = &normed;
            }
            linear.run(pass, args)?;
        }
        Ok(())
    }
}

impl Decode for Session {
    fn context(&self) -> &Context {
        self.model.context()
    }

    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn eos_token_ids(&self) -> &[u32] {
        &self.model.config().eos_token_ids
    }

    fn position(&self) -> usize {
        self.cache.len()
    }

    fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    fn feed_then(&mut self, tokens: &[u32], then: &Then<'_>) -> Result<&Tensor> {
        self.check(tokens)?;
        let ctx = self.model.context().clone();
        let most = self.chunk();
        let last = tokens.len().div_ceil(most) - 1;
        for (i, chunk) in tokens.chunks(most).enumerate() {
            let ids = self.work.ids.rows(0..chunk.len())?;
            ids.write(chunk)?;
            ctx.record(|pass| {
                if i < last {
                    return self.forward(pass, &ids, None);
                }
                self.forward(pass, &ids, Some((Logits::Last, &self.work.logits)))?;
                then(pass, &self.work.logits)
            })?;
            self.cache.advance(chunk.len());
        }
        Ok(&self.work.logits)
    }
}

/// The products of a layer.
struct Steps<'a> {
    qkv: LinearArgs<'a, Tensor>,
    output: LinearArgs<'a, Tensor>,
    gate_up: GatedLinearArgs<'a, Tensor>,
    down: LinearArgs<'a, Tensor>,
}

/// The input of a product, and the norm still to be applied to it.
struct Input<'a> {
    tensor: &'a Tensor,
    norm: Option<(&'a Tensor, f32)>,
}
