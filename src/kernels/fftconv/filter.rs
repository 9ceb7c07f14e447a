//! A planned filter and its runs.

use super::long::{Part, RowKind};
use super::operands::{Direction, Framing, Operands};
use super::{
    Arithmetic, Boundary, ConvArgs, FftConv, FusedTuning, LongTuning, MonarchTuning, Passes,
    Pattern, Tuning, fused, long, monarch,
};
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
/// And its scales, if it is in f16.
const SCALES: usize = 1;

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
    Long {
        columns: Tensor,
        rows: Tensor,
    },
    /// Of the filter's transform and of the convolution's; scales of the spectra.
    Monarch {
        filter: Tensor,
        table: Tensor,
        scales: Tensor,
    },
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
    /// The first of two passes, with the spectrum of this block of channels.
    Direct(usize),
    /// With the spectrum of this block of channels.
    Rows(usize),
    ColumnsInverse,
    MonarchSpectrum,
    /// The whole, or the first of two passes.
    Monarch,
    Combine,
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
        let tuning = match tuning {
            Some(tuning) => tuning.check(caps)?,
            None => {
                let points = choose_points(caps, boundary, taps, length);
                let half = match (conv.arithmetic, boundary) {
                    (Arithmetic::Half, Boundary::Causal) if points >= length => {
                        MonarchTuning::default_for(caps, points).map(Tuning::Monarch)
                    }
                    _ => None,
                };
                let full = || match boundary {
                    Boundary::Causal if points >= length => {
                        Tuning::default_for_whole(caps, points, k.dtype())
                    }
                    _ => Tuning::default_for(caps, points, k.dtype()),
                };
                half.or_else(full)
                    .ok_or_else(|| Error::argument("length", length, "at most 2^24"))?
            }
        };
        let tuning = match (conv.pattern, tuning) {
            (Pattern::All, tuning) => tuning,
            (Pattern::Kept(kept), Tuning::Monarch(t)) if (1..=t.period()).contains(&kept) => {
                Tuning::Monarch(MonarchTuning { kept, ..t })
            }
            (pattern, tuning) => {
                let allowed = match tuning {
                    Tuning::Monarch(t) => format!("from 1 to {} kept", t.period()),
                    _ => "All, unless arithmetic is Half and the device has matrix units".into(),
                };
                return Err(Error::argument("pattern", format!("{pattern:?}"), allowed));
            }
        };
        let points = tuning.points();
        let framing = match boundary {
            Boundary::Circular if points == length && !matches!(tuning, Tuning::Monarch(_)) => {
                Framing::Circular
            }
            Boundary::Causal if points >= length => Framing::Causal,
            // Accesses stay aligned.
            Boundary::Causal if points >= taps && !matches!(tuning, Tuning::Monarch(_)) => {
                Framing::Window { reach: reach(taps) }
            }
            Boundary::Circular if points >= taps && !matches!(tuning, Tuning::Monarch(_)) => {
                Framing::Round { reach: reach(taps) }
            }
            _ => {
                let allowed = "at least the taps";
                return Err(Error::argument(
                    "tuning",
                    format!("{points} points"),
                    allowed,
                ));
            }
        };
        if matches!(framing, Framing::Window { .. } | Framing::Round { .. }) && points < 8 {
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
        // Bytes of a point: complex numbers of f32 or f16.
        let point = match self.tuning {
            Tuning::Fused(_) | Tuning::Long(_) => 8,
            Tuning::Monarch(_) => 4,
        };
        ((limit / (point * self.tuning.points() as u64)) as usize).min(self.channels)
    }

    /// The tuning of windows over an endless sequence for a filter of `taps` taps, and what they read before their first result.
    pub(super) fn window(caps: &Capabilities, taps: usize) -> Result<(Tuning, usize)> {
        if taps == 0 {
            return Err(Error::argument("k", "0 taps", "at least 1"));
        }
        let points = choose_points(caps, Boundary::Causal, taps, usize::MAX / 4);
        let tuning = Tuning::default_for(caps, points, DType::F32)
            .ok_or_else(|| Error::argument("k", format!("{taps} taps"), "at most 2^23"))?;
        Ok((tuning, reach(taps)))
    }

    /// How sequences become transforms.
    pub(super) fn framing(&self) -> Framing {
        self.framing
    }

    /// Transforms that a channel of one sequence of `length` elements takes; circular ones have two sequences each.
    pub fn transforms(&self, length: usize) -> usize {
        match self.framing {
            Framing::Causal | Framing::Circular => 1,
            Framing::Window { reach } | Framing::Round { reach } => {
                length.div_ceil(2 * self.tuning.points() - reach)
            }
        }
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.channels
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
        if let (Some(d), Tuning::Monarch(tuning)) = (d, &self.tuning)
            && tuning.kept < tuning.period()
        {
            // It would be kept at the filter's frequencies alone.
            let allowed = "none where the filter has a pattern";
            return Err(Error::argument("d", format!("{d:?}"), allowed));
        }
        match &self.tuning {
            Tuning::Fused(tuning) => {
                let launch = fused::spectrum(caps, tuning, self.framing, k, d)?;
                Ok(vec![Step {
                    launch,
                    kind: StepKind::Spectrum,
                }])
            }
            Tuning::Monarch(tuning) => Ok(vec![Step {
                launch: monarch::spectrum(caps, tuning, k, d)?,
                kind: StepKind::MonarchSpectrum,
            }]),
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
        let points = self.tuning.points();
        match &self.tuning {
            Tuning::Monarch(tuning) => {
                let operands = monarch::Operands::new(args, self.channels, points)?;
                let mut steps = Vec::new();
                for part in operands.parts(caps, tuning) {
                    steps.push(Step {
                        launch: operands.convolution(caps, tuning, part, direction)?,
                        kind: StepKind::Monarch,
                    });
                    if operands.in_parts(tuning) {
                        steps.push(Step {
                            launch: operands.combine(caps, tuning, part)?,
                            kind: StepKind::Combine,
                        });
                    }
                }
                Ok(steps)
            }
            Tuning::Fused(_) | Tuning::Long(_) => {
                let operands = Operands::new(args, self.channels, self.framing, direction, points)?;
                self.steps_of(caps, operands, direction)
            }
        }
    }

    /// The steps of a convolution in f32.
    pub(super) fn steps_of(
        &self,
        caps: &Capabilities,
        operands: Operands,
        direction: Direction,
    ) -> Result<Vec<Step>> {
        match &self.tuning {
            Tuning::Monarch(_) => Err(Error::Validation("operands of another arithmetic".into())),
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
                    let mut steps = match tuning.passes {
                        Passes::Two => vec![Step {
                            launch: long::direct(
                                caps,
                                tuning,
                                self.framing,
                                &operands,
                                direction,
                                part,
                                first,
                            )?,
                            kind: StepKind::Direct(block),
                        }],
                        Passes::Three => vec![
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
                                launch: long::rows(
                                    caps,
                                    tuning,
                                    RowKind::Convolve(direction),
                                    part,
                                    first,
                                )?,
                                kind: StepKind::Rows(block),
                            },
                        ],
                    };
                    steps.push(Step {
                        launch: long::columns_inverse(caps, tuning, self.framing, &operands, part)?,
                        kind: StepKind::ColumnsInverse,
                    });
                    Ok(steps)
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

    /// Elements of f32 and scales between the passes of a run of these operands.
    pub(super) fn scratch(
        &self,
        caps: &Capabilities,
        args: &ConvArgs<&Layout>,
    ) -> Result<[usize; 2]> {
        let points = self.tuning.points();
        match &self.tuning {
            Tuning::Fused(_) => Ok([0, 0]),
            Tuning::Long(tuning) => {
                let transforms = self.transforms_of(args)?;
                let parts = long::parts(caps, tuning, self.channels, transforms, self.block(caps))?;
                let most = parts.iter().map(|p| p.channels * p.transforms).max();
                Ok([most.unwrap_or(0) * points * 2, 0])
            }
            Tuning::Monarch(tuning) => {
                let operands = monarch::Operands::new(args, self.channels, points)?;
                if !operands.in_parts(tuning) {
                    return Ok([0, 0]);
                }
                let rows = operands.most_rows(caps, tuning);
                Ok([rows * points, rows * tuning.fold as usize])
            }
        }
    }

    fn transforms_of(&self, args: &ConvArgs<&Layout>) -> Result<usize> {
        let (direction, points) = (Direction::Forward, self.tuning.points());
        Ok(Operands::new(args, self.channels, self.framing, direction, points)?.transforms)
    }
}

/// What a window reads before its first result, so that accesses stay aligned.
fn reach(taps: usize) -> usize {
    (taps - 1).next_multiple_of(4)
}

/// Points of the transforms: all of the sequence's, or windows where the filter is much shorter or only they fit in a workgroup.
fn choose_points(caps: &Capabilities, boundary: Boundary, taps: usize, length: usize) -> usize {
    let whole = length.next_power_of_two().max(2);
    let whole_is_round = boundary == Boundary::Circular && whole == length;
    let filter = taps.next_power_of_two().max(16);
    let most = FusedTuning::most_points(caps);
    if whole_is_round || filter >= whole {
        // Windows have eight points or more.
        return if whole_is_round || boundary == Boundary::Causal {
            whole
        } else {
            whole.max(8)
        };
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
        if block < plan.channels && !matches!(plan.tuning, Tuning::Long(_)) {
            let allowed = format!("at most {block} at {points} points: split them");
            return Err(Error::argument(
                "k",
                format!("{} channels", plan.channels),
                allowed,
            ));
        }
        let dtype = match plan.tuning {
            Tuning::Fused(_) | Tuning::Long(_) => DType::F32,
            Tuning::Monarch(_) => DType::F16,
        };
        let spectra = (0..plan.channels)
            .step_by(block)
            .map(|first| Tensor::empty(ctx, dtype, [block.min(plan.channels - first), points, 2]))
            .collect::<Result<_>>()?;
        let twiddles = match &plan.tuning {
            Tuning::Fused(tuning) => Twiddles::Fused(fused::twiddles(ctx, tuning, plan.framing)?),
            Tuning::Long(tuning) => Twiddles::Long {
                columns: long::column_twiddles(ctx, tuning, plan.framing)?,
                rows: long::row_twiddles(ctx, tuning, plan.framing)?,
            },
            Tuning::Monarch(tuning) => Twiddles::Monarch {
                filter: monarch::filter_twiddles(ctx, tuning)?,
                table: monarch::table(ctx, tuning)?,
                scales: Tensor::empty(ctx, DType::F32, [plan.channels])?,
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
        let scratch = match &self.plan.tuning {
            Tuning::Long(tuning) => {
                let block = self.plan.block(pass.capabilities());
                let parts = long::parts(pass.capabilities(), tuning, self.plan.channels, 1, block)?;
                let most = parts.iter().map(|p| p.channels).max();
                [most.unwrap_or(0) * tuning.points() * 2, 0]
            }
            Tuning::Fused(_) | Tuning::Monarch(_) => [0, 0],
        };
        self.record(pass, &steps, &ConvArgs::new(k, k), d, scratch)
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
        let scratch = self.plan.scratch(pass.capabilities(), &layouts)?;
        self.record(pass, &steps, args, None, scratch)
    }

    pub(super) fn record(
        &self,
        pass: &mut Pass<'_>,
        steps: &[Step],
        args: &ConvArgs<&Tensor>,
        d: Option<&Tensor>,
        [between, scales_between]: [usize; 2],
    ) -> Result<()> {
        let mut memory = |slot, elements: usize| {
            let some = (elements > 0).then(|| pass.scratch(slot, DType::F32, [elements]));
            some.transpose()
        };
        let (scratch, backs) = (memory(SCRATCH, between)?, memory(SCALES, scales_between)?);
        for step in steps {
            let mut tensors = arrayvec::ArrayVec::<&Tensor, 7>::new();
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
                (StepKind::Direct(block), Twiddles::Long { rows, .. }, Some(scratch)) => {
                    tensors.push(args.u);
                    tensors.extend(args.gate_in);
                    tensors.extend([rows, &self.spectra[block], scratch]);
                }
                (StepKind::Rows(block), Twiddles::Long { rows, .. }, Some(scratch)) => {
                    tensors.extend([scratch, &self.spectra[block], rows]);
                }
                (StepKind::ColumnsInverse, Twiddles::Long { columns, .. }, Some(scratch)) => {
                    tensors.push(scratch);
                    tensors.extend(args.gate_out);
                    tensors.extend([columns, args.y]);
                }
                (StepKind::MonarchSpectrum, Twiddles::Monarch { filter, scales, .. }, _) => {
                    tensors.push(args.u);
                    tensors.extend(d);
                    tensors.extend([filter, &self.spectra[0], scales]);
                }
                (StepKind::Monarch, Twiddles::Monarch { table, scales, .. }, scratch) => {
                    tensors.push(args.u);
                    tensors.extend(args.gate_in);
                    if scratch.is_none() {
                        tensors.extend(args.gate_out);
                    }
                    tensors.extend([&self.spectra[0], table, scales]);
                    tensors.push(scratch.as_ref().unwrap_or(args.y));
                    tensors.extend(&backs);
                }
                (StepKind::Combine, _, Some(scratch)) => {
                    tensors.extend(args.gate_out);
                    tensors.push(scratch);
                    tensors.extend(&backs);
                    tensors.push(args.y);
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
