//! Quantised matrices: expanded, gathered, and multiplied with, in every format.

use flashwave::DType::{F16, F32};
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::embedding;
use flashwave::kernels::gemm::{Gating, Residual};
use flashwave::kernels::gemv::{Gemv, GemvTuning, Sums, Team};
use flashwave::kernels::linear::{GatedLinear, GatedLinearArgs, Linear, LinearArgs};
use flashwave::kernels::quant;
use flashwave::quant::{Format, GgufBlock, Group, QuantMatrix, Scale, Zero, quantize};
use flashwave::reference::Real;
use flashwave::reference::gemm::{Matrix, Order, finish, gate, matmul, rms_normed};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Result, Tensor};

use super::elementwise::slack as activation_slack;
use crate::inputs::{Random, poisoned, round};
use crate::tolerance::{self, Outcome, Ulps, check, check_equal};
use crate::{Case, Failure};

/// A random matrix in a format: quantised normal values, or blocks of random codes where the format is only read.
fn matrix(random: &mut Random, format: Format, [rows, cols]: [usize; 2]) -> Result<QuantMatrix> {
    let kinds = GgufBlock::ALL.into_iter();
    let kind = kinds.filter(|_| matches!(format.scale, Scale::ByteF16(_)));
    let Some(kind) = kind.into_iter().find(|k| k.format() == format) else {
        let values = random.scaled_normals(rows * cols, F32, 1.0 / (cols as f64).sqrt());
        return quantize(format, [rows, cols], &values);
    };
    let (elements, size) = kind.size();
    let mut bytes: Vec<u8> = (0..rows * cols / elements * size)
        .map(|_| random.bits() as u8)
        .collect();
    // Outer scales of ordinary size, where the blocks have them.
    let places: &[usize] = match kind {
        GgufBlock::Q2_K => &[80, 82],
        GgufBlock::Q3_K => &[108],
        GgufBlock::Q6_K => &[208],
        _ => &[0, 2],
    };
    for block in bytes.chunks_mut(size) {
        for &at in places {
            block[at + 1] = block[at + 1] & 0x03 | 0x14;
        }
    }
    kind.read([rows, cols], &bytes)
}

/// Columns that a format allows: ragged ones, or whole blocks of K formats.
fn cols(format: Format, ragged: usize) -> usize {
    match format.scale {
        Scale::ByteF16(_) => 512,
        _ => ragged,
    }
}

fn expanded(ctx: &Context, format: Format, dtype: DType, seed: u64) -> Result<Outcome, Failure> {
    let mut random = Random::new(seed);
    let shape = [7, cols(format, 300)];
    let host = matrix(&mut random, format, shape)?;
    let device = Tensor::from_quant(ctx, &host)?;
    if device.to_quant()? != host {
        return Err(Failure::Wrong("the matrix does not come back".into()));
    }
    let all = poisoned(ctx, dtype, shape)?;
    let ids = [3u32, 0, 6, 6];
    let listed = poisoned(ctx, dtype, [ids.len(), shape[1]])?;
    let ids_in = Tensor::from_slice(ctx, &ids, [ids.len()])?;
    ctx.record(|pass| {
        quant::dequantize(pass, &device, &all)?;
        embedding::gather(pass, &device, &ids_in, &listed)
    })?;
    // The same from two tensors, if their scales can be told apart.
    if !matches!(format.group, Group::Block(..)) {
        let rows = [0..3, 3..shape[0]];
        let parts = [host.pick(&rows[..1])?, host.pick(&rows[1..])?];
        let parts = [
            Tensor::from_quant(ctx, &parts[0])?,
            Tensor::from_quant(ctx, &parts[1])?,
        ];
        let split = poisoned(ctx, dtype, [ids.len(), shape[1]])?;
        ctx.record(|pass| embedding::gather_parts(pass, &parts, &ids_in, &split))?;
        check_equal(&split.to_bytes()?, &listed.to_bytes()?)?;
    }
    let exact = host.decode();
    let rounded = |v: &[f64]| -> Vec<f32> { v.iter().map(|&v| round(v as f32, dtype)).collect() };
    let rows: Vec<f64> = ids
        .iter()
        .flat_map(|&i| &exact[i as usize * shape[1]..(i as usize + 1) * shape[1]])
        .copied()
        .collect();
    if format.zero == Zero::None {
        let outcome = check_equal(&all.to_f32_vec()?, &rounded(&exact))?;
        return Ok(outcome.and(check_equal(&listed.to_f32_vec()?, &rounded(&rows))?));
    }
    // A shift is rounded, and what is added to it.
    let outcome = check(&all.to_f32_vec()?, &exact, &rounded(&exact), Ulps(8.0))?;
    Ok(outcome.and(check(
        &listed.to_f32_vec()?,
        &rows,
        &rounded(&rows),
        Ulps(8.0),
    )?))
}

/// The device's quantiser against the host's, bit by bit: random numbers, halves and multiples that tie, zeros, and what
/// is not finite.
fn quantised(
    ctx: &Context,
    format: Format,
    [rows, cols]: [usize; 2],
    seed: u64,
) -> Result<Outcome, Failure> {
    let mut random = Random::new(seed);
    let mut x = random.normals(rows * cols, F32);
    for i in 0..cols {
        x[i] = (i % 33) as f32 * 0.5 - 8.0;
        x[cols + i] = 0.0;
        x[2 * cols + i] *= 1e-7;
    }
    x[3 * cols + 5] = f32::INFINITY;
    x[3 * cols + 70] = -f32::NAN;
    x[4 * cols + 9] = 1e-39;
    let host = quantize(format, [rows, cols], &x)?;
    let x_in = Tensor::from_slice(ctx, &x, [rows, cols])?;
    let out = Tensor::empty(ctx, DType::Quant(format), [rows, cols])?;
    let poison = vec![0xa5u8; out.layout().bytes() as usize];
    out.write_bytes(0, &poison)?;
    ctx.record(|pass| quant::quantize(pass, &x_in, &out))?;
    let device = out.to_quant()?;
    // Words between the parts are nobody's: compare codes and numbers.
    let codes = |m: &QuantMatrix| -> Vec<u32> {
        (0..rows * cols)
            .map(|i| m.code(i / cols, i % cols))
            .collect()
    };
    let numbers = |m: &QuantMatrix| -> Vec<u64> {
        let l = *m.layout();
        let each = (0..l.groups()).flat_map(|g| (0..l.numbers()).map(move |which| (g, which)));
        each.map(|(g, which)| m.group_number(g, which).to_bits())
            .collect()
    };
    let outcome = check_equal(&numbers(&device), &numbers(&host))?;
    Ok(outcome.and(check_equal(&codes(&device), &codes(&host))?))
}

/// A linear layer with quantised weights.
#[derive(Clone, Copy, Debug)]
struct Layer {
    format: Format,
    /// m, n, k.
    size: [usize; 3],
    x: DType,
    gating: Gating,
    /// A bias, a residual added in place, a norm.
    fused: [bool; 3],
    tuning: Option<GemvTuning>,
}

impl Layer {
    fn reference<R: Real>(
        &self,
        weight: &[R],
        x: &[f32],
        [bias, residual, norm]: [&[f32]; 3],
        (from, order): (usize, Order),
    ) -> Vec<R> {
        let of = |v: &[f32]| -> Vec<R> { v.iter().map(|&x| R::of(x.into())).collect() };
        let [m, n, k] = self.size;
        let factor = if self.gating == Gating::None { 1 } else { 2 };
        let mut x = of(x);
        if self.fused[2] {
            x = rms_normed(&x, &of(norm), R::of(1e-5f32.into()));
        }
        // Sums that begin at the element `from`.
        let mut weight = weight.to_vec();
        for row in x.chunks_mut(k).chain(weight.chunks_mut(k)) {
            row.rotate_left(from);
        }
        let w = Matrix::rows(&weight, k).transposed();
        let product = matmul(Matrix::rows(&x, k), w, [m, n * factor, k], order);
        if self.gating == Gating::GateUp {
            return gate(&product, n, Activation::Silu);
        }
        let (bias, residual) = (of(bias), of(residual));
        let bias = self.fused[0].then_some(&bias[..]);
        let residual = self.fused[1].then_some(&residual[..]);
        finish(&product, n, R::one(), bias, Activation::None, residual)
    }

    fn run(&self, ctx: &Context, seed: u64) -> Result<Outcome, Failure> {
        if let Some(tuning) = self.tuning
            && tuning.team != Team::Workgroup
            && ctx.capabilities().subgroups.is_none()
        {
            return Ok(Outcome::skipped("subgroups"));
        }
        let mut random = Random::new(seed);
        let [m, n, k] = self.size;
        let factor = if self.gating == Gating::None { 1 } else { 2 };
        let host = matrix(&mut random, self.format, [n * factor, k])?;
        let x = random.normals(m * k, self.x);
        let [bias, residual, norm] = [n, m * n, k].map(|len| random.normals(len, F32));
        let weight = Tensor::from_quant(ctx, &host)?;
        let x_in = Tensor::from_f32(ctx, self.x, &x, [m, k])?;
        let bias_in = Tensor::from_slice(ctx, &bias, [n])?;
        let norm_in = Tensor::from_slice(ctx, &norm, [k])?;
        let out = match self.fused[1] {
            true => Tensor::from_slice(ctx, &residual, [m, n])?,
            false => poisoned(ctx, F32, [m, n])?,
        };
        let norm_arg = self.fused[2].then_some((&norm_in, 1e-5));
        let args = LinearArgs {
            bias: self.fused[0].then_some(&bias_in),
            residual: if self.fused[1] {
                Residual::InOut
            } else {
                Residual::None
            },
            norm: norm_arg,
            ..LinearArgs::new(&x_in, &weight, &out)
        };
        let activation = match self.gating {
            Gating::None => Activation::None,
            Gating::GateUp => Activation::Silu,
        };
        ctx.record(|pass| match (&self.tuning, self.gating) {
            (Some(tuning), gating) => Gemv { activation, gating }.run_with(pass, &args, tuning),
            (None, Gating::None) => Linear { activation }.run(pass, args),
            (None, Gating::GateUp) => {
                let args = GatedLinearArgs {
                    x: &x_in,
                    weight: &weight,
                    norm: norm_arg,
                    out: &out,
                };
                GatedLinear { activation }.run(pass, args)
            }
        })?;
        let extra = [&bias[..], &residual, &norm];
        let exact: Vec<f64> = self.reference(&host.decode(), &x, extra, (0, Order::Forward));
        let decoded = host.decode_f32();
        // Of the orders that naive sums may have.
        let orders =
            [0, k / 3, 2 * k / 3].map(|from| [Order::Forward, Order::Backward].map(|o| (from, o)));
        let [[a, b], [c, d], [e, f]] =
            orders.map(|pair| pair.map(|o| self.reference::<f32>(&decoded, &x, extra, o)));
        let naive = tolerance::farther(&exact, [a, b, c, d, e, f]);
        let Ulps(slack) = activation_slack(activation);
        let slack = slack + if self.fused[2] { 9.0 } else { 0.0 };
        check(&out.to_f32_vec()?, &exact, &naive, Ulps(slack))
    }

    fn case(self, group: &str) -> Case {
        let name = format!("{} {:?}", self.format, self);
        Case::new("quant", group, name.clone(), move |ctx| {
            self.run(ctx, Case::seed(&name))
        })
    }
}

/// Codes that are not numbers, in the first row of two: expanded, and in products with one row of x and with three.
fn not_numbers(ctx: &Context, format: Format, nan: u32, seed: u64) -> Result<Outcome, Failure> {
    let k = 128;
    let host = matrix(&mut Random::new(seed), format, [8, k])?;
    let mut words = host.words().to_vec();
    // Code 5 of the first row.
    words[1] = words[1] & !0xff00 | nan << 8;
    let host = QuantMatrix::from_words(*host.layout(), words)?;
    let exact = host.decode();
    if !exact[5].is_nan() {
        return Err(Failure::Wrong(format!("{nan:#x} is {}", exact[5])));
    }
    let weight = Tensor::from_quant(ctx, &host)?;
    let all = poisoned(ctx, F32, [8, k])?;
    let mut outcome = Outcome::default();
    for m in [1, 3, 40] {
        let x = Tensor::from_slice(ctx, &vec![1.0f32; m * k], [m, k])?;
        let out = Tensor::from_slice(ctx, &vec![0.0f32; m * 8], [m, 8])?;
        let linear = Linear {
            activation: Activation::None,
        };
        ctx.record(|pass| {
            quant::dequantize(pass, &weight, &all)?;
            linear.run(pass, LinearArgs::new(&x, &weight, &out))
        })?;
        let is_nan = |v: Vec<f32>| -> Vec<bool> { v.into_iter().map(f32::is_nan).collect() };
        let first: Vec<bool> = (0..m * 8).map(|i| i % 8 == 0).collect();
        let code: Vec<bool> = (0..8 * k).map(|i| i == 5).collect();
        outcome = outcome.and(check_equal(&is_nan(out.to_f32_vec()?), &first)?);
        outcome = outcome.and(check_equal(&is_nan(all.to_f32_vec()?), &code)?);
    }
    Ok(outcome)
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (format, nan) in [
        (Format::E4M3, 0x7f),
        (Format::E4M3, 0xff),
        (Format::MXFP8, 0x7f),
        (Format::E5M2, 0x7d),
        (Format::E5M2, 0xfe),
    ] {
        let name = format!("{format} {nan:#x}");
        cases.push(Case::new("quant", "nan", name.clone(), move |ctx| {
            not_numbers(ctx, format, nan, Case::seed(&name))
        }));
    }
    for (i, (name, format)) in Format::NAMED.into_iter().enumerate() {
        for dtype in [F32, F16] {
            cases.push(Case::new(
                "quant",
                "expand",
                format!("{name} {dtype}"),
                move |ctx| expanded(ctx, format, dtype, Case::seed(name)),
            ));
        }
        if !matches!(format.scale, Scale::ByteF16(_)) {
            for shape in [[6, 256], [7, 333]] {
                let case = format!("{name} {shape:?}");
                cases.push(Case::new("quant", "quantise", case.clone(), move |ctx| {
                    quantised(ctx, format, shape, Case::seed(&case))
                }));
            }
        }
        let plain = Layer {
            format,
            size: [1, 37, cols(format, 256)],
            x: F32,
            gating: Gating::None,
            fused: [false; 3],
            tuning: None,
        };
        cases.push(plain.case("vector"));
        // Columns that end within a unit, or within a vector of four: formats by turns, for software drivers compile each
        // variant for seconds.
        let (ragged, x) = [(300, F16), (333, F32)][i % 2];
        let layer = Layer {
            size: [3, 21, cols(format, ragged)],
            x,
            fused: [true, true, true],
            ..plain
        };
        cases.push(layer.case("fused"));
        let gated = Layer {
            size: [2, 20, cols(format, 320)],
            gating: Gating::GateUp,
            fused: [false, false, true],
            ..plain
        };
        cases.push(gated.case("gated"));
    }
    let cut = |team, per_team, per_workgroup, unroll, workgroup| GemvTuning {
        team,
        per_team,
        per_workgroup,
        unroll,
        workgroup,
    };
    for tuning in [
        cut(Team::Subgroup, 1, 8, 2, 64),
        cut(Team::Subgroup, 4, 32, 1, 64),
        cut(Team::Workgroup, 2, 4, 2, 64),
        cut(Team::Workgroup, 4, 16, 1, 32),
        cut(Team::Resident(Sums::Subgroup), 2, 8, 1, 64),
        cut(Team::Resident(Sums::Memory), 4, 16, 2, 32),
    ] {
        for format in [
            Format::INT8,
            Format::Q4_0,
            Format::UINT4,
            Format::Q6_K,
            Format::Q2_K,
        ] {
            let layer = Layer {
                format,
                size: [1, 45, 1536],
                x: F32,
                gating: Gating::None,
                fused: [false; 3],
                tuning: Some(tuning),
            };
            cases.push(layer.case("tunings"));
        }
    }
    // x in registers: every format, fused, gated and ragged.
    for (i, (_, format)) in Format::NAMED.into_iter().enumerate() {
        let layer = Layer {
            format,
            size: [1, 21, cols(format, [300, 333, 512][i % 3])],
            x: [F32, F16][i % 2],
            gating: [Gating::None, Gating::GateUp][i % 4 / 3],
            fused: [i % 4 < 3, i % 4 < 3, true],
            tuning: Some(cut(Team::Resident(Sums::Memory), 2, 8, 2, 32)),
        };
        cases.push(layer.case("resident"));
    }
    for format in [
        Format::INT8,
        Format::INT4,
        Format::NF4,
        Format::E4M3_BLOCK,
        Format::Q5_K,
    ] {
        let layer = Layer {
            format,
            size: [40, 36, cols(format, 160)],
            x: F32,
            gating: Gating::None,
            fused: [true, true, false],
            tuning: None,
        };
        cases.push(layer.case("many rows"));
    }
    cases
}

/// A variant of every format, fused and ragged, and the sweep of one.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    let mut plan = |format: Format, [m, n, k]: [usize; 3]| -> Result<()> {
        let layout = |dtype, shape: &[usize]| Layout::contiguous(dtype, shape);
        let (x, out, norm) = (
            layout(F32, &[m, k])?,
            layout(F32, &[m, n])?,
            layout(F32, &[k])?,
        );
        let weight = layout(DType::Quant(format), &[n, k])?;
        let args = LinearArgs {
            norm: (m == 1).then_some((&norm, 1e-5)),
            ..LinearArgs::new(&x, &weight, &out)
        };
        let activation = Activation::None;
        launches.extend(Linear { activation }.plan(caps, &args)?.launches());
        let ids = layout(DType::U32, &[m])?;
        let rows = layout(F16, &[m, k])?;
        launches.push(quant::plan(caps, &weight, Some(&ids), &rows)?);
        if !matches!(format.scale, Scale::ByteF16(_)) {
            let matrix = layout(F32, &[n, k])?;
            launches.push(quant::plan_quantize(caps, &matrix, &weight)?);
        }
        if format == Format::Q4_0 && m == 1 && caps.subgroups.is_none_or(|s| s.min == 32) {
            let gemv = Gemv {
                activation,
                gating: Gating::None,
            };
            let quantised = weight.quant().into_iter();
            for tuning in quantised.flat_map(|q| gemv.quant_candidates(caps, m, &q)) {
                launches.push(gemv.plan_with(caps, &args, &tuning)?);
            }
        }
        Ok(())
    };
    for (_, format) in Format::NAMED {
        for size in [[1, 4096, 4096], [3, 100, cols(format, 333)], [64, 96, 512]] {
            plan(format, size).expect("a plan for every format");
        }
    }
    launches
}
