//! Long convolutions by FFT: y = w * (conv(u * v, k) + d * (u * v)), fused.
//!
//! After FlashFFTConv (arXiv 2311.05908): transform, product and inverse in one kernel while a sequence fits in a
//! workgroup, gates inside. Where it multiplies by Monarch matrices, the same decomposition is done by butterflies in
//! registers.

mod backward;
mod filter;
mod fused;
mod long;
mod operands;
mod tuning;

pub use backward::{Backward, accumulate};
pub use filter::{Filter, FilterPlan, Step};
pub use operands::ConvArgs;
pub use tuning::{FusedTuning, LongTuning, Planes, Tuning};

use crate::error::Result;
use crate::tensor::Tensor;

/// What lies before the first element of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Boundary {
    /// Zeros: y\[t\] = sum over s <= t of k[t - s] u\[s\].
    Causal,
    /// The sequence's own end: y\[t\] = sum over s of k[(t - s) mod length] u\[s\].
    Circular,
}

/// A long convolution along the last dimension. [`filter`](Self::filter) transforms a filter once; the
/// [`Filter`] then runs it over any number of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FftConv {
    /// What lies before the first element.
    pub boundary: Boundary,
}

impl FftConv {
    /// With zeros before the first element.
    pub const fn causal() -> Self {
        Self {
            boundary: Boundary::Causal,
        }
    }

    /// With the sequence going round.
    pub const fn circular() -> Self {
        Self {
            boundary: Boundary::Circular,
        }
    }

    /// Plans the filter `k` [channels, taps] (f32, f16 or bf16), with the skip term `d` \[channels\], for sequences of up to
    /// `length` elements (circular: of exactly `length`, a power of two), and computes its spectrum on the device.
    ///
    /// The skip term joins the first tap: its rounding error is that of the transform, relative to the
    /// largest values of the result. Errors if `taps` is over `length`.
    pub fn filter(self, k: &Tensor, d: Option<&Tensor>, length: usize) -> Result<Filter> {
        Filter::new(self, k, d, length, None)
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
