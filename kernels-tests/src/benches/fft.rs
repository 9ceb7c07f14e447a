//! Complex transforms of every kind: one kernel, two passes, mixed radices, Bluestein.

use flashwave::DType::F32;
use flashwave::kernels::fft::Fft;
use flashwave::{Capabilities, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

/// Sequences and points.
const FULL: [[usize; 2]; 7] = [
    [65536, 256],
    [16384, 1024],
    [4096, 4096],
    [256, 65536],
    [16, 1 << 20],
    [16384, 1000],
    [16384, 1009],
];
const SMALL: [[usize; 2]; 2] = [[16, 256], [4, 1000]];

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let problems: &[[usize; 2]] = scale.pick(&FULL, &SMALL);
    problems.iter().map(|&p| row(caps, p)).collect()
}

fn row(caps: &Capabilities, [rows, n]: [usize; 2]) -> Row {
    let bytes = (2 * rows * n * 8) as f64;
    let count = sets(caps, bytes);
    Row::memory("fft", format!("fft f32 {rows}x{n}"), bytes, move |ctx| {
        let sets: Vec<[Tensor; 2]> = (0..count)
            .map(|i| {
                let x = random(ctx, F32, [rows, n, 2], i)?;
                Ok([x, Tensor::empty(ctx, F32, [rows, n, 2])?])
            })
            .collect::<Result<_>>()?;
        let like = sets[0][0].layout();
        let launches = Fft::forward().plan(ctx.capabilities(), like, like)?;
        let label: Vec<String> = launches.iter().map(|l| l.recipe.to_string()).collect();
        Ok(Prepared::new(label.join("; "), move |pass, run| {
            let [x, y] = &sets[run % sets.len()];
            Fft::forward().run(pass, x, y)
        }))
    })
}
