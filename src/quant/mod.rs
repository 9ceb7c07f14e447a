//! Quantised matrices: formats as data, their layout in memory, quantisers and exact decoding.
//!
//! ```text
//! minifloat.rs   floating-point numbers of eight bits and fewer
//! code.rs        what an element's code means
//! format.rs      code, group, scale and zero point: a format
//! layout.rs      where the parts lie in words
//! matrix.rs      a matrix on the host: parts read and written, decoded in f64
//! quantize.rs    f32 to codes and scales, bit by bit as the GPU does
//! clip.rs        calibration: how far levels reach
//! gguf.rs        GGUF's blocks taken apart, without rounding anything
//! ```

mod clip;
mod code;
mod format;
mod gguf;
mod layout;
mod matrix;
mod minifloat;
mod quantize;

pub use clip::{Clip, clip};
pub(crate) use code::NF4_THRESHOLDS;
pub use code::{Code, NF4};
pub use format::{Format, Group, Scale, Zero};
pub use gguf::GgufBlock;
pub use layout::QuantLayout;
pub use matrix::QuantMatrix;
pub use minifloat::{MiniFloat, Overflow, Specials};
pub use quantize::quantize;
pub(crate) use quantize::writable;
