//! Few rows times a weight matrix: bound by reading the weights.

use flashwave::DType::{F16, F32};
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::gemm::Gating;
use flashwave::kernels::gemv::{Gemv, GemvTuning};
use flashwave::kernels::linear::LinearArgs;
use flashwave::quant::Format;
use flashwave::{Capabilities, DType, Layout, Result, Tensor};

use super::{Prepared, Row, Scale, random, random_bits, sets};

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

/// n and k of quantised weights.
const QUANT_FULL: [[usize; 2]; 3] = [[32768, 8192], [4096, 14336], [14336, 4096]];
const QUANT_SMALL: [[usize; 2]; 1] = [[512, 512]];

/// Those of the sweep: the first two, and a 7B Llama's.
const QUANT_SWEEP: [[usize; 2]; 6] = [
    [32768, 8192],
    [4096, 14336],
    [4096, 4096],
    [12288, 4096],
    [22016, 4096],
    [4096, 11008],
];
const SWEPT: [Format; 5] = [
    Format::INT4,
    Format::Q4_0,
    Format::NF4,
    Format::INT8,
    Format::E4M3,
];

/// The formats that are timed; the first four also with several rows of x.
const FORMATS: [Format; 12] = [
    Format::INT8,
    Format::E4M3,
    Format::INT4,
    Format::Q4_0,
    Format::Q8_0,
    Format::UINT4,
    Format::NF4,
    Format::FP4,
    Format::MXFP4,
    Format::E4M3_BLOCK,
    Format::Q5_0,
    Format::E5M2,
];

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let problems = problems(scale).iter();
    let mut rows: Vec<Row> = problems
        .map(|&(dtype, size)| row(caps, dtype, size, None))
        .collect();
    for (i, &format) in FORMATS.iter().enumerate() {
        for &[n, k] in quant_problems(scale) {
            let counts: &[usize] = if i < 4 && n == 14336 {
                &[1, 4, 8]
            } else {
                &[1]
            };
            for &m in counts {
                rows.push(row(caps, DType::Quant(format), [n, k, m], None));
            }
        }
    }
    rows
}

fn quant_problems(scale: Scale) -> &'static [[usize; 2]] {
    match scale {
        Scale::Full => &QUANT_FULL,
        Scale::Small => &QUANT_SMALL,
    }
}

/// Every way to cut each product.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let problems = problems(scale).iter();
    let each = problems.flat_map(|&(dtype, size)| {
        let tunings = OP.candidates(caps, size[2]).into_iter();
        tunings.map(move |t| (dtype, size, t))
    });
    let mut rows: Vec<Row> = each
        .map(|(dtype, size, tuning)| row(caps, dtype, size, Some(tuning)))
        .collect();
    for &[n, k] in scale.pick(&QUANT_SWEEP[..], &QUANT_SMALL) {
        for format in &SWEPT {
            let layout = Layout::contiguous(DType::Quant(*format), [n, k]);
            let Some(layout) = layout.ok().and_then(|l| l.quant()) else {
                continue;
            };
            for tuning in OP.quant_candidates(caps, 1, &layout) {
                rows.push(row(caps, DType::Quant(*format), [n, k, 1], Some(tuning)));
            }
        }
    }
    rows
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
    let bytes = Layout::contiguous(dtype, [n, k]).map_or(0, |l| l.bytes()) as f64;
    let count = sets(caps, bytes);
    Row::memory("gemv", work, bytes, move |ctx| {
        let other = if dtype.is_float() { dtype } else { F32 };
        let x = random(ctx, other, [m, k], 0)?;
        let out = Tensor::empty(ctx, other, [m, n])?;
        let weights: Vec<Tensor> = (0..count)
            .map(|i| match dtype {
                DType::Quant(_) => random_bits(ctx, dtype, [n, k]),
                _ => random(ctx, dtype, [n, k], i + 1),
            })
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
