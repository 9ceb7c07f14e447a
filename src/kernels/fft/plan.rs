//! Transforms of lengths that mixed radices do: geometry, tables, dispatches.

use std::f64::consts::TAU;
use std::rc::Rc;

use arrayvec::ArrayVec;
use bytemuck::{Pod, Zeroable};

use super::{Direction, F32, require_complex};
use crate::capabilities::Capabilities;
use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Most steps in a workgroup.
const STEPS: usize = 6;
/// Complex numbers that the two fine and coarse tables of a twist are split at.
const FINE: usize = 1024;
/// Scratch memory: between two passes; the padded sequences of Bluestein's algorithm, and of real transforms.
const BETWEEN: usize = 0;

/// Radices of the steps of a transform.
pub(super) type Radices = ArrayVec<usize, STEPS>;

/// Sequences of complex points in a tensor: a distance for each of two dimensions of sequences, and for points.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequences {
    pub(super) buffer: Memory,
    pub(super) dtype: DType,
    pub(super) outer: usize,
    pub(super) inner: usize,
    pub(super) points: usize,
    pub(super) offset: usize,
    pub(super) outer_stride: usize,
    pub(super) inner_stride: usize,
    pub(super) point_stride: usize,
}

/// What a dispatch reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// The operator's input or output.
    Operand,
    /// Scratch memory of this slot and so many elements.
    Scratch(usize, usize),
}

impl Sequences {
    /// Of a tensor [.., n, 2].
    pub(super) fn complex(name: &str, layout: &Layout) -> Result<Self> {
        require_complex(name, layout)?;
        let rank = layout.rank();
        Self::along(name, layout, rank - 2)
    }

    /// With the points along dimension `dim`; those before are sequences, evenly spaced but for one.
    pub(super) fn along(name: &str, layout: &Layout, dim: usize) -> Result<Self> {
        let (shape, strides) = (layout.shape(), layout.strides());
        // Dimensions of one element have no place; neighbours merge where they are evenly spaced.
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for d in (0..dim).filter(|&d| shape[d] > 1) {
            match merged.last_mut() {
                Some(last) if last.1 == shape[d] * strides[d] => {
                    *last = (last.0 * shape[d], strides[d])
                }
                _ => merged.push((shape[d], strides[d])),
            }
        }
        let ((outer, outer_stride), (inner, inner_stride)) = match merged[..] {
            [] => ((1, 0), (1, 0)),
            [only] => (only, (1, 0)),
            [outer, inner] => (outer, inner),
            _ => {
                return Err(Error::argument(
                    name,
                    format!("{layout:?}"),
                    "at most two distances between sequences",
                ));
            }
        };
        Ok(Self {
            buffer: Memory::Operand,
            dtype: layout.dtype(),
            outer,
            inner,
            points: shape[dim],
            offset: layout.offset(),
            outer_stride,
            inner_stride,
            point_stride: strides[dim],
        })
    }

    /// `count` sequences of `points` complex f32 numbers in scratch memory.
    pub(super) fn scratch(slot: usize, count: usize, points: usize) -> Self {
        Self {
            buffer: Memory::Scratch(slot, 2 * count * points),
            dtype: F32,
            outer: count,
            inner: 1,
            points,
            offset: 0,
            outer_stride: 2 * points,
            inner_stride: 0,
            point_stride: 2,
        }
    }

    /// Both with the same dimensions.
    pub(super) fn alike(a: Self, b: Self) -> Result<[Self; 2]> {
        let split = |s: Self, inner: usize| match s.inner {
            1 if inner > 1 => Self {
                outer: s.outer / inner,
                inner,
                outer_stride: s.outer_stride * inner,
                inner_stride: s.outer_stride,
                ..s
            },
            _ => s,
        };
        let (a, b) = (split(a, b.inner), split(b, a.inner));
        if a.inner == b.inner && a.outer == b.outer {
            return Ok([a, b]);
        }
        let was = format!(
            "{} by {} sequences, {} by {}",
            a.outer, a.inner, b.outer, b.inner
        );
        Err(Error::argument("x and y", was, "sequences spaced alike"))
    }

    /// Number of sequences.
    pub(super) fn count(&self) -> usize {
        self.outer * self.inner
    }
}

/// A dispatch, what it binds, and the table that it reads.
pub(super) struct Step {
    pub(super) launch: Launch,
    pub(super) from: Memory,
    pub(super) table: Option<Table>,
    pub(super) to: Memory,
}

/// A table by what it is of.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) key: Vec<u32>,
    pub(super) make: Rc<dyn Fn() -> Vec<[f32; 2]>>,
}

/// How a length is taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Split {
    One(Radices),
    /// Over columns, then rows.
    Two(Radices, Radices),
}

impl Split {
    /// For transforms of at most `most` points in a workgroup (0: what fits); none where a prime factor is over 13, or the
    /// factors do not fall into two parts that fit.
    pub(super) fn of(caps: &Capabilities, n: usize, most: usize) -> Option<Self> {
        let fits = (caps.workgroup_bytes as usize / 8).min(4096);
        let most = if most == 0 { fits } else { most.min(fits) };
        if n <= most {
            return radices(n).map(Self::One);
        }
        // The factor closest to the root, for even work; rows are longer than columns.
        let root = (n as f64).sqrt() as usize + 1;
        (1..=root)
            .rev()
            .filter(|a| n.is_multiple_of(*a))
            .find_map(|a| {
                let b = n / a;
                (a <= most && b <= most).then_some(())?;
                Some(Self::Two(radices(a)?, radices(b)?))
            })
    }
}

/// The steps of `n`, if they are few and its prime factors small.
fn radices(mut n: usize) -> Option<Radices> {
    let mut found = Vec::new();
    for prime in [13, 11, 7, 5, 3] {
        while n.is_multiple_of(prime) {
            found.push(prime);
            n /= prime;
        }
    }
    if !n.is_power_of_two() {
        return None;
    }
    let bits = n.trailing_zeros();
    let steps = bits.div_ceil(4);
    // As even as possible.
    found.extend((0..steps).map(|i| 1 << (bits / steps + u32::from(i < bits % steps))));
    if found.is_empty() {
        found.push(1);
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    (found.len() <= STEPS).then(|| found.into_iter().collect())
}

/// Mirrors `Params` of transform.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    transforms: u32,
    inner: u32,
    workgroups: u32,
    scale: f32,
    x: Distances,
    y: Distances,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Distances {
    offset: u32,
    outer: u32,
    inner: u32,
    point: u32,
}

impl Distances {
    fn of(s: &Sequences) -> Self {
        Self {
            offset: s.offset as u32,
            outer: s.outer_stride as u32,
            inner: s.inner_stride as u32,
            point: s.point_stride as u32,
        }
    }
}

/// Whether neighbouring invocations have neighbouring points of one sequence or the same point of neighbouring sequences.
fn neighbours(s: &Sequences) -> &'static str {
    let sequences = if s.inner > 1 {
        s.inner_stride
    } else {
        s.outer_stride
    };
    if s.count() > 1 && sequences < s.point_stride {
        "sides"
    } else {
        "points"
    }
}

/// Plans a transform of `from` to `to`, which have the same sequences.
pub(super) fn transform(
    caps: &Capabilities,
    split: Split,
    direction: Direction,
    scale: f32,
    from: Sequences,
    to: Sequences,
) -> Result<Vec<Step>> {
    match split {
        Split::One(radices) => Ok(vec![pass(
            caps,
            &radices,
            direction,
            scale,
            [from, to],
            None,
        )?]),
        Split::Two(columns, rows) => {
            let (a, b): (usize, usize) = (columns.iter().product(), rows.iter().product());
            let between = Sequences::scratch(BETWEEN, from.count(), a * b);
            if between.count() as u64 * (8 * a * b) as u64
                > caps.binding_bytes.min(caps.buffer_bytes)
            {
                let allowed = format!(
                    "sequences of at most {} bytes in all as f32, this device's limit for one storage binding: split them",
                    caps.binding_bytes
                );
                return Err(Error::argument(
                    "x",
                    format!("{} sequences of {}", from.count(), a * b),
                    allowed,
                ));
            }
            // One outer dimension: operands with two of them go one by one.
            let mut steps = Vec::new();
            for part in 0..if from.inner > 1 { from.outer } else { 1 } {
                let one = |s: Sequences| match from.inner > 1 {
                    true => Sequences {
                        outer: s.inner,
                        outer_stride: s.inner_stride,
                        inner: 1,
                        offset: s.offset + part * s.outer_stride,
                        ..s
                    },
                    false => s,
                };
                let (from, to) = (one(from), one(to));
                let matrix = |s: Sequences,
                              inner: usize,
                              inner_stride: usize,
                              points: usize,
                              point_stride: usize| Sequences {
                    inner,
                    inner_stride: inner_stride * s.point_stride,
                    points,
                    point_stride: point_stride * s.point_stride,
                    ..s
                };
                let between = Sequences {
                    outer: from.outer,
                    ..between
                };
                steps.push(pass(
                    caps,
                    &columns,
                    direction,
                    1.0,
                    [matrix(from, b, 1, a, b), matrix(between, b, 1, a, b)],
                    Some(b),
                )?);
                steps.push(pass(
                    caps,
                    &rows,
                    direction,
                    scale,
                    [matrix(between, a, b, b, 1), matrix(to, a, 1, b, a)],
                    None,
                )?);
            }
            Ok(steps)
        }
    }
}

/// One dispatch; `spread` columns are twisted for the rows that follow.
fn pass(
    caps: &Capabilities,
    radices: &Radices,
    direction: Direction,
    scale: f32,
    [from, to]: [Sequences; 2],
    spread: Option<usize>,
) -> Result<Step> {
    let n: usize = radices.iter().product();
    let fits = (caps.workgroup_bytes as usize / 8).min(4096);
    let (load, store) = (neighbours(&from), neighbours(&to));
    let across = load == "sides" || store == "sides";
    // Enough for a workgroup's invocations, and wide enough for whole lines of memory.
    let wanted = (1024 / n).max(if across { 8 } else { 1 });
    let side = (wanted.min(fits / n).max(1)).min(from.count());
    let side = 1 << side.ilog2();
    let least = radices.iter().max().copied().unwrap_or(1);
    let workgroup = (side * n / least)
        .next_power_of_two()
        .clamp(32, 256)
        .min(caps.invocations as usize);
    let at = |i: usize| radices.get(i).copied().unwrap_or(1) as u32;
    let table_len = table_len(radices);
    let recipe = Recipe::new("fft/transform")
        .with("X", from.dtype)
        .with("Y", to.dtype)
        .with("FORWARD", u32::from(direction == Direction::Forward))
        .with("N", n as u32)
        .with("R1", at(0))
        .with("R2", at(1))
        .with("R3", at(2))
        .with("R4", at(3))
        .with("R5", at(4))
        .with("R6", at(5))
        .with("SIDE", side as u32)
        .with("WG", workgroup as u32)
        .with("LOAD", load)
        .with("STORE", store)
        .with("INTERLEAVE", u32::from(load == "sides"))
        .with("TWIST", u32::from(spread.is_some()))
        .with("TWIDDLES", table_len as u32);
    let workgroups = from.count().div_ceil(side);
    let params = Params {
        transforms: from.count() as u32,
        inner: from.inner as u32,
        workgroups: workgroups as u32,
        scale,
        x: Distances::of(&from),
        y: Distances::of(&to),
    };
    let sign = f64::from(direction.sign());
    let kept = radices.clone();
    let key = [3, direction.sign() as u32, spread.unwrap_or(0) as u32]
        .into_iter()
        .chain(radices.iter().map(|&r| r as u32));
    Ok(Step {
        launch: Launch::new(caps, recipe, linear_grid(caps, workgroups), &params)?,
        from: from.buffer,
        to: to.buffer,
        table: Some(Table {
            key: key.collect(),
            make: Rc::new(move || table(&kept, sign, spread)),
        }),
    })
}

fn table_len(radices: &[usize]) -> usize {
    let mut high = radices.first().copied().unwrap_or(1);
    let mut len = 0;
    for radix in radices.iter().skip(1) {
        len += (radix - 1) * high;
        high *= radix;
    }
    len.max(1)
}

fn table(radices: &[usize], sign: f64, spread: Option<usize>) -> Vec<[f32; 2]> {
    let mut table = Vec::with_capacity(table_len(radices));
    let mut push = |turns: f64| {
        let (sin, cos) = (sign * turns.fract() * TAU).sin_cos();
        table.push([cos as f32, sin as f32]);
    };
    let mut high = radices.first().copied().unwrap_or(1);
    for (s, &radix) in radices.iter().enumerate().skip(1) {
        for d in 1..radix {
            for place in 0..high {
                // The digits before, the first the most significant here and the least in the frequency.
                let (mut k, mut left, mut weight) = (0, place, high);
                for &earlier in radices[..s].iter().rev() {
                    weight /= earlier;
                    k += left % earlier * weight;
                    left /= earlier;
                }
                push((d * k) as f64 / (high * radix) as f64);
            }
        }
        high *= radix;
    }
    if radices.len() < 2 {
        push(0.0);
    }
    if let Some(spread) = spread {
        let all = high * spread;
        (0..FINE).for_each(|m| push(m as f64 / all as f64));
        (0..all.div_ceil(FINE)).for_each(|m| push((m * FINE) as f64 / all as f64));
    }
    table
}

/// The table on the device.
pub(super) fn uploaded(ctx: &Context, table: &Table) -> Result<Tensor> {
    ctx.complex_table(&table.key, || (table.make)())
}

/// Records steps between `x` and `y`.
pub(super) fn record(pass: &mut Pass<'_>, steps: &[Step], x: &Tensor, y: &Tensor) -> Result<()> {
    for step in steps {
        let memory = |pass: &mut Pass<'_>, memory: Memory, operand: &Tensor| match memory {
            Memory::Operand => Ok(operand.clone()),
            Memory::Scratch(slot, elements) => pass.scratch(slot, F32, [elements]),
        };
        let (from, to) = (memory(pass, step.from, x)?, memory(pass, step.to, y)?);
        let table = step
            .table
            .as_ref()
            .map(|t| uploaded(pass.context(), t))
            .transpose()?;
        let mut tensors = ArrayVec::<&Tensor, 3>::new();
        tensors.push(&from);
        tensors.extend(table.as_ref());
        tensors.push(&to);
        pass.launch(&step.launch, &tensors)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_come_apart() {
        let caps = Capabilities::webgpu_default();
        for n in [1, 2, 3, 1024, 1001, 2000, 1 << 22, 3 * 5 * 7 * 11 * 13 * 16] {
            match Split::of(&caps, n, 0).unwrap() {
                Split::One(r) => assert_eq!(r.iter().product::<usize>(), n),
                Split::Two(a, b) => assert_eq!(a.iter().chain(&b).product::<usize>(), n),
            }
        }
        for n in [17, 1009, 2 * 4099] {
            assert!(Split::of(&caps, n, 0).is_none(), "{n}");
        }
    }
}
