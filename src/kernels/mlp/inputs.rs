//! Products of the inputs that are large enough.

use arrayvec::ArrayVec;
use bytemuck::{Pod, Zeroable};

use super::{Output, SHARED_ROWS, SparsePlan, Sum, check_norm, check_rows, check_weights, chunk};
use super::{even_parts, threshold_bits, unfit};
use crate::capabilities::{Capabilities, DeviceClass};
use crate::error::Result;
use crate::kernels::elementwise::Activation;
use crate::kernels::gemm::{Gating, Residual};
use crate::layout::{Layout, Rows};
use crate::recipe::{Launch, Recipe};
use crate::recorder::Pass;
use crate::tensor::Tensor;
use crate::tuned::{Question, Work, rounded};

/// `out = F(v W) + residual`, or `F(v G) * (v U) + residual`, where v is x (or RMSNorm of x) with 0 in place of every element
/// whose magnitude is not above the threshold: TEAL (arXiv 2408.14690). The weights of an input are read only if it passes
/// for some row of x.
///
/// Any mixture of f32, f16 and bf16, weights also i8; sums are f32, in the same order every time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseLinear {
    /// F.
    pub activation: Activation,
    /// Whether the weights are gate and up columns.
    pub gating: Gating,
    /// What a magnitude has to be above.
    pub threshold: f32,
}

/// The tensors of a [`SparseLinear`], or their layouts.
#[derive(Debug)]
pub struct SparseLinearArgs<'a, T> {
    /// [.., k]: at most 16 rows, evenly spaced.
    pub x: &'a T,
    /// [k, n]: a row for every input, the transpose of what files have; gated: [k, 2n], n gate columns, then n up
    /// columns.
    pub weight: &'a T,
    /// \[k\], f32, for weights of i8: what the weights of an input are multiplied by.
    pub scales: Option<&'a T>,
    /// RMSNorm of x on its way in, before it is compared: its weight \[k\] and epsilon.
    pub norm: Option<(&'a T, f32)>,
    /// [.., n].
    pub residual: Residual<'a, T>,
    /// [.., n].
    pub out: &'a T,
}

impl<'a, T> SparseLinearArgs<'a, T> {
    /// With nothing optional.
    pub fn new(x: &'a T, weight: &'a T, out: &'a T) -> Self {
        Self {
            x,
            weight,
            scales: None,
            norm: None,
            residual: Residual::None,
            out,
        }
    }
}

impl<'a> SparseLinearArgs<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> SparseLinearArgs<'a, Layout> {
        SparseLinearArgs {
            x: self.x.layout(),
            weight: self.weight.layout(),
            scales: self.scales.map(Tensor::layout),
            norm: self.norm.map(|(weight, eps)| (weight.layout(), eps)),
            residual: self.residual.map(Tensor::layout),
            out: self.out.layout(),
        }
    }

    /// Records dispatches planned for tensors of these layouts. Uses scratch slot 0.
    pub fn launch(&self, pass: &mut Pass<'_>, plan: &SparsePlan) -> Result<()> {
        let mut tensors: ArrayVec<&Tensor, 6> =
            [self.x, self.weight, self.out].into_iter().collect();
        if let (None, Residual::From(residual)) = (&plan.sum, self.residual) {
            tensors.push(residual);
        }
        tensors.extend(self.scales);
        tensors.extend(self.norm.map(|(weight, _)| weight));
        plan.launch(pass, &tensors, 2, self.residual)
    }
}

/// How the work is cut: one row of a tuning table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InputTuning {
    /// Invocations of a workgroup: a power of two.
    pub workgroup: u32,
    /// Invocations that share the row of an input, 8 columns each: a power of two, at most `workgroup`.
    pub lanes: u32,
    /// Workgroups that share the inputs of a list.
    pub splits: u32,
    /// Inputs that become a list at a time: a multiple of 4, at most 32 `workgroup`.
    pub block: u32,
    /// Rows of weights that are loaded before they are used: 1 to 8.
    pub unroll: u32,
    /// Rows of x that share what is read: 1 to 4.
    pub rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    n: u32,
    k: u32,
    rows: u32,
    stride: u32,
    up: u32,
    x_offset: u32,
    x_stride: u32,
    w_offset: u32,
    w_stride: u32,
    y_offset: u32,
    y_stride: u32,
    residual_offset: u32,
    residual_stride: u32,
    norm_offset: u32,
    threshold: u32,
    eps: f32,
}

/// A problem that has been checked.
struct Checked<'a> {
    x: Rows,
    w: Rows,
    norm: Option<Rows>,
    output: Output<'a>,
    chunk: u32,
    threshold: u32,
}

impl SparseLinear {
    /// Plans the dispatches, choosing how to cut them.
    pub fn plan(
        &self,
        caps: &Capabilities,
        args: &SparseLinearArgs<'_, Layout>,
    ) -> Result<SparsePlan> {
        let problem = self.check(args)?;
        let Checked { x, output, .. } = &problem;
        let class = || {
            Recipe::new("mlp/inputs")
                .with("X", args.x.dtype())
                .with("W", args.weight.dtype())
                .with("Y", args.out.dtype())
                .with("GATED", self.gating.constant())
                .with("NORM", u32::from(args.norm.is_some()))
                .with("M", x.rows as u32)
                .with("N", rounded(output.y.cols))
                .with("K", x.cols as u32)
        };
        let question = Question {
            default: self.choose(caps, &problem),
            candidates: &|| Self::candidates(caps, x.cols),
            admits: &|t| fits(caps, t),
            // How many inputs pass is known on the device alone.
            work: &|_| Work::bytes(0),
        };
        let picked = caps.tuned.pick(class, &question);
        let plan = self.launches(caps, args, &problem, &picked.tuning)?;
        Ok(plan.of_class(picked.class))
    }

    /// Plans the dispatches with a given tuning.
    pub fn plan_with(
        &self,
        caps: &Capabilities,
        args: &SparseLinearArgs<'_, Layout>,
        tuning: &InputTuning,
    ) -> Result<SparsePlan> {
        let problem = self.check(args)?;
        self.launches(caps, args, &problem, tuning)
    }

    /// Records the product.
    pub fn run(&self, pass: &mut Pass<'_>, args: &SparseLinearArgs<'_, Tensor>) -> Result<()> {
        let plan = self.plan(pass.capabilities(), &args.layouts())?;
        args.launch(pass, &plan)
    }

    /// What a sweep should try on this device for one row of `k` elements.
    pub fn candidates(caps: &Capabilities, k: usize) -> Vec<InputTuning> {
        let whole = [(256, 8, 4), (256, 8, 8), (512, 4, 4), (512, 8, 4)]
            .map(|(workgroup, lanes, unroll)| (workgroup, lanes, 1, unroll));
        let split = [4, 8, 16, 32].into_iter().flat_map(|splits| {
            [
                (256, 32, 4),
                (256, 32, 8),
                (256, 64, 4),
                (256, 64, 8),
                (512, 32, 4),
                (512, 64, 4),
            ]
            .map(|(workgroup, lanes, unroll)| (workgroup, lanes, splits, unroll))
        });
        let mut found: Vec<InputTuning> = whole
            .into_iter()
            .chain(split)
            .map(|(workgroup, lanes, splits, unroll)| InputTuning {
                workgroup,
                lanes,
                splits,
                block: block(caps, k, workgroup, splits, 1),
                unroll,
                rows: 1,
            })
            .collect();
        found.retain(|t| {
            t.workgroup <= caps.invocations && workgroup_bytes(t) <= caps.workgroup_bytes
        });
        found
    }

    fn check<'a>(&self, args: &SparseLinearArgs<'a, Layout>) -> Result<Checked<'a>> {
        args.x.require_float("x")?;
        let (x, w) = (args.x.as_rows("x")?, args.weight.as_rows("weight")?);
        check_rows(&x)?;
        let n = w.cols / self.gating.factor();
        args.weight
            .require_shape("weight", &[x.cols, n * self.gating.factor()])?;
        let norm = check_norm(args.norm, x.cols)?;
        let chunk = chunk(&[&Rows { cols: n, ..w }]);
        check_weights(("weight", args.weight), args.scales, &[x.cols], chunk)?;
        Ok(Checked {
            threshold: threshold_bits(self.threshold)?,
            output: Output::new(args.out, args.residual, x.rows, n)?,
            x,
            w,
            norm,
            chunk,
        })
    }

    fn choose(&self, caps: &Capabilities, problem: &Checked<'_>) -> InputTuning {
        let (n, k) = (problem.output.y.cols, problem.x.cols);
        let lanes = |most: u32| (n.div_ceil(8).next_power_of_two() as u32).min(most);
        // H200, f16 at half sparsity, us for this and the next best kind: k 4096, n 2 x 11008 31.1 and 32.6 (4 splits of 256
        // columns), n 12288 20.3 and 22.1; k = n = 4096 13.0 and 13.6 (no splits); k 11008, n 4096 21.7 and 22.1.
        let large = caps.class == DeviceClass::Discrete && caps.invocations >= 512;
        let (workgroup, lanes, splits, unroll) = match large {
            true if n.div_ceil(64) >= 128 => (256, lanes(8), 1, 8),
            true => (512, lanes(32), 8, 4),
            false => (caps.invocations.min(256), lanes(8), 1, 4),
        };
        let rows = even_parts(problem.x.rows, SHARED_ROWS) as u32;
        InputTuning {
            workgroup,
            lanes,
            splits,
            block: block(caps, k, workgroup, splits, rows),
            unroll,
            rows,
        }
    }

    fn launches(
        &self,
        caps: &Capabilities,
        args: &SparseLinearArgs<'_, Layout>,
        problem: &Checked<'_>,
        tuning: &InputTuning,
    ) -> Result<SparsePlan> {
        let Checked {
            x, w, norm, output, ..
        } = problem;
        if !fits(caps, tuning) {
            return Err(unfit(tuning, caps));
        }
        let n = output.y.cols;
        let up = n.next_multiple_of(4);
        let stride = up * self.gating.factor();
        let splits = tuning.splits as usize;
        let [residual_offset, residual_stride] = output.residual_at();
        let params = Params {
            n: n as u32,
            k: x.cols as u32,
            rows: x.rows as u32,
            stride: stride as u32,
            up: up as u32,
            x_offset: x.offset as u32,
            x_stride: x.stride as u32,
            w_offset: w.offset as u32,
            w_stride: w.stride as u32,
            y_offset: output.y.offset as u32,
            y_stride: output.y.stride as u32,
            residual_offset,
            residual_stride,
            norm_offset: norm.as_ref().map_or(0, |r| r.offset as u32),
            threshold: problem.threshold,
            eps: args.norm.map_or(0.0, |(_, eps)| eps),
        };
        let fours = x.multiple_of(4) && norm.as_ref().is_none_or(|r| r.multiple_of(4));
        let width = 8 * tuning.lanes as usize;
        let recipe = Recipe::new("mlp/inputs")
            .with("X", args.x.dtype())
            .with("W", args.weight.dtype())
            .with("Y", args.out.dtype())
            .with("RESIDUAL", output.residual.constant())
            .with("NORM", args.norm.map(|(w, _)| w.dtype()))
            .with("F", self.activation.name())
            .with("GATED", self.gating.constant())
            .with("CHUNK", problem.chunk)
            .with("FULL", u32::from(n.is_multiple_of(width)))
            .with("X_VEC", if fours { 4 } else { 1 })
            .with("Y_VEC", output.vec())
            .with("SPLITS", tuning.splits)
            .with("M", tuning.rows)
            .with("BLOCK", tuning.block)
            .with("UNROLL", tuning.unroll)
            .with("L", tuning.lanes)
            .with("WG", tuning.workgroup)
            .with("REDUCE", caps.reduce_tier());
        let tokens = x.rows.div_ceil(tuning.rows as usize);
        let grid = [n.div_ceil(width), splits, tokens];
        let sum = Sum {
            parts: splits,
            stride,
            up,
            activation: self.activation,
            gating: self.gating,
        };
        Ok(SparsePlan {
            product: Launch::new(caps, recipe, grid, &params)?,
            sum: (splits > 1).then(|| sum.plan(caps, output)).transpose()?,
            threshold_at: std::mem::offset_of!(Params, threshold),
            partial: splits * x.rows * stride,
        })
    }
}

/// Whether it is as documented and within the device's limits.
fn fits(caps: &Capabilities, tuning: &InputTuning) -> bool {
    tuning.workgroup.is_power_of_two()
        && tuning.workgroup <= caps.invocations
        && tuning.lanes.is_power_of_two()
        && tuning.lanes <= tuning.workgroup
        && (1..=256).contains(&tuning.splits)
        && tuning.block.is_multiple_of(4)
        && (4..=32 * tuning.workgroup).contains(&tuning.block)
        && (1..=8).contains(&tuning.unroll)
        && (1..=SHARED_ROWS as u32).contains(&tuning.rows)
        && workgroup_bytes(tuning) <= caps.workgroup_bytes
}

fn workgroup_bytes(t: &InputTuning) -> u32 {
    // Scratch of sums and ranks, a list with the values of every row. Each array is rounded up to 16 bytes.
    25 * t.workgroup + 4 * t.block.div_ceil(t.splits) * (1 + t.rows) + 80
}

/// Inputs of a list: all of them, if they fit and leave room for a second workgroup.
fn block(caps: &Capabilities, k: usize, workgroup: u32, splits: u32, rows: u32) -> u32 {
    let mut tuning = InputTuning {
        workgroup,
        lanes: 1,
        splits,
        block: (k.next_multiple_of(4) as u32).min(32 * workgroup),
        unroll: 1,
        rows,
    };
    while workgroup_bytes(&tuning) > caps.workgroup_bytes / 2 && tuning.block > 4 {
        tuning.block = (tuning.block / 2).next_multiple_of(4);
    }
    tuning.block
}
