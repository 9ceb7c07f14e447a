//! Long convolutions by FFT: y = w * (conv(u * v, k) + d * (u * v)), fused.
//!
//! After FlashFFTConv (arXiv 2311.05908): transform, product and inverse in one kernel while a sequence fits in a
//! workgroup, gates inside. In f32 its decomposition is done by butterflies in registers; in f16 by products with Monarch
//! matrices, on matrix units.

mod backward;
mod filter;
mod fused;
mod long;
mod monarch;
mod operands;
mod stream;
mod tuning;

pub use backward::{Backward, accumulate};
pub use filter::{Filter, FilterPlan, Step};
pub use monarch::{Hold, Meet, MonarchTuning};
pub use operands::ConvArgs;
pub use stream::ConvStream;
pub use tuning::{FusedTuning, LongTuning, Passes, Planes, Tuning};

use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::fft::RealFft;
use crate::tensor::Tensor;

/// What lies before the first element of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Boundary {
    /// Zeros: y\[t\] = sum over s <= t of k[t - s] u\[s\].
    Causal,
    /// The sequence's own end: y\[t\] = sum over s of k[(t - s) mod length] u\[s\].
    Circular,
}

/// What numbers are between a convolution's input and its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f32.
    #[default]
    Full,
    /// f16, factors too; products are summed in f32 on matrix units. Every tensor is then f16, with lengths and strides that are multiples
    /// of 8. Sequences are scaled by their largest elements, so that nothing within overflows: only a result
    /// beyond f16 is infinite. The error is that of rounding to f16 at each of a dozen steps, about 2^-10 of the
    /// result's root mean square.
    ///
    /// Taken for causal convolutions of 513 to 65536 points whose filter is no shorter than a quarter of that, on devices with
    /// matrix units ([`Capabilities::matrix_elements`](crate::Capabilities)); others are computed in f32.
    Half,
}

/// Frequencies at which a filter is not zero. A transform of N points has the frequencies (k - 1/4) / N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// All.
    #[default]
    All,
    /// Those with k modulo a period below `kept`: blocks of the transform's decomposition, so that the others are not computed at all.
    /// The period is 4 up to 4096 points and above that N / 4096. For [`Arithmetic::Half`] alone, without a skip term.
    Kept(u32),
}

/// A long convolution along the last dimension. [`filter`](Self::filter) transforms a filter once; the
/// [`Filter`] then runs it over any number of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FftConv {
    /// What lies before the first element.
    pub boundary: Boundary,
    /// The numbers within.
    pub arithmetic: Arithmetic,
    /// The frequencies that the filter keeps.
    pub pattern: Pattern,
}

impl FftConv {
    /// With zeros before the first element.
    pub const fn causal() -> Self {
        Self::new(Boundary::Causal)
    }

    /// With the sequence going round.
    pub const fn circular() -> Self {
        Self::new(Boundary::Circular)
    }

    /// With such elements before the first.
    pub const fn new(boundary: Boundary) -> Self {
        Self {
            boundary,
            arithmetic: Arithmetic::Full,
            pattern: Pattern::All,
        }
    }

    /// With a filter that is zero at most frequencies.
    pub const fn sparse(self, pattern: Pattern) -> Self {
        Self { pattern, ..self }
    }

    /// In [f16](Arithmetic::Half), where that is possible.
    pub const fn half(self) -> Self {
        Self {
            arithmetic: Arithmetic::Half,
            ..self
        }
    }

    /// Plans the filter `k` [channels, taps] (f32, f16 or bf16), with the skip term `d` \[channels\], for sequences of up to
    /// `length` elements (circular: of exactly `length`), and computes its spectrum on the device.
    ///
    /// The skip term joins the first tap: its rounding error is that of the transform, relative to the
    /// largest values of the result. Errors if `taps` is over `length`.
    pub fn filter(self, k: &Tensor, d: Option<&Tensor>, length: usize) -> Result<Filter> {
        Filter::new(self, k, d, length, None)
    }

    /// As [`filter`](Self::filter) of a filter given in frequency: its real transform [channels, n / 2 + 1, 2] (re, im), as
    /// [`RealFft`] leaves it, of n = `length` points for a circular convolution, of n = 2 `length` for a causal
    /// one (where only the first `length` taps matter).
    pub fn filter_in_frequency(
        self,
        spectrum: &Tensor,
        d: Option<&Tensor>,
        length: usize,
    ) -> Result<Filter> {
        let points = match self.boundary {
            Boundary::Causal => length.saturating_mul(2),
            Boundary::Circular => length,
        };
        let channels = spectrum.shape().first().copied().unwrap_or(0);
        let expected = [channels, points / 2 + 1, 2];
        spectrum.layout().require_shape("spectrum", &expected)?;
        let ctx = spectrum.context();
        let taps = Tensor::empty(ctx, DType::F32, [channels, points])?;
        ctx.record(|pass| RealFft::inverse().run(pass, spectrum, &taps))?;
        self.filter(&taps.narrow(1, 0..length)?, d, length)
    }

    /// As [`filter`](Self::filter) with a tuning of the caller's.
    pub fn filter_with(
        self,
        k: &Tensor,
        d: Option<&Tensor>,
        length: usize,
        tuning: Tuning,
    ) -> Result<Filter> {
        Filter::new(self, k, d, length, Some(tuning))
    }
}
