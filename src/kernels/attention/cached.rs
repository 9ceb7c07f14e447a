//! Attention over caches: formats that are decoded in the kernel, block tables, sequences of unlike lengths.

use super::problem::Problem;
use super::store::{ChannelOrder, KvStore, Rows, TokenLayout, Tokens};
use super::{
    Attention, AttentionLayouts, AttentionPlan, DecodeTuning, FlashDecodeTuning, KvLayout,
    SCRATCH_SLOT, most_bindings,
};
use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::Constant;
use crate::recorder::Pass;
use crate::tensor::Tensor;
use crate::tuned::Question;

/// The layouts of one call over caches, to plan it without a GPU; see [`CacheArgs`].
#[derive(Clone, Copy, Debug)]
pub struct CacheLayouts<'a> {
    /// Queries.
    pub q: &'a Layout,
    /// Keys.
    pub keys: KvLayout,
    /// Values.
    pub values: KvLayout,
    /// Where the sequences' tokens are.
    pub tokens: TokenLayout,
    /// Whether keys' channels are stored in an order of their own.
    pub ordered: bool,
    /// Of ALiBi.
    pub slopes: Option<&'a Layout>,
    /// Of a learned sink a head.
    pub sink_logits: Option<&'a Layout>,
    /// The result.
    pub out: &'a Layout,
    /// Logarithms of the rows' sums.
    pub lse: Option<&'a Layout>,
}

/// The operands of attention over caches.
///
/// - `q` [batch, heads, q_len, dim], `out` [batch, heads, q_len, v_dim]: as for
///   [`AttentionArgs`](super::AttentionArgs). Queries are the last tokens of their sequences.
/// - `keys`, `values`: each in a format of its own; heads a multiple of theirs.
/// - `tokens`: how many tokens each sequence has and, with a block table, where they lie.
/// - `order`: in which the keys' channels were stored.
/// - `slopes`, `sink_logits` \[heads\]: as for [`Attention`].
/// - `lse` [batch, heads, q_len], f32, contiguous.
///
/// The result is that of attention over the numbers that the caches mean. It is computed by the decode kernel, meant for
/// 16 queries or fewer; more are correct, but each 8 rows read the cache anew.
#[derive(Clone, Copy, Debug)]
pub struct CacheArgs<'a> {
    /// Queries.
    pub q: &'a Tensor,
    /// Keys.
    pub keys: &'a KvStore,
    /// Values.
    pub values: &'a KvStore,
    /// Where the sequences' tokens are.
    pub tokens: Tokens<'a>,
    /// The order of the keys' channels.
    pub order: Option<&'a ChannelOrder>,
    /// Of ALiBi.
    pub slopes: Option<&'a Tensor>,
    /// Of a learned sink a head.
    pub sink_logits: Option<&'a Tensor>,
    /// The result.
    pub out: &'a Tensor,
    /// Logarithms of the rows' sums.
    pub lse: Option<&'a Tensor>,
}

impl CacheArgs<'_> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> CacheLayouts<'_> {
        CacheLayouts {
            q: self.q.layout(),
            keys: self.keys.layout(),
            values: self.values.layout(),
            tokens: self.tokens.layout(),
            ordered: self.order.is_some(),
            slopes: self.slopes.map(Tensor::layout),
            sink_logits: self.sink_logits.map(Tensor::layout),
            out: self.out.layout(),
            lse: self.lse.map(Tensor::layout),
        }
    }
}

/// The caches of a checked call.
#[derive(Clone, Copy)]
pub(super) struct Caches {
    pub(super) keys: Rows,
    pub(super) values: Rows,
    pub(super) page: Constant,
    pub(super) ordered: bool,
    pub(super) page_size: u32,
    pub(super) pages: u32,
    pub(super) blocks: u32,
}

impl Attention {
    /// Plans attention over caches.
    pub fn plan_cached(
        &self,
        caps: &Capabilities,
        layouts: CacheLayouts<'_>,
    ) -> Result<AttentionPlan> {
        let CacheLayouts {
            q,
            keys,
            values,
            tokens,
            ordered,
            slopes,
            sink_logits,
            out,
            lse,
        } = layouts;
        let &[batch, ..] = q.shape() else {
            return Err(Error::argument("q", format!("{q:?}"), "four dimensions"));
        };
        let longest = tokens.check("keys", &keys, batch)?.max(1);
        tokens.check("values", &values, batch)?;
        let same = |l: &KvLayout| [l.pages, l.heads, l.page_size];
        if same(&keys) != same(&values) {
            return Err(Error::argument(
                "values",
                format!("[pages, heads, page_size] = {:?}", same(&values)),
                format!("the keys' {:?}", same(&keys)),
            ));
        }
        // Tensors of the same shape: what is checked about those holds of caches.
        let seen = |dim| Layout::contiguous(DType::F16, [batch, keys.heads, longest, dim]);
        let (k, v) = (seen(keys.dim)?, seen(values.dim)?);
        let layouts = AttentionLayouts {
            slopes,
            sink_logits,
            lse,
            ..AttentionLayouts::new(q, &k, &v, out)
        };
        let mut problem = Problem::new(self, &layouts)?;
        let caches = Caches {
            keys: Rows::from(&keys),
            values: Rows::from(&values),
            page: tokens.variant(),
            ordered,
            page_size: keys.page_size as u32,
            pages: keys.pages as u32,
            blocks: tokens.blocks(),
        };
        problem.caches = Some(caches);
        // Beside those of the call: what splits leave, the table, the order.
        let paged = matches!(tokens, TokenLayout::Paged(_));
        let own = 1 + usize::from(paged) + usize::from(ordered);
        problem.require_bindings(most_bindings(caps) - own)?;
        let (decode, flash_decode) = match self.tuning {
            Some(tuning) => (tuning.decode, tuning.flash_decode),
            None => (
                DecodeTuning::cached(caps, keys.format, values.format),
                FlashDecodeTuning::new(caps),
            ),
        };
        match flash_decode {
            Some(usual) if problem.suits_flash_decode(&caches) => {
                let question = Question {
                    default: usual,
                    candidates: &|| FlashDecodeTuning::candidates(caps),
                    admits: &|t| t.check(caps).is_ok(),
                    work: &|_| problem.read(),
                };
                let picked = problem.pick("attention/flash_decode", caps, self.tuning, &question);
                let plan = problem.flash_decode(caps, &caches, &picked.tuning)?;
                Ok(plan.of_class(picked.class))
            }
            _ => {
                let picked = problem.pick_decode(caps, self.tuning, decode);
                let plan = problem.decode(caps, &picked.tuning)?;
                Ok(plan.of_class(picked.class))
            }
        }
    }

    /// Records attention over caches.
    pub fn run_cached(&self, pass: &mut Pass<'_>, args: CacheArgs<'_>) -> Result<()> {
        self.plan_cached(pass.capabilities(), args.layouts())?
            .launch_cached(pass, args)
    }
}

impl AttentionPlan {
    /// Records the dispatches over caches of the layouts that were planned for.
    pub fn launch_cached(&self, pass: &mut Pass<'_>, args: CacheArgs<'_>) -> Result<()> {
        if let Some(order) = args.order {
            let keys = args.keys.layout();
            order.require(keys.heads, keys.dim)?;
        }
        let partial = pass.scratch(SCRATCH_SLOT, DType::F32, [self.partial])?;
        let (k, v) = (args.keys.memory(), args.values.memory());
        let mut tensors = arrayvec::ArrayVec::<&Tensor, 10>::from_iter([args.q, k, v, args.out]);
        tensors.extend(args.lse);
        tensors.push(&partial);
        tensors.extend(args.slopes);
        tensors.extend(args.sink_logits);
        tensors.extend(args.tokens.table());
        tensors.extend(args.order.map(ChannelOrder::memory));
        pass.launch(&self.main, &tensors)?;
        if let Some(combine) = &self.combine {
            tensors.clear();
            tensors.extend([&partial, args.out]);
            tensors.extend(args.lse);
            pass.launch(combine, &tensors)?;
        }
        Ok(())
    }
}
