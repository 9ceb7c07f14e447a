//! Random weights, for measuring shapes that nobody has at hand.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};

use crate::context::Context;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::gemm::Gating;
use crate::model::matrix::{Cuts, Matrix};
use crate::quant::{Format, QuantMatrix, quantize};
use crate::tensor::Tensor;

/// Uniform values of variance 1 / cols on the device, which matrices copy.
pub(crate) enum Random {
    /// A block as large as the largest matrix, or the largest tensor there can be.
    Block(Tensor),
    /// A matrix of each size.
    Quantised {
        ctx: Context,
        format: Format,
        made: RefCell<BTreeMap<[usize; 2], Tensor>>,
    },
}

/// Rows of quantised matrices that are drawn; the others repeat them.
const DRAWN: usize = 64;

fn uniform(n: usize, cols: usize) -> Vec<f32> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let scale = (12.0 / cols as f32).sqrt();
    (0..n)
        .map(|_| (random.random::<f32>() - 0.5) * scale)
        .collect()
}

impl Random {
    /// For matrices of up to as many elements as the largest of `rows` by `cols`.
    pub(crate) fn new(ctx: &Context, dtype: DType, rows: &[usize], cols: usize) -> Result<Self> {
        if let DType::Quant(format) = dtype {
            return Ok(Self::Quantised {
                ctx: ctx.clone(),
                format,
                made: RefCell::default(),
            });
        }
        let rows = rows.iter().copied().fold(cols, usize::max);
        let block = Tensor::encode_f32(dtype, &uniform(1 << 20, cols))?;
        let most = ctx.capabilities().tensor_bytes() as usize / dtype.size();
        let elements = (rows * cols).min(most);
        let source = Tensor::empty(ctx, dtype, [elements])?;
        let bytes = elements * dtype.size();
        for at in (0..bytes).step_by(block.len()) {
            source.write_bytes(at, &block[..block.len().min(bytes - at)])?;
        }
        ctx.flush()?;
        Ok(Self::Block(source))
    }

    /// A matrix in memory of its own.
    pub(crate) fn matrix(&self, rows: usize, cols: usize, gating: Gating) -> Result<Matrix> {
        let (caps, dtype) = match self {
            Self::Block(source) => (source.context().capabilities(), source.dtype()),
            Self::Quantised { ctx, format, .. } => (ctx.capabilities(), DType::Quant(*format)),
        };
        let cuts = Cuts::new(caps, dtype, [rows, cols], gating)?;
        let parts = cuts
            .shapes(cols)
            .map(|[rows, cols]| self.tensor(rows, cols));
        Ok(cuts.matrix(parts.collect::<Result<_>>()?))
    }

    /// As [`matrix`](Self::matrix), in one tensor.
    pub(crate) fn tensor(&self, rows: usize, cols: usize) -> Result<Tensor> {
        match self {
            Self::Block(source) => {
                let ctx = source.context();
                let copy = Tensor::empty(ctx, source.dtype(), [rows, cols])?;
                let part = source.rows(0..rows * cols)?;
                ctx.record(|pass| pass.copy(&part, &copy.reshape([rows * cols])?, 0))?;
                Ok(copy)
            }
            Self::Quantised { ctx, format, made } => {
                let known = made.borrow().get(&[rows, cols]).cloned();
                let Some(source) = known else {
                    let matrix = quantised(*format, rows, cols)?;
                    let made_now = Tensor::from_quant(ctx, &matrix)?;
                    ctx.flush()?;
                    made.borrow_mut().insert([rows, cols], made_now.clone());
                    return Ok(made_now);
                };
                let copy = Tensor::empty(ctx, source.dtype(), [rows, cols])?;
                ctx.record(|pass| pass.copy(&source, &copy, 0))?;
                Ok(copy)
            }
        }
    }
}

/// A matrix of random numbers in a format that is written; its rows repeat.
fn quantised(format: Format, rows: usize, cols: usize) -> Result<QuantMatrix> {
    let drawn = rows.min(DRAWN);
    let values = uniform(drawn * cols, cols);
    let part = quantize(format, [drawn, cols], &values)?;
    if rows == drawn || !part.layout().stacks() {
        let repeated: Vec<f32> = values.iter().cycle().take(rows * cols).copied().collect();
        return quantize(format, [rows, cols], &repeated);
    }
    let mut parts = vec![part; rows / drawn];
    let left = rows % drawn;
    if left > 0 {
        parts.push(quantize(format, [left, cols], &values[..left * cols])?);
    }
    QuantMatrix::stack(&parts)
}
