//! Normalisation of a prompt's rows and of a token's.

use flashwave::DType::{F16, F32};
use flashwave::kernels::norm::{Norm, NormArgs, Residual};
use flashwave::kernels::rows::RowTuning;
use flashwave::{Capabilities, DType, Result, Tensor};

use super::{Prepared, Row, Scale, random, sets};

const RMS: (Norm, &str) = (Norm::rms(1e-5), "rms_norm");
const LAYER: (Norm, &str) = (Norm::layer(1e-5), "layer_norm");

/// Whether the residual is added on the way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Add {
    No,
    InPlace,
}

#[derive(Clone, Copy)]
struct Problem {
    norm: (Norm, &'static str),
    dtype: DType,
    rows: usize,
    cols: usize,
    add: Add,
}

fn problems(scale: Scale) -> Vec<Problem> {
    let problem = |norm, dtype, rows, cols, add| Problem {
        norm,
        dtype,
        rows,
        cols,
        add,
    };
    match scale {
        Scale::Full => vec![
            problem(RMS, F16, 32768, 4096, Add::No),
            problem(RMS, F16, 32768, 4096, Add::InPlace),
            problem(RMS, F32, 16384, 4096, Add::No),
            problem(RMS, F16, 16384, 8192, Add::No),
            problem(RMS, F16, 131_072, 1024, Add::No),
            problem(RMS, F16, 1, 4096, Add::InPlace),
            problem(LAYER, F16, 32768, 4096, Add::No),
            problem(LAYER, F32, 16384, 4096, Add::No),
        ],
        Scale::Small => vec![
            problem(RMS, F16, 128, 1024, Add::No),
            problem(LAYER, F32, 128, 1024, Add::InPlace),
        ],
    }
}

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let problems = problems(scale).into_iter();
    problems.map(|p| row(caps, p, None)).collect()
}

/// Every tuning.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let each = problems(scale).into_iter().flat_map(|p| {
        let tunings = RowTuning::candidates(caps, p.dtype, p.rows, p.cols).into_iter();
        tunings.map(move |t| (p, t))
    });
    each.map(|(p, tuning)| row(caps, p, Some(tuning))).collect()
}

fn row(caps: &Capabilities, problem: Problem, tuning: Option<RowTuning>) -> Row {
    let Problem {
        norm: (norm, name),
        dtype,
        rows,
        cols,
        add,
    } = problem;
    // x and y; with the residual, that and the sum too.
    let (suffix, moved) = match add {
        Add::No => ("", 2),
        Add::InPlace => (" with residual", 4),
    };
    let work = format!("{name} {dtype} {rows}x{cols}{suffix}");
    let bytes = (moved * rows * cols * dtype.size()) as f64;
    let count = sets(caps, bytes);
    Row::memory("norm", work, bytes, move |ctx| {
        let weight = random(ctx, dtype, [cols], 0)?;
        let sets: Vec<[Tensor; 3]> = (0..count)
            .map(|i| {
                let tensor = |seed| random(ctx, dtype, [rows, cols], seed);
                let y = Tensor::empty(ctx, dtype, [rows, cols])?;
                Ok([tensor(2 * i + 1)?, tensor(2 * i + 2)?, y])
            })
            .collect::<Result<_>>()?;
        let layout = sets[0][0].layout();
        let args = NormArgs {
            x: layout,
            residual: match add {
                Add::No => Residual::None,
                Add::InPlace => Residual::InPlace(layout),
            },
            weight: Some(weight.layout()),
            bias: None,
            y: layout,
        };
        let launch = match tuning {
            Some(tuning) => norm.plan_with(ctx.capabilities(), &args, tuning)?,
            None => norm.plan(ctx.capabilities(), &args)?,
        };
        Ok(Prepared::new(launch.recipe, move |pass, run| {
            let [x, residual, y] = &sets[run % sets.len()];
            let args = NormArgs {
                x,
                residual: match add {
                    Add::No => Residual::None,
                    Add::InPlace => Residual::InPlace(residual),
                },
                weight: Some(&weight),
                bias: None,
                y,
            };
            match tuning {
                Some(tuning) => norm.run_with(pass, args, tuning),
                None => norm.run(pass, args),
            }
        }))
    })
}
