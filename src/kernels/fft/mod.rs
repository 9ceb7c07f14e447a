//! Discrete Fourier transforms of any length up to 2^22, complex and real.
//!
//! Products of 2, 3, 5, 7, 11 and 13 by mixed radices in workgroup memory, beyond its size by two passes (Bailey's four
//! steps); other lengths by Bluestein's chirps over a power of two.

mod bluestein;
mod plan;
mod real;

pub use real::RealFft;

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::Launch;
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Longest transform.
pub const MAX_LENGTH: usize = 1 << 22;

/// The sign of the exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From points to frequencies: e^(-2 pi i n k / N).
    Forward,
    /// Back: e^(2 pi i n k / N).
    Inverse,
}

impl Direction {
    pub(crate) const fn sign(self) -> i32 {
        match self {
            Self::Forward => -1,
            Self::Inverse => 1,
        }
    }
}

/// What a transform of N points is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Normalization {
    /// 1.
    None,
    /// 1 / N.
    ByLength,
    /// 1 / sqrt(N): both directions keep the norm.
    Orthonormal,
}

impl Normalization {
    pub(crate) fn scale(self, n: usize) -> f32 {
        match self {
            Self::None => 1.0,
            Self::ByLength => (1.0 / n as f64) as f32,
            Self::Orthonormal => (1.0 / (n as f64).sqrt()) as f32,
        }
    }
}

/// A complex transform: x and y are [.., n, 2] with (real, imaginary) last, f32, f16 or bf16 each; arithmetic is f32, and what
/// f16 cannot hold becomes infinite. Adjacent points may be any even number of elements apart, so that a transposed view
/// transforms along another dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fft {
    /// Which way.
    pub direction: Direction,
    /// What the result is multiplied by.
    pub normalization: Normalization,
    /// Most points of a transform in a workgroup; 0 for what fits. Longer ones take two passes.
    pub most_points: usize,
}

impl Fft {
    /// From points to frequencies, not scaled.
    pub const fn forward() -> Self {
        Self {
            direction: Direction::Forward,
            normalization: Normalization::None,
            most_points: 0,
        }
    }

    /// From frequencies to points, scaled by 1 / N.
    pub const fn inverse() -> Self {
        Self {
            direction: Direction::Inverse,
            normalization: Normalization::ByLength,
            most_points: 0,
        }
    }

    /// With another scale.
    pub const fn normalization(self, normalization: Normalization) -> Self {
        Self {
            normalization,
            ..self
        }
    }

    /// Plans the dispatches of a transform from x to y, both [.., n, 2].
    ///
    /// Errors for a length of more than [`MAX_LENGTH`], shapes that differ, or views that are not pairs of adjacent elements.
    pub fn plan(&self, caps: &Capabilities, x: &Layout, y: &Layout) -> Result<Vec<Launch>> {
        Ok(self
            .steps(caps, x, y)?
            .into_iter()
            .map(|s| s.launch)
            .collect())
    }

    fn steps(&self, caps: &Capabilities, x: &Layout, y: &Layout) -> Result<Vec<plan::Step>> {
        y.require_shape("y", x.shape())?;
        let [from, to] = plan::Sequences::alike(
            plan::Sequences::complex("x", x)?,
            plan::Sequences::complex("y", y)?,
        )?;
        let n = from.points;
        require_length("x", n)?;
        let scale = self.normalization.scale(n);
        match plan::Split::of(caps, n, self.most_points) {
            Some(split) => plan::transform(caps, split, self.direction, scale, from, to),
            None => bluestein::transform(caps, self, scale, from, to),
        }
    }

    /// Records the transform.
    pub fn run(&self, pass: &mut Pass<'_>, x: &Tensor, y: &Tensor) -> Result<()> {
        let steps = self.steps(pass.capabilities(), x.layout(), y.layout())?;
        plan::record(pass, &steps, x, y)
    }

    /// The transform as a new tensor of x's type.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = Tensor::empty(x.context(), x.dtype(), x.shape())?;
        x.context().record(|pass| self.run(pass, x, &y))?;
        Ok(y)
    }
}

/// Refuses transforms of more than [`MAX_LENGTH`] points.
fn require_length(name: &str, n: usize) -> Result<()> {
    if n <= MAX_LENGTH {
        return Ok(());
    }
    let allowed = format!("at most {MAX_LENGTH}");
    Err(Error::argument(name, format!("{n} points"), allowed))
}

/// Refuses what is not (real, imaginary) of a floating-point type.
fn require_complex(name: &str, layout: &Layout) -> Result<()> {
    layout.require_float(name)?;
    let (shape, strides) = (layout.shape(), layout.strides());
    let pairs = shape.len() >= 2
        && shape.last() == Some(&2)
        && strides.last() == Some(&1)
        && layout.offset().is_multiple_of(2)
        && (0..shape.len() - 1).all(|d| shape[d] == 1 || strides[d].is_multiple_of(2));
    if pairs {
        return Ok(());
    }
    let allowed = "[.., n, 2] of adjacent pairs, an even number of elements apart";
    Err(Error::argument(name, format!("{layout:?}"), allowed))
}

const F32: DType = DType::F32;
