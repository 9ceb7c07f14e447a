//! What WGSL leaves to the device ("implementations may assume that overflow, infinities, and NaNs are not present"),
//! found out by asking it: cases about these are skipped where it has none.

use flashwave::DType::F16;
use flashwave::kernels::elementwise::{Activation, Unary};
use flashwave::{Capabilities, Context, Launch, Recipe, Result, Tensor};

/// Whether infinities can be written as f16. SwiftShader's pack2x16float spoils both halves of the word.
pub fn packs_infinities(ctx: &Context) -> Result<bool> {
    let numbers = [f32::INFINITY, 1.0, f32::NEG_INFINITY, -1.0];
    let x = Tensor::from_slice(ctx, &numbers, [4])?;
    let y = Tensor::empty(ctx, F16, [4])?;
    ctx.record(|pass| Unary(Activation::None).run(pass, &x, &y))?;
    Ok(y.to_f32_vec()? == numbers)
}

/// Whether exp of NaN is NaN. SwiftShader first takes the lesser of the number and 129, which loses a NaN.
pub fn keeps_nan(ctx: &Context) -> Result<bool> {
    let x = Tensor::from_slice(ctx, &[f32::NAN; 4], [4])?;
    let y = Tensor::from_slice(ctx, &[0.0f32; 4], [4])?;
    let launch = exp(ctx.capabilities())?;
    ctx.record(|pass| pass.launch(&launch, &[&x, &y]))?;
    Ok(y.to_f32_vec()?.iter().all(|y| y.is_nan()))
}

/// exp of four numbers, by the device's own function.
pub fn exp(caps: &Capabilities) -> Result<Launch> {
    Launch::new(caps, Recipe::new("probe/exp"), [1; 3], &[0u32; 2])
}

/// What a skipped case is in want of.
pub const INFINITIES: &str = "infinities in pack2x16float";
/// What a skipped case is in want of.
pub const NAN: &str = "exp of NaN that is NaN";
