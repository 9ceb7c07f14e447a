//! Causal convolutions on matrix units, in f16: transforms as products with Monarch matrices.

mod tables;

use bytemuck::{Pod, Zeroable};

use self::tables::Shape;
use super::fused::even_rounds;
use super::operands::Direction;
use super::{ConvArgs, FusedTuning};
use crate::capabilities::Capabilities;
use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::attention::MatrixUnits;
use crate::layout::{Layout, Matrices};
use crate::radix;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::tensor::Tensor;

/// Workgroups that keep a large card busy.
const ENOUGH_WORKGROUPS: usize = 2048;
/// Elements of an access.
const VECTOR: usize = 8;
/// Points of a workgroup of combine.wgsl: four an invocation.
const COMBINED: usize = 512;
/// Frequencies of a pattern where a workgroup has them all: as many as it has tiles.
const PERIOD: u32 = 4;

/// The shape of transforms on matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MonarchTuning {
    /// What multiplies. Emulated only with `last` 4.
    pub units: MatrixUnits,
    /// Points of the last digit: 4, 8 or 16. A workgroup transforms 256 times as many points.
    pub last: u32,
    /// Parts that a sequence's frequencies are computed in: 1, 2, 4, 8 or 16.
    pub fold: u32,
    /// Where parts are added up.
    pub meet: Meet,
    /// Most batch rows that a workgroup does one after the other.
    pub rounds: u32,
    /// What stays in registers from one of them to the next.
    pub hold: Hold,
    /// Of every `fold` frequencies, or of every four if `fold` is 1, those that are computed: the first so many.
    pub kept: u32,
    /// Bytes of memory between the two passes, at most, if there are two.
    pub scratch: u64,
}

/// Where the parts of a result are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Meet {
    /// In memory, by a second pass: a workgroup has one part, and leaves it in f16.
    Memory,
    /// In the workgroup, which computes them one after the other and keeps `fold` times 512 bytes for each of `last`; of sequences
    /// without gates. With gates registers are short, and parts meet in memory.
    Workgroup,
}

/// What invocations hold over the rounds of a loop instead of reading it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// Matrices.
    Matrices,
    /// The factors between the first two digits too.
    Factors,
    /// And the filter's spectrum.
    Filter,
}

/// Mirrors `Place` of monarch.wgsl and combine.wgsl, in vectors of eight elements.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Place {
    offset: u32,
    batch: u32,
    channel: u32,
}

/// Mirrors `Params` of monarch.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    u: Place,
    v: Place,
    w: Place,
    y: Place,
    length: u32,
    batch: u32,
    rounds: u32,
    groups: u32,
    workgroups: u32,
    first_channel: u32,
    first_row: u32,
}

/// Mirrors `Params` of monarch_combine.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CombineParams {
    w: Place,
    y: Place,
    length: u32,
    batch: u32,
    workgroups: u32,
    first_channel: u32,
    first_row: u32,
}

/// Mirrors `Params` of monarch_spectrum.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SpectrumParams {
    taps: u32,
    workgroups: u32,
    taps_offset: u32,
    taps_channel: u32,
    skip_offset: u32,
    skip_channel: u32,
}

/// Rows that one round of the two passes has: of `channels` channels, `batch` batch rows each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) first_channel: usize,
    pub(super) channels: usize,
    pub(super) first_row: usize,
    pub(super) batch: usize,
}

impl MonarchTuning {
    /// The transform's length.
    pub fn points(&self) -> usize {
        self.shape().points()
    }

    /// Frequencies after which `kept` ones come again.
    pub fn period(&self) -> u32 {
        if self.fold == 1 { PERIOD } else { self.fold }
    }

    /// A result has more than one part.
    fn several(&self) -> bool {
        self.fold > 1 && self.kept > 1
    }

    /// Parts may be added up in a workgroup.
    fn may_meet(&self) -> bool {
        self.several() && self.meet == Meet::Workgroup
    }

    /// Bytes of workgroup memory.
    fn workgroup_bytes(&self) -> u64 {
        let sums = if self.may_meet() { 512 * self.fold } else { 0 };
        u64::from((1024 + sums) * self.last) + self.units.workgroup_bytes()
    }

    fn shape(&self) -> Shape {
        Shape {
            fold: self.fold as usize,
            last: self.last as usize,
        }
    }

    pub(super) fn check(self, caps: &Capabilities) -> Result<Self> {
        let shapes = [4, 8, 16].contains(&self.last) && [1, 2, 4, 8, 16].contains(&self.fold);
        let fits = shapes
            && self.rounds >= 1
            && (1..=self.period()).contains(&self.kept)
            && (!self.may_meet() || self.hold == Hold::Matrices)
            && self.units.serve(caps, self.last / 4)
            && caps.shader_f16
            && self.workgroup_bytes() <= caps.workgroup_bytes.into();
        if fits {
            return Ok(self);
        }
        let allowed = "matrix units whose elements can be reached, last 4, 8 or 16, fold a power of two up to 16, at least one round, parts that fit if they meet in a workgroup";
        Err(Error::argument("tuning", format!("{self:?}"), allowed))
    }

    /// What the planner takes for transforms of `points` points, if the device has matrix units for them.
    pub fn default_for(caps: &Capabilities, points: usize) -> Option<Self> {
        let (last, fold) = match points {
            1024..=4096 => (points / 256, 1),
            _ => (16, points / 4096),
        };
        let tuning = Self {
            units: MatrixUnits::Device,
            last: u32::try_from(last).ok()?,
            fold: u32::try_from(fold).ok()?,
            // Of two parts faster, of four slower (16384 points on an H100 13.7 ms, in memory 7.1).
            meet: match fold {
                2 => Meet::Workgroup,
                _ => Meet::Memory,
            },
            rounds: 8,
            // Registers: with more points a workgroup they are short.
            hold: match (fold, last) {
                (1, 16) => Hold::Factors,
                (1, _) => Hold::Filter,
                _ => Hold::Matrices,
            },
            kept: if fold == 1 {
                PERIOD
            } else {
                u32::try_from(fold).ok()?
            },
            // What would stay in a cache is slower: dispatches of few workgroups wait for one another (8192 points on an H200 3.2 ms
            // with 32 MiB, 2.8 with 128, 2.6 with 1024).
            scratch: 1 << 30,
        };
        let tuning = (points == tuning.points()).then_some(tuning)?;
        let apart = Self {
            meet: Meet::Memory,
            ..tuning
        };
        [tuning, apart].into_iter().find_map(|t| t.check(caps).ok())
    }

    /// Tunings worth timing for transforms of `points` points.
    pub fn candidates(caps: &Capabilities, points: usize) -> Vec<Self> {
        let Some(first) = Self::default_for(caps, points) else {
            return Vec::new();
        };
        let scratch: &[(Meet, u64)] = match first.fold {
            1 => &[(first.meet, 0)],
            _ => &[
                (Meet::Workgroup, 0),
                (Meet::Memory, 32),
                (Meet::Memory, 128),
                (Meet::Memory, 1024),
            ],
        };
        let rounds = [2, 8];
        let each = scratch.iter().flat_map(|&(meet, mib)| {
            rounds.map(|rounds| Self {
                meet,
                scratch: mib << 20,
                rounds,
                ..first
            })
        });
        each.filter_map(|t| t.check(caps).ok()).collect()
    }

    /// Products of 16 x 16 matrices that a sequence takes: two or four for a digit of the first and the last, 16 between them.
    pub fn products(&self) -> u64 {
        let (last, fold, kept) = (
            u64::from(self.last),
            u64::from(self.fold),
            u64::from(self.kept),
        );
        // Subgroups of four tiles each.
        let each = match fold {
            1 => 4 * 2 + 16 * kept + 4 * 2,
            _ => kept * (4 * 2 * fold + 4 * 16 + 4 * 4),
        };
        last / 4 * each
    }

    fn constants(&self, recipe: Recipe) -> Recipe {
        recipe
            .with("R", self.last)
            .with("FOLD", self.fold)
            .with("KEPT", self.kept)
    }

    /// The transform of the filter's spectrum: f32, in a workgroup for each kappa.
    fn filter_transform(&self, caps: &Capabilities) -> Result<FusedTuning> {
        let points = self.shape().inner();
        FusedTuning::default_for(caps, points).ok_or_else(|| {
            Error::argument("tuning", format!("{self:?}"), "what fits in a workgroup")
        })
    }
}

/// Plans the spectra of `k`, [channels, taps], with `d` added to the first taps.
pub(super) fn spectrum(
    caps: &Capabilities,
    tuning: &MonarchTuning,
    k: &Layout,
    d: Option<&Layout>,
) -> Result<Launch> {
    let rows = k.as_rows("k")?;
    let transform = FusedTuning {
        side: 1,
        ..tuning.filter_transform(caps)?
    };
    let steps = radix::steps(&transform.steps());
    let recipe = Recipe::new("fftconv/monarch_spectrum")
        .with("TAPS", k.dtype())
        .with("SKIP", d.map(Layout::dtype))
        .with("FORWARD", radix::forward_len(&steps) as u32);
    let recipe = transform.constants(tuning.constants(recipe), caps, 1);
    let workgroups = rows.rows * tuning.fold as usize;
    let params = SpectrumParams {
        taps: rows.cols as u32,
        workgroups: workgroups as u32,
        taps_offset: rows.offset as u32,
        taps_channel: rows.stride as u32,
        skip_offset: d.map_or(0, Layout::offset) as u32,
        skip_channel: d.map_or(0, |d| d.strides()[0]) as u32,
    };
    Launch::new(caps, recipe, linear_grid(caps, workgroups), &params)
}

/// Checked operands.
pub(super) struct Operands {
    places: [Place; 4],
    gates: [bool; 2],
    length: usize,
    batch: usize,
    channels: usize,
    ragged: bool,
}

impl Operands {
    /// Checks the operands of a convolution of `channels` channels: f16 all over, rows that begin at multiples of 16 bytes.
    pub(super) fn new(args: &ConvArgs<&Layout>, channels: usize, points: usize) -> Result<Self> {
        let shape = args.u.shape();
        let matrices = |name: &str, layout: &Layout| -> Result<Matrices> {
            layout.require_dtype(name, DType::F16)?;
            layout.require_shape(name, shape)?;
            let found = layout.as_matrices(name)?;
            if found.rows != channels {
                let allowed = format!("{channels}, the filter's");
                return Err(Error::argument(
                    name,
                    format!("{} channels", found.rows),
                    allowed,
                ));
            }
            if !found.multiple_of(VECTOR) || !found.cols.is_multiple_of(VECTOR) {
                let allowed =
                    "length, strides and offset multiples of 8 elements, for arithmetic in f16";
                return Err(Error::argument(name, format!("{layout:?}"), allowed));
            }
            Ok(found)
        };
        let u = matrices("u", args.u)?;
        let v = args.gate_in.map(|g| matrices("gate_in", g)).transpose()?;
        let w = args.gate_out.map(|g| matrices("gate_out", g)).transpose()?;
        let y = matrices("y", args.y)?;
        let place = |m: Option<Matrices>| {
            m.map_or_else(Place::default, |m| Place {
                offset: (m.offset / VECTOR) as u32,
                batch: (m.batch_stride / VECTOR) as u32,
                channel: (m.stride / VECTOR) as u32,
            })
        };
        Ok(Self {
            places: [Some(u), v, w, Some(y)].map(place),
            gates: [v.is_some(), w.is_some()],
            length: u.cols,
            batch: u.batch,
            channels,
            ragged: u.cols < points,
        })
    }

    fn recipe(&self, shader: &'static str, tuning: &MonarchTuning) -> Recipe {
        tuning
            .constants(Recipe::new(shader))
            .with("GATE_OUT", u32::from(self.gates[1]))
            .with("RAGGED", u32::from(self.ragged))
    }

    /// A workgroup adds parts up.
    fn meets(&self, tuning: &MonarchTuning) -> bool {
        tuning.may_meet() && self.gates == [false; 2]
    }

    /// Workgroups leave parts of a result to a second pass.
    pub(super) fn in_parts(&self, tuning: &MonarchTuning) -> bool {
        tuning.several() && !self.meets(tuning)
    }

    /// The parts of two passes whose scratch memory fits; all at once if there is one pass.
    pub(super) fn parts(&self, caps: &Capabilities, tuning: &MonarchTuning) -> Vec<Part> {
        let each = 4 * tuning.points() as u64;
        let limit = tuning
            .scratch
            .min(caps.binding_bytes)
            .min(caps.buffer_bytes);
        let (batch, channels) = match self.in_parts(tuning) {
            false => (self.batch, self.channels),
            true => {
                let rows = ((limit / each) as usize).max(1);
                (
                    rows.min(self.batch),
                    (rows / self.batch).clamp(1, self.channels),
                )
            }
        };
        let mut parts = Vec::new();
        for first_channel in (0..self.channels).step_by(channels) {
            for first_row in (0..self.batch).step_by(batch) {
                parts.push(Part {
                    first_channel,
                    channels: channels.min(self.channels - first_channel),
                    first_row,
                    batch: batch.min(self.batch - first_row),
                });
            }
        }
        parts
    }

    /// Rows of the largest part.
    pub(super) fn most_rows(&self, caps: &Capabilities, tuning: &MonarchTuning) -> usize {
        let parts = self.parts(caps, tuning);
        parts
            .iter()
            .map(|p| p.channels * p.batch)
            .max()
            .unwrap_or(0)
    }

    /// Plans the transforms: the whole convolution, or the first of two passes.
    pub(super) fn convolution(
        &self,
        caps: &Capabilities,
        tuning: &MonarchTuning,
        part: Part,
        direction: Direction,
    ) -> Result<Launch> {
        let fold = if tuning.fold == 1 || self.meets(tuning) {
            1
        } else {
            tuning.kept as usize
        };
        let wanted = ENOUGH_WORKGROUPS
            .div_ceil(part.channels * fold)
            .max(part.batch.div_ceil(tuning.rounds as usize));
        let rounds = part.batch.div_ceil(wanted.min(part.batch));
        let rounds = even_rounds(part.batch, rounds);
        let groups = part.batch.div_ceil(rounds);
        let workgroups = part.channels * groups * fold;
        let [u, v, w, y] = self.places;
        let recipe = self
            .recipe("fftconv/monarch", tuning)
            .with("COOP", tuning.units.name())
            .with("MEET", u32::from(self.meets(tuning)))
            .with("GATE_IN", u32::from(self.gates[0]))
            .with("TRANSPOSE", u32::from(direction == Direction::Transposed))
            .with("HOLD_FACTORS", u32::from(tuning.hold != Hold::Matrices))
            .with("HOLD_FILTER", u32::from(tuning.hold == Hold::Filter));
        let params = Params {
            u,
            v,
            w,
            y,
            length: self.length as u32,
            batch: part.batch as u32,
            rounds: rounds as u32,
            groups: groups as u32,
            workgroups: workgroups as u32,
            first_channel: part.first_channel as u32,
            first_row: part.first_row as u32,
        };
        Launch::new(caps, recipe, linear_grid(caps, workgroups), &params)
    }

    /// Plans the second of two passes.
    pub(super) fn combine(
        &self,
        caps: &Capabilities,
        tuning: &MonarchTuning,
        part: Part,
    ) -> Result<Launch> {
        let workgroups = part.channels * part.batch * (tuning.shape().inner() / COMBINED);
        let [_, _, w, y] = self.places;
        let params = CombineParams {
            w,
            y,
            length: self.length as u32,
            batch: part.batch as u32,
            workgroups: workgroups as u32,
            first_channel: part.first_channel as u32,
            first_row: part.first_row as u32,
        };
        let recipe = self.recipe("fftconv/monarch_combine", tuning);
        Launch::new(caps, recipe, linear_grid(caps, workgroups), &params)
    }
}

/// Matrices and factors of the transforms.
pub(super) fn table(ctx: &Context, tuning: &MonarchTuning) -> Result<Tensor> {
    let shape = tuning.shape();
    ctx.complex_table(&[3, tuning.last, tuning.fold], || {
        let words = shape.table().into_iter().flatten();
        let words: Vec<f32> = words.map(f32::from_bits).collect();
        words.chunks_exact(2).map(|w| [w[0], w[1]]).collect()
    })
}

/// The twiddles of the filter's own transforms, and the 4 F-th roots of unity.
pub(super) fn filter_twiddles(ctx: &Context, tuning: &MonarchTuning) -> Result<Tensor> {
    let radices = tuning.filter_transform(ctx.capabilities())?.steps();
    let fold = tuning.fold as usize;
    let key: Vec<u32> = [4, tuning.fold]
        .into_iter()
        .chain(radices.iter().map(|&r| r as u32))
        .collect();
    ctx.complex_table(&key, || {
        let steps = radix::steps(&radices);
        let phase = |kappa: usize| (kappa as f64 - 0.25) / fold as f64;
        let mut table: Vec<[f32; 2]> = (0..fold)
            .flat_map(|kappa| radix::forward_table(&steps, phase(kappa)))
            .collect();
        table.extend((0..4 * fold).map(|i| {
            let (cos, sin) = radix::turn(-(i as i64), 4 * fold as i64);
            [cos as f32, sin as f32]
        }));
        table
    })
}
