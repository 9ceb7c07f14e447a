//! Whole models with random weights: decode bounded by reading the weights, prefill by arithmetic, and what a
//! dispatch costs the host.

use std::time::{Duration, Instant};

use flashwave::kernels::ceilings::Probe;
use flashwave::kernels::rope::{RopeConfig, RopeLayout, RopeScaling};
use flashwave::kernels::sparse::Pattern;
use flashwave::model::{
    LayerAttention, Llama, LlamaConfig, Logits, Session, SparseMethod, Streamed,
};
use flashwave::quant::Format;
use flashwave::{Capabilities, Context, DType, Layout, Result, Tensor};

use super::{Prepared, Row, Scale};

/// The shape of Llama-2 7B (arXiv 2307.09288), or a small one.
fn shape(scale: Scale) -> LlamaConfig {
    let (hidden, inner, layers, heads) = scale.pick((4096, 11008, 32, 32), (256, 688, 2, 8));
    LlamaConfig {
        vocab_size: scale.pick(32000, 512),
        hidden_size: hidden,
        intermediate_size: inner,
        layers,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        max_positions: 4096,
        norm_eps: 1e-5,
        rope: RopeConfig {
            theta: 10000.0,
            dims: hidden / heads,
            layout: RopeLayout::HalfSplit,
            scaling: RopeScaling::None,
        },
        attention: Vec::new(),
        sparsity: Vec::new(),
        tie_word_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    }
}

/// Tokens in the cache when decoding is timed.
const CONTEXT: usize = 512;

/// A session with [`CONTEXT`] tokens in its cache.
fn filled(ctx: &Context, scale: Scale, dtype: DType) -> Result<Session> {
    fed(Llama::random(ctx, shape(scale), dtype)?)
}

fn prompt(model: &Llama) -> Vec<u32> {
    let vocab = model.config().vocab_size as u32;
    (0..CONTEXT as u32).map(|i| i * 7919 % vocab).collect()
}

fn fed(model: Llama) -> Result<Session> {
    let ctx = model.context().clone();
    let mut session = model.session(2 * CONTEXT)?;
    session.feed(&prompt(&model))?;
    ctx.wait()?;
    Ok(session)
}

/// Weights of the shape, with or without the embedding table.
fn parameters(c: &LlamaConfig) -> f64 {
    let attention = (2 * c.heads + 2 * c.kv_heads) * c.head_dim * c.hidden_size;
    let layer = attention + 3 * c.intermediate_size * c.hidden_size;
    (c.layers * layer + c.vocab_size * c.hidden_size) as f64
}

/// What bounds a prompt with f16 weights.
fn ceiling(caps: &Capabilities) -> Probe {
    match Probe::Cooperative.missing(caps) {
        None => Probe::Cooperative,
        Some(_) => Probe::F32,
    }
}

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let c = shape(scale);
    let weights = parameters(&c);
    let size = format!("Llama {:.2}B", weights / 1e9);
    let name = format!("{size} f16");
    // The bound of the issue: the weights alone, each read once a token.
    let formats = [Format::INT8, Format::Q8_0, Format::INT4, Format::Q4_0];
    let types = [DType::F16].into_iter().chain(formats.map(DType::Quant));
    let decode = types.map(|dtype| {
        let bits = Layout::contiguous(dtype, [4096, 4096]).map_or(0, |l| l.bytes() * 8) as f64;
        let work = format!("{size} {dtype} decode batch 1 kv{CONTEXT}");
        let bytes = weights * bits / f64::from(1 << 24) / 8.0;
        Row::memory("model", work, bytes, move |ctx| {
            let session = filled(ctx, scale, dtype)?;
            let ids = Tensor::from_slice(ctx, &[1u32], [1])?;
            let logits = Tensor::empty(ctx, DType::F32, [1, session.model().config().vocab_size])?;
            // The cache is not advanced: every run is the same step.
            Ok(Prepared::new("model", move |pass, _| {
                session.forward(pass, &ids, Some((Logits::Last, &logits)))
            }))
        })
    });
    let mut rows: Vec<Row> = decode.collect();
    let tokens = scale.pick(1024, 16);
    let flops = 2.0 * weights * tokens as f64;
    let prefill = Row::compute(
        "model",
        format!("{name} prefill {tokens} tokens"),
        ceiling(caps),
        flops,
        move |ctx| {
            let session = Llama::random(ctx, shape(scale), DType::F16)?.session(tokens)?;
            let ids = Tensor::from_slice(ctx, &vec![1u32; tokens], [tokens])?;
            let logits = Tensor::empty(
                ctx,
                DType::F32,
                [tokens, session.model().config().vocab_size],
            )?;
            Ok(Prepared::new("model", move |pass, _| {
                session.forward(pass, &ids, Some((Logits::All, &logits)))
            }))
        },
    );
    rows.push(prefill);
    rows.extend(sparse(scale));
    rows.extend(hybrids(caps, scale));
    rows
}

/// What a model is tuned with: a step of decoding after half of what it holds, or 512 tokens, and a chunk of a prompt.
pub fn steps<F>(name: &str, load: F) -> [Row; 2]
where
    F: Fn(&Context) -> Result<Llama> + Clone + Send + Sync + 'static,
{
    let decode = load.clone();
    let logits = |session: &Session| {
        let vocab = session.model().config().vocab_size;
        Tensor::empty(session.model().context(), DType::F32, [1, vocab])
    };
    let decode = move |ctx: &Context| {
        let model = decode(ctx)?;
        let most = model.config().max_positions;
        let mut session = model.session(most.min(2 * CONTEXT))?;
        let prompt = prompt(&model);
        session.feed(&prompt[..(most / 2).clamp(1, CONTEXT)])?;
        let ids = Tensor::from_slice(ctx, &[1u32], [1])?;
        let logits = logits(&session)?;
        Ok(Prepared::new("model", move |pass, _| {
            session.forward(pass, &ids, Some((Logits::Last, &logits)))
        }))
    };
    let prompt = move |ctx: &Context| {
        let model = load(ctx)?;
        let session = model.session(model.config().max_positions.min(2 * CONTEXT))?;
        let tokens = session.chunk();
        let ids = Tensor::from_slice(ctx, &vec![1u32; tokens], [tokens])?;
        let logits = logits(&session)?;
        Ok(Prepared::new("model", move |pass, _| {
            session.forward(pass, &ids, Some((Logits::Last, &logits)))
        }))
    };
    [
        Row::memory("model", format!("{name}: a token"), 0.0, decode),
        Row::memory("model", format!("{name}: a chunk of a prompt"), 0.0, prompt),
    ]
}

/// A model of random weights, f16, of the rows' shape.
pub fn random_model(ctx: &Context) -> Result<Llama> {
    Llama::random(ctx, shape(Scale::of(ctx.capabilities())), DType::F16)
}

/// Decode steps that leave weights unread; bytes are those left to read.
fn sparse(scale: Scale) -> Vec<Row> {
    let c = shape(scale);
    let weights = parameters(&c);
    let layers = weights - (c.vocab_size * c.hidden_size) as f64;
    let pairs = (2 * c.layers * c.intermediate_size * c.hidden_size) as f64;
    let mut rows = Vec::new();
    for (method, sparsity, may_skip) in [
        (SparseMethod::Cats, 0.5, pairs),
        (SparseMethod::Cats, 0.7, pairs),
        (SparseMethod::Teal, 0.25, layers),
        (SparseMethod::Teal, 0.5, layers),
    ] {
        let work = format!(
            "Llama {:.2}B f16 decode batch 1 kv{CONTEXT} {} {sparsity}",
            weights / 1e9,
            method.name()
        );
        let bytes = 2.0 * (weights - sparsity * may_skip);
        rows.push(Row::memory("model", work, bytes, move |ctx| {
            let zero = vec![method.layer(&[]); shape(scale).layers];
            let config = LlamaConfig {
                sparsity: zero,
                ..shape(scale)
            };
            let exact = Llama::random(ctx, config, DType::F16)?;
            let session = fed(exact.calibrated(&prompt(&exact), sparsity)?)?;
            let ids = Tensor::from_slice(ctx, &[1u32], [1])?;
            let logits = Tensor::empty(ctx, DType::F32, [1, session.model().config().vocab_size])?;
            Ok(Prepared::new("model", move |pass, _| {
                session.forward(pass, &ids, Some((Logits::Last, &logits)))
            }))
        }));
    }
    rows
}

/// LongGen's hybrid (arXiv 2410.01485) beside the same stack with full attention: six layers of the 7B shape, 128K tokens
/// as there.
fn hybrids(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let (layers, tokens, block) = scale.pick((6, 131_072, 64), (3, 512, 16));
    // A window of 1024 tokens, one sink, and every 16th block: some 7% of the context, which leaves 38% of the cache, as
    // the paper has it.
    let pattern = Pattern::LongGen {
        window: scale.pick(16, 2),
        sinks: 1,
        stride: scale.pick(16, 8),
    };
    let plans = [
        ("full".to_owned(), Vec::new()),
        (
            format!("1/3 full, 2/3 {pattern} block {block}"),
            LayerAttention::hybrid(layers, &pattern, block),
        ),
    ];
    let mut rows = Vec::new();
    for (name, attention) in plans {
        let config = LlamaConfig {
            layers,
            attention,
            max_positions: tokens,
            ..shape(scale)
        };
        // The chunk at half the context takes as long as the average chunk of a prompt that fills it.
        let chunk = scale.pick(1024, 16);
        for (what, at, count) in [
            ("prefill", tokens / 2, chunk),
            ("decode", tokens - chunk, 1),
        ] {
            let config = config.clone();
            let weights = parameters(&config);
            let work =
                format!("Llama {layers} layers {name}: {what} {count} tokens at {at} of {tokens}");
            let prepare = move |ctx: &Context| hybrid(ctx, config.clone(), at, count);
            rows.push(match count {
                1 => Row::memory("model", work, 2.0 * weights, prepare),
                n => Row::compute(
                    "model",
                    work,
                    ceiling(caps),
                    2.0 * weights * n as f64,
                    prepare,
                ),
            });
        }
    }
    rows
}

/// `count` tokens after `at` others; the recipe says what the cache takes.
fn hybrid(ctx: &Context, config: LlamaConfig, at: usize, count: usize) -> Result<Prepared> {
    let model = Llama::random(ctx, config, DType::F16)?;
    let mut session = model.session(model.config().max_positions)?;
    let vocab = model.config().vocab_size as u32;
    let prompt: Vec<u32> = (0..at as u32).map(|i| i * 7919 % vocab).collect();
    session.feed(&prompt)?;
    let ids = Tensor::from_slice(ctx, &vec![1u32; count], [count])?;
    let logits = Tensor::empty(ctx, DType::F32, [1, model.config().vocab_size])?;
    let (bytes, full) = (session.cache().bytes(), session.cache().full_bytes());
    let saved = 100.0 * session.cache().saved_bytes() as f64 / full as f64;
    let recipe = format!("kv cache {bytes} bytes of {full}: {saved:.1}% less");
    Ok(Prepared::new(recipe, move |pass, _| {
        session.forward(pass, &ids, Some((Logits::Last, &logits)))
    }))
}

/// Models have no tuning of their own.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    rows(caps, scale)
}

/// What a token costs where MLPs are over a budget.
#[derive(Clone, Copy, Debug)]
pub struct OffloadCost {
    /// The share of the MLPs' weights that the budget has room for.
    pub share: f64,
    /// Median time of a token, the host's included.
    pub per_token: Duration,
    /// What the timed tokens streamed.
    pub streamed: Streamed,
    /// Timed tokens.
    pub tokens: usize,
}

/// Times tokens of the shape with half the neurons firing, within shares of what its MLPs take; 1: all on the device.
pub fn offload_costs(ctx: &Context) -> Result<Vec<OffloadCost>> {
    let config = shape(Scale::of(ctx.capabilities()));
    let zero = vec![SparseMethod::Cats.layer(&[]); config.layers];
    let config = LlamaConfig {
        sparsity: zero,
        ..config
    };
    let all = 3 * config.layers * config.intermediate_size * config.hidden_size * 2;
    let exact = Llama::random(ctx, config.clone(), DType::F16)?;
    let text = prompt(&exact);
    let sparse = exact.calibrated(&text, 0.5)?;
    let layers = sparse.config().sparsity.clone();
    drop(exact);
    let mut resident = Some(sparse);
    let shares = [1.0, 0.9, 0.7, 0.5].into_iter();
    shares
        .map(|share| {
            let budget = (all as f64 * share) as u64;
            let model = match resident.take() {
                Some(model) => model,
                None => Llama::random_within(ctx, config.clone(), DType::F16, Some(budget))?
                    .with_sparsity(layers.clone())?,
            };
            offload_cost(ctx, share, &model, &text)
        })
        .collect()
}

fn offload_cost(ctx: &Context, share: f64, model: &Llama, text: &[u32]) -> Result<OffloadCost> {
    const TOKENS: usize = 24;
    let mut session = model.session(2 * TOKENS)?;
    let mut before = Streamed::default();
    let mut times = Vec::new();
    for (i, token) in text.iter().take(2 * TOKENS).enumerate() {
        if i == TOKENS {
            before = model.streamed().unwrap_or_default();
            times.clear();
        }
        let started = Instant::now();
        session.feed(&[*token])?;
        ctx.wait()?;
        times.push(started.elapsed());
    }
    times.sort();
    let after = model.streamed().unwrap_or_default();
    Ok(OffloadCost {
        share,
        per_token: times[TOKENS / 2],
        streamed: Streamed {
            fired: after.fired - before.fired,
            hits: after.hits - before.hits,
            bytes: after.bytes - before.bytes,
            waits: after.waits - before.waits,
            ..after
        },
        tokens: TOKENS,
    })
}

/// What recording costs the host.
#[derive(Clone, Copy, Debug)]
pub struct HostCost {
    /// Dispatches of a decode step.
    pub dispatches: usize,
    /// Median time of the processor for each of them, the submission included.
    pub per_dispatch: Duration,
}

/// Times the host's side of decode steps: planning, binding, recording, finishing and submitting, without
/// waiting for the device.
pub fn host_cost(ctx: &Context) -> Result<HostCost> {
    let session = filled(ctx, Scale::of(ctx.capabilities()), DType::F16)?;
    let ids = Tensor::from_slice(ctx, &[1u32], [1])?;
    let logits = Tensor::empty(ctx, DType::F32, [1, session.model().config().vocab_size])?;
    let mut dispatches = 0;
    let mut times = Vec::new();
    for _ in 0..40 {
        let started = Instant::now();
        dispatches = ctx.record(|pass| {
            session.forward(pass, &ids, Some((Logits::Last, &logits)))?;
            Ok(pass.launches())
        })?;
        times.push(started.elapsed());
        ctx.wait()?;
    }
    times.sort();
    Ok(HostCost {
        dispatches,
        per_dispatch: times[times.len() / 2] / dispatches.max(1) as u32,
    })
}
