//! flashwave: custom GPU kernels over wgpu compute shaders (WGSL), and a runtime that assembles whole
//! models from them, the same on Vulkan, Metal, DX12 and WebGPU.

pub mod dtype;
pub mod error;
pub mod kernels;
pub mod loader;
pub mod model;

pub use dtype::DType;
pub use error::{Error, Result};
