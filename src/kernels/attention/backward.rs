//! Gradients of attention with respect to queries, keys and values.

use std::fmt;

use bytemuck::{Pod, Zeroable};

use super::backward_tuning::MOST_FLASH_CHANNELS;
use super::problem::{self, Problem, Strides, four, multiple_of, strides};
use super::{
    Attention, AttentionArgs, AttentionLayouts, BackwardTuning, Blocks, Documents,
    FlashGradientTuning, GradientTuning, SCRATCH_SLOT, most_bindings,
};
use crate::capabilities::{Capabilities, ReduceTier};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernel::MAX_BINDINGS;
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Most channels of a head, of q and k as of v, that the gradients' kernels take.
pub const MAX_BACKWARD_DIM: usize = 256;

/// The backward pass of [`Attention`]: the gradients of a loss with respect to q, k and v from that with respect to the
/// output, after FlashAttention-2 (arXiv 2307.08691). Weights are computed again from the logarithms of the rows' sums,
/// so memory is linear in the lengths; every sum has one owner and one order, so results do not vary from run to run.
///
/// - `q`, `k`, `v`, `bias`, `mask`, `documents`, `slopes`, `sink_logits`: what the forward pass took, `out` and `lse`
///   what it gave; see [`Attention`].
/// - `dout`: the gradient of the output, of its shape; f32, f16 or bf16, any strides with adjacent elements in the last
///   dimension.
/// - `dq`, `dk`, `dv`: the gradients, of the shapes of q, k and v, types and strides as for `dout`. Where query heads
///   share a key head, dk and dv are the sums over them.
///
/// - `sparse`: as in the forward pass, for all rows and keys of the layout; k and v hold all keys.
///
/// head_dim and v_dim at most [`MAX_BACKWARD_DIM`]. A row that sees no key adds nothing and has a dq of zero. There are
/// no gradients with respect to bias, slopes and sink logits. Arithmetic is in f32, or, where everything is f16 and the device has
/// matrix units, products of f16 summed in f32. Of bias, mask, documents,
/// slopes and a sparse layout a device takes seven fewer than the tensors it binds ([`Capabilities::storage_buffers`]): one within
/// WebGPU's default limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionBackward {
    forward: Attention,
    tuning: Option<BackwardTuning>,
}

/// Which gradients a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gradient {
    /// dq.
    Queries,
    /// dk and dv.
    KeysValues,
}

impl Gradient {
    /// Channels of the widest result.
    pub(super) fn widest(self, head_dim: usize, v_dim: usize) -> usize {
        match self {
            Self::Queries => head_dim,
            Self::KeysValues => head_dim.max(v_dim),
        }
    }
}

/// The layouts of one call, to plan it without a GPU; see [`AttentionBackward`].
#[derive(Clone, Copy, Debug)]
pub struct BackwardLayouts<'a> {
    /// What the forward pass took and gave; `lse` is required.
    pub forward: AttentionLayouts<'a>,
    /// The output's gradient.
    pub dout: &'a Layout,
    /// The queries' gradient.
    pub dq: &'a Layout,
    /// The keys' gradient.
    pub dk: &'a Layout,
    /// The values' gradient.
    pub dv: &'a Layout,
}

/// The tensors of one call; see [`AttentionBackward`].
#[derive(Clone, Copy, Debug)]
pub struct BackwardArgs<'a> {
    /// What the forward pass took and gave; `lse` is required.
    pub forward: AttentionArgs<'a>,
    /// The output's gradient.
    pub dout: &'a Tensor,
    /// The queries' gradient.
    pub dq: &'a Tensor,
    /// The keys' gradient.
    pub dk: &'a Tensor,
    /// The values' gradient.
    pub dv: &'a Tensor,
}

impl<'a> BackwardArgs<'a> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> BackwardLayouts<'a> {
        BackwardLayouts {
            forward: self.forward.layouts(),
            dout: self.dout.layout(),
            dq: self.dq.layout(),
            dk: self.dk.layout(),
            dv: self.dv.layout(),
        }
    }
}

/// Gradients as new tensors.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// With respect to the queries.
    pub dq: Tensor,
    /// With respect to the keys.
    pub dk: Tensor,
    /// With respect to the values.
    pub dv: Tensor,
}

/// The dispatches of one call.
#[derive(Clone, Debug)]
pub struct BackwardPlan {
    rows: Launch,
    queries: Launch,
    keys: Launch,
    /// Rows of all heads.
    count: usize,
}

/// Mirrors the `Params` of `backward_q.wgsl` and `backward_kv.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    forward: problem::Params,
    dq: Strides,
    dk: Strides,
    dv: Strides,
    gradient_scale: f32,
}

/// Mirrors the `Params` of `backward_rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RowsParams {
    out: Strides,
    dout: Strides,
    lse_offset: u32,
    heads: u32,
    q_len: u32,
    count: u32,
}

/// Invocations of a workgroup of the kernel of rows.
const ROWS_WORKGROUP: u32 = 256;

impl BackwardPlan {
    /// The dispatches in order.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        [&self.rows, &self.queries, &self.keys].into_iter()
    }

    /// Records the dispatches over tensors of the layouts that were planned for.
    pub fn launch(&self, pass: &mut Pass<'_>, args: BackwardArgs<'_>) -> Result<()> {
        let forward = args.forward;
        let lse = forward.lse.ok_or_else(missing_lse)?;
        let rows = &pass.scratch(SCRATCH_SLOT, DType::F32, [self.count, 2])?;
        pass.launch(&self.rows, &[forward.out, args.dout, lse, rows])?;
        let ctx = pass.context();
        let [row_table, column_table] = match forward.sparse {
            Some(blocks) => {
                let layout = blocks.layout();
                [
                    Some(layout.row_table(ctx)?),
                    Some(layout.column_table(ctx)?),
                ]
            }
            None => [None, None],
        };
        for (launch, outputs, lists) in [
            (&self.queries, &[args.dq][..], &row_table),
            (&self.keys, &[args.dk, args.dv][..], &column_table),
        ] {
            let inputs = [forward.q, forward.k, forward.v, args.dout];
            let mut tensors = arrayvec::ArrayVec::<&Tensor, MAX_BINDINGS>::from_iter(inputs);
            tensors.extend(forward.bias);
            tensors.extend(forward.mask);
            tensors.extend([rows, outputs[0]]);
            tensors.extend(forward.documents.map(Documents::table));
            tensors.extend(forward.slopes);
            tensors.extend(lists);
            tensors.extend(outputs[1..].iter().copied());
            pass.launch(launch, &tensors)?;
        }
        Ok(())
    }
}

impl fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, queries, keys] = [&self.rows, &self.queries, &self.keys].map(|l| &l.recipe);
        write!(f, "{rows} + {queries} + {keys}")
    }
}

fn missing_lse() -> Error {
    Error::argument("lse", "none", "that of the forward pass")
}

impl AttentionBackward {
    /// The backward pass of `forward`.
    pub fn new(forward: Attention) -> Self {
        Self {
            forward,
            tuning: None,
        }
    }

    /// With sizes of one's own.
    pub fn tuning(mut self, tuning: BackwardTuning) -> Self {
        self.tuning = Some(tuning);
        self
    }

    /// Plans the dispatches.
    pub fn plan(&self, caps: &Capabilities, layouts: BackwardLayouts<'_>) -> Result<BackwardPlan> {
        let forward = &layouts.forward;
        let checked = Problem::new(&self.forward, forward)?;
        for (name, dim) in [("q", checked.head_dim), ("v", checked.v_dim)] {
            if dim > MAX_BACKWARD_DIM {
                return Err(Error::argument(
                    name,
                    format!("{dim} channels a head"),
                    format!("at most {MAX_BACKWARD_DIM} for gradients"),
                ));
            }
        }
        let lse = forward.lse.ok_or_else(missing_lse)?;
        for (name, layout, like) in [
            ("dout", layouts.dout, forward.out),
            ("dq", layouts.dq, forward.q),
            ("dk", layouts.dk, forward.k),
            ("dv", layouts.dv, forward.v),
        ] {
            four(name, layout)?;
            layout.require_shape(name, like.shape())?;
        }
        // The kernel of dk and dv binds seven tensors besides.
        let optional = [
            ("bias", forward.bias.is_some()),
            ("mask", forward.mask.is_some()),
            ("documents", forward.documents.is_some()),
            ("slopes", forward.slopes.is_some()),
            ("sparse", forward.sparse.is_some()),
        ];
        let there = optional.into_iter().filter(|(_, there)| *there);
        let room = most_bindings(caps).saturating_sub(7);
        if let Some((name, _)) = there.clone().nth(room) {
            return Err(Error::argument(
                name,
                format!("one of {}", there.clone().count()),
                format!(
                    "{room} of bias, mask, documents, slopes and a sparse layout for gradients on this device"
                ),
            ));
        }
        if let Some(blocks) = forward.sparse {
            require_whole(blocks, &checked)?;
        }
        let tuning = self
            .tuning
            .unwrap_or_else(|| BackwardTuning::new(caps, checked.head_dim, checked.v_dim));
        let scale = self.forward.scale;
        let scale = scale.unwrap_or((1.0 / (checked.head_dim as f64).sqrt()) as f32);
        // To the kernels, `out` is the output's gradient.
        let inner = AttentionLayouts {
            out: layouts.dout,
            // What the logarithms have of it is enough.
            sink_logits: None,
            ..*forward
        };
        let problem = Problem::new(&self.forward, &inner)?;
        let params = Params {
            forward: problem.params(1),
            dq: strides(layouts.dq),
            dk: strides(layouts.dk),
            dv: strides(layouts.dv),
            gradient_scale: scale,
        };
        let call = Call {
            problem,
            layouts,
            params,
        };
        let [queries, keys] = match &tuning.flash {
            Some([queries, keys]) if call.suits_flash() => [
                call.flash(caps, Gradient::Queries, queries)?,
                call.flash(caps, Gradient::KeysValues, keys)?,
            ],
            _ => [
                call.gradient(caps, Gradient::Queries, &tuning.queries)?,
                call.gradient(caps, Gradient::KeysValues, &tuning.keys)?,
            ],
        };
        Ok(BackwardPlan {
            rows: rows(caps, &call.problem, forward.out, lse)?,
            queries,
            keys,
            count: call.problem.batch * call.problem.heads * call.problem.q_len,
        })
    }

    /// Records the dispatches.
    pub fn run(&self, pass: &mut Pass<'_>, args: BackwardArgs<'_>) -> Result<()> {
        self.plan(pass.capabilities(), args.layouts())?
            .launch(pass, args)
    }
}

impl Attention {
    /// As [`forward`](Self::forward), with the logarithms of the rows' sums [batch, heads, q_len], which the backward
    /// pass needs.
    pub fn forward_with_lse(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<[Tensor; 2]> {
        let shape = match (q.shape(), v.shape()) {
            (&[batch, heads, q_len, _], &[.., v_dim]) => [batch, heads, q_len, v_dim],
            // Planning says what is wrong.
            _ => [1; 4],
        };
        let out = Tensor::empty(q.context(), q.dtype(), shape)?;
        let lse = Tensor::empty(q.context(), DType::F32, &shape[..3])?;
        let args = AttentionArgs {
            lse: Some(&lse),
            ..AttentionArgs::new(q, k, v, &out)
        };
        q.context().record(|pass| self.run(pass, args))?;
        Ok([out, lse])
    }

    /// The gradients with respect to `q`, `k` and `v` from that with respect to the output, as new tensors of their
    /// types: `out` and `lse` are what [`forward_with_lse`](Self::forward_with_lse) gave.
    pub fn backward(
        &self,
        [q, k, v]: [&Tensor; 3],
        [out, lse]: [&Tensor; 2],
        dout: &Tensor,
    ) -> Result<Gradients> {
        let like = |t: &Tensor| Tensor::empty(t.context(), t.dtype(), t.shape());
        let gradients = Gradients {
            dq: like(q)?,
            dk: like(k)?,
            dv: like(v)?,
        };
        let args = BackwardArgs {
            forward: AttentionArgs {
                lse: Some(lse),
                ..AttentionArgs::new(q, k, v, out)
            },
            dout,
            dq: &gradients.dq,
            dk: &gradients.dk,
            dv: &gradients.dv,
        };
        q.context()
            .record(|pass| AttentionBackward::new(*self).run(pass, args))?;
        Ok(gradients)
    }
}

/// The lists of keys are those of all rows.
fn require_whole(blocks: Blocks<'_>, problem: &Problem<'_>) -> Result<()> {
    let layout = blocks.layout();
    let lengths = [layout.queries(), layout.keys()];
    let all = [problem.q_len, problem.kv_len];
    if matches!(blocks, Blocks::Listed(_)) && lengths == all {
        return Ok(());
    }
    Err(Error::argument(
        "sparse",
        format!("{layout:?}"),
        format!("for gradients, all of {all:?} queries and keys, without pages"),
    ))
}

/// Plans the kernel that takes logarithms and products of every row.
fn rows(caps: &Capabilities, problem: &Problem<'_>, out: &Layout, lse: &Layout) -> Result<Launch> {
    let dout = problem.layouts.out;
    let wide = multiple_of(out, 4) && multiple_of(dout, 4);
    let mut lanes = (problem.v_dim.div_ceil(4) as u32)
        .next_power_of_two()
        .min(32);
    let reduce = match caps.subgroups {
        // No subgroup may be larger than the workgroup, nor so small that sums across it save nothing.
        Some(s) if s.max <= ROWS_WORKGROUP && (s.min >= lanes || s.min >= 8) => {
            lanes = lanes.min(s.min);
            ReduceTier::Subgroup
        }
        _ => ReduceTier::Workgroup,
    };
    let count = problem.batch * problem.heads * problem.q_len;
    let params = RowsParams {
        out: strides(out),
        dout: strides(dout),
        lse_offset: lse.offset() as u32,
        heads: problem.heads as u32,
        q_len: problem.q_len as u32,
        count: count as u32,
    };
    let recipe = Recipe::new("attention/backward_rows")
        .with("OUT", out.dtype())
        .with("O", dout.dtype())
        .with("DV", problem.v_dim as u32)
        .with("VEC", if wide { 4 } else { 1 })
        .with("L", lanes)
        .with("WG", ROWS_WORKGROUP)
        .with("REDUCE", reduce);
    let each = (ROWS_WORKGROUP / lanes * 4) as usize;
    Launch::new(
        caps,
        recipe,
        linear_grid(caps, count.div_ceil(each)),
        &params,
    )
}

/// A checked call; to its problem, `out` is the output's gradient.
struct Call<'a> {
    problem: Problem<'a>,
    layouts: BackwardLayouts<'a>,
    params: Params,
}

impl<'a> Call<'a> {
    /// Workgroups that hold `held` rows each.
    fn grid(&self, gradient: Gradient, held: u32) -> [usize; 3] {
        let p = &self.problem;
        let (rows, heads) = match gradient {
            Gradient::Queries => (p.q_len, p.heads),
            Gradient::KeysValues => (p.kv_len, p.kv_heads),
        };
        [rows.div_ceil(held as usize), heads, p.batch]
    }

    /// q, k, v and the gradients of the output, of q, k and v.
    fn tensors(&self) -> [&'a Layout; 7] {
        let AttentionLayouts { q, k, v, out, .. } = *self.problem.layouts;
        let BackwardLayouts { dq, dk, dv, .. } = self.layouts;
        [q, k, v, out, dq, dk, dv]
    }

    /// Whether the kernels for matrix units take the call: f16 all over, rows that start at multiples of 16 bytes, few
    /// enough channels, masks by position alone.
    fn suits_flash(&self) -> bool {
        let forward = self.problem.layouts;
        let modified = forward.bias.is_some()
            || forward.mask.is_some()
            || forward.slopes.is_some()
            || self.problem.softcapped();
        let fits = |l: &Layout| l.dtype() == DType::F16 && multiple_of(l, 8);
        !modified
            && self.tensors().into_iter().all(fits)
            && self.problem.head_dim.max(self.problem.v_dim) <= MOST_FLASH_CHANNELS
    }

    fn flash(
        &self,
        caps: &Capabilities,
        gradient: Gradient,
        tuning: &FlashGradientTuning,
    ) -> Result<Launch> {
        let p = &self.problem;
        let tuning = match &p.listed {
            Some(listed) => tuning.within(listed.layout.block() as u32),
            None => *tuning,
        };
        tuning.check(caps, gradient, p.head_dim, p.v_dim)?;
        let shader = match gradient {
            Gradient::Queries => "attention/flash_backward_q",
            Gradient::KeysValues => "attention/flash_backward_kv",
        };
        let recipe = p
            .recipe(shader)
            .with("COOP", tuning.units.name())
            .with("SUBS", tuning.subgroups)
            .with("R", tuning.rows)
            .with("WALK", tuning.walked)
            .with("PART", tuning.part);
        let grid = self.grid(gradient, tuning.subgroups * tuning.rows);
        Launch::new(caps, recipe, grid, &self.params)
    }

    fn gradient(
        &self,
        caps: &Capabilities,
        gradient: Gradient,
        tuning: &GradientTuning,
    ) -> Result<Launch> {
        let p = &self.problem;
        let tuning = match &p.listed {
            Some(listed) => tuning.within(listed.layout.block() as u32),
            None => *tuning,
        };
        tuning.check(caps, gradient, p.head_dim, p.v_dim)?;
        let [q, k, v, dout, dq, dk, dv] = self.tensors();
        let wide = |outputs: &[&Layout]| {
            let all = [q, k, v, dout].into_iter().chain(outputs.iter().copied());
            if all.into_iter().all(|l| multiple_of(l, 4)) {
                4
            } else {
                1
            }
        };
        let recipe = match gradient {
            Gradient::Queries => p
                .recipe("attention/backward_q")
                .with("GQ", dq.dtype())
                .with("VEC", wide(&[dq])),
            Gradient::KeysValues => p
                .recipe("attention/backward_kv")
                .with("GK", dk.dtype())
                .with("GV", dv.dtype())
                .with("VEC", wide(&[dk, dv])),
        };
        let recipe = recipe
            .with("TX", tuning.across)
            .with("TY", tuning.along)
            .with("R", tuning.rows)
            .with("DC", tuning.depth)
            .with("BV", tuning.staged_rows);
        Launch::new(
            caps,
            recipe,
            self.grid(gradient, tuning.along * tuning.rows),
            &self.params,
        )
    }
}
