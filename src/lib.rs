//! flashwave: custom GPU kernels over wgpu compute shaders (WGSL), and a runtime that assembles whole
//! models from them, the same on Vulkan, Metal, DX12 and WebGPU.

mod buffer;
pub mod capabilities;
pub mod context;
pub mod dtype;
pub mod error;
mod kernel;
pub mod kernels;
pub mod layout;
pub mod loader;
pub mod model;
pub mod quant;
pub mod radix;
pub mod recipe;
pub mod recorder;
pub mod reference;
#[cfg(target_arch = "wasm32")]
pub mod replay;
pub mod shader;
#[cfg(not(target_arch = "wasm32"))]
pub mod spirv;
pub mod tensor;
pub mod tuned;
mod vulkan;

pub use capabilities::Capabilities;
pub use context::Context;
pub use dtype::DType;
pub use error::{Error, Result};
pub use layout::Layout;
pub use recipe::{Launch, Recipe};
pub use recorder::Pass;
pub use tensor::Tensor;
