//! Grouped-query attention without the matrix of scores: prefill over tiles, decode over splits of the keys.
//!
//! out = softmax(scale q k' + bias, masked) v for each head, with the scores kept on chip (FlashAttention-2, arXiv
//! 2307.08691). Few queries take the decode kernel, which reads K and V once for all query heads that share them
//! and spreads the keys over the device (flash-decoding), many the prefill kernel, which tiles both ways.

mod alibi;
mod backward;
mod backward_tuning;
mod blocks;
mod cached;
mod cooperative;
mod decode;
mod documents;
mod flash_decode;
mod format;
mod mask;
mod prefill;
mod problem;
mod store;
mod tuning;

use std::fmt;

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernel::MAX_BINDINGS;
use crate::kernels::ceilings::Probe;
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe};
use crate::recorder::Pass;
use crate::tensor::Tensor;
use crate::tuned::Question;

pub use alibi::alibi_slopes;
pub use backward::{
    AttentionBackward, BackwardArgs, BackwardLayouts, BackwardPlan, Gradient, Gradients,
    MAX_BACKWARD_DIM,
};
pub use backward_tuning::{BackwardTuning, FlashGradientTuning, GradientTuning};
pub use blocks::Blocks;
pub use cached::{CacheArgs, CacheLayouts};
pub use documents::{Documents, Packing};
pub use format::{KvFormat, KvLayout};
pub use mask::{Band, Mask};
use problem::Problem;
pub use store::{BlockLayout, BlockTable, ChannelOrder, KvStore, TokenLayout, Tokens, plan_append};
pub use tuning::{
    CooperativeTuning, DecodeTuning, FlashDecodeTuning, Loads, MatrixUnits, PrefillTuning, Tuning,
};

/// Most channels of a head of q and k: what multi-head latent attention (DeepSeek-V2) takes.
pub const MAX_HEAD_DIM: usize = 576;

/// Most channels of a head of v.
pub const MAX_VALUE_DIM: usize = 512;

/// Attention: out = softmax(scale q k' + bias, masked) v, head by head.
///
/// - `q` [batch, heads, q_len, head_dim], `k` [batch, kv_heads, kv_len, head_dim], `v` [batch, kv_heads, kv_len,
///   v_dim], `out` [batch, heads, q_len, v_dim]: f32, f16 or bf16 each, any strides with adjacent elements in the
///   last dimension (views of a fused projection, a narrowed cache, [batch, length, heads, dim] transposed); heads a
///   multiple of kv_heads, of which consecutive ones share a key head; head_dim at most [`MAX_HEAD_DIM`], v_dim at
///   most [`MAX_VALUE_DIM`].
/// - `bias`, added to the scaled scores: f32, f16 or bf16, broadcastable to [batch, heads, q_len, kv_len] (missing
///   leading dimensions and dimensions of one repeat). Minus infinity hides a key.
/// - `mask`, of the same form: i8 bytes, zero hides a key (safetensors' BOOL as it is).
/// - `documents`: sequences packed along q_len and kv_len, the same in every batch; see [`Packing`].
/// - `slopes` \[heads\], f32, contiguous: ALiBi, slope |p - j| less for a query at position p and key j;
///   [`alibi_slopes`] makes the usual ones.
/// - `sink_logits` \[heads\], f32, contiguous: one more key of each head, which every query sees, with this score (no
///   scale, softcap or bias) and the value zero; `lse` includes it. Minus infinity is none.
/// - `lse` [batch, heads, q_len], f32, contiguous: the natural logarithm of each row's sum of exponentials.
///
/// With all of it a score is softcap tanh(scale q k / softcap) - slope |p - j| + bias. Scores beyond 2e38 are cut.
/// A row that sees no key gives zeros, and minus infinity for `lse`, or the sink's logit. All arithmetic is in f32.
/// A device binds a limited number of tensors ([`Capabilities::storage_buffers`]; WebGPU grants 8: any three of bias,
/// mask, documents, slopes, sink logits and lse, or four, by the slower prefill kernel for few queries as well).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    mask: Mask,
    scale: Option<f32>,
    softcap: Option<f32>,
    tuning: Option<Tuning>,
}

/// The layouts of one call, to plan it without a GPU; see [`Attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionLayouts<'a> {
    /// Queries.
    pub q: &'a Layout,
    /// Keys.
    pub k: &'a Layout,
    /// Values.
    pub v: &'a Layout,
    /// Added to the scaled scores.
    pub bias: Option<&'a Layout>,
    /// Zero hides a key.
    pub mask: Option<&'a Layout>,
    /// Sequences packed without padding.
    pub documents: Option<&'a Packing>,
    /// Of ALiBi.
    pub slopes: Option<&'a Layout>,
    /// Of a learned sink a head.
    pub sink_logits: Option<&'a Layout>,
    /// The blocks of keys to visit, if not all.
    pub sparse: Option<Blocks<'a>>,
    /// The result.
    pub out: &'a Layout,
    /// Logarithms of the rows' sums.
    pub lse: Option<&'a Layout>,
}

/// The tensors of one call; see [`Attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Queries.
    pub q: &'a Tensor,
    /// Keys.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
    /// Added to the scaled scores.
    pub bias: Option<&'a Tensor>,
    /// Zero hides a key.
    pub mask: Option<&'a Tensor>,
    /// Sequences packed without padding.
    pub documents: Option<&'a Documents>,
    /// Of ALiBi.
    pub slopes: Option<&'a Tensor>,
    /// Of a learned sink a head.
    pub sink_logits: Option<&'a Tensor>,
    /// The blocks of keys to visit, if not all.
    pub sparse: Option<Blocks<'a>>,
    /// The result.
    pub out: &'a Tensor,
    /// Logarithms of the rows' sums.
    pub lse: Option<&'a Tensor>,
}

impl<'a> AttentionLayouts<'a> {
    /// Without anything optional.
    pub fn new(q: &'a Layout, k: &'a Layout, v: &'a Layout, out: &'a Layout) -> Self {
        Self {
            q,
            k,
            v,
            bias: None,
            mask: None,
            documents: None,
            slopes: None,
            sink_logits: None,
            sparse: None,
            out,
            lse: None,
        }
    }
}

impl<'a> AttentionArgs<'a> {
    /// Without anything optional.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, out: &'a Tensor) -> Self {
        Self {
            q,
            k,
            v,
            bias: None,
            mask: None,
            documents: None,
            slopes: None,
            sink_logits: None,
            sparse: None,
            out,
            lse: None,
        }
    }

    /// Their layouts, to plan with.
    pub fn layouts(&self) -> AttentionLayouts<'a> {
        AttentionLayouts {
            q: self.q.layout(),
            k: self.k.layout(),
            v: self.v.layout(),
            bias: self.bias.map(Tensor::layout),
            mask: self.mask.map(Tensor::layout),
            documents: self.documents.map(Documents::packing),
            slopes: self.slopes.map(Tensor::layout),
            sink_logits: self.sink_logits.map(Tensor::layout),
            sparse: self.sparse,
            out: self.out.layout(),
            lse: self.lse.map(Tensor::layout),
        }
    }
}

/// The dispatches of one call. The recipes do not depend on the number of keys: a growing cache compiles nothing.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    main: Launch,
    combine: Option<Launch>,
    /// Elements of the intermediate result; zero for prefill.
    partial: usize,
}

impl AttentionPlan {
    /// The dispatches in order: one, or two where keys are split.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        std::iter::once(&self.main).chain(&self.combine)
    }

    /// With what planners were told of its class.
    fn of_class(mut self, class: Option<Recipe>) -> Self {
        if let Some(combine) = &mut self.combine {
            combine.class.clone_from(&class);
        }
        self.main.class = class;
        self
    }

    /// Bytes of device memory that the call takes beside its tensors: partial results where keys are split, or none.
    pub fn scratch_bytes(&self) -> u64 {
        4 * self.partial as u64
    }

    /// Records the dispatches over tensors of the layouts that were planned for: the hot loop's form, for models
    /// that plan once a step and launch for every layer.
    pub fn launch(&self, pass: &mut Pass<'_>, args: AttentionArgs<'_>) -> Result<()> {
        let partial = match self.partial {
            0 => None,
            n => Some(pass.scratch(SCRATCH_SLOT, DType::F32, [n])?),
        };
        let lists = match args.sparse {
            None => None,
            Some(blocks) => Some(blocks.layout().row_table(pass.context())?),
        };
        let mut tensors = arrayvec::ArrayVec::<&Tensor, MAX_BINDINGS>::from_iter([
            args.q, args.k, args.v, args.out,
        ]);
        tensors.extend(args.bias);
        tensors.extend(args.mask);
        tensors.extend(args.lse);
        tensors.extend(&partial);
        tensors.extend(args.documents.map(Documents::table));
        tensors.extend(args.slopes);
        tensors.extend(args.sink_logits);
        tensors.extend(&lists);
        pass.launch(&self.main, &tensors)?;
        if let (Some(combine), Some(partial)) = (&self.combine, &partial) {
            tensors.clear();
            tensors.extend([partial, args.out]);
            tensors.extend(args.lse);
            pass.launch(combine, &tensors)?;
        }
        Ok(())
    }
}

impl fmt::Display for AttentionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.main.recipe)?;
        match &self.combine {
            Some(combine) => write!(f, " + {}", combine.recipe),
            None => Ok(()),
        }
    }
}

/// How many tensors a kernel may bind on a device.
fn most_bindings(caps: &Capabilities) -> usize {
    MAX_BINDINGS.min(caps.storage_buffers as usize)
}

/// The slot of scratch memory for what one operator's dispatches hand on to its next: never read after it.
const SCRATCH_SLOT: usize = 0;

impl Attention {
    /// Attention with this mask, scaled by 1 / sqrt(head_dim).
    pub fn new(mask: Mask) -> Self {
        Self {
            mask,
            scale: None,
            softcap: None,
            tuning: None,
        }
    }

    /// With the dot products multiplied by `scale`, which must be finite.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// With scores bent to stay within `softcap` of zero (Gemma 2), by softcap tanh(s / softcap): from 1e-30 to
    /// 1e30.
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }

    /// With sizes of one's own.
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = Some(tuning);
        self
    }

    /// Plans the dispatches.
    pub fn plan(
        &self,
        caps: &Capabilities,
        layouts: AttentionLayouts<'_>,
    ) -> Result<AttentionPlan> {
        let problem = Problem::new(self, &layouts)?;
        let tuning = self.tuning.unwrap_or_else(|| problem.usual_tuning(caps));
        // The decode kernel binds one tensor more.
        if problem.q_len <= tuning.decode_queries && problem.bindings() < most_bindings(caps) {
            let decode = problem.pick_decode(caps, self.tuning, tuning.decode);
            let plan = problem.decode(caps, &decode.tuning)?;
            return Ok(plan.of_class(decode.class));
        }
        let dims = [problem.head_dim, problem.v_dim];
        match tuning.cooperative {
            Some(usual) if problem.suits_cooperative(caps) => {
                let picked = problem.pick(
                    "attention/flash",
                    caps,
                    self.tuning,
                    &Question {
                        default: usual,
                        candidates: &|| CooperativeTuning::candidates(caps, dims[0], dims[1]),
                        admits: &|t| t.check(caps, dims[0], dims[1]).is_ok(),
                        work: &|_| problem.multiplied(Probe::Cooperative),
                    },
                );
                let plan = problem.cooperative(caps, &picked.tuning)?;
                Ok(plan.of_class(picked.class))
            }
            _ => {
                let picked = problem.pick(
                    "attention/prefill",
                    caps,
                    self.tuning,
                    &Question {
                        default: tuning.prefill,
                        candidates: &|| PrefillTuning::candidates(caps, dims[0], dims[1]),
                        admits: &|t| t.check(caps, dims[1]).is_ok(),
                        work: &|_| problem.multiplied(Probe::F32),
                    },
                );
                let plan = problem.prefill(caps, &picked.tuning)?;
                Ok(plan.of_class(picked.class))
            }
        }
    }

    /// Records the dispatches.
    pub fn run(&self, pass: &mut Pass<'_>, args: AttentionArgs<'_>) -> Result<()> {
        self.plan(pass.capabilities(), args.layouts())?
            .launch(pass, args)
    }

    /// Attention over `q`, `k` and `v` as a new tensor of q's type.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = match (q.shape(), v.shape()) {
            (&[batch, heads, q_len, _], &[.., v_dim]) => [batch, heads, q_len, v_dim],
            // Planning says what is wrong.
            _ => [1; 4],
        };
        let out = Tensor::empty(q.context(), q.dtype(), shape)?;
        let args = AttentionArgs::new(q, k, v, &out);
        q.context().record(|pass| self.run(pass, args))?;
        Ok(out)
    }
}
