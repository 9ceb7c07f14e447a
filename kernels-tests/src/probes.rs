//! What WGSL leaves to the device ("implementations may assume that overflow, infinities, and NaNs are not present"),
//! found out by asking it: cases about these are skipped where it has none.

use flashwave::DType::{F16, F32};
use flashwave::kernels::elementwise::{Activation, Unary};
use flashwave::{Context, Result, Tensor};

fn unary(ctx: &Context, f: Activation, x: &[f32], y: flashwave::DType) -> Result<Vec<f32>> {
    let x = Tensor::from_slice(ctx, x, [x.len()])?;
    let y = Tensor::empty(ctx, y, x.shape())?;
    ctx.record(|pass| Unary(f).run(pass, &x, &y))?;
    y.to_f32_vec()
}

/// Whether infinities can be written as f16. SwiftShader's pack2x16float spoils both halves of the word.
pub fn packs_infinities(ctx: &Context) -> Result<bool> {
    let numbers = [f32::INFINITY, 1.0, f32::NEG_INFINITY, -1.0];
    Ok(unary(ctx, Activation::None, &numbers, F16)? == numbers)
}

/// Whether a function of NaN is NaN. SwiftShader's exp clamps its argument.
pub fn keeps_nan(ctx: &Context) -> Result<bool> {
    let silu = unary(ctx, Activation::Silu, &[f32::NAN; 4], F32)?;
    Ok(silu.iter().all(|x| x.is_nan()))
}

/// What a skipped case is in want of.
pub const INFINITIES: &str = "infinities in pack2x16float";
/// What a skipped case is in want of.
pub const NAN: &str = "exp that keeps NaN";
