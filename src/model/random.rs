//! Random weights, for measuring shapes that nobody has at hand.

use rand::{Rng, SeedableRng};

use crate::context::Context;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// A block of uniform values of variance 1 / cols on the device, which matrices copy.
pub(crate) struct Random {
    source: Tensor,
}

impl Random {
    /// For matrices of up to as many elements as the largest of `rows` by `cols`.
    pub(crate) fn new(ctx: &Context, dtype: DType, rows: &[usize], cols: usize) -> Result<Self> {
        let rows = rows.iter().copied().fold(cols, usize::max);
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let scale = (12.0 / cols as f32).sqrt();
        let block: Vec<f32> = (0..1 << 20)
            .map(|_| (random.random::<f32>() - 0.5) * scale)
            .collect();
        let block = Tensor::encode_f32(dtype, &block)?;
        let source = Tensor::empty(ctx, dtype, [rows * cols])?;
        let bytes = rows * cols * dtype.size();
        for at in (0..bytes).step_by(block.len()) {
            source.write_bytes(at, &block[..block.len().min(bytes - at)])?;
        }
        ctx.flush()?;
        Ok(Self { source })
    }

    /// A matrix in memory of its own.
    pub(crate) fn matrix(&self, rows: usize, cols: usize) -> Result<Tensor> {
        let ctx = self.source.context();
        let copy = Tensor::empty(ctx, self.source.dtype(), [rows, cols])?;
        let part = self.source.rows(0..rows * cols)?;
        ctx.record(|pass| pass.copy(&part, &copy.reshape([rows * cols])?, 0))?;
        Ok(copy)
    }
}
