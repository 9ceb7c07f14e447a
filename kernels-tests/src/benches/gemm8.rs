//! Products of 8-bit operands, and what comes before them.

use flashwave::DType::{F8E4M3, F16, F32, I8};
use flashwave::kernels::ceilings::Probe;
use flashwave::kernels::gemm::Residual;
use flashwave::kernels::gemm8::{
    Gemm8, Gemm8Args, Gemm8Tuning, LlmInt8, LlmInt8Args, Operand, Quantize, QuantizeArgs,
};
use flashwave::{Capabilities, Context, DType, Layout, Result, Tensor};

use super::{Prepared, Row, Scale, sets};

/// Types of A and B, and m, n, k.
type Problem = ([DType; 2], [usize; 3]);

const FULL: [Problem; 4] = [
    ([I8, I8], [8192, 8192, 8192]),
    ([I8, I8], [4096, 512, 14336]),
    ([F8E4M3, F8E4M3], [8192, 8192, 8192]),
    ([F16, F8E4M3], [8192, 8192, 8192]),
];
const SMALL: [Problem; 2] = [
    ([I8, I8], [256, 256, 256]),
    ([F16, F8E4M3], [256, 256, 256]),
];

/// The rows.
pub fn rows(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let size = scale.pick([8192; 3], [256; 3]);
    let mut rows: Vec<Row> = problems(scale)
        .iter()
        .map(|&problem| product(caps, problem, None))
        .collect();
    rows.push(quantize(caps, [size[0], size[2]]));
    rows.push(layer(caps, size, Way::Plain));
    rows.push(layer(caps, size, Way::Apart));
    rows
}

/// Every tiling.
pub fn sweep(caps: &Capabilities, scale: Scale) -> Vec<Row> {
    let mut rows = Vec::new();
    for &(types, [m, n, k]) in problems(scale) {
        let of = |dtype, shape| Layout::contiguous(dtype, shape);
        let (Ok(a), Ok(b), Ok(out)) = (of(types[0], [m, k]), of(types[1], [n, k]), of(F16, [m, n]))
        else {
            continue;
        };
        let args = Gemm8Args::new(Operand::plain(&a), Operand::plain(&b), &out);
        let tunings = Gemm8::default().candidates(caps, &args).unwrap_or_default();
        let kept = tunings
            .into_iter()
            .filter(|t| !caps.matrix_int8 || matches!(t, Gemm8Tuning::Matrix(_)));
        rows.extend(kept.map(|t| product(caps, (types, [m, n, k]), Some(t))));
    }
    rows
}

fn problems(scale: Scale) -> &'static [Problem] {
    scale.pick(&FULL, &SMALL)
}

/// What bounds products here: the matrix units' rate for f16, half of what they do with eight bits.
fn ceiling(caps: &Capabilities) -> Probe {
    match Probe::Cooperative.missing(caps) {
        None => Probe::Cooperative,
        Some(_) => Probe::Int8,
    }
}

/// Codes of finite numbers; of FP8 of both kinds.
fn codes(ctx: &Context, dtype: DType, rows: usize, k: usize, seed: usize) -> Result<Tensor> {
    if dtype == F16 {
        return super::random(ctx, F16, [rows, k], seed);
    }
    let mut state = seed as u32;
    let mut next = || {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        (state >> 24) as u8 & if dtype == I8 { 0xff } else { 0xb7 }
    };
    let part: Vec<u8> = (0..1 << 20).map(|_| next()).collect();
    let bytes: Vec<u8> = part.iter().copied().cycle().take(rows * k).collect();
    Tensor::from_bytes(ctx, dtype, &bytes, [rows, k])
}

fn product(caps: &Capabilities, problem: Problem, tuning: Option<Gemm8Tuning>) -> Row {
    let ([ta, tb], [m, n, k]) = problem;
    let work = format!("gemm8 {ta} x {tb} {m}x{n}x{k}");
    let count = sets(
        caps,
        (m * k * ta.size() + n * k * tb.size() + m * n * 2) as f64,
    );
    let flops = 2.0 * (m * n * k) as f64;
    Row::compute("gemm8", work, ceiling(caps), flops, move |ctx| {
        let sets: Vec<[Tensor; 3]> = (0..count)
            .map(|i| {
                let a = codes(ctx, ta, m, k, 2 * i)?;
                let b = codes(ctx, tb, n, k, 2 * i + 1)?;
                Ok([a, b, Tensor::empty(ctx, F16, [m, n])?])
            })
            .collect::<Result<_>>()?;
        let scales = [m, n].map(|rows| Tensor::from_slice(ctx, &vec![1e-4f32; rows], [rows]));
        let [sa, sb] = scales;
        let (sa, sb) = (sa?, sb?);
        let op = Gemm8::default();
        let [a, b, out] = &sets[0];
        let args = Gemm8Args::new(Operand::rows(a, &sa), Operand::rows(b, &sb), out).layouts();
        let launch = match &tuning {
            Some(tuning) => op.plan_with(ctx.capabilities(), &args, tuning)?,
            None => op.plan(ctx.capabilities(), &args)?,
        };
        Ok(Prepared::new(launch.recipe, move |pass, run| {
            let [a, b, out] = &sets[run % sets.len()];
            let args = Gemm8Args::new(Operand::rows(a, &sa), Operand::rows(b, &sb), out);
            match &tuning {
                Some(tuning) => op.run_with(pass, &args, tuning),
                None => op.run(pass, &args),
            }
        }))
    })
}

/// Activations with an outlier's column in 200: one in two hundred, 0.5%.
fn activations(ctx: &Context, m: usize, k: usize) -> Result<Tensor> {
    let rows = m.min(64);
    let number = |i: usize| match i % k % 200 {
        7 => 20.0,
        _ => ((i * 40_503) % 8191) as f32 / 4096.0 - 1.0,
    };
    let host: Vec<f32> = (0..rows * k).map(number).collect();
    let part = Tensor::from_f32(ctx, F16, &host, [rows, k])?;
    let x = Tensor::empty(ctx, F16, [m, k])?;
    ctx.record(|pass| (0..m / rows).try_for_each(|i| pass.copy(&part, &x, i * rows * k)))?;
    Ok(x)
}

fn quantize(caps: &Capabilities, [m, k]: [usize; 2]) -> Row {
    let bytes = (3 * m * k) as f64;
    let count = sets(caps, bytes);
    Row::memory(
        "gemm8",
        format!("quantize f16 {m}x{k}"),
        bytes,
        move |ctx| {
            let sets: Vec<[Tensor; 3]> = (0..count)
                .map(|_| {
                    let codes = Tensor::empty(ctx, I8, [m, k])?;
                    Ok([
                        activations(ctx, m, k)?,
                        codes,
                        Tensor::empty(ctx, F32, [m])?,
                    ])
                })
                .collect::<Result<_>>()?;
            let [x, codes, scales] = sets[0].each_ref().map(Tensor::layout);
            let args = QuantizeArgs::<Layout>::new(x, codes, scales);
            let launch = Quantize::Symmetric.plan(ctx.capabilities(), &args)?;
            Ok(Prepared::new(launch.recipe, move |pass, run| {
                let [x, codes, scales] = &sets[run % sets.len()];
                Quantize::Symmetric.run(pass, &QuantizeArgs::new(x, codes, scales))
            }))
        },
    )
}

/// How a layer of int8 weights takes f16 activations.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Everything int8.
    Plain,
    /// Outliers' columns apart: LLM.int8().
    Apart,
}

fn layer(caps: &Capabilities, [m, n, k]: [usize; 3], way: Way) -> Row {
    let name = match way {
        Way::Plain => "quantised w8a8",
        Way::Apart => "llm.int8() with 0.5% outliers",
    };
    let work = format!("{name} {m}x{n}x{k}");
    let flops = 2.0 * (m * n * k) as f64;
    Row::compute("gemm8", work, ceiling(caps), flops, move |ctx| {
        let x = activations(ctx, m, k)?;
        let weight = codes(ctx, I8, n, k, 1)?;
        let scales = Tensor::from_slice(ctx, &vec![1e-4f32; n], [n])?;
        let (row_codes, row_scales) = (
            Tensor::empty(ctx, I8, [m, k])?,
            Tensor::empty(ctx, F32, [m])?,
        );
        let out = Tensor::empty(ctx, F16, [m, n])?;
        Ok(Prepared::new(name, move |pass, _| match way {
            Way::Plain => {
                let args = QuantizeArgs::new(&x, &row_codes, &row_scales);
                Quantize::Symmetric.run(pass, &args)?;
                let a = Operand::rows(&row_codes, &row_scales);
                let args = Gemm8Args::new(a, Operand::rows(&weight, &scales), &out);
                Gemm8::default().run(pass, &args)
            }
            Way::Apart => {
                let args = LlmInt8Args {
                    x: &x,
                    weight: Operand::rows(&weight, &scales),
                    bias: None,
                    residual: Residual::None,
                    out: &out,
                };
                LlmInt8::default().run(pass, &args)
            }
        }))
    })
}
