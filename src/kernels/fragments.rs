//! Whether an invocation's elements of cooperative matrices lie where `shaders/lib/fragments.wgsl` says.
//!
//! Vulkan leaves that to the driver; kernels that reach elements count on NVIDIA's way. So a context asks the device
//! once, when it is opened ([`Capabilities::matrix_elements`]).

use bytemuck::{Pod, Zeroable};

use crate::capabilities::{Capabilities, MatrixTier};
use crate::error::{Error, Result};
use crate::recipe::{Launch, Recipe};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    unused: u32,
}

/// Plans the question: one subgroup over matrices whose elements are their numbers, `x` of f16 and `y` of f32, that
/// writes how many elements of each invocation are as expected.
///
/// Errors if the device has no such matrices.
pub fn plan(caps: &Capabilities) -> Result<Launch> {
    if caps.matrix_tier() != MatrixTier::Cooperative {
        return Err(Error::argument(
            "caps",
            caps.to_string(),
            "a device with cooperative matrices of f16",
        ));
    }
    let recipe = Recipe::new("ceilings/fragments").with("COOP", "elements");
    Launch::new(caps, recipe, [1, 1, 1], &Params { unused: 0 })
}

/// Asks the device.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn lie_as_expected(ctx: &crate::Context) -> Result<bool> {
    use crate::{DType, Tensor};
    /// Invocations of a subgroup, and elements that each has of A, B and an accumulator.
    const LANES: usize = 32;
    const ELEMENTS: u32 = 24;
    let launch = plan(ctx.capabilities())?;
    let numbers: Vec<f32> = (0..256u16).map(f32::from).collect();
    let x = Tensor::from_f32(ctx, DType::F16, &numbers, [256])?;
    let y = Tensor::from_f32(ctx, DType::F32, &numbers, [256])?;
    let found = Tensor::from_slice(ctx, &[0u32; LANES], [LANES])?;
    ctx.record(|pass| pass.launch(&launch, &[&x, &y, &found]))?;
    Ok(found.to_vec::<u32>()? == [ELEMENTS; LANES])
}
