//! Few rows times a weight matrix: bound by reading the weights.

use flashwave::DType::{F16, F32};
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::gemm::Gating;
use flashwave::kernels::gemv::{Gemv, GemvTuning};
use flashwave::kernels::linear::LinearArgs;
use flashwave::{Capabilities, DType, Layout, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

/// n, k and rows of x: the matrices of `torch_baseline.py`, then of a 7B Llama.
const FULL: [(DType, [usize; 3]); 8] = [
    (F16, [14336, 4096, 1]),
    (F16, [4096, 14336, 1]),
    (F16, [32768, 8192, 1]),
    (F16, [4096, 4096, 1]),
    (F16, [11008, 4096, 1]),
    (F32, [14336, 4096, 1]),
    (F16, [14336, 4096, 4]),
    (F16, [14336, 4096, 8]),
];
const SMALL: [(DType, [usize; 3]); 2] = [(F32, [512, 512, 1]), (F16, [512, 512, 4])];

const OP: Gemv = Gemv {
    activation: Activation::None,
    gating: Gating::None,
};

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let problems = problems(scale).iter();
    problems
        .map(|&(dtype, size)| row(caps, dtype, size, None))
        .collect()
}

/// Every way to cut each product.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let problems = problems(scale).iter();
    let each = problems.flat_map(|&(dtype, size)| {
        let tunings = OP.candidates(caps, size[2]).into_iter();
        tunings.map(move |t| (dtype, size, t))
    });
    each.map(|(dtype, size, tuning)| row(caps, dtype, size, Some(tuning)))
        .collect()
}

fn problems(scale: Scale) -> &'static [(DType, [usize; 3])] {
    scale.pick(&FULL, &SMALL)
}

fn row(
    caps: &Capabilities,
    dtype: DType,
    [n, k, m]: [usize; 3],
    tuning: Option<GemvTuning>,
) -> Row {
    let work = match m {
        1 => format!("gemv {dtype} {n}x{k}"),
        _ => format!("gemv {dtype} {n}x{k} rows {m}"),
    };
    let bytes = (n * k * dtype.size()) as f64;
    let count = sets(caps, bytes);
    Row::memory("gemv", work, bytes, move |ctx| {
        let x = random(ctx, dtype, [m, k], 0)?;
        let out = Tensor::empty(ctx, dtype, [m, n])?;
        let weights: Vec<Tensor> = (0..count)
            .map(|i| random(ctx, dtype, [n, k], i + 1))
            .collect::<Result<_>>()?;
        let args = LinearArgs::<Layout>::new(x.layout(), weights[0].layout(), out.layout());
        let launch = match &tuning {
            Some(tuning) => OP.plan_with(ctx.capabilities(), &args, tuning)?,
            None => OP.plan(ctx.capabilities(), &args)?,
        };
        Ok(Prepared::new(launch.recipe, move |pass, run| {
            let args = LinearArgs::new(&x, &weights[run % weights.len()], &out);
            match &tuning {
                Some(tuning) => OP.run_with(pass, &args, tuning),
                None => OP.run(pass, &args),
            }
        }))
    })
}
