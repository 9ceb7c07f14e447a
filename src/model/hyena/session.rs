//! A text under way in a Hyena.

use std::sync::Arc;

use super::{Hyena, Layer};
use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::elementwise::{Binary, BinaryOp};
use crate::kernels::gemm::{Gemm, GemmArgs, Residual, Transpose};
use crate::kernels::hyena::{Prompt, PromptArgs, Relaxed, Short, Step, StepArgs};
use crate::kernels::linear::fuses_norm;
use crate::kernels::norm::{Norm, NormArgs};
use crate::model::generate::{Decode, Generation, Then};
use crate::model::hyena::filters::Filters;
use crate::model::llama::Logits;
use crate::model::matrix::{Product, Sum};
use crate::model::sampling::Sampling;
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Tokens whose wide intermediate results (projections, the MLP's inside) are held at a time.
const CHUNK: usize = 1024;
/// Tokens from which on a continuation goes through the whole convolution again; fewer go one by one.
const PROMPT: usize = 32;

/// A text under way: what the operators keep of it, and the memory for intermediate results of a token.
pub struct HyenaSession {
    model: Hyena,
    filters: Arc<Filters>,
    relaxed: Relaxed,
    layers: Vec<Kept>,
    capacity: usize,
    position: usize,
    /// Where the last prompt ended: the relaxed convolution counts tokens from here.
    base: usize,
    work: Work,
}

/// What one layer keeps of a text.
struct Kept {
    /// The last projections: see [`Short`].
    state: Tensor,
    /// `[hidden, capacity]`: the long convolution's inputs by position; zeros after the text.
    z: Tensor,
    /// `[hidden, capacity]`: what inputs up to the last pushes contribute to each position.
    carried: Tensor,
}

/// Intermediate results of one token.
struct Work {
    ids: Tensor,
    hidden: Tensor,
    projection: Tensor,
    mixed: Tensor,
    gated: Tensor,
    logits: Tensor,
}

impl HyenaSession {
    pub(super) fn new(model: Hyena, capacity: usize, relaxed: Relaxed) -> Result<Self> {
        relaxed.check()?;
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
        let f32s = |rows: usize, cols: usize| Tensor::empty(&ctx, DType::F32, [rows, cols]);
        let kept = |_| -> Result<Kept> {
            Ok(Kept {
                state: f32s((c.short_filter - 1).max(1), 3 * c.hidden_size)?,
                z: f32s(c.hidden_size, capacity)?,
                carried: f32s(c.hidden_size, capacity)?,
            })
        };
        let layers = (0..c.layers).map(kept).collect::<Result<_>>()?;
        let work = Work {
            ids: Tensor::empty(&ctx, DType::U32, [1])?,
            hidden: f32s(1, c.hidden_size)?,
            projection: f32s(1, 3 * c.hidden_size)?,
            mixed: f32s(1, c.hidden_size)?,
            gated: f32s(1, c.intermediate_size)?,
            logits: f32s(1, c.vocab_size)?,
        };
        let mut session = Self {
            filters: model.filters(capacity, relaxed)?,
            model,
            relaxed,
            layers,
            capacity,
            position: 0,
            base: 0,
            work,
        };
        session.reset()?;
        Ok(session)
    }

    /// The model.
    pub fn model(&self) -> &Hyena {
        &self.model
    }

    /// Forgets the text.
    pub fn reset(&mut self) -> Result<()> {
        for kept in &self.layers {
            kept.state.write(&vec![0.0f32; kept.state.len()])?;
        }
        (self.position, self.base) = (0, 0);
        Ok(())
    }

    /// Bytes on the device of what it keeps of a text, and of the filters, which sessions of one capacity share.
    pub fn bytes(&self) -> u64 {
        let kept = |k: &Kept| {
            let tensors = [&k.state, &k.z, &k.carried];
            tensors.map(|t| t.layout().bytes()).iter().sum::<u64>()
        };
        self.layers.iter().map(kept).sum::<u64>() + self.filters.bytes()
    }

    /// Runs `tokens` through the model after those before, and gives the last one's logits `[1, vocab]`, on the device;
    /// overwritten by the next call. Submits without waiting.
    ///
    /// Errors on no tokens, a token outside the vocabulary, or more tokens than the session has room for.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<&Tensor> {
        self.feed_then(tokens, &|_, _| Ok(()))
    }

    /// As [`feed`](Self::feed), with the logits of every token, `[tokens, vocab]`: one convolution over them all.
    pub fn feed_all(&mut self, tokens: &[u32]) -> Result<Tensor> {
        self.check(tokens)?;
        let shape = [tokens.len(), self.vocab_size()];
        let logits = Tensor::empty(self.context(), DType::F32, shape)?;
        self.prompt(tokens, Logits::All, &logits, &|_, _| Ok(()))?;
        Ok(logits)
    }

    /// Continues the text with `prompt` and what follows it.
    ///
    /// Errors if a parameter of `sampling` or a token of `prompt` is out of range, or if there is no room for the
    /// prompt.
    pub fn generate(&mut self, prompt: &[u32], sampling: &Sampling) -> Result<Generation<'_>> {
        Generation::of(self, prompt, sampling)
    }

    /// The short convolutions of a layer.
    fn short<'a>(layer: &'a Layer, kept: &'a Kept) -> Short<'a, Tensor> {
        Short {
            weights: &layer.short,
            state: &kept.state,
        }
    }

    /// Many tokens at once, after those before: one long convolution a layer, over the whole text; what it says of the
    /// positions after the text is carried on.
    fn prompt(
        &mut self,
        tokens: &[u32],
        which: Logits,
        logits: &Tensor,
        then: &Then<'_>,
    ) -> Result<()> {
        let model = self.model.clone();
        let (inner, c, ctx) = (&*model.inner, model.config(), model.context());
        let (n, start, end) = (tokens.len(), self.position, self.position + tokens.len());
        let ids = Tensor::from_slice(ctx, tokens, [n])?;
        let f32s = |rows: usize, cols: usize| Tensor::empty(ctx, DType::F32, [rows, cols]);
        let (hidden, gate) = (f32s(n, c.hidden_size)?, f32s(c.hidden_size, n)?);
        let mixed = f32s(c.hidden_size, n)?;
        let rows = n.min(CHUNK);
        let normed = f32s(rows, c.hidden_size)?;
        let projection = f32s(rows, 3 * c.hidden_size)?;
        let gated = f32s(rows, c.intermediate_size)?;
        // Of nearly equal size, so that none is shorter than a short filter's past.
        let count = n.div_ceil(CHUNK);
        let chunks = (0..count).map(|i| n * i / count..n * (i + 1) / count);

        ctx.record(|pass| {
            inner.embedding.gather(pass, &ids, &hidden)?;
            for (i, (layer, kept)) in inner.layers.iter().zip(&self.layers).enumerate() {
                for part in chunks.clone() {
                    let count = part.len();
                    // After the text, zeros: pushes and the whole convolution read them.
                    let columns = if part.end == n {
                        self.capacity
                    } else {
                        start + part.end
                    };
                    let (hidden, normed) = (hidden.rows(part.clone())?, normed.rows(0..count)?);
                    let projection = projection.rows(0..count)?;
                    Norm::rms(c.norm_eps)
                        .run(pass, NormArgs::new(&hidden, &layer.hyena_norm, &normed))?;
                    Product::new(&normed, &layer.in_proj, &projection).run(pass)?;
                    let args = PromptArgs {
                        projection: &projection,
                        short: Self::short(layer, kept),
                        gate: &gate.narrow(1, part.clone())?,
                        z: &kept.z.narrow(1, start + part.start..columns)?,
                    };
                    Prompt.run(pass, args)?;
                    // The state: its last rows are this chunk's, and a first chunk shorter than it comes after zeros.
                    let past = c.short_filter - 1;
                    let taken = count.min(past);
                    if taken > 0 {
                        let last = projection.rows(count - taken..count)?;
                        let from = (past - taken) * 3 * c.hidden_size;
                        pass.copy(&last, &kept.state, from)?;
                    }
                }
                self.filters
                    .whole(pass, i, &kept.z, start..end, &kept.carried)?;
                let convolved = kept.carried.narrow(1, start..end)?;
                Binary(BinaryOp::Mul).run(pass, &gate, &convolved, &mixed)?;
                let out_proj = Gemm {
                    a: Transpose::Yes,
                    b: Transpose::Yes,
                    ..Gemm::default()
                };
                let args = GemmArgs {
                    residual: Residual::InOut,
                    ..GemmArgs::new(&mixed, layer.out_proj.tensor(), &hidden)
                };
                out_proj.run(pass, &args)?;
                for part in chunks.clone() {
                    let (gated, normed) = (gated.rows(0..part.len())?, normed.rows(0..part.len())?);
                    let hidden = hidden.rows(part)?;
                    Norm::rms(c.norm_eps)
                        .run(pass, NormArgs::new(&hidden, &layer.mlp_norm, &normed))?;
                    Product::new(&normed, &layer.gate_up, &gated).run(pass)?;
                    let down = Product {
                        sum: Sum::Add,
                        ..Product::new(&gated, &layer.down, &hidden)
                    };
                    down.run(pass)?;
                }
            }
            let from = match which {
                Logits::Last => n - 1,
                Logits::All => 0,
            };
            for at in (from..n).step_by(CHUNK) {
                let rows = at..n.min(at + CHUNK);
                let normed = normed.rows(0..rows.len())?;
                let out = logits.rows(at - from..at - from + rows.len())?;
                Norm::rms(c.norm_eps).run(
                    pass,
                    NormArgs::new(&hidden.rows(rows)?, &inner.norm, &normed),
                )?;
                Product::new(&normed, &inner.head, &out).run(pass)?;
            }
            then(pass, logits)
        })?;
        (self.position, self.base) = (end, end);
        Ok(())
    }

    /// Records the pass of one token id (`ids` `[1]` u32, on the device) after those before, without counting it in:
    /// [`feed`](Self::feed) does both. The hot loop of decoding. The text must have begun with a prompt.
    pub fn forward(
        &self,
        pass: &mut Pass<'_>,
        ids: &Tensor,
        logits: Option<&Tensor>,
    ) -> Result<()> {
        let (inner, c) = (&*self.model.inner, self.model.config());
        if self.position == 0 || self.position >= self.capacity {
            return Err(Error::argument(
                "position",
                self.position,
                format!("1 to {}, after a prompt", self.capacity - 1),
            ));
        }
        let (caps, w) = (pass.capabilities(), &self.work);
        let eps = c.norm_eps;
        let step = Step {
            position: self.position,
            block: (self.position - self.base) % self.relaxed.block,
        };
        // All layers have the same layouts: each kernel is planned once and launched for every layer.
        let steps = |i: usize| {
            let (layer, kept) = (&inner.layers[i], &self.layers[i]);
            Steps {
                projection: Product {
                    norm: Some((&layer.hyena_norm, eps)),
                    ..Product::new(&w.hidden, &layer.in_proj, &w.projection)
                },
                mix: StepArgs {
                    projection: &w.projection,
                    short: Self::short(layer, kept),
                    z: &kept.z,
                    carried: &kept.carried,
                    taps: self.filters.taps(i),
                    out: &w.mixed,
                },
                output: Product {
                    sum: Sum::Add,
                    ..Product::new(&w.mixed, &layer.out_proj, &w.hidden)
                },
                gate_up: Product {
                    norm: Some((&layer.mlp_norm, eps)),
                    ..Product::new(&w.hidden, &layer.gate_up, &w.gated)
                },
                down: Product {
                    sum: Sum::Add,
                    ..Product::new(&w.gated, &layer.down, &w.hidden)
                },
            }
        };
        debug_assert!(fuses_norm(caps, 1));
        let plan = steps(0);
        let projection = plan.projection.plan(caps)?;
        let mix = step.plan(caps, &plan.mix.layouts())?;
        let output = plan.output.plan(caps)?;
        let gate_up = plan.gate_up.plan(caps)?;
        let down = plan.down.plan(caps)?;

        inner.embedding.gather(pass, ids, &w.hidden)?;
        for i in 0..c.layers {
            let step = steps(i);
            step.projection.launch(pass, &projection)?;
            step.mix.launch(pass, &mix)?;
            step.output.launch(pass, &output)?;
            step.gate_up.launch(pass, &gate_up)?;
            step.down.launch(pass, &down)?;
        }
        if let Some(logits) = logits {
            let head = Product {
                norm: Some((&inner.norm, eps)),
                ..Product::new(&w.hidden, &inner.head, logits)
            };
            head.run(pass)?;
        }
        self.push(pass)
    }

    /// Counts in the token whose pass [`forward`](Self::forward) recorded.
    pub fn advance(&mut self) {
        self.position += 1;
    }

    /// After the token at the present position: pushes the blocks that it completes into the positions after it.
    fn push(&self, pass: &mut Pass<'_>) -> Result<()> {
        let end = self.position + 1;
        let tokens = end - self.base;
        if !tokens.is_multiple_of(self.relaxed.block) || end == self.capacity {
            return Ok(());
        }
        let block = 1 << tokens.trailing_zeros();
        for (i, kept) in self.layers.iter().enumerate() {
            self.filters
                .push(pass, i, &kept.z, &kept.carried, end, block)?;
        }
        Ok(())
    }
}

/// The products of a layer.
struct Steps<'a> {
    projection: Product<'a>,
    mix: StepArgs<'a, Tensor>,
    output: Product<'a>,
    gate_up: Product<'a>,
    down: Product<'a>,
}

impl Decode for HyenaSession {
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
        self.position
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn feed_then(&mut self, tokens: &[u32], then: &Then<'_>) -> Result<&Tensor> {
        self.check(tokens)?;
        if self.position == 0 || tokens.len() >= PROMPT {
            let logits = self.work.logits.clone();
            self.prompt(tokens, Logits::Last, &logits, then)?;
            return Ok(&self.work.logits);
        }
        let ctx = self.model.context().clone();
        for (i, token) in tokens.iter().enumerate() {
            self.work.ids.write(&[*token])?;
            ctx.record(|pass| {
                if i + 1 < tokens.len() {
                    return self.forward(pass, &self.work.ids, None);
                }
                self.forward(pass, &self.work.ids, Some(&self.work.logits))?;
                then(pass, &self.work.logits)
            })?;
            self.advance();
        }
        Ok(&self.work.logits)
    }
}
