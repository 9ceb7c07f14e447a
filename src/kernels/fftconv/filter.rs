//! A planned filter and its runs.

use super::long::{Part, RowKind};
use super::operands::{Direction, Framing, Operands};
use super::{Boundary, ConvArgs, FftConv, FusedTuning, LongTuning, Tuning, fused, long};
use crate::capabilities::Capabilities;
use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::Launch;
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Scratch memory between the passes of a long convolution.
const SCRATCH: usize = 0;

/// What a filter is planned as: shapes and tuning, without memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterPlan {
    boundary: Boundary,
    channels: usize,
    taps: usize,
    length: usize,
    framing: Framing,
    tuning: Tuning,
}

/// A filter whose spectrum is on the device, planned for sequences of a length: made by
/// [`FftConv::filter`].
#[derive(Clone, Debug)]
pub struct Filter {
    plan: FilterPlan,
    /// Of `block` channels each.
    spectra: Vec<Tensor>,
    twiddles: Twiddles,
}

#[derive(Clone, Debug)]
enum Twiddles {
    Fused(Tensor),
    Long { columns: Tensor, rows: Tensor },
}

/// A dispatch and the tensors that it binds.
#[derive(Clone, Debug)]
pub struct Step {
    /// The dispatch.
    pub launch: Launch,
    kind: StepKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StepKind {
    Spectrum,
    Fused,
    ColumnsForward,
    /// With the spectrum of this block of channels.
    Rows(usize),
    ColumnsInverse,
}

impl FilterPlan {
    /// Plans a filter of such a layout, [channels, taps], for sequences of `length`; the planner chooses a tuning
    /// that the caller leaves open.
    pub fn new(
        caps: &Capabilities,
        conv: FftConv,
        k: &Layout,
        length: usize,
        tuning: Option<Tuning>,
    ) -> Result<Self> {
        k.require_float("k")?;
        let rows = k.as_rows("k")?;
        let (channels, taps) = (rows.rows, rows.cols);
        if length == 0 {
            return Err(Error::argument("length", length, "at least 1"));
        }
        if taps > length {
            return Err(Error::argument(
                "k",
                format!("{taps} taps"),
                format!("at most the length, {length}"),
            ));
        }
        let boundary = conv.boundary;
        if boundary == Boundary::Circular && !(length.is_power_of_two() && length >= 2) {
            return Err(Error::argument(
                "length",
                length,
                "a power of two from 2 on, for a circular convolution",
            ));
        }
        let tuning = match tuning {
            Some(tuning) => tuning.check(caps)?,
            None => {
                let points = choose_points(caps, boundary, taps, length);
                Tuning::default_for(caps, points)
                    .ok_or_else(|| Error::argument("length", length, "at most 2^24"))?
            }
        };
        let points = tuning.points();
        let framing = match boundary {
            Boundary::Circular if points == length => Framing::Circular,
            Boundary::Causal if points >= length => Framing::Causal,
            // Accesses stay aligned.
            Boundary::Causal if points >= taps => Framing::Window {
                reach: (taps - 1).next_multiple_of(4),
            },
            _ => {
                let allowed =
                    "the length of a circular convolution, at least the taps of a causal one";
                return Err(Error::argument(
                    "tuning",
                    format!("{points} points"),
                    allowed,
                ));
            }
        };
        if matches!(framing, Framing::Window { .. }) && points < 8 {
            return Err(Error::argument(
                "tuning",
                format!("{points} points"),
                "at least 8 for windows",
            ));
        }
        let plan = Self {
            boundary,
            channels,
            taps,
            length,
            framing,
            tuning,
        };
        if plan.block(caps) == 0 {
            let allowed = format!(
                "at most {} bytes, this device's limit for one storage binding",
                caps.binding_bytes
            );
            return Err(Error::argument(
                "length",
                format!("{} bytes of spectrum a channel", 8 * points),
                allowed,
            ));
        }
        Ok(plan)
    }

    /// Channels whose spectrum fits in one binding.
    fn block(&self, caps: &Capabilities) -> usize {
        let limit = caps
            .binding_bytes
            .min(caps.buffer_bytes)
            .min(u64::from(u32::MAX));
        match self.tuning {
            // One kernel reads all channels: in parts, a run would be in parts as well.
            Tuning::Fused(_) | Tuning::Long(_) => {
                ((limit / (8 * self.tuning.points() as u64)) as usize).min(self.channels)
            }
        }
    }

    /// What lies before the first element.
    pub fn boundary(&self) -> Boundary {
        self.boundary
    }

    /// How transforms are spread over the device.
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Plans the dispatches that compute the spectrum.
    pub fn spectrum(
        &self,
        caps: &Capabilities,
        k: &Layout,
        d: Option<&Layout>,
    ) -> Result<Vec<Step>> {
        k.require_float("k")?;
        let rows = k.as_rows("k")?;
        if (rows.rows, rows.cols) != (self.channels, self.taps) {
            let allowed = format!("[{}, {}]", self.channels, self.taps);
            return Err(Error::argument("k", format!("{k:?}"), allowed));
        }
        if let Some(d) = d {
            d.require_float("d")?;
            d.require_shape("d", &[self.channels])?;
        }
        match &self.tuning {
            Tuning::Fused(tuning) => {
                let launch = fused::spectrum(caps, tuning, self.framing, k, d)?;
                Ok(vec![Step {
                    launch,
                    kind: StepKind::Spectrum,
                }])
            }
            Tuning::Long(tuning) => {
                let operands = long::filter_operands(k, self.channels, tuning.points())?;
                let (phase, _) = self.framing.phase();
                self.each_part(caps, tuning, 1, |part, block, first| {
                    let forward = long::columns_forward(
                        caps,
                        tuning,
                        Framing::Causal,
                        phase,
                        &operands,
                        d,
                        part,
                    )?;
                    Ok(vec![
                        Step {
                            launch: forward,
                            kind: StepKind::ColumnsForward,
                        },
                        Step {
                            launch: long::rows(caps, tuning, RowKind::Filter, part, first)?,
                            kind: StepKind::Rows(block),
                        },
                    ])
                })
            }
        }
    }

    /// Plans the convolution.
    pub fn convolution(&self, caps: &Capabilities, args: &ConvArgs<&Layout>) -> Result<Vec<Step>> {
        self.steps(caps, args, Direction::Forward)
    }

    fn steps(
        &self,
        caps: &Capabilities,
        args: &ConvArgs<&Layout>,
        direction: Direction,
    ) -> Result<Vec<Step>> {
        self.check_length(args.u)?;
        let operands = Operands::new(
            args,
            self.channels,
            self.framing,
            direction,
            self.tuning.points(),
        )?;
        match &self.tuning {
            Tuning::Fused(tuning) => {
                let launch = fused::convolution(
                    caps,
                    tuning,
                    self.framing,
                    &operands,
                    self.channels,
                    direction,
                )?;
                Ok(vec![Step {
                    launch,
                    kind: StepKind::Fused,
                }])
            }
            Tuning::Long(tuning) => {
                self.each_part(caps, tuning, operands.transforms, |part, block, first| {
                    let (phase, _) = self.framing.phase();
                    let kind = RowKind::Convolve(direction);
                    Ok(vec![
                        Step {
                            launch: long::columns_forward(
                                caps,
                                tuning,
                                self.framing,
                                phase,
                                &operands,
                                None,
                                part,
                            )?,
                            kind: StepKind::ColumnsForward,
                        },
                        Step {
                            launch: long::rows(caps, tuning, kind, part, first)?,
                            kind: StepKind::Rows(block),
                        },
                        Step {
                            launch: long::columns_inverse(
                                caps,
                                tuning,
                                self.framing,
                                &operands,
                                part,
                            )?,
                            kind: StepKind::ColumnsInverse,
                        },
                    ])
                })
            }
        }
    }

    /// The steps of every part, which `plan` makes from it, its block of channels and its first channel in that.
    fn each_part(
        &self,
        caps: &Capabilities,
        tuning: &LongTuning,
        transforms: usize,
        plan: impl Fn(Part, usize, usize) -> Result<Vec<Step>>,
    ) -> Result<Vec<Step>> {
        let block = self.block(caps);
        let mut steps = Vec::new();
        for part in long::parts(caps, tuning, self.channels, transforms, block)? {
            steps.extend(plan(
                part,
                part.first_channel / block,
                part.first_channel % block,
            )?);
        }
        Ok(steps)
    }

    fn check_length(&self, u: &Layout) -> Result<()> {
        let found = u.as_matrices("u")?.cols;
        let (fits, allowed) = match self.boundary {
            Boundary::Causal => (
                found <= self.length,
                format!("at most {}, what the filter is planned for", self.length),
            ),
            Boundary::Circular => (
                found == self.length,
                format!("{}, what the filter is planned for", self.length),
            ),
        };
        if fits {
            Ok(())
        } else {
            Err(Error::argument("u", format!("length {found}"), allowed))
        }
    }

    /// Elements of scratch memory that the steps of `transforms` transforms a channel need.
    fn scratch(
        &self,
        caps: &Capabilities,
        tuning: &LongTuning,
        transforms: usize,
    ) -> Result<usize> {
        let parts = long::parts(caps, tuning, self.channels, transforms, self.block(caps))?;
        let most = parts.iter().map(|p| p.channels * p.transforms).max();
        Ok(most.unwrap_or(0) * tuning.points() * 2)
    }
}

/// Points of the transforms: all of the sequence's, or windows where the filter is much shorter or only they fit in a workgroup.
fn choose_points(caps: &Capabilities, boundary: Boundary, taps: usize, length: usize) -> usize {
    let whole = length.next_power_of_two().max(2);
    let filter = taps.next_power_of_two().max(16);
    let most = FusedTuning::most_points(caps);
    if boundary == Boundary::Circular || filter >= whole {
        return whole;
    }
    let windows = match filter {
        f if f > most => 2 * f,
        f if 4 * f > most => most,
        f => (4 * f).max(256).min(most),
    };
    if 2 * windows <= whole { windows } else { whole }
}

impl Filter {
    pub(super) fn new(
        conv: FftConv,
        k: &Tensor,
        d: Option<&Tensor>,
        length: usize,
        tuning: Option<Tuning>,
    ) -> Result<Self> {
        let ctx = k.context();
        let plan = FilterPlan::new(ctx.capabilities(), conv, k.layout(), length, tuning)?;
        let filter = Self::allocate(ctx, plan)?;
        ctx.record(|pass| filter.update(pass, k, d))?;
        Ok(filter)
    }

    /// Without a spectrum yet.
    pub(super) fn allocate(ctx: &Context, plan: FilterPlan) -> Result<Self> {
        let caps = ctx.capabilities();
        let (block, points) = (plan.block(caps), plan.tuning.points());
        if block < plan.channels && matches!(plan.tuning, Tuning::Fused(_)) {
            let allowed = format!("at most {block} at {points} points: split them");
            return Err(Error::argument(
                "k",
                format!("{} channels", plan.channels),
                allowed,
            ));
        }
        let spectra = (0..plan.channels)
            .step_by(block)
            .map(|first| {
                Tensor::empty(
                    ctx,
                    DType::F32,
                    [block.min(plan.channels - first), points, 2],
                )
            })
            .collect::<Result<_>>()?;
        let twiddles = match &plan.tuning {
            Tuning::Fused(tuning) => Twiddles::Fused(fused::twiddles(ctx, tuning, plan.framing)?),
            Tuning::Long(tuning) => Twiddles::Long {
                columns: long::column_twiddles(ctx, tuning, plan.framing)?,
                rows: long::row_twiddles(ctx, tuning, plan.framing)?,
            },
        };
        Ok(Self {
            plan,
            spectra,
            twiddles,
        })
    }

    /// Records the computation of the spectrum of other taps of the same shape.
    pub fn update(&self, pass: &mut Pass<'_>, k: &Tensor, d: Option<&Tensor>) -> Result<()> {
        let steps = self
            .plan
            .spectrum(pass.capabilities(), k.layout(), d.map(Tensor::layout))?;
        self.record(pass, &steps, &ConvArgs::new(k, k), d, 1)
    }

    /// Records the convolution. Sequences may be shorter than what the filter was planned for, if it is causal.
    pub fn run(&self, pass: &mut Pass<'_>, args: &ConvArgs<&Tensor>) -> Result<()> {
        self.run_in(pass, args, Direction::Forward)
    }

    pub(super) fn run_in(
        &self,
        pass: &mut Pass<'_>,
        args: &ConvArgs<&Tensor>,
        direction: Direction,
    ) -> Result<()> {
        let layouts = args.layouts();
        let steps = self.plan.steps(pass.capabilities(), &layouts, direction)?;
        let operands = Operands::new(
            &layouts,
            self.plan.channels,
            self.plan.framing,
            direction,
            self.plan.tuning.points(),
        )?;
        self.record(pass, &steps, args, None, operands.transforms)
    }

    fn record(
        &self,
        pass: &mut Pass<'_>,
        steps: &[Step],
        args: &ConvArgs<&Tensor>,
        d: Option<&Tensor>,
        transforms: usize,
    ) -> Result<()> {
        let scratch = match &self.plan.tuning {
            Tuning::Fused(_) => None,
            Tuning::Long(tuning) => {
                let elements = self.plan.scratch(pass.capabilities(), tuning, transforms)?;
                Some(pass.scratch(SCRATCH, DType::F32, [elements])?)
            }
        };
        for step in steps {
            let mut tensors = arrayvec::ArrayVec::<&Tensor, 6>::new();
            match (step.kind, &self.twiddles, &scratch) {
                (StepKind::Spectrum, Twiddles::Fused(twiddles), _) => {
                    tensors.push(args.u);
                    tensors.extend(d);
                    tensors.extend([twiddles, &self.spectra[0]]);
                }
                (StepKind::Fused, Twiddles::Fused(twiddles), _) => {
                    tensors.push(args.u);
                    tensors.extend(args.gate_in.into_iter().chain(args.gate_out));
                    tensors.extend([&self.spectra[0], twiddles, args.y]);
                }
                (StepKind::ColumnsForward, Twiddles::Long { columns, .. }, Some(scratch)) => {
                    tensors.push(args.u);
                    tensors.extend(args.gate_in);
                    tensors.extend([columns, scratch]);
                    tensors.extend(d);
                }
                (StepKind::Rows(block), Twiddles::Long { rows, .. }, Some(scratch)) => {
                    tensors.extend([scratch, &self.spectra[block], rows]);
                }
                (StepKind::ColumnsInverse, Twiddles::Long { columns, .. }, Some(scratch)) => {
                    tensors.push(scratch);
                    tensors.extend(args.gate_out);
                    tensors.extend([columns, args.y]);
                }
                // A plan has the steps of its own tuning.
                _ => return Err(Error::Validation("a step of another plan".into())),
            }
            pass.launch(&step.launch, &tensors)?;
        }
        Ok(())
    }

    /// The convolution of `u` as a new tensor of its type.
    pub fn forward(&self, u: &Tensor) -> Result<Tensor> {
        let y = Tensor::empty(u.context(), u.dtype(), u.shape())?;
        u.context()
            .record(|pass| self.run(pass, &ConvArgs::new(u, &y)))?;
        Ok(y)
    }

    /// What it is planned as.
    pub fn plan(&self) -> &FilterPlan {
        &self.plan
    }

    /// Longest sequence.
    pub fn length(&self) -> usize {
        self.plan.length
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.plan.channels
    }

    /// Number of taps.
    pub fn taps(&self) -> usize {
        self.plan.taps
    }

    /// Bytes of the spectrum.
    pub fn bytes(&self) -> u64 {
        self.spectra.iter().map(|s| s.layout().bytes()).sum()
    }
}
