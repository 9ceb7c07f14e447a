//! What WGSL leaves to the device ("implementations may assume that overflow, infinities, and NaNs are not present"),
//! found out by asking it: cases about these are skipped where it has none.

use flashwave::DType::F16;
use flashwave::kernels::elementwise::{Activation, Unary};
use flashwave::{Context, Result, Tensor};

/// Whether infinities can be written as f16. SwiftShader's pack2x16float spoils both halves of the word.
pub fn packs_infinities(ctx: &Context) -> Result<bool> {
    let numbers = [f32::INFINITY, 1.0, f32::NEG_INFINITY, -1.0];
    let x = Tensor::from_slice(ctx, &numbers, [4])?;
    let y = Tensor::empty(ctx, F16, [4])?;
    ctx.record(|pass| Unary(Activation::None).run(pass, &x, &y))?;
    Ok(y.to_f32_vec()? == numbers)
}

/// What a skipped case is in want of.
pub const INFINITIES: &str = "infinities in pack2x16float";
