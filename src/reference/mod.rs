//! CPU references: naive formulas, generic over the arithmetic.
//!
//! At f64 a function here is the oracle (`exact`); at f32 it is naive arithmetic of the kernels' own precision,
//! which sets the error that a kernel is allowed (twice that of naive arithmetic). Written to be read: no
//! tiling, no reordering.

pub mod attention;
pub mod attention_backward;
pub mod ceilings;
pub mod elementwise;
pub mod embedding;
pub mod fft;
pub mod fftconv;
pub mod gemm;
pub mod gemm8;
pub mod gguf;
pub mod hyena;
pub mod kv;
pub mod llama;
pub mod norm;
pub mod random;
pub mod rope;
pub mod select;
pub mod softmax;
pub mod spacetime;

use half::{bf16, f16};
use num_traits::Float;

use crate::dtype::DType;

/// f32 or f64, with what [`Float`] lacks.
pub trait Real: Float + Send + Sync + std::iter::Sum + std::fmt::Debug + 'static {
    /// One minus the error function, without cancellation.
    fn erfc(self) -> Self;
    /// From f64, rounding.
    fn of(x: f64) -> Self;
    /// To f64.
    fn to(self) -> f64;
}

impl Real for f32 {
    fn erfc(self) -> Self {
        libm::erfcf(self)
    }
    fn of(x: f64) -> Self {
        x as f32
    }
    fn to(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    fn erfc(self) -> Self {
        libm::erfc(self)
    }
    fn of(x: f64) -> Self {
        x
    }
    fn to(self) -> f64 {
        self
    }
}

/// `x` as `dtype` stores it (f32, f16 or bf16).
pub fn round(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Every value rounded to `dtype` and then in the arithmetic's type.
pub fn widen_as<R: Real>(values: &[f32], dtype: DType) -> Vec<R> {
    values
        .iter()
        .map(|&x| R::of(round(x, dtype).into()))
        .collect()
}
