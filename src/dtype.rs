//! Element types of tensors.

use std::fmt;

use crate::quant::Format;

/// What one element of a [`Tensor`](crate::Tensor) is in GPU memory.
///
/// Half precision is *storage*: kernels read packed pairs and compute in f32, so that f16 and bf16 work on
/// every adapter, with or without the `SHADER_F16` feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16, two to a 32-bit word.
    F16,
    /// bfloat16 (the upper half of a binary32), two to a word.
    BF16,
    /// Two's complement 32 bit.
    I32,
    /// Unsigned 32 bit.
    U32,
    /// Two's complement 8 bit, four to a word.
    I8,
    /// OCP FP8 E4M3 (no infinities), four to a word.
    F8E4M3,
    /// OCP FP8 E5M2, four to a word.
    F8E5M2,
    /// Codes and scales of a quantised matrix `[rows, cols]`, in one piece: see [`QuantLayout`](crate::quant::QuantLayout).
    Quant(Format),
}

impl DType {
    /// Bytes of one element; zero for quantised formats, whose elements share words
    /// ([`Layout::bytes`](crate::Layout::bytes) tells the whole).
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::I8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::Quant(_) => 0,
        }
    }

    /// The name used in recipes, shaders and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I8 => "i8",
            Self::F8E4M3 => "f8e4m3",
            Self::F8E5M2 => "f8e5m2",
            Self::Quant(_) => "quantised",
        }
    }

    /// Whether kernels read it as a floating-point number of 16 or 32 bits.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// The format, if it is a quantised one.
    pub const fn quant(self) -> Option<Format> {
        match self {
            Self::Quant(format) => Some(format),
            _ => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quant(format) => format.fmt(f),
            _ => f.write_str(self.name()),
        }
    }
}
