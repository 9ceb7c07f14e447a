//! Convolutions whose transforms fit in a workgroup: one kernel.

use bytemuck::{Pod, Zeroable};

use super::FusedTuning;
use super::operands::{Direction, Framing, Operands, Sequences};
use crate::capabilities::Capabilities;
use crate::context::Context;
use crate::error::Result;
use crate::layout::Layout;
use crate::radix;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::tensor::Tensor;

/// Workgroups that keep a large card busy; more of them read the filter more often.
const ENOUGH_WORKGROUPS: usize = 2048;

/// Mirrors `Params` of spectrum.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SpectrumParams {
    taps: u32,
    channels: u32,
    scale: f32,
    taps_offset: u32,
    taps_channel: u32,
    skip_offset: u32,
    skip_channel: u32,
}

/// Mirrors `Params` of fused.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FusedParams {
    sequences: Sequences,
    rounds: u32,
    groups: u32,
    workgroups: u32,
}

/// At most `most` rounds for each workgroup, so that as few as can be repeat the last one's work (16 as 3 times 6 took 1.1 times
/// as long as 4 times 4 on an H100).
pub(super) fn even_rounds(all: usize, most: usize) -> usize {
    let repeated = |rounds: usize| all.next_multiple_of(rounds) - all;
    let half = most.div_ceil(2).max(1);
    (half..=most.max(1))
        .rev()
        .min_by_key(|&rounds| repeated(rounds))
        .unwrap_or(1)
}

/// Plans the spectra of `k`, [channels, taps], with `d` added to the first taps.
pub(super) fn spectrum(
    caps: &Capabilities,
    tuning: &FusedTuning,
    framing: Framing,
    k: &Layout,
    d: Option<&Layout>,
) -> Result<Launch> {
    let rows = k.as_rows("k")?;
    let recipe = Recipe::new("fftconv/spectrum")
        .with("PHASE", framing.phase().0)
        .with("TAPS", k.dtype())
        .with("SKIP", d.map(Layout::dtype));
    let recipe = tuning.alone().constants(recipe, caps, 1);
    let params = SpectrumParams {
        taps: rows.cols as u32,
        channels: rows.rows as u32,
        scale: 1.0 / tuning.points() as f32,
        taps_offset: rows.offset as u32,
        taps_channel: rows.stride as u32,
        skip_offset: d.map_or(0, Layout::offset) as u32,
        skip_channel: d.map_or(0, |d| d.strides()[0]) as u32,
    };
    Launch::new(caps, recipe, linear_grid(caps, rows.rows), &params)
}

/// Plans the convolution of `channels` channels.
pub(super) fn convolution(
    caps: &Capabilities,
    tuning: &FusedTuning,
    framing: Framing,
    operands: &Operands,
    channels: usize,
    direction: Direction,
) -> Result<Launch> {
    let vec = operands.vec.min(tuning.vec);
    let all_rounds = operands.transforms.div_ceil(tuning.side as usize);
    let wanted = ENOUGH_WORKGROUPS
        .div_ceil(channels)
        .max(all_rounds.div_ceil(tuning.rounds as usize));
    let rounds = even_rounds(all_rounds, all_rounds.div_ceil(wanted.min(all_rounds)));
    let groups = all_rounds.div_ceil(rounds);
    let steps = radix::steps(&tuning.steps());
    let recipe = Recipe::new("fftconv/fused").with("BOUNDARY", framing.name());
    let recipe = operands
        .outputs(operands.inputs(recipe))
        .with("TRANSPOSE", u32::from(direction == Direction::Transposed))
        .with("RAGGED", u32::from(operands.ragged))
        .with("SIDE", tuning.side)
        .with(
            "TWIST",
            (radix::forward_len(&steps) + radix::inverse_len(&steps)) as u32,
        );
    let recipe = tuning.constants(recipe, caps, vec);
    let params = FusedParams {
        sequences: operands.params,
        rounds: rounds as u32,
        groups: groups as u32,
        workgroups: (channels * groups) as u32,
    };
    Launch::new(caps, recipe, linear_grid(caps, channels * groups), &params)
}

/// The twiddles of transforms in a workgroup: forward, inverse, twist.
pub(super) fn twiddles(ctx: &Context, tuning: &FusedTuning, framing: Framing) -> Result<Tensor> {
    let (_, quarters) = framing.phase();
    let radices = tuning.steps();
    let key: Vec<u32> = [0, quarters]
        .into_iter()
        .chain(radices.iter().map(|&r| r as u32))
        .collect();
    ctx.complex_table(&key, || {
        let (steps, phase) = (radix::steps(&radices), -f64::from(quarters) / 4.0);
        let mut table = radix::forward_table(&steps, phase);
        table.extend(radix::inverse_table(&steps, 1));
        table.extend(radix::twist_table(&steps, 1, phase));
        table
    })
}
