//! Softmax over rows of scores and of a vocabulary.

use flashwave::DType::{F16, F32};
use flashwave::kernels::rows::RowTuning;
use flashwave::kernels::softmax::Softmax;
use flashwave::{Capabilities, DType, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

const FULL: [(DType, [usize; 2]); 4] = [
    (F16, [32768, 4096]),
    (F32, [16384, 4096]),
    (F16, [262_144, 512]),
    (F32, [1024, 128_256]),
];
const SMALL: [(DType, [usize; 2]); 1] = [(F32, [128, 1024])];

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let problems = problems(scale).iter();
    problems
        .map(|&(dtype, shape)| row(caps, dtype, shape, None))
        .collect()
}

/// Every tuning.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let each = problems(scale).iter().flat_map(|&(dtype, shape)| {
        let tunings = RowTuning::candidates(caps, dtype, shape[0], shape[1]).into_iter();
        tunings.map(move |t| (dtype, shape, t))
    });
    each.map(|(dtype, shape, tuning)| row(caps, dtype, shape, Some(tuning)))
        .collect()
}

fn problems(scale: Scale) -> &'static [(DType, [usize; 2])] {
    scale.pick(&FULL, &SMALL)
}

fn row(
    caps: &Capabilities,
    dtype: DType,
    [rows, cols]: [usize; 2],
    tuning: Option<RowTuning>,
) -> Row {
    let bytes = (2 * rows * cols * dtype.size()) as f64;
    let count = sets(caps, bytes);
    let work = format!("softmax {dtype} {rows}x{cols}");
    Row::memory("softmax", work, bytes, move |ctx| {
        let sets: Vec<[Tensor; 2]> = (0..count)
            .map(|i| {
                let y = Tensor::empty(ctx, dtype, [rows, cols])?;
                Ok([random(ctx, dtype, [rows, cols], i)?, y])
            })
            .collect::<Result<_>>()?;
        let layout = sets[0][0].layout();
        let (op, caps) = (Softmax::new(), ctx.capabilities());
        let launch = match tuning {
            Some(tuning) => op.plan_with(caps, layout, None, layout, tuning)?,
            None => op.plan(caps, layout, None, layout)?,
        };
        Ok(Prepared::new(launch.recipe, move |pass, run| {
            let [x, y] = &sets[run % sets.len()];
            match tuning {
                Some(tuning) => op.run_with(pass, x, None, y, tuning),
                None => op.run(pass, x, None, y),
            }
        }))
    })
}
