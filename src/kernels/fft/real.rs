//! Transforms of real sequences: half as long complex ones where the length is even.

use std::f64::consts::TAU;
use std::rc::Rc;

use bytemuck::{Pod, Zeroable};

use super::plan::{self, Sequences, Step, Table};
use super::{Direction, Fft, Normalization, bluestein};
use crate::capabilities::Capabilities;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Scratch memory; slots 0 to 2 are the complex transform's.
const SLOTS: [usize; 2] = [3, 4];

/// KIND of pointwise.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Chirp,
    Product,
    Widen,
    Real,
    Copy,
    Split,
    Join,
    Mirror,
}

/// Mirrors `Params` of pointwise.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    elements: u32,
    cols: u32,
    limit: u32,
    scale: f32,
    x: Distances,
    y: Distances,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Distances {
    offset: u32,
    row: u32,
    point: u32,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Chirp => "chirp",
            Self::Product => "product",
            Self::Widen => "widen",
            Self::Real => "real",
            Self::Copy => "copy",
            Self::Split => "split",
            Self::Join => "join",
            Self::Mirror => "mirror",
        }
    }
}

/// Plans `cols` results for every sequence: a dispatch for each outer dimension where there are two.
#[expect(
    clippy::too_many_arguments,
    reason = "what the kernel's parameters are"
)]
pub(super) fn pointwise(
    caps: &Capabilities,
    kind: Kind,
    from: Sequences,
    to: Sequences,
    cols: usize,
    limit: usize,
    scale: f32,
    table: Option<Table>,
) -> Result<Vec<Step>> {
    let [from, to] = Sequences::alike(from, to)?;
    let (parts, rows) = if from.inner > 1 {
        (from.outer, from.inner)
    } else {
        (1, from.outer)
    };
    let place = |s: &Sequences, part: usize| Distances {
        offset: (s.offset + part * s.outer_stride) as u32,
        row: if s.inner > 1 {
            s.inner_stride
        } else {
            s.outer_stride
        } as u32,
        point: s.point_stride as u32,
    };
    (0..parts)
        .map(|part| {
            let recipe = Recipe::new("fft/pointwise")
                .with("KIND", kind.name())
                .with("X", from.dtype)
                .with("Y", to.dtype);
            let params = Params {
                elements: (rows * cols) as u32,
                cols: cols as u32,
                limit: limit as u32,
                scale,
                x: place(&from, part),
                y: place(&to, part),
            };
            let grid = linear_grid(caps, (rows * cols).div_ceil(256));
            Ok(Step {
                launch: Launch::new(caps, recipe, grid, &params)?,
                from: from.buffer,
                to: to.buffer,
                table: table.clone(),
            })
        })
        .collect()
}

/// A real transform: forward from [.., n] to the frequencies 0 … n / 2, [.., n / 2 + 1, 2]; inverse back, the imaginary parts
/// of frequency 0 and, for even n, n / 2 ignored. f32, f16 or bf16 each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RealFft {
    /// Which way.
    pub direction: Direction,
    /// What the result is multiplied by.
    pub normalization: Normalization,
}

impl RealFft {
    /// From points to frequencies, not scaled.
    pub const fn forward() -> Self {
        Self {
            direction: Direction::Forward,
            normalization: Normalization::None,
        }
    }

    /// From frequencies to points, scaled by 1 / n.
    pub const fn inverse() -> Self {
        Self {
            direction: Direction::Inverse,
            normalization: Normalization::ByLength,
        }
    }

    /// With another scale.
    pub const fn normalization(self, normalization: Normalization) -> Self {
        Self {
            normalization,
            ..self
        }
    }

    /// Plans the dispatches between points [.., n] and frequencies [.., n / 2 + 1, 2].
    ///
    /// Errors for a length of more than [`super::MAX_LENGTH`], or shapes that do not belong together.
    pub fn plan(&self, caps: &Capabilities, x: &Layout, y: &Layout) -> Result<Vec<Launch>> {
        Ok(self
            .steps(caps, x, y)?
            .into_iter()
            .map(|s| s.launch)
            .collect())
    }

    fn steps(&self, caps: &Capabilities, x: &Layout, y: &Layout) -> Result<Vec<Step>> {
        let forward = self.direction == Direction::Forward;
        let ((name, points), (other, frequencies)) = if forward {
            (("x", x), ("y", y))
        } else {
            (("y", y), ("x", x))
        };
        points.require_float(name)?;
        let Some((&n, leading)) = points.shape().split_last() else {
            return Err(Error::argument(name, format!("{points:?}"), "[.., n]"));
        };
        super::require_length(name, n)?;
        let h = n / 2;
        let expected: Vec<usize> = leading.iter().copied().chain([h + 1, 2]).collect();
        frequencies.require_shape(other, &expected)?;
        let real = Sequences::along(name, points, leading.len())?;
        let complex = Sequences::complex(other, frequencies)?;
        let [real, complex] = Sequences::alike(real, complex)?;
        let strides = [real.offset, real.outer_stride, real.inner_stride];
        let pairs =
            n % 2 == 0 && real.point_stride == 1 && strides.iter().all(|s| s.is_multiple_of(2));
        let scale = self.normalization.scale(n);
        let transform = |points: usize, scale: f32, from: Sequences, to: Sequences| {
            let fft = Fft {
                direction: self.direction,
                normalization: Normalization::None,
                most_points: 0,
            };
            let [from, to] = Sequences::alike(from, to)?;
            match plan::Split::of(caps, points, 0) {
                Some(split) => plan::transform(caps, split, self.direction, scale, from, to),
                None => bluestein::transform(caps, &fft, scale, from, to),
            }
        };
        let [first, second] =
            SLOTS.map(|slot| Sequences::scratch(slot, real.count(), if pairs { h } else { n }));
        let halves = Sequences {
            points: h,
            point_stride: 2,
            ..real
        };
        let turns = Table {
            key: vec![6, n as u32],
            make: Rc::new(move || {
                let turn = |k: usize| (-TAU * k as f64 / n as f64).sin_cos();
                (0..=h)
                    .map(turn)
                    .map(|(sin, cos)| [cos as f32, sin as f32])
                    .collect()
            }),
        };
        let point = |kind, from, to, cols, limit, scale, table| {
            pointwise(caps, kind, from, to, cols, limit, scale, table)
        };
        let mut steps = Vec::new();
        match (forward, pairs) {
            (true, true) => {
                steps.extend(transform(h, 1.0, halves, first)?);
                steps.extend(point(
                    Kind::Split,
                    first,
                    complex,
                    h + 1,
                    h,
                    scale,
                    Some(turns),
                )?);
            }
            (true, false) => {
                steps.extend(point(Kind::Widen, real, first, n, n, 1.0, None)?);
                steps.extend(transform(n, 1.0, first, second)?);
                steps.extend(point(Kind::Copy, second, complex, h + 1, n, scale, None)?);
            }
            (false, true) => {
                steps.extend(point(Kind::Join, complex, first, h, h, 1.0, Some(turns))?);
                steps.extend(transform(h, scale, first, halves)?);
            }
            (false, false) => {
                steps.extend(point(Kind::Mirror, complex, first, n, h + 1, 1.0, None)?);
                steps.extend(transform(n, 1.0, first, second)?);
                steps.extend(point(Kind::Real, second, real, n, n, scale, None)?);
            }
        }
        Ok(steps)
    }

    /// Records the transform.
    pub fn run(&self, pass: &mut Pass<'_>, x: &Tensor, y: &Tensor) -> Result<()> {
        let steps = self.steps(pass.capabilities(), x.layout(), y.layout())?;
        plan::record(pass, &steps, x, y)
    }
}
