//! The gated MLP of the neurons that fire.

use std::ops::Range;

use arrayvec::ArrayVec;
use bytemuck::{Pod, Zeroable};

use super::{Output, SHARED_ROWS, SparsePlan, Sum, check_norm, check_rows, check_weights, chunk};
use super::{even_parts, threshold_bits, unfit};
use crate::capabilities::{Capabilities, DeviceClass, ReduceTier};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::elementwise::Activation;
use crate::kernels::gemm::{Gating, Residual};
use crate::layout::{Layout, Rows};
use crate::recipe::{Launch, Recipe};
use crate::recorder::Pass;
use crate::tensor::Tensor;
use crate::tuned::{Question, Work, rounded};

/// `out = sum over neurons i of a_i (x . up_i) down_i + residual`, with `a_i = F(x . gate_i)` where its magnitude is above
/// the threshold and 0 elsewhere: CATS (arXiv 2404.08763). Rows of `up` and columns of `down` are read only for neurons that
/// fire for some row of x.
///
/// Any mixture of f32, f16 and bf16, weights also i8; sums are f32, in the same order every time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseMlp {
    /// F.
    pub activation: Activation,
    /// What a magnitude has to be above. At zero the result is the dense one: with [`Activation::Relu`] or
    /// [`Activation::ReluSquared`] most neurons are left out all the same.
    pub threshold: f32,
}

/// The tensors of a [`SparseMlp`], or their layouts.
#[derive(Debug)]
pub struct SparseMlpArgs<'a, T> {
    /// [.., k]: at most 16 rows, evenly spaced.
    pub x: &'a T,
    /// [n, k].
    pub gate: &'a T,
    /// [n, 2k]: neuron i's row of the up projection, then its column of the down projection. Of gate's type.
    pub pairs: &'a T,
    /// [n, 3], f32, for weights of i8: what gate, up and down of a neuron are multiplied by.
    pub scales: Option<&'a T>,
    /// RMSNorm of x on its way in: its weight \[k\] and epsilon.
    pub norm: Option<(&'a T, f32)>,
    /// [1 + n], u32: how many neurons may fire, then which; the gates of others are not read. What is
    /// beyond n counts as the last neuron.
    pub listed: Option<&'a T>,
    /// [.., k].
    pub residual: Residual<'a, T>,
    /// [.., k].
    pub out: &'a T,
}

impl<'a, T> SparseMlpArgs<'a, T> {
    /// With nothing optional.
    pub fn new(x: &'a T, gate: &'a T, pairs: &'a T, out: &'a T) -> Self {
        Self {
            x,
            gate,
            pairs,
            scales: None,
            norm: None,
            listed: None,
            residual: Residual::None,
            out,
        }
    }
}

impl<'a> SparseMlpArgs<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> SparseMlpArgs<'a, Layout> {
        SparseMlpArgs {
            x: self.x.layout(),
            gate: self.gate.layout(),
            pairs: self.pairs.layout(),
            scales: self.scales.map(Tensor::layout),
            norm: self.norm.map(|(weight, eps)| (weight.layout(), eps)),
            listed: self.listed.map(Tensor::layout),
            residual: self.residual.map(Tensor::layout),
            out: self.out.layout(),
        }
    }

    /// Records dispatches planned for tensors of these layouts. Uses scratch slot 0.
    pub fn launch(&self, pass: &mut Pass<'_>, plan: &SparsePlan) -> Result<()> {
        let mut tensors: ArrayVec<&Tensor, 7> = [self.x, self.gate, self.pairs, self.out]
            .into_iter()
            .collect();
        tensors.extend(self.scales);
        tensors.extend(self.norm.map(|(weight, _)| weight));
        tensors.extend(self.listed);
        plan.launch(pass, &tensors, 3, self.residual)
    }
}

/// How the work is cut: one row of a tuning table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeuronTuning {
    /// Invocations of a workgroup: a power of two.
    pub workgroup: u32,
    /// Workgroups that share the neurons.
    pub groups: u32,
    /// Neurons that a workgroup takes at a time: a multiple of 32, at most `workgroup`.
    pub block: u32,
    /// Rows of weights that are loaded before they are used: 1, 2, 4 or 8.
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
    groups: u32,
    stride: u32,
    x_offset: u32,
    x_stride: u32,
    gate_offset: u32,
    gate_stride: u32,
    pairs_offset: u32,
    pairs_stride: u32,
    norm_offset: u32,
    threshold: u32,
    eps: f32,
    first_neuron: u32,
    end_neuron: u32,
}

/// Which part of the work a dispatch does, for which neurons.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) neurons: Range<usize>,
}

impl Stage {
    /// All of it.
    fn whole(neurons: usize) -> Self {
        Self {
            name: "whole",
            neurons: 0..neurons,
        }
    }
}

/// A problem that has been checked.
pub(super) struct Checked<'a> {
    x: Rows,
    pub(super) gate: Rows,
    pairs: Rows,
    norm: Option<Rows>,
    output: Output<'a>,
    chunk: u32,
    threshold: u32,
}

impl SparseMlp {
    /// Plans the dispatches, choosing how to cut them.
    pub fn plan(
        &self,
        caps: &Capabilities,
        args: &SparseMlpArgs<'_, Layout>,
    ) -> Result<SparsePlan> {
        let problem = self.check(args, args.gate.shape()[0])?;
        let Checked { x, gate, .. } = &problem;
        let class = || {
            Recipe::new("mlp/neurons")
                .with("X", args.x.dtype())
                .with("W", args.gate.dtype())
                .with("NORM", u32::from(args.norm.is_some()))
                .with("LISTED", u32::from(args.listed.is_some()))
                .with("M", x.rows as u32)
                .with("N", rounded(gate.rows))
                .with("K", x.cols as u32)
        };
        let question = Question {
            default: choose(caps, &problem),
            candidates: &|| Self::candidates(caps, x.cols),
            admits: &|t| fits(caps, t),
            // The gates; how many neurons fire is known on the device alone.
            work: &|_| Work::bytes(args.listed.map_or(args.gate.bytes(), |_| 0)),
        };
        let picked = caps.tuned.pick(class, &question);
        let all = Stage::whole(gate.rows);
        let plan = self.launches(caps, args, &problem, &picked.tuning, &all)?;
        Ok(plan.of_class(picked.class))
    }

    /// Plans the dispatches with a given tuning.
    pub fn plan_with(
        &self,
        caps: &Capabilities,
        args: &SparseMlpArgs<'_, Layout>,
        tuning: &NeuronTuning,
    ) -> Result<SparsePlan> {
        let problem = self.check(args, args.gate.shape()[0])?;
        let all = Stage::whole(problem.gate.rows);
        self.launches(caps, args, &problem, tuning, &all)
    }

    /// Plans a part of the work, cut as all of it is.
    pub(super) fn plan_stage(
        &self,
        caps: &Capabilities,
        args: &SparseMlpArgs<'_, Layout>,
        stage: &Stage,
    ) -> Result<SparsePlan> {
        let problem = self.check(args, args.pairs.shape()[0])?;
        let tuning = choose(caps, &problem);
        self.launches(caps, args, &problem, &tuning, stage)
    }

    /// Records the MLP.
    pub fn run(&self, pass: &mut Pass<'_>, args: &SparseMlpArgs<'_, Tensor>) -> Result<()> {
        let plan = self.plan(pass.capabilities(), &args.layouts())?;
        args.launch(pass, &plan)
    }

    /// What a sweep should try on this device for one row of `k` elements.
    pub fn candidates(caps: &Capabilities, k: usize) -> Vec<NeuronTuning> {
        let mut found = Vec::new();
        for workgroup in [256, 512, 1024]
            .into_iter()
            .filter(|w| *w <= caps.invocations)
        {
            for groups in [132, 264, 396, 528] {
                for unroll in [2, 4, 8] {
                    found.push(NeuronTuning {
                        workgroup,
                        groups,
                        block: 96.min(workgroup),
                        unroll,
                        rows: 1,
                    });
                }
            }
        }
        found.retain(|t| {
            (t.workgroup as usize) < k / 2 && workgroup_bytes(caps, t) <= caps.workgroup_bytes
        });
        found
    }

    /// `pairs`: how many rows they have.
    fn check<'a>(&self, args: &SparseMlpArgs<'a, Layout>, pairs: usize) -> Result<Checked<'a>> {
        args.x.require_float("x")?;
        let x = args.x.as_rows("x")?;
        check_rows(&x)?;
        let gate = args.gate.as_rows("gate")?;
        args.gate.require_shape("gate", &[gate.rows, x.cols])?;
        args.pairs.require_shape("pairs", &[pairs, 2 * x.cols])?;
        let pairs = args.pairs.as_rows("pairs")?;
        args.pairs.require_dtype("pairs", args.gate.dtype())?;
        let norm = check_norm(args.norm, x.cols)?;
        // The second half of a row of pairs has to begin as its first does.
        let half = Rows {
            cols: x.cols,
            ..pairs
        };
        let mut rows = vec![&x, &gate, &half];
        rows.extend(&norm);
        let chunk = chunk(&rows);
        check_weights(("gate", args.gate), args.scales, &[gate.rows, 3], chunk)?;
        if let Some(listed) = args.listed {
            listed.require_dtype("listed", DType::U32)?;
            listed.require_shape("listed", &[1 + gate.rows])?;
            listed.require_whole("listed")?;
        }
        let output = Output::new(args.out, args.residual, x.rows, x.cols)?;
        Ok(Checked {
            threshold: threshold_bits(self.threshold)?,
            x,
            gate,
            pairs,
            norm,
            output,
            chunk,
        })
    }
}

/// The smallest subgroup that may serve a workgroup of this size.
fn least_subgroup(caps: &Capabilities, workgroup: u32) -> u32 {
    caps.subgroups.map_or(workgroup, |s| s.min.min(workgroup))
}

fn workgroup_bytes(caps: &Capabilities, t: &NeuronTuning) -> u32 {
    let (parts, tree) = match caps.reduce_tier() {
        ReduceTier::Subgroup => (t.workgroup / least_subgroup(caps, t.workgroup), 0),
        ReduceTier::Workgroup => (1, t.rows * t.unroll * t.workgroup),
    };
    let words = t.block * t.rows * (parts + 2) + t.rows * parts + t.block + t.block / 32 + tree;
    // Each array is rounded up to 16 bytes.
    4 * words + 96
}

/// Whether it is as documented and within the device's limits.
fn fits(caps: &Capabilities, tuning: &NeuronTuning) -> bool {
    tuning.workgroup.is_power_of_two()
        && (32..=caps.invocations).contains(&tuning.workgroup)
        && (1..=caps.workgroups).contains(&tuning.groups)
        && (32..=tuning.workgroup).contains(&tuning.block)
        && tuning.block.is_multiple_of(32)
        && [1, 2, 4, 8].contains(&tuning.unroll)
        && (1..=SHARED_ROWS as u32).contains(&tuning.rows)
        && tuning.rows * tuning.unroll <= tuning.workgroup
        && workgroup_bytes(caps, tuning) <= caps.workgroup_bytes
}

fn choose(caps: &Capabilities, problem: &Checked<'_>) -> NeuronTuning {
    let Checked { x, gate, .. } = problem;
    let large = caps.class == DeviceClass::Discrete && caps.subgroups.is_some();
    let most = if large { 512 } else { 256 };
    let workgroup =
        (x.cols.div_ceil(8).next_power_of_two() as u32).clamp(32, most.min(caps.invocations));
    let groups = match caps.class {
        DeviceClass::Discrete => 264,
        DeviceClass::Software => 8,
        _ => 64,
    };
    let groups = groups.min(gate.rows.div_ceil(8)) as u32;
    let spans = x.cols.div_ceil(8 * workgroup as usize);
    let shared = even_parts(x.rows, (SHARED_ROWS / spans).max(1)) as u32;
    let owned = gate.rows.div_ceil(groups as usize) as u32;
    let mut tuning = NeuronTuning {
        workgroup,
        groups,
        block: owned.next_multiple_of(32).min(workgroup).min(128),
        unroll: if spans <= 2 { 4 } else { 2 },
        rows: shared,
    };
    while workgroup_bytes(caps, &tuning) > caps.workgroup_bytes {
        match tuning {
            NeuronTuning { block, .. } if block > 32 => tuning.block -= 32,
            NeuronTuning { rows, .. } if rows > 1 => tuning.rows -= 1,
            NeuronTuning { unroll, .. } if unroll > 1 => tuning.unroll /= 2,
            _ => break,
        }
    }
    tuning
}

impl SparseMlp {
    fn launches(
        &self,
        caps: &Capabilities,
        args: &SparseMlpArgs<'_, Layout>,
        problem: &Checked<'_>,
        tuning: &NeuronTuning,
        stage: &Stage,
    ) -> Result<SparsePlan> {
        let Checked {
            x,
            gate,
            pairs,
            norm,
            output,
            ..
        } = problem;
        if !fits(caps, tuning) {
            return Err(unfit(tuning, caps));
        }
        let step = 8 * tuning.workgroup as usize;
        let spans = x.cols.div_ceil(step);
        let stride = x.cols.next_multiple_of(8);
        let params = Params {
            n: gate.rows as u32,
            k: x.cols as u32,
            rows: x.rows as u32,
            groups: tuning.groups,
            stride: stride as u32,
            x_offset: x.offset as u32,
            x_stride: x.stride as u32,
            gate_offset: gate.offset as u32,
            gate_stride: gate.stride as u32,
            pairs_offset: pairs.offset as u32,
            pairs_stride: pairs.stride as u32,
            norm_offset: norm.as_ref().map_or(0, |r| r.offset as u32),
            threshold: problem.threshold,
            eps: args.norm.map_or(0.0, |(_, eps)| eps),
            first_neuron: stage.neurons.start as u32,
            end_neuron: stage.neurons.end as u32,
        };
        let recipe = Recipe::new("mlp/neurons")
            .with("X", args.x.dtype())
            .with("W", args.gate.dtype())
            .with("NORM", args.norm.map(|(w, _)| w.dtype()))
            .with("STAGE", stage.name)
            .with("F", self.activation.name())
            .with("LISTED", u32::from(args.listed.is_some()))
            .with("CHUNK", problem.chunk)
            .with("FULL", u32::from(x.cols == spans * step))
            .with("M", tuning.rows)
            .with("U", tuning.unroll)
            .with("NB", tuning.block)
            .with("SPANS", spans as u32)
            .with("WG", tuning.workgroup)
            .with("LEAST", least_subgroup(caps, tuning.workgroup))
            .with("REDUCE", caps.reduce_tier());
        let grid = [
            tuning.groups as usize,
            1,
            x.rows.div_ceil(tuning.rows as usize),
        ];
        let sum = Sum {
            parts: tuning.groups as usize,
            stride,
            up: 0,
            activation: Activation::None,
            gating: Gating::None,
        };
        Ok(SparsePlan {
            product: Launch::new(caps, recipe, grid, &params)?,
            sum: Some(sum.plan(caps, output)?),
            threshold_at: std::mem::offset_of!(Params, threshold),
            partial: tuning.groups as usize * x.rows * stride,
        })
    }
}
