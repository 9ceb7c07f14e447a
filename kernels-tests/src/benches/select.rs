//! Arg-max and top-k over the logits of a vocabulary.

use flashwave::DType::F32;
use flashwave::kernels::select::{ArgMax, TopK};
use flashwave::{Capabilities, DType, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

/// Rows and columns: one token's logits, and many's.
const FULL: [[usize; 2]; 2] = [[1, 128_256], [1024, 128_256]];
const SMALL: [[usize; 2]; 1] = [[1, 32000]];
const K: usize = 50;

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    with_blocks(caps, scale, &[TopK::default().block])
}

/// Every block size of top-k.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    with_blocks(caps, scale, &TopK::CANDIDATES)
}

fn with_blocks(caps: &Capabilities, scale: Scale, blocks: &[usize]) -> Vec<Row> {
    let shapes: &[[usize; 2]] = scale.pick(&FULL, &SMALL);
    let mut rows = Vec::new();
    for &shape in shapes {
        rows.push(argmax(caps, shape));
        rows.extend(
            blocks
                .iter()
                .map(|&block| top_k(caps, shape, TopK { block })),
        );
    }
    rows
}

fn inputs(caps: &Capabilities, [rows, cols]: [usize; 2]) -> (f64, usize) {
    let bytes = (rows * cols * F32.size()) as f64;
    (bytes, sets(caps, bytes))
}

fn argmax(caps: &Capabilities, shape: [usize; 2]) -> Row {
    let (bytes, count) = inputs(caps, shape);
    let work = format!("argmax f32 {}x{}", shape[0], shape[1]);
    Row::memory("select", work, bytes, move |ctx| {
        let sets: Vec<Tensor> = (0..count)
            .map(|i| random(ctx, F32, shape, i))
            .collect::<Result<_>>()?;
        let index = Tensor::empty(ctx, DType::U32, [shape[0]])?;
        let op = ArgMax::default();
        let label = format!("select argmax chunk={}", op.chunk);
        Ok(Prepared::new(label, move |pass, run| {
            op.run(pass, &sets[run % sets.len()], &index, None)
        }))
    })
}

fn top_k(caps: &Capabilities, shape: [usize; 2], op: TopK) -> Row {
    let (bytes, count) = inputs(caps, shape);
    let work = format!("top-{K} f32 {}x{}", shape[0], shape[1]);
    Row::memory("select", work, bytes, move |ctx| {
        let sets: Vec<Tensor> = (0..count)
            .map(|i| random(ctx, F32, shape, i))
            .collect::<Result<_>>()?;
        let values = Tensor::empty(ctx, F32, [shape[0], K])?;
        let indices = Tensor::empty(ctx, DType::U32, [shape[0], K])?;
        let label = format!("select top_k block={}", op.block);
        Ok(Prepared::new(label, move |pass, run| {
            op.run(pass, &sets[run % sets.len()], &values, &indices)
        }))
    })
}
