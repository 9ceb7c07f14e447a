//! Convolutions whose transforms do not fit in a workgroup: columns, rows, columns; or rows, which read the whole sequence, and columns.

use bytemuck::{Pod, Zeroable};

use super::fused::even_rounds;
use super::operands::{Direction, Framing, Operands, Sequences};
use super::{ConvArgs, FusedTuning, LongTuning, Passes};
use crate::capabilities::Capabilities;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::radix;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::tensor::Tensor;

/// Workgroups of the middle pass that keep a large card busy.
const ENOUGH_WORKGROUPS: usize = 2048;

/// Mirrors `Params` of columns_forward.wgsl and columns_inverse.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ColumnParams {
    sequences: Sequences,
    first_channel: u32,
    first: u32,
    transforms: u32,
    workgroups: u32,
    skip_offset: u32,
    skip_channel: u32,
}

/// Mirrors `Params` of rows.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RowParams {
    first_channel: u32,
    rows: u32,
    transforms: u32,
    rounds: u32,
    groups: u32,
    workgroups: u32,
    scale: f32,
}

/// Mirrors `Params` of direct.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct DirectParams {
    sequences: Sequences,
    first_channel: u32,
    spectrum_channel: u32,
    first: u32,
    transforms: u32,
    rounds: u32,
    groups: u32,
    workgroups: u32,
}

/// Which transforms one round of passes has: those from `first` on, `transforms` of them, of each channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) first_channel: usize,
    pub(super) channels: usize,
    pub(super) first: usize,
    pub(super) transforms: usize,
}

/// Cuts `channels * transforms` transforms of `points` points into parts whose scratch memory fits, none over a
/// multiple of `block` channels.
pub(super) fn parts(
    caps: &Capabilities,
    tuning: &LongTuning,
    channels: usize,
    transforms: usize,
    block: usize,
) -> Result<Vec<Part>> {
    let each = 8 * tuning.points() as u64;
    let room = tuning
        .scratch
        .min(caps.binding_bytes)
        .min(caps.buffer_bytes)
        / each;
    let room = match room {
        0 if each <= caps.binding_bytes.min(caps.buffer_bytes) => 1,
        0 => {
            let allowed = format!(
                "at most {} bytes, this device's limit for one storage binding",
                caps.binding_bytes
            );
            return Err(Error::argument(
                "length",
                format!("{each} bytes a transform"),
                allowed,
            ));
        }
        room => room as usize,
    };
    let step = (room / transforms).clamp(1, block.max(1));
    let mut parts = Vec::new();
    let mut from = 0;
    while from < channels {
        // Within one block of channels.
        let end = channels.min((from / block + 1) * block).min(from + step);
        for first in (0..transforms).step_by(room) {
            let transforms = room.min(transforms - first);
            parts.push(Part {
                first_channel: from,
                channels: end - from,
                first,
                transforms,
            });
        }
        from = end;
    }
    Ok(parts)
}

/// What both passes over columns share.
struct Columns<'a> {
    tuning: &'a LongTuning,
    framing: Framing,
    part: Part,
}

impl Columns<'_> {
    fn launch(
        &self,
        caps: &Capabilities,
        recipe: Recipe,
        operands: &Operands,
        skip: Option<&Layout>,
    ) -> Result<Launch> {
        let columns = &self.tuning.columns;
        let steps = radix::steps(&columns.steps());
        let spread = self.tuning.rows.points();
        let at = radix::forward_len(&steps) + radix::inverse_len(&steps) * spread;
        let recipe = recipe
            .with("BOUNDARY", self.framing.name())
            .with("RAGGED", u32::from(operands.ragged))
            .with("COLUMNS", self.tuning.width)
            .with("SPREAD", spread as u32)
            .with("TWIST", at as u32);
        let vec = operands.vec.min(columns.vec);
        let recipe = columns.constants_of(recipe, caps, vec, self.tuning.width);
        let workgroups =
            self.part.channels * self.part.transforms * (spread / self.tuning.width as usize);
        let params = ColumnParams {
            sequences: operands.params,
            first_channel: self.part.first_channel as u32,
            first: self.part.first as u32,
            transforms: self.part.transforms as u32,
            workgroups: workgroups as u32,
            skip_offset: skip.map_or(0, Layout::offset) as u32,
            skip_channel: skip.map_or(0, |d| d.strides()[0]) as u32,
        };
        Launch::new(caps, recipe, linear_grid(caps, workgroups), &params)
    }
}

/// Plans the first pass: u's columns into scratch memory.
pub(super) fn columns_forward(
    caps: &Capabilities,
    tuning: &LongTuning,
    framing: Framing,
    phase: &'static str,
    operands: &Operands,
    skip: Option<&Layout>,
    part: Part,
) -> Result<Launch> {
    let recipe = operands
        .inputs(Recipe::new("fftconv/columns_forward"))
        .with("PHASE", phase)
        .with("SKIP", skip.map(Layout::dtype));
    Columns {
        tuning,
        framing,
        part,
    }
    .launch(caps, recipe, operands, skip)
}

/// Plans the last pass: scratch memory's columns to y.
pub(super) fn columns_inverse(
    caps: &Capabilities,
    tuning: &LongTuning,
    framing: Framing,
    operands: &Operands,
    part: Part,
) -> Result<Launch> {
    let recipe = operands.outputs(Recipe::new("fftconv/columns_inverse"));
    Columns {
        tuning,
        framing,
        part,
    }
    .launch(caps, recipe, operands, None)
}

/// Rounds of a workgroup and groups of rounds, for `rows` rows of `part` each.
fn rounds(tuning: &FusedTuning, part: Part, rows: usize) -> [usize; 2] {
    let wanted = ENOUGH_WORKGROUPS
        .div_ceil(part.channels * rows)
        .max(part.transforms.div_ceil(tuning.rounds as usize));
    let most = part.transforms.div_ceil(wanted.min(part.transforms));
    let rounds = even_rounds(part.transforms, most);
    [rounds, part.transforms.div_ceil(rounds)]
}

/// Plans the first of two passes over the channels of `part`, the first of them number `spectrum_channel` of the spectrum.
pub(super) fn direct(
    caps: &Capabilities,
    tuning: &LongTuning,
    framing: Framing,
    operands: &Operands,
    direction: Direction,
    part: Part,
    spectrum_channel: usize,
) -> Result<Launch> {
    let rows = &tuning.rows;
    let count = tuning.columns.points();
    let [rounds, groups] = rounds(rows, part, count);
    let workgroups = part.channels * count * groups;
    let steps = radix::steps(&rows.steps());
    let forward = radix::forward_len(&steps);
    let recipe = operands
        .inputs(Recipe::new("fftconv/direct"))
        .with("BOUNDARY", framing.name())
        .with("RAGGED", u32::from(operands.ragged))
        .with("TRANSPOSE", u32::from(direction == Direction::Transposed))
        .with("FOLD", count as u32)
        .with("FORWARD", forward as u32)
        .with(
            "ROOTS",
            (forward * count + radix::inverse_len(&steps)) as u32,
        );
    let vec = operands.vec.min(rows.vec);
    let recipe = rows.constants_at(recipe, caps, vec, (forward * count) as u32);
    let params = DirectParams {
        sequences: operands.params,
        first_channel: part.first_channel as u32,
        spectrum_channel: spectrum_channel as u32,
        first: part.first as u32,
        transforms: part.transforms as u32,
        rounds: rounds as u32,
        groups: groups as u32,
        workgroups: workgroups as u32,
    };
    Launch::new(caps, recipe, linear_grid(caps, workgroups), &params)
}

/// What the middle pass does with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKind {
    /// Makes a spectrum of it.
    Filter,
    /// Convolves it.
    Convolve(Direction),
}

/// Plans the middle pass over the channels of `part`, the first of them number `first_channel` of the spectrum.
pub(super) fn rows(
    caps: &Capabilities,
    tuning: &LongTuning,
    kind: RowKind,
    part: Part,
    first_channel: usize,
) -> Result<Launch> {
    let rows = &tuning.rows;
    let count = tuning.columns.points();
    let (name, transposed) = match kind {
        RowKind::Filter => ("filter", false),
        RowKind::Convolve(direction) => ("convolve", direction == Direction::Transposed),
    };
    let [rounds, groups] = rounds(rows, part, count);
    let workgroups = part.channels * count * groups;
    let forward = radix::forward_len(&radix::steps(&rows.steps()));
    let recipe = Recipe::new("fftconv/rows")
        .with("KIND", name)
        .with("TRANSPOSE", u32::from(transposed))
        .with("FORWARD", forward as u32);
    let recipe = rows.constants_at(recipe, caps, 1, (forward * count) as u32);
    let params = RowParams {
        first_channel: first_channel as u32,
        rows: count as u32,
        transforms: part.transforms as u32,
        rounds: rounds as u32,
        groups: groups as u32,
        workgroups: workgroups as u32,
        scale: 1.0 / tuning.points() as f32,
    };
    Launch::new(caps, recipe, linear_grid(caps, workgroups), &params)
}

/// The operands of the filter's own columns: its taps as sequences of one batch row.
pub(super) fn filter_operands(k: &Layout, channels: usize, points: usize) -> Result<Operands> {
    Operands::new(
        &ConvArgs::new(k, k),
        channels,
        Framing::Causal,
        Direction::Forward,
        points,
    )
}

/// The twiddles of the passes over columns.
pub(super) fn column_twiddles(
    ctx: &Context,
    tuning: &LongTuning,
    framing: Framing,
) -> Result<Tensor> {
    let (_, quarters) = framing.phase();
    let (radices, spread) = (tuning.columns.steps(), tuning.rows.points());
    let key: Vec<u32> = [1, quarters, spread as u32]
        .into_iter()
        .chain(radices.iter().map(|&r| r as u32))
        .collect();
    ctx.complex_table(&key, || {
        let (steps, phase) = (radix::steps(&radices), -f64::from(quarters) / 4.0);
        let mut table = radix::forward_table(&steps, phase);
        table.extend(radix::inverse_table(&steps, spread));
        table.extend(radix::twist_table(&steps, spread, phase));
        table
    })
}

/// The twiddles of the middle pass: a forward table for every row, one inverse; of two passes, the roots over the rows.
pub(super) fn row_twiddles(ctx: &Context, tuning: &LongTuning, framing: Framing) -> Result<Tensor> {
    let (_, quarters) = framing.phase();
    let (columns, rows) = (tuning.columns.steps(), tuning.rows.steps());
    let radices = columns.iter().chain([&1]).chain(&rows).map(|&r| r as u32);
    let name = match tuning.passes {
        Passes::Three => 2,
        Passes::Two => 5,
    };
    let key: Vec<u32> = [name, quarters].into_iter().chain(radices).collect();
    ctx.complex_table(&key, || {
        let (outer, inner) = (radix::steps(&columns), radix::steps(&rows));
        let count: usize = columns.iter().product();
        let mut table =
            Vec::with_capacity(radix::forward_len(&inner) * count + radix::inverse_len(&inner));
        for row in 0..count {
            let k = radix::reversed(&outer, outer.len(), row) as f64;
            table.extend(radix::forward_table(
                &inner,
                (k - f64::from(quarters) / 4.0) / count as f64,
            ));
        }
        table.extend(radix::inverse_table(&inner, 1));
        if tuning.passes == Passes::Two {
            let count = count as i64;
            let turns =
                |kappa: i64| (0..count).map(move |n| -(4 * kappa - i64::from(quarters)) * n);
            table.extend((0..count).flat_map(turns).map(|turn| {
                let (cos, sin) = radix::turn(turn, 4 * count);
                [cos as f32, sin as f32]
            }));
        }
        table
    })
}
