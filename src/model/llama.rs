//! Llama: RMSNorm, rotary embedding, grouped-query attention, SwiGLU (arXiv 2302.13971, 2307.09288).

use std::sync::Arc;

use crate::capabilities::{Capabilities, DeviceClass, MatrixTier};
use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::attention::KvFormat;
use crate::kernels::gemm::{Gating, Residual};
use crate::kernels::linear::{fuses_norm, streamed_rows};
use crate::kernels::mlp::{Histogram, Predictor};
use crate::kernels::norm::{Norm, NormArgs};
use crate::kernels::rope::RopeTable;
use crate::loader::Weights;
use crate::model::attend::{Attend, AttendPlan};
use crate::model::cache::KvCache;
use crate::model::generate::{Decode, Generation, Then};
use crate::model::matrix::{Matrix, Product, Sum};
use crate::model::offload::{Budget, HostNeurons, Streamed};
use crate::model::random::Random;
use crate::model::sampling::Sampling;
use crate::model::sparse::{
    FEW, NeuronWeights, Offloaded, SparsePlans, SparseProduct, SparseWork, Submit,
};
use crate::model::sparsity::check_layers;
use crate::model::weights::{Loader, Progress};
use crate::model::{LayerAttention, LayerSparsity, LlamaConfig, SparseMethod};
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
    /// Which weights each layer leaves unread; empty for none.
    pub sparsity: Vec<LayerSparsity>,
    /// Bytes that the weights of MLPs may take on the device: what is beyond stays in host memory, and neurons are brought in as
    /// they fire. Layers must then be [`LayerSparsity::Cats`], and are, with threshold zero, where nothing is said. Prompts go
    /// through the model four tokens at a time. Of weights in f32, f16 or bf16.
    pub budget: Option<u64>,
}

/// How keys and values are cached where [`LlamaOptions::kv`] says nothing.
fn usual_cache(weights: DType) -> Result<KvFormat> {
    match weights.is_float() {
        true => KvFormat::of(weights),
        false => Ok(KvFormat::F16),
    }
}

/// The type that prompts take where [`LlamaOptions::activations`] says nothing. Kernels that leave weights unread take f32.
fn usual_activations(ctx: &Context, config: &LlamaConfig, weights: DType, kv: KvFormat) -> DType {
    let halves = (weights, kv) == (DType::F16, KvFormat::F16) && config.sparsity.is_empty();
    match ctx.capabilities().matrix_tier() {
        MatrixTier::Cooperative if halves => DType::F16,
        _ => DType::F32,
    }
}

/// Weights of a decoder block, laid out as its [`LayerSparsity`] has it: by inputs all four matrices are input-major; by
/// neurons `gate_up` is the gate alone, and `down` the pairs of an up row and a down column.
#[derive(Clone)]
struct Layer {
    attention_norm: Tensor,
    qkv: Matrix,
    output: Matrix,
    mlp_norm: Tensor,
    gate_up: Matrix,
    down: Matrix,
    /// Which neurons may fire, if something says so before the gates are computed.
    predictor: Option<Predictor>,
    /// If they are over the budget: then `down` has the pairs that are on the device.
    host: Option<Arc<HostNeurons>>,
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
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Matrix,
}

impl Model {
    /// MLPs that are over the budget.
    fn offloaded(&self) -> impl Iterator<Item = Offloaded<'_>> {
        self.layers.iter().filter_map(|l| {
            Some(Offloaded {
                host: l.host.as_ref()?,
                norm: &l.mlp_norm,
                gate: l.gate_up.tensor(),
            })
        })
    }
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
        if !options.sparsity.is_empty() {
            config.sparsity = options.sparsity;
        }
        offloadable(&mut config, options.budget)?;
        check_layers(&config.sparsity, config.layers)?;
        let mut load = Loader::new(ctx, weights, options.weights, progress)?;
        let names = |layer: usize, parts: &[&str]| -> Vec<String> {
            parts
                .iter()
                .map(|p| format!("model.layers.{layer}.{p}.weight"))
                .collect()
        };
        let embedding = load.matrix(&["model.embed_tokens.weight".into()], Gating::None)?;
        let budget = budgeted(&config, options.budget, embedding.dtype())?;
        let mut layers = Vec::with_capacity(config.layers);
        for i in 0..config.layers {
            let attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
            let method = config.layer_sparsity(i).method();
            let (k, n) = (config.hidden_size, config.intermediate_size);
            let mut weights = |parts: &[&str], inputs: usize, gating| match method {
                Some(SparseMethod::Teal) => {
                    input_major(&mut load, &names(i, parts), inputs).map(Matrix::whole)
                }
                Some(SparseMethod::Cats) | None => load.matrix(&names(i, parts), gating),
            };
            let qkv = weights(&attention, k, Gating::None)?;
            let heads = config.heads * config.head_dim;
            let output = weights(&["self_attn.o_proj"], heads, Gating::None)?;
            let bundled = names(i, &["mlp.up_proj", "mlp.down_proj"]);
            let mut host = None;
            let (gate_up, down) = match method {
                Some(SparseMethod::Cats) => {
                    let gate = names(i, &["mlp.gate_proj"]);
                    let gate = load.matrix(&gate, Gating::None)?.require_whole(&gate[0])?;
                    let down = match budget {
                        None => load.arranged(&bundled, [n, 2 * k], |p| pairs(p, [n, k]))?,
                        Some(budget) => {
                            let (dtype, bytes) =
                                load.arranged_bytes(&bundled, |p| pairs(p, [n, k]))?;
                            let neurons =
                                HostNeurons::new(ctx, bytes.into(), 2 * k, dtype, budget)?;
                            host.insert(Arc::new(neurons)).pairs.clone()
                        }
                    };
                    (gate, Matrix::whole(down))
                }
                Some(SparseMethod::Teal) | None => (
                    weights(&["mlp.gate_proj", "mlp.up_proj"], k, Gating::GateUp)?,
                    weights(&["mlp.down_proj"], n, Gating::None)?,
                ),
            };
            layers.push(Layer {
                attention_norm: load.vector(&names(i, &["input_layernorm"])[0])?,
                qkv,
                output,
                mlp_norm: load.vector(&names(i, &["post_attention_layernorm"])[0])?,
                gate_up,
                down,
                predictor: None,
                host,
            });
        }
        let norm = load.vector("model.norm.weight")?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            load.matrix(&["lm_head.weight".into()], Gating::None)?
        };
        ctx.flush()?;
        let own = embedding.dtype();
        let kv = options.kv.map_or_else(|| usual_cache(own), Ok)?;
        let usual = usual_activations(ctx, &config, own, kv);
        let activations = options.activations.unwrap_or(usual);
        let allowed = match config.sparsity.is_empty() {
            true => "f32, f16 or bf16",
            false => "f32, for layers leave weights unread",
        };
        if !activations.is_float() || (activations != usual && !config.sparsity.is_empty()) {
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
        Self::random_within(ctx, config, dtype, None)
    }

    /// As [`random`](Self::random), within a [`budget`](LlamaOptions::budget). All layers share one copy in host memory.
    pub fn random_within(
        ctx: &Context,
        mut config: LlamaConfig,
        dtype: DType,
        budget: Option<u64>,
    ) -> Result<Self> {
        offloadable(&mut config, budget)?;
        let budget = budgeted(&config, budget, dtype)?;
        let (hidden, inner, head_dim) = (
            config.hidden_size,
            config.intermediate_size,
            config.head_dim,
        );
        let qkv_rows = (config.heads + 2 * config.kv_heads) * head_dim;
        let rows = [config.vocab_size, 2 * inner, qkv_rows];
        let random = Random::new(ctx, dtype, &rows, hidden)?;
        let matrix = |rows: usize, cols: usize| random.matrix(rows, cols, Gating::None);
        let ones = || Tensor::from_slice(ctx, &vec![1.0f32; hidden], [hidden]);
        let bundles: Option<Arc<[u8]>> = budget
            .map(|_| Ok::<_, Error>(random.tensor(inner, 2 * hidden)?.to_bytes()?.into()))
            .transpose()?;
        let mut layers = Vec::with_capacity(config.layers);
        for i in 0..config.layers {
            let q_rows = config.heads * head_dim;
            let [qkv, output, gate_up, down] = match config.layer_sparsity(i).method() {
                None => [
                    [qkv_rows, hidden],
                    [hidden, q_rows],
                    [2 * inner, hidden],
                    [hidden, inner],
                ],
                Some(SparseMethod::Cats) => [
                    [qkv_rows, hidden],
                    [hidden, q_rows],
                    [inner, hidden],
                    [inner, 2 * hidden],
                ],
                Some(SparseMethod::Teal) => [
                    [hidden, qkv_rows],
                    [q_rows, hidden],
                    [hidden, 2 * inner],
                    [inner, hidden],
                ],
            };
            let method = config.layer_sparsity(i).method();
            // Kernels that leave weights unread do not take parts.
            let matrix = |[rows, cols]: [usize; 2], gating| match method {
                Some(_) => random.tensor(rows, cols).map(Matrix::whole),
                None => random.matrix(rows, cols, gating),
            };
            let host = match (&bundles, budget) {
                (Some(bundles), Some(budget)) => {
                    let shared = bundles.clone();
                    let neurons = HostNeurons::new(ctx, shared, 2 * hidden, dtype, budget)?;
                    Some(Arc::new(neurons))
                }
                _ => None,
            };
            layers.push(Layer {
                attention_norm: ones()?,
                qkv: matrix(qkv, Gating::None)?,
                output: matrix(output, Gating::None)?,
                mlp_norm: ones()?,
                gate_up: matrix(gate_up, Gating::GateUp)?,
                down: match &host {
                    Some(host) => Matrix::whole(host.pairs.clone()),
                    None => matrix(down, Gating::None)?,
                },
                predictor: None,
                host,
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
            activations: usual_activations(ctx, &config, dtype, kv),
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
        check_layers(&config.sparsity, config.layers)?;
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

    /// The same weights with other thresholds: a layer may not change its method, which its weights are laid out for.
    pub fn with_sparsity(&self, layers: Vec<LayerSparsity>) -> Result<Self> {
        let model = &self.inner;
        let mut config = model.config.clone();
        for i in 0..config.layers {
            let (is, asked) = (
                config.layer_sparsity(i),
                layers.get(i).copied().unwrap_or_default(),
            );
            if is.method() != asked.method() {
                let name = |l: LayerSparsity| l.method().map_or("dense", SparseMethod::name);
                let allowed = format!("{}, as the layer was loaded", name(is));
                return Err(Error::argument(
                    format!("sparsity of layer {i}"),
                    name(asked),
                    allowed,
                ));
            }
        }
        config.sparsity = layers;
        let parts = Parts {
            embedding: model.embedding.clone(),
            layers: model.layers.clone(),
            norm: model.norm.clone(),
            head: model.head.clone(),
        };
        Self::assemble(&model.ctx, config, model.types, parts)
    }

    /// The same weights with thresholds that leave out the share `sparsity` of what is compared, counted on `text`.
    ///
    /// Errors unless `sparsity` is within 0 to 1, some layer skips weights and all of them are on the device, and as
    /// [`session`](Self::session).
    pub fn calibrated(&self, text: &[u32], sparsity: f64) -> Result<Self> {
        let mut session = self.session(text.len())?;
        session.observe()?;
        for chunk in text.chunks(session.chunk()) {
            session.feed(chunk)?;
        }
        let layer = |(i, places): (usize, Vec<Histogram>)| {
            let found = places.iter().map(|h| h.threshold(sparsity));
            let found = found.collect::<Result<Vec<f32>>>()?;
            let method = self.config().layer_sparsity(i).method();
            Ok(method.map_or(LayerSparsity::Dense, |m| m.layer(&found)))
        };
        let counted = session.histograms()?.into_iter().enumerate();
        self.with_sparsity(counted.map(layer).collect::<Result<_>>()?)
    }

    /// The same weights with a predictor of each layer's neurons, consulted for up to four tokens at a time: gates of neurons that
    /// it does not name are not read.
    ///
    /// Errors unless there is one for each layer, of its size, and layers leave out neurons and have all weights on the device.
    pub fn with_predictors(&self, predictors: Vec<Predictor>) -> Result<Self> {
        let model = &self.inner;
        let c = &model.config;
        let allowed = format!(
            "{} of {} inputs and {} neurons, for layers of cats within no budget",
            c.layers, c.hidden_size, c.intermediate_size
        );
        let fits = predictors.len() == c.layers
            && predictors
                .iter()
                .all(|p| p.size() == [c.hidden_size, c.intermediate_size])
            && (0..c.layers).all(|i| c.layer_sparsity(i).method() == Some(SparseMethod::Cats))
            && model.offloaded().next().is_none();
        if !fits {
            let was = format!("{} predictors", predictors.len());
            return Err(Error::argument("predictors", was, allowed));
        }
        let with = |(layer, predictor): (&Layer, Predictor)| Layer {
            predictor: Some(predictor),
            ..layer.clone()
        };
        let parts = Parts {
            embedding: model.embedding.clone(),
            layers: model.layers.iter().zip(predictors).map(with).collect(),
            norm: model.norm.clone(),
            head: model.head.clone(),
        };
        Self::assemble(&model.ctx, c.clone(), model.types, parts)
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
    /// tied table is read as the output projection). Layers that leave weights unread count in full.
    pub fn bytes_per_token(&self) -> u64 {
        let model = &self.inner;
        let layer = |l: &Layer| {
            let matrices = [&l.qkv, &l.output, &l.gate_up, &l.down];
            matrices.map(Matrix::bytes).iter().sum::<u64>()
        };
        model.layers.iter().map(layer).sum::<u64>() + model.head.bytes()
    }

    /// What offloaded layers did in all sessions; `None` where all weights are on the device.
    pub fn streamed(&self) -> Option<Streamed> {
        let layers = || self.inner.layers.iter();
        layers().any(|l| l.host.is_some()).then(|| {
            let mut sum = Streamed::default();
            for layer in layers() {
                if let Some(host) = &layer.host {
                    host.add_to(&mut sum, layer.gate_up.tensor());
                }
            }
            sum
        })
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

/// Matrices below each other, transposed: a row for each of their `inputs` columns.
fn input_major(load: &mut Loader<'_>, names: &[String], inputs: usize) -> Result<Tensor> {
    let mut columns = 0;
    for name in names {
        columns += load.rows(name)?;
    }
    load.arranged(names, [inputs, columns], |parts| {
        let all = || parts.iter().flat_map(|p| p.chunks(inputs));
        (0..inputs)
            .flat_map(|i| all().map(move |row| row[i]))
            .collect()
    })
}

/// Up rows and down columns of `n` neurons in turn, k elements each.
fn pairs(parts: &[Vec<f32>], [n, k]: [usize; 2]) -> Vec<f32> {
    let (up, down) = (&parts[0], &parts[1]);
    let neuron = |i: usize| (0..2 * k).map(move |c| (i, c));
    let value = |(i, c): (usize, usize)| {
        if c < k {
            up[i * k + c]
        } else {
            down[(c - k) * n + i]
        }
    };
    (0..n).flat_map(neuron).map(value).collect()
}

/// Layers of a model with a budget leave neurons out; errors if they leave out inputs.
fn offloadable(config: &mut LlamaConfig, budget: Option<u64>) -> Result<()> {
    let Some(bytes) = budget else { return Ok(()) };
    if config.sparsity.is_empty() {
        config.sparsity = vec![SparseMethod::Cats.layer(&[]); config.layers];
    }
    match (config.sparsity.iter()).position(|l| l.method() != Some(SparseMethod::Cats)) {
        None => Ok(()),
        Some(i) => {
            let name = config
                .layer_sparsity(i)
                .method()
                .map_or("dense", SparseMethod::name);
            let was = format!("{bytes} bytes, where layer {i} is {name}");
            Err(Error::argument(
                "budget",
                was,
                "layers of thresholds for neurons (cats)",
            ))
        }
    }
}

/// What a budget leaves of each layer on the device; `None` if all of it.
fn budgeted(config: &LlamaConfig, budget: Option<u64>, dtype: DType) -> Result<Option<Budget>> {
    let Some(bytes) = budget else { return Ok(None) };
    if !dtype.is_float() {
        let was = format!("{bytes} bytes, for weights of {dtype}");
        return Err(Error::argument(
            "budget",
            was,
            "weights of f32, f16 or bf16",
        ));
    }
    let size = [config.intermediate_size, config.hidden_size];
    let budget = Budget::new(bytes, config.layers, size, dtype)?;
    Ok((!budget.fits()).then_some(budget))
}

struct Parts {
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Matrix,
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
    /// If layers leave weights unread.
    sparse: Option<SparseWork>,
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
        let offloaded = model.inner.offloaded().next();
        // Of many tokens every neuron fires for some.
        let chunk = match offloaded {
            Some(_) => FEW,
            None => chunk(ctx.capabilities()),
        };
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
            sparse: c
                .sparsity
                .iter()
                .any(|l| l.method().is_some())
                .then(|| {
                    let work = SparseWork::new(&ctx, &c, rows)?;
                    let layers = || model.inner.layers.iter();
                    let predictor = layers().find_map(|l| l.predictor.as_ref());
                    match (&offloaded, predictor) {
                        (Some(like), _) => work.staged(&ctx, like),
                        (None, Some(predictor)) => work.predicting(&ctx, predictor),
                        (None, None) => Ok(work),
                    }
                })
                .transpose()?,
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

    /// Begins to count the magnitudes that thresholds are compared with. From here on every weight is read, whatever the
    /// number of tokens; results stay the same.
    ///
    /// Errors if no layer has thresholds.
    pub fn observe(&mut self) -> Result<()> {
        let (ctx, c) = (self.model.context().clone(), self.model.config().clone());
        if self.model.inner.offloaded().next().is_some() {
            let allowed = "none, to observe: all weights are then on the device";
            return Err(Error::argument("budget", "less than all weights", allowed));
        }
        match &mut self.work.sparse {
            Some(sparse) => sparse.observe(&ctx, &c),
            None => Err(Error::argument(
                "sparsity",
                "none",
                "layers with thresholds, to observe",
            )),
        }
    }

    /// What was counted since [`observe`](Self::observe): of each layer, at each of its method's places.
    ///
    /// Errors, naming the layer, if infinities or NaN were met.
    pub fn histograms(&self) -> Result<Vec<Vec<Histogram>>> {
        self.work
            .sparse
            .as_ref()
            .map_or(Ok(Vec::new()), SparseWork::histograms)
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
            self.submit(&ids, Some((Logits::All, &rows)), &|_, _| Ok(()))?;
            self.cache.advance(chunk.len());
        }
        Ok(all)
    }

    /// Records the pass of the token ids `ids` (u32, on the device) after the tokens in the cache, without counting
    /// them in: [`feed`](Self::feed) does both. The hot loop of decoding; at most [`chunk`](Self::chunk) tokens.
    ///
    /// Errors if weights are over a [`budget`](LlamaOptions::budget): a pass cannot wait for them.
    pub fn forward(
        &self,
        pass: &mut Pass<'_>,
        ids: &Tensor,
        logits: Option<(Logits, &Tensor)>,
    ) -> Result<()> {
        if self.model.inner.offloaded().next().is_some() {
            let allowed = "that of all weights, for one pass";
            return Err(Error::argument("budget", "less than all weights", allowed));
        }
        self.forward_by(ids, logits, &mut |body| body(pass))
    }

    /// Submits what [`forward`](Self::forward) records, and then `then` with the logits: in one pass, or in the pieces between which
    /// weights are brought in.
    fn submit(
        &self,
        ids: &Tensor,
        logits: Option<(Logits, &Tensor)>,
        then: &Then<'_>,
    ) -> Result<()> {
        let ctx = self.model.context();
        let after = |pass: &mut Pass<'_>| match logits {
            Some((_, logits)) => then(pass, logits),
            None => Ok(()),
        };
        if self.model.inner.offloaded().next().is_none() {
            return ctx.record(|pass| {
                self.forward(pass, ids, logits)?;
                after(pass)
            });
        }
        self.forward_by(ids, logits, &mut |body| ctx.record(|pass| body(pass)))?;
        ctx.record(after)
    }

    /// As [`submit`](Self::submit); what it met for the first time is tuned with it, if the context is to do so. The cache does
    /// not advance: the pass can be run again and again.
    fn submit_tuned(
        &self,
        ids: &Tensor,
        logits: Option<(Logits, &Tensor)>,
        then: &Then<'_>,
    ) -> Result<()> {
        self.submit(ids, logits, then)?;
        #[cfg(not(target_arch = "wasm32"))]
        if self.model.inner.offloaded().next().is_none()
            && (self.model.context()).tune_wanted(&mut |pass| self.forward(pass, ids, logits))?
        {
            self.submit(ids, logits, then)?;
        }
        Ok(())
    }

    fn forward_by(
        &self,
        ids: &Tensor,
        logits: Option<(Logits, &Tensor)>,
        submit: &mut Submit<'_>,
    ) -> Result<()> {
        let (model, c, n) = (&*self.model.inner, self.model.config(), ids.len());
        self.cache.require_room(n)?;
        let caps = model.ctx.capabilities();
        let fused = fuses_norm(caps, n);
        let part = |t: &Tensor| t.rows(0..n);
        let w = &self.work;
        let operands = if fused { &w.few } else { &w.prompt };
        let (hidden, qkv) = (part(&w.hidden)?, part(&w.qkv)?);
        let (normed, q) = (part(&operands.normed)?, part(&operands.q)?);
        let (attended, gated) = (part(&operands.attended)?, part(&operands.gated)?);
        let attend = Attend::new(&self.rope, [&qkv, &q, &attended], c, self.cache.len())?;
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
                qkv: Product {
                    norm: first.norm,
                    ..Product::new(first.tensor, &layer.qkv, &qkv)
                },
                output: Product {
                    sum: Sum::Add,
                    ..Product::new(&attended, &layer.output, &hidden)
                },
                gate_up: Product {
                    norm: second.norm,
                    ..Product::new(second.tensor, &layer.gate_up, &gated)
                },
                down: Product {
                    sum: Sum::Add,
                    ..Product::new(&gated, &layer.down, &hidden)
                },
            }
        };
        // Layers whose caches are alike share a plan of what touches them.
        let mut cached_plans: Vec<AttendPlan<'_>> = Vec::new();
        for i in 0..c.layers {
            let cached = self.cache.layer(i);
            if !cached_plans.iter().any(|p| p.serves(cached)) {
                cached_plans.push(attend.plan(caps, cached)?);
            }
        }
        // What layers that read all of their weights share.
        let like = |is: fn(&LayerSparsity) -> bool| {
            (0..c.layers).find(|&i| is(&c.layer_sparsity(i))).map(steps)
        };
        let attends = like(|l| !matches!(l, LayerSparsity::Teal(_)))
            .map(|s| Ok::<_, Error>((s.qkv.plan(caps)?, s.output.plan(caps)?)))
            .transpose()?;
        let multiplies = like(|l| *l == LayerSparsity::Dense)
            .map(|s| Ok::<_, Error>((s.gate_up.plan(caps)?, s.down.plan(caps)?)))
            .transpose()?;

        let plans = SparsePlans::default();
        submit(&mut |pass| model.embedding.gather(pass, ids, &hidden))?;
        for (i, layer) in model.layers.iter().enumerate() {
            let step = steps(i);
            let sparsity = c.layer_sparsity(i);
            let sparse = (w.sparse.as_ref()).map(|work| work.layer(&plans, i, n, eps));
            submit(&mut |pass| {
                match (&sparse, sparsity, &attends) {
                    (Some(sparse), LayerSparsity::Teal(thresholds), _) => {
                        let of = SparseProduct {
                            norm: Some(&layer.attention_norm),
                            ..SparseProduct::new(
                                0,
                                thresholds.qkv,
                                &hidden,
                                layer.qkv.tensor(),
                                &qkv,
                            )
                        };
                        sparse.product(pass, &of)?;
                    }
                    (_, _, Some((first, _))) => {
                        if !fused {
                            norm.run(pass, NormArgs::new(&hidden, &layer.attention_norm, &normed))?;
                        }
                        step.qkv.launch(pass, first)?;
                    }
                    _ => {}
                }
                let cached = self.cache.layer(i);
                if let Some(plan) = cached_plans.iter().find(|p| p.serves(cached)) {
                    attend.launch(pass, plan, cached)?;
                }
                match (&sparse, sparsity, &attends) {
                    (Some(sparse), LayerSparsity::Teal(thresholds), _) => {
                        let output = layer.output.tensor();
                        let of = SparseProduct {
                            residual: Residual::InOut,
                            ..SparseProduct::new(1, thresholds.output, &attended, output, &hidden)
                        };
                        sparse.product(pass, &of)?;
                    }
                    (_, _, Some((_, output))) => step.output.launch(pass, output)?,
                    _ => {}
                }
                Ok(())
            })?;
            if let (Some(sparse), LayerSparsity::Cats { threshold }, Some(host)) =
                (&sparse, sparsity, &layer.host)
            {
                let of = Offloaded {
                    host,
                    norm: &layer.mlp_norm,
                    gate: layer.gate_up.tensor(),
                };
                sparse.brought(threshold, &of, &hidden, submit)?;
                continue;
            }
            submit(&mut |pass| {
                match (&sparse, sparsity, &multiplies) {
                    (Some(sparse), LayerSparsity::Teal(thresholds), _) => {
                        let (gate_up, down) = (layer.gate_up.tensor(), layer.down.tensor());
                        let up = SparseProduct {
                            norm: Some(&layer.mlp_norm),
                            gating: Gating::GateUp,
                            ..SparseProduct::new(2, thresholds.gate_up, &hidden, gate_up, &gated)
                        };
                        sparse.product(pass, &up)?;
                        let down = SparseProduct {
                            residual: Residual::InOut,
                            ..SparseProduct::new(3, thresholds.down, &gated, down, &hidden)
                        };
                        sparse.product(pass, &down)?;
                    }
                    (Some(sparse), LayerSparsity::Cats { threshold }, _) => {
                        let of = NeuronWeights {
                            norm: &layer.mlp_norm,
                            gate: layer.gate_up.tensor(),
                            pairs: layer.down.tensor(),
                            predictor: layer.predictor.as_ref(),
                        };
                        sparse.neurons(pass, threshold, &of, &hidden)?;
                    }
                    (_, _, Some((gate_up, down))) => {
                        if !fused {
                            norm.run(pass, NormArgs::new(&hidden, &layer.mlp_norm, &normed))?;
                        }
                        step.gate_up.launch(pass, gate_up)?;
                        step.down.launch(pass, down)?;
                    }
                    _ => {}
                }
                Ok(())
            })?;
        }
        if let Some((which, logits)) = logits {
            let rows = match which {
                Logits::Last => n - 1..n,
                Logits::All => 0..n,
            };
            let (hidden, normed) = (hidden.rows(rows.clone())?, normed.rows(rows.clone())?);
            submit(&mut |pass| {
                let mut product = Product::new(&hidden, &model.head, logits);
                if fuses_norm(caps, rows.len()) {
                    product.norm = Some((&model.norm, eps));
                } else {
                    norm.run(pass, NormArgs::new(&hidden, &model.norm, &normed))?;
                    product.x = &normed;
                }
                product.run(pass)
            })?;
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
        let most = self.chunk();
        let last = tokens.len().div_ceil(most) - 1;
        for (i, chunk) in tokens.chunks(most).enumerate() {
            let ids = self.work.ids.rows(0..chunk.len())?;
            ids.write(chunk)?;
            match i < last {
                true => self.submit_tuned(&ids, None, &|_, _| Ok(()))?,
                false => self.submit_tuned(&ids, Some((Logits::Last, &self.work.logits)), then)?,
            }
            self.cache.advance(chunk.len());
        }
        Ok(&self.work.logits)
    }
}

/// The products of a layer.
struct Steps<'a> {
    qkv: Product<'a>,
    output: Product<'a>,
    gate_up: Product<'a>,
    down: Product<'a>,
}

/// The input of a product, and the norm still to be applied to it.
struct Input<'a> {
    tensor: &'a Tensor,
    norm: Option<(&'a Tensor, f32)>,
}
