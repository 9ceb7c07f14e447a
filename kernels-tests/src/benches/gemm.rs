//! Matrix products large enough to be bound by arithmetic.

use flashwave::DType::{F16, F32};
use flashwave::capabilities::MatrixTier;
use flashwave::kernels::ceilings::Probe;
use flashwave::kernels::gemm::{Gemm, GemmArgs, GemmTuning, Transpose};
use flashwave::{Capabilities, DType, Layout, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

/// m, n, k: those of `torch_baseline.py`, and the square one that issues name.
const FULL: [(DType, [usize; 3]); 4] = [
    (F32, [4096, 4096, 4096]),
    (F16, [4096, 4096, 4096]),
    (F16, [8192, 8192, 8192]),
    (F16, [4096, 512, 14336]),
];
const SMALL: [(DType, [usize; 3]); 2] = [(F32, [256, 256, 256]), (F16, [256, 256, 256])];

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    problems(scale)
        .iter()
        .map(|&(dtype, size)| row(caps, dtype, size, Transpose::No, None))
        .chain(
            // As a linear layer has its weights.
            problems(scale)
                .iter()
                .map(|&(dtype, size)| row(caps, dtype, size, Transpose::Yes, None)),
        )
        .collect()
}

/// Every tiling.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let op = Gemm::default();
    let problems = problems(scale).iter();
    let each = problems.flat_map(|&(dtype, size)| {
        let tunings = op.candidates(caps, [dtype; 2]).into_iter();
        // Where there are matrix units, f16 has no use for the other tilings.
        let kept = tunings.filter(move |t| {
            dtype == F32
                || caps.matrix_tier() == MatrixTier::Fma
                || matches!(t, GemmTuning::Cooperative(_))
        });
        kept.map(move |t| (dtype, size, t))
    });
    each.map(|(dtype, size, t)| row(caps, dtype, size, Transpose::No, Some(t)))
        .collect()
}

fn problems(scale: Scale) -> &'static [(DType, [usize; 3])] {
    scale.pick(&FULL, &SMALL)
}

fn row(
    caps: &Capabilities,
    dtype: DType,
    [m, n, k]: [usize; 3],
    b: Transpose,
    tuning: Option<GemmTuning>,
) -> Row {
    let suffix = match b {
        Transpose::No => "",
        Transpose::Yes => " b transposed",
    };
    let work = format!("gemm {dtype} {m}x{n}x{k}{suffix}");
    // What the device could reach with such operands, whether or not the kernel uses it.
    let ceiling = match dtype {
        F16 if Probe::Cooperative.missing(caps).is_none() => Probe::Cooperative,
        _ => Probe::F32,
    };
    let flops = 2.0 * (m * n * k) as f64;
    let count = sets(caps, ((m * k + k * n + m * n) * dtype.size()) as f64);
    let op = Gemm {
        b,
        ..Gemm::default()
    };
    Row::compute("gemm", work, ceiling, flops, move |ctx| {
        let right = match b {
            Transpose::No => [k, n],
            Transpose::Yes => [n, k],
        };
        let sets: Vec<[Tensor; 3]> = (0..count)
            .map(|i| {
                let a = random(ctx, dtype, [m, k], 2 * i)?;
                let b = random(ctx, dtype, right, 2 * i + 1)?;
                Ok([a, b, Tensor::empty(ctx, dtype, [m, n])?])
            })
            .collect::<Result<_>>()?;
        let [a, b, out] = sets[0].each_ref().map(Tensor::layout);
        let args = GemmArgs::<Layout>::new(a, b, out);
        let launch = match &tuning {
            Some(tuning) => op.plan_with(ctx.capabilities(), &args, tuning)?,
            None => op.plan(ctx.capabilities(), &args)?,
        };
        Ok(Prepared::new(launch.recipe, move |pass, run| {
            let [a, b, out] = &sets[run % sets.len()];
            let args = GemmArgs::new(a, b, out);
            match &tuning {
                Some(tuning) => op.run_with(pass, &args, tuning),
                None => op.run(pass, &args),
            }
        }))
    })
}
