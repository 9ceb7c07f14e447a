//! Products of 8-bit operands: exact integers, scales of every kind, zero points, FP8 of every code, outliers apart, quantisation.

use flashwave::DType::{F8E4M3, F8E5M2, F16, F32, I8, I32};
use flashwave::kernels::attention::MatrixUnits;
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::gemm::Residual;
use flashwave::kernels::gemm8::{
    Gemm8, Gemm8Args, Gemm8Tuning, LlmInt8, LlmInt8Args, MatrixTiling, Operand, Outliers,
    PackedTiling, Quantize, QuantizeArgs, Scales,
};
use flashwave::reference::Real;
use flashwave::reference::gemm::{Order, finish, rms_normed};
use flashwave::reference::gemm8::{Side, decode, product, quantize};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Result, Tensor};

use super::elementwise::slack;
use crate::inputs::{Random, poisoned, round};
use crate::tolerance::{self, Outcome, Ulps, check, check_equal};
use crate::{Case, Failure};

/// What an operand's scales are of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    Nothing,
    Tensor,
    Rows,
    /// Rows and steps.
    Blocks(usize, usize),
}

/// What runs a product.
#[derive(Clone, Copy, Debug)]
enum By {
    Plan,
    Packed([u32; 3], [u32; 2]),
    Matrix(MatrixTiling),
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    /// Of A, B and out.
    types: [DType; 3],
    /// m, n, k.
    size: [usize; 3],
    /// Elements between the rows of A, beyond their own.
    gap: usize,
    scales: [Of; 2],
    zeros: bool,
    bias: bool,
    f: Activation,
    /// From another tensor of this type, or in place.
    residual: Option<Option<DType>>,
}

const INTEGERS: Setup = Setup {
    types: [I8, I8, I32],
    size: [1; 3],
    gap: 0,
    scales: [Of::Nothing; 2],
    zeros: false,
    bias: false,
    f: Activation::None,
    residual: None,
};

struct Host {
    bytes: Vec<u8>,
    numbers: Vec<f64>,
    scales: Vec<f32>,
    zeros: Vec<i32>,
}

impl Setup {
    fn group(&self) -> usize {
        let steps = self.scales.iter().find_map(|s| match s {
            Of::Blocks(_, steps) => Some(*steps),
            _ => None,
        });
        steps.unwrap_or(self.size[2])
    }

    fn host(&self, random: &mut Random, side: usize) -> Host {
        let (rows, k) = (self.size[side], self.size[2]);
        let dtype = self.types[side];
        let (bytes, numbers): (Vec<u8>, Vec<f64>) = match dtype {
            F16 => {
                let numbers = random.normals(rows * k, F16);
                let bytes = Tensor::encode_f32(F16, &numbers).unwrap_or_default();
                (bytes, numbers.into_iter().map(f64::from).collect())
            }
            _ => {
                // Every code that means a finite number.
                let mut code = || -> u8 {
                    loop {
                        let code = random.bits() as u8;
                        if decode(code, dtype).is_finite() {
                            return code;
                        }
                    }
                };
                let bytes: Vec<u8> = (0..rows * k).map(|_| code()).collect();
                let numbers: Vec<f64> = bytes.iter().map(|&c| decode(c, dtype)).collect();
                (bytes, numbers)
            }
        };
        let count = match self.scales[side] {
            Of::Nothing => 0,
            Of::Tensor => 1,
            Of::Rows => rows,
            Of::Blocks(per, steps) => rows.div_ceil(per) * k.div_ceil(steps),
        };
        let scales = (0..count)
            .map(|_| (random.uniform() + 0.01) as f32 / 100.0)
            .collect();
        let mut zeros = Vec::new();
        if self.zeros {
            for row in numbers.chunks(k) {
                zeros.push(random.below(256) as i32 - 128);
                zeros.push(row.iter().sum::<f64>() as i32);
            }
        }
        Host {
            bytes,
            numbers,
            scales,
            zeros,
        }
    }

    /// The naive formula, with steps along k summed in this order from step `from` on, around the end.
    fn reference<R: Real>(
        &self,
        hosts: [&Host; 2],
        bias: &[f32],
        added: &[f32],
        (from, order): (usize, Order),
    ) -> Vec<R> {
        let groups = self.size[2].div_ceil(self.group());
        let scale = |side: usize| {
            move |row: usize, g: usize| match self.scales[side] {
                Of::Nothing => 1.0,
                Of::Tensor => f64::from(hosts[side].scales[0]),
                Of::Rows => f64::from(hosts[side].scales[row]),
                Of::Blocks(per, _) => f64::from(hosts[side].scales[row / per * groups + g]),
            }
        };
        let zero = |side: usize| {
            move |row: usize| f64::from(hosts[side].zeros.get(2 * row).copied().unwrap_or(0))
        };
        let (scales, zeros) = ([scale(0), scale(1)], [zero(0), zero(1)]);
        let turned = hosts.map(|host| -> Vec<f64> {
            let rows = host.numbers.chunks(self.size[2]);
            rows.flat_map(|row| [&row[from..], &row[..from]].concat())
                .collect()
        });
        let side = |i: usize| Side {
            codes: &turned[i],
            scale: &scales[i],
            zero: &zeros[i],
        };
        let integers = self.types[0] == I8 && self.types[1] == I8;
        let sums = product::<R>(
            [&side(0), &side(1)],
            self.size,
            self.group(),
            integers,
            order,
        );
        let of = |v: &[f32]| -> Vec<R> { v.iter().map(|&x| R::of(x.into())).collect() };
        let (bias, added) = (of(bias), of(added));
        let some = |v: &'_ Vec<R>| !v.is_empty();
        finish(
            &sums,
            self.size[1],
            R::one(),
            some(&bias).then_some(&bias[..]),
            self.f,
            some(&added).then_some(&added[..]),
        )
    }

    fn run(&self, ctx: &Context, by: By, seed: u64) -> Result<Outcome, Failure> {
        let [m, n, k] = self.size;
        let mut random = Random::new(seed);
        let hosts = [self.host(&mut random, 0), self.host(&mut random, 1)];
        let bias = if self.bias {
            random.normals(n, F32)
        } else {
            Vec::new()
        };
        let added = match self.residual {
            Some(t) => random.normals(m * n, t.unwrap_or(self.types[2])),
            None => Vec::new(),
        };
        let codes = |side: usize, gap: usize| -> Result<Tensor> {
            let (rows, size) = (self.size[side], self.types[side].size());
            let mut bytes = Vec::new();
            for row in hosts[side].bytes.chunks(k * size) {
                bytes.extend(row);
                bytes.extend(vec![0x7f; gap * size]);
            }
            Tensor::from_bytes(ctx, self.types[side], &bytes, [rows, k + gap])?.narrow(1, 0..k)
        };
        let (a, b) = (codes(0, self.gap)?, codes(1, 0)?);
        let vector = |side: usize| {
            let s = &hosts[side].scales;
            let shape = match self.scales[side] {
                Of::Blocks(_, steps) => {
                    let groups = k.div_ceil(steps);
                    vec![s.len() / groups, groups]
                }
                _ => vec![s.len()],
            };
            (!s.is_empty())
                .then(|| Tensor::from_slice(ctx, s, shape))
                .transpose()
        };
        let scales = [vector(0)?, vector(1)?];
        let zeros = |side: usize| {
            let z = &hosts[side].zeros;
            (!z.is_empty())
                .then(|| Tensor::from_slice(ctx, z, [z.len() / 2, 2]))
                .transpose()
        };
        let zeros = [zeros(0)?, zeros(1)?];
        let operand = |side: usize, codes| Operand {
            codes,
            scales: match (self.scales[side], &scales[side]) {
                (Of::Tensor, Some(t)) => Scales::Tensor(t),
                (Of::Rows, Some(t)) => Scales::Rows(t),
                (Of::Blocks(rows, steps), Some(scales)) => Scales::Blocks {
                    scales,
                    rows,
                    steps,
                },
                _ => Scales::None,
            },
            zeros: zeros[side].as_ref(),
        };
        let bias_tensor = (!bias.is_empty())
            .then(|| Tensor::from_slice(ctx, &bias, [n]))
            .transpose()?;
        let out = match (self.types[2], self.residual) {
            (I32, _) => Tensor::from_slice(ctx, &vec![i32::MIN; m * n], [m, n])?,
            (t, Some(None)) => Tensor::from_f32(ctx, t, &added, [m, n])?,
            (t, _) => poisoned(ctx, t, [m, n])?,
        };
        let another = match self.residual {
            Some(Some(t)) => Some(Tensor::from_f32(ctx, t, &added, [m, n])?),
            _ => None,
        };
        let args = Gemm8Args {
            bias: bias_tensor.as_ref(),
            residual: match (&another, self.residual) {
                (Some(t), _) => Residual::From(t),
                (None, Some(_)) => Residual::InOut,
                (None, None) => Residual::None,
            },
            ..Gemm8Args::new(operand(0, &a), operand(1, &b), &out)
        };
        let op = Gemm8 { activation: self.f };
        let tuning = match by {
            By::Plan => None,
            By::Packed(tile, per) => Some(Gemm8Tuning::Packed(PackedTiling { tile, per })),
            By::Matrix(tiling) => Some(Gemm8Tuning::Matrix(tiling)),
        };
        if let Some(
            t @ Gemm8Tuning::Matrix(MatrixTiling {
                units: MatrixUnits::Device,
                ..
            }),
        ) = &tuning
            && op
                .plan_with(ctx.capabilities(), &args.layouts(), t)
                .is_err()
        {
            return Ok(Outcome::skipped("cooperative matrices of int8"));
        }
        ctx.record(|pass| match &tuning {
            None => op.run(pass, &args),
            Some(t) => op.run_with(pass, &args, t),
        })?;
        let exact: Vec<f64> =
            self.reference([&hosts[0], &hosts[1]], &bias, &added, (0, Order::Forward));
        if self.types[2] == I32 {
            let expected: Vec<i32> = exact.iter().map(|&x| x as i32).collect();
            return check_equal(&out.to_vec::<i32>()?, &expected);
        }
        // Of the orders that naive sums may have: a matrix unit's is none of them. Groups of steps stay what they are.
        let third = if self.group() == k { k / 3 } else { 0 };
        let orders =
            [0, third, 2 * third].map(|from| [Order::Forward, Order::Backward].map(|o| (from, o)));
        let [[a, b], [c, d], [e, f]] = orders.map(|pair| {
            pair.map(|order| -> Vec<f32> {
                let naive = self.reference::<f32>([&hosts[0], &hosts[1]], &bias, &added, order);
                naive.into_iter().map(|v| round(v, self.types[2])).collect()
            })
        });
        let naive = [a, b, c, d, e, f];
        let naive = tolerance::farther(&exact, naive);
        check(&out.to_f32_vec()?, &exact, &naive, slack(self.f))
    }

    fn case(self, group: &str, by: By) -> Case {
        let name = format!("{by:?} {self:?}");
        Case::new("gemm8", group, name.clone(), move |ctx| {
            self.run(ctx, by, Case::seed(&name))
        })
    }
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = integer_cases();
    cases.extend(scaled_cases());
    cases.extend(float_cases());
    cases.extend(quantize_cases());
    cases.extend(outlier_cases());
    cases.extend(apart_cases());
    cases
}

const EMULATED: By = By::Matrix(MatrixTiling::EMULATED);

/// Every way of multiplying, with small tiles.
fn ways() -> [By; 4] {
    let device = MatrixTiling {
        units: MatrixUnits::Device,
        ..MatrixTiling::EMULATED
    };
    [
        By::Plan,
        By::Packed([32, 16, 32], [4, 4]),
        EMULATED,
        By::Matrix(device),
    ]
}

fn integer_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [[64, 64, 64], [70, 33, 144], [33, 40, 528]] {
        for by in ways() {
            cases.push(Setup { size, ..INTEGERS }.case("integers", by));
        }
    }
    for (size, gap) in [
        ([19, 21, 36], 4),
        ([19, 21, 35], 0),
        ([35, 68, 67], 2),
        ([3, 2, 1], 0),
    ] {
        for by in [By::Plan, By::Packed([16, 32, 64], [4, 8])] {
            cases.push(
                Setup {
                    size,
                    gap,
                    ..INTEGERS
                }
                .case("ragged", by),
            );
        }
    }
    // The tilings of a large card.
    for (tile, sub) in [
        ([160, 128, 64], [80, 64]),
        ([128, 160, 64], [64, 80]),
        ([192, 128, 128], [48, 64]),
        ([128, 128, 128], [64, 64]),
        ([64, 64, 128], [32, 32]),
    ] {
        for size in [[400, 300, 208], [384, 640, 256]] {
            let by = By::Matrix(MatrixTiling::new(tile, sub));
            cases.push(Setup { size, ..INTEGERS }.case("tilings", by));
        }
    }
    cases
}

fn scaled_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let base = Setup {
        types: [I8, I8, F32],
        size: [40, 36, 96],
        scales: [Of::Rows; 2],
        ..INTEGERS
    };
    let setups = [
        base,
        Setup {
            scales: [Of::Tensor, Of::Rows],
            bias: true,
            f: Activation::Silu,
            ..base
        },
        Setup {
            types: [I8, I8, F16],
            size: [33, 70, 80],
            residual: Some(None),
            ..base
        },
        Setup {
            zeros: true,
            scales: [Of::Tensor; 2],
            residual: Some(Some(F16)),
            ..base
        },
        Setup {
            zeros: true,
            types: [I8, I8, F16],
            size: [32, 64, 128],
            bias: true,
            ..base
        },
        Setup {
            scales: [Of::Nothing, Of::Rows],
            types: [I8, I8, DType::BF16],
            ..base
        },
    ];
    for setup in setups {
        for by in ways() {
            cases.push(setup.case("scaled", by));
        }
    }
    for scales in [
        [Of::Blocks(1, 32), Of::Blocks(16, 32)],
        [Of::Blocks(1, 64), Of::Rows],
        [Of::Tensor, Of::Blocks(1, 32)],
        [Of::Blocks(1, 128), Of::Blocks(128, 128)],
    ] {
        for (size, types) in [
            ([40, 36, 160], [I8, I8, F32]),
            ([33, 35, 130], [F8E4M3, F8E4M3, F16]),
        ] {
            cases.push(
                Setup {
                    scales,
                    size,
                    types,
                    bias: true,
                    ..base
                }
                .case("blocks", By::Plan),
            );
        }
    }
    cases
}

fn float_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let base = Setup {
        types: [F8E4M3, F8E4M3, F32],
        size: [40, 36, 96],
        scales: [Of::Rows; 2],
        ..INTEGERS
    };
    let pairs = [
        [F8E4M3, F8E4M3],
        [F16, F8E5M2],
        [F8E5M2, I8],
        [F16, I8],
        [F8E5M2, F8E4M3],
        [I8, F16],
    ];
    for (i, [a, b]) in pairs.into_iter().enumerate() {
        let setup = Setup {
            types: [a, b, F32],
            ..base
        };
        // Some of them: software drivers take a while to compile each.
        let ways = ways().into_iter().skip(if i < 3 { 0 } else { 2 });
        cases.extend(ways.map(|by| setup.case("float8", by)));
        if i < 2 {
            for size in [[35, 37, 68], [18, 5, 33]] {
                let setup = Setup {
                    types: [a, b, F16],
                    size,
                    scales: [Of::Tensor, Of::Rows],
                    ..base
                };
                cases.push(setup.case("float8", By::Plan));
            }
        }
        for (tile, sub) in [([128, 128, 32], [64, 64]), ([192, 128, 64], [48, 64])] {
            let setup = Setup {
                types: [a, b, F16],
                size: [300, 200, 160],
                bias: true,
                ..base
            };
            cases.push(setup.case("tilings", By::Matrix(MatrixTiling::new(tile, sub))));
        }
    }
    // Every code, finite or not, by one.
    for dtype in [F8E4M3, F8E5M2] {
        for by in [By::Plan, EMULATED] {
            let name = format!("{by:?} {dtype}");
            cases.push(Case::new("gemm8", "codes", name, move |ctx| {
                codes(ctx, dtype, by)
            }));
        }
    }
    cases
}

/// A's rows hold a code each, B's are ones in one place: what a code means comes out, NaN and infinities too.
fn codes(ctx: &Context, dtype: DType, by: By) -> Result<Outcome, Failure> {
    let one = if dtype == F8E4M3 { 0x38 } else { 0x3c };
    let mut a = vec![0u8; 256 * 32];
    let mut b = vec![0u8; 16 * 32];
    (0..256).for_each(|i| a[i * 32 + i % 32] = i as u8);
    b.fill(one);
    let a = Tensor::from_bytes(ctx, dtype, &a, [256, 32])?;
    let b = Tensor::from_bytes(ctx, dtype, &b, [16, 32])?;
    let out = poisoned(ctx, F32, [256, 16])?;
    let args = Gemm8Args::new(Operand::plain(&a), Operand::plain(&b), &out);
    let op = Gemm8::default();
    ctx.record(|pass| match by {
        By::Packed(tile, per) => op.run_with(
            pass,
            &args,
            &Gemm8Tuning::Packed(PackedTiling { tile, per }),
        ),
        By::Matrix(t) if t.units == MatrixUnits::Emulated => {
            op.run_with(pass, &args, &Gemm8Tuning::Matrix(t))
        }
        _ => op.run(pass, &args),
    })?;
    let bits = |x: f32| {
        if x.is_nan() {
            f32::NAN.to_bits()
        } else {
            x.to_bits() & 0x7fff_ffff | u32::from(x < 0.0) << 31
        }
    };
    let found: Vec<u32> = out.to_f32_vec()?.into_iter().map(bits).collect();
    let expected: Vec<u32> = (0..256 * 16)
        .map(|i| bits(decode((i / 16) as u8, dtype) as f32))
        .collect();
    check_equal(&found, &expected)
}

fn quantize_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for symmetry in [Quantize::Symmetric, Quantize::Asymmetric] {
        for (dtype, rows, k, zeros) in [
            (F32, 5, 64, true),
            (F16, 33, 1028, true),
            (DType::BF16, 2, 20, true),
            (F32, 3, 17000, true),
        ] {
            let name = format!("{symmetry:?} {dtype} {rows} x {k}");
            cases.push(Case::new("gemm8", "quantize", name.clone(), move |ctx| {
                let mut random = Random::new(Case::seed(&name));
                let host = random.normals(rows * k, dtype);
                let x = Tensor::from_f32(ctx, dtype, &host, [rows, k])?;
                let codes = Tensor::from_slice(ctx, &vec![77i8; rows * k], [rows, k])?;
                let scales = poisoned(ctx, F32, [rows])?;
                let sums = Tensor::from_slice(ctx, &vec![-1; rows * 2], [rows, 2])?;
                let args = QuantizeArgs {
                    zeros: zeros.then_some(&sums),
                    ..QuantizeArgs::new(&x, &codes, &scales)
                };
                ctx.record(|pass| symmetry.run(pass, &args))?;
                let expected: Vec<_> = host.chunks(k).map(|row| quantize(row, symmetry)).collect();
                let all: Vec<i8> = expected.iter().flat_map(|r| r.codes.clone()).collect();
                let by: Vec<f32> = expected.iter().map(|r| r.scale).collect();
                let zero: Vec<i32> = expected.iter().flat_map(|r| [r.zero, r.sum]).collect();
                Ok(check_equal(&codes.to_vec::<i8>()?, &all)?
                    .and(check_equal(&scales.to_vec::<f32>()?, &by)?)
                    .and(check_equal(&sums.to_vec::<i32>()?, &zero)?))
            }));
        }
    }
    for (dtype, k) in [(F32, 256), (F16, 1540)] {
        let name = format!("rms {dtype} {k}");
        cases.push(Case::new(
            "gemm8",
            "quantize_norm",
            name.clone(),
            move |ctx| normed(ctx, dtype, k, Case::seed(&name)),
        ));
    }
    cases.push(Case::new(
        "gemm8",
        "quantize",
        "not finite".to_string(),
        |ctx| {
            let x = Tensor::from_slice(
                ctx,
                &[
                    1f32,
                    f32::NAN,
                    0.0,
                    2.0,
                    1.0,
                    f32::INFINITY,
                    0.0,
                    0.0,
                    1.0,
                    2.0,
                    3.0,
                    4.0,
                ],
                [3, 4],
            )?;
            let codes = Tensor::from_slice(ctx, &[77i8; 12], [3, 4])?;
            let scales = Tensor::from_slice(ctx, &[0f32; 3], [3])?;
            ctx.record(|pass| {
                Quantize::Symmetric.run(pass, &QuantizeArgs::new(&x, &codes, &scales))
            })?;
            let nan: Vec<bool> = scales.to_vec::<f32>()?.iter().map(|s| s.is_nan()).collect();
            check_equal(&nan, &[true, true, false])?;
            check_equal(&codes.to_vec::<i8>()?[..8], &[0; 8])
        },
    ));
    cases
}

/// The norm is of the device's arithmetic, so codes may differ by one where a quotient is near a half; numbers must be within a
/// half step, and what the norm may cost, of the exact ones.
fn normed(ctx: &Context, dtype: DType, k: usize, seed: u64) -> Result<Outcome, Failure> {
    let mut random = Random::new(seed);
    let rows = 9;
    let (host, weight) = (random.normals(rows * k, dtype), random.normals(k, F32));
    let x = Tensor::from_f32(ctx, dtype, &host, [rows, k])?;
    let w = Tensor::from_slice(ctx, &weight, [k])?;
    let codes = Tensor::from_slice(ctx, &vec![77i8; rows * k], [rows, k])?;
    let scales = poisoned(ctx, F32, [rows])?;
    let args = QuantizeArgs {
        norm: Some((&w, 1e-5)),
        ..QuantizeArgs::new(&x, &codes, &scales)
    };
    ctx.record(|pass| Quantize::Symmetric.run(pass, &args))?;
    let wide = |v: &[f32]| -> Vec<f64> { v.iter().map(|&x| x.into()).collect() };
    let exact = rms_normed(&wide(&host), &wide(&weight), f64::from(1e-5f32));
    let (codes, scales) = (codes.to_vec::<i8>()?, scales.to_vec::<f32>()?);
    let mut share = 0f64;
    for (i, (&e, &c)) in exact.iter().zip(&codes).enumerate() {
        let scale = f64::from(scales[i / k]);
        let error = (e - scale * f64::from(c)).abs();
        // The norm's own: a sum of k squares, inverseSqrt of 2 ulp, three products.
        let bound = scale * 0.5 + e.abs() * (k as f64 / 2.0 + 12.0) * tolerance::HALF_ULP;
        share = share.max(error / bound);
    }
    if share <= 1.0 {
        return Ok(Outcome::held(codes.len(), share));
    }
    Err(Failure::Wrong(format!("{share} of the bound")))
}

fn outlier_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (dtype, size, columns) in [
        (F16, [70, 40, 256], 3),
        (F32, [33, 36, 160], 20),
        (F16, [64, 64, 512], 0),
        (F32, [200, 136, 1088], 9),
        (F16, [34, 24, 660], 90),
    ] {
        let name = format!("{dtype} {size:?} {columns} columns");
        cases.push(Case::new("gemm8", "outliers", name.clone(), move |ctx| {
            outliers(ctx, dtype, size, columns, Case::seed(&name))
        }));
    }
    cases
}

/// LLM.int8() against the same formula on the host, and against the product of numbers as they are: ten times nearer than
/// plain int8.
fn outliers(
    ctx: &Context,
    dtype: DType,
    [m, n, k]: [usize; 3],
    columns: usize,
    seed: u64,
) -> Result<Outcome, Failure> {
    let mut random = Random::new(seed);
    let mut host: Vec<f32> = (0..m * k)
        .map(|_| round(random.normal().clamp(-4.0, 4.0) as f32, dtype))
        .collect();
    for _ in 0..columns {
        let col = random.below(k);
        (0..m).for_each(|row| host[row * k + col] = round((random.normal() * 60.0) as f32, F16));
        host[random.below(m) * k + col] = 90.0;
    }
    let listed: Vec<usize> = (0..k)
        .filter(|c| (0..m).any(|r| host[r * k + c].abs() >= 6.0))
        .collect();
    let rest: Vec<f32> = host
        .iter()
        .enumerate()
        .map(|(i, &x)| if listed.contains(&(i % k)) { 0.0 } else { x })
        .collect();
    let weights = random.scaled_normals(n * k, F32, 1.0 / (k as f64).sqrt());
    let rows = |host: &[f32]| -> Vec<_> {
        host.chunks(k)
            .map(|r| quantize(r, Quantize::Symmetric))
            .collect()
    };
    let (coded, whole, by) = (rows(&rest), rows(&host), rows(&weights));
    let x = Tensor::from_f32(ctx, dtype, &host, [m, k])?;
    let codes: Vec<i8> = by.iter().flat_map(|r| r.codes.clone()).collect();
    let codes = Tensor::from_slice(ctx, &codes, [n, k])?;
    let scales: Vec<f32> = by.iter().map(|r| r.scale).collect();
    let scales = Tensor::from_slice(ctx, &scales, [n])?;
    let out = poisoned(ctx, F32, [m, n])?;
    let args = LlmInt8Args {
        x: &x,
        weight: Operand::rows(&codes, &scales),
        bias: None,
        residual: Residual::None,
        out: &out,
    };
    ctx.record(|pass| {
        LlmInt8 {
            most: 128,
            ..LlmInt8::default()
        }
        .run(pass, &args)
    })?;
    let found = out.to_f32_vec()?;
    // Naive arithmetic adds up outliers alone, or one after the other to the rest.
    let (mut exact, mut naive) = (Vec::new(), [Vec::new(), Vec::new()]);
    // Squares of distances from the product of the numbers themselves by the coded weights: of ours, of plain int8.
    let mut squares = [0f64; 2];
    for row in 0..m {
        for col in 0..n {
            let w = |l: usize| i32::from(by[col].codes[l]);
            let dot = |codes: &[i8]| (0..k).map(|l| i32::from(codes[l]) * w(l)).sum::<i32>();
            let (sum, plain) = (dot(&coded[row].codes), dot(&whole[row].codes));
            let apart = |l: &usize| f64::from(host[row * k + l]) * f64::from(w(*l));
            let scale = f64::from(by[col].scale);
            let e = scale
                * (f64::from(coded[row].scale) * f64::from(sum)
                    + listed.iter().map(apart).sum::<f64>());
            let add = |s: f32, l: &usize| s + host[row * k + l] * w(*l) as f32;
            let rest = coded[row].scale * sum as f32;
            exact.push(e);
            naive[0].push(by[col].scale * (rest + listed.iter().fold(0f32, add)));
            naive[1].push(by[col].scale * listed.iter().fold(rest, add));
            let truth = scale
                * (0..k)
                    .map(|l| f64::from(host[row * k + l]) * f64::from(w(l)))
                    .sum::<f64>();
            squares[0] += (f64::from(found[row * n + col]) - truth).powi(2);
            squares[1] += (scale * f64::from(whole[row].scale) * f64::from(plain) - truth).powi(2);
        }
    }
    if columns > 0 && squares[0].sqrt() * 10.0 > squares[1].sqrt() {
        return Err(Failure::Wrong(format!("squares of errors {squares:?}")));
    }
    let naive = tolerance::farther(&exact, naive);
    check(&found, &exact, &naive, Ulps(0.0))
}

/// Products that are handed columns apart, by every kernel that takes them.
fn apart_cases() -> Vec<Case> {
    let tilings = [
        ([160, 128, 64], [80, 64]),
        ([128, 160, 64], [64, 80]),
        ([192, 128, 128], [48, 64]),
        ([64, 64, 128], [32, 32]),
    ]
    .map(|(tile, sub)| (By::Matrix(MatrixTiling::new(tile, sub)), [300, 200, 208]));
    let small = ways().map(|by| (by, [40, 36, 96]));
    let mut cases = Vec::new();
    for (by, size) in small.into_iter().chain(tilings) {
        for (columns, reach) in [(70, 4.0), (5, 100.0)] {
            let name = format!("{by:?} {size:?} {columns} columns to {reach}");
            cases.push(Case::new("gemm8", "apart", name.clone(), move |ctx| {
                apart(ctx, by, size, (columns, reach), Case::seed(&name))
            }));
        }
    }
    cases
}

/// `columns` more columns of normal numbers times `reach`, beside codes.
fn apart(
    ctx: &Context,
    by: By,
    [m, n, k]: [usize; 3],
    (columns, reach): (usize, f64),
    seed: u64,
) -> Result<Outcome, Failure> {
    const MOST: usize = 128;
    const BEYOND: usize = 256;
    let missing = match by {
        By::Matrix(t)
            if t.units == MatrixUnits::Device
                && !(ctx.capabilities().matrix_int8 && ctx.capabilities().matrix_elements) =>
        {
            Some("cooperative matrices of int8")
        }
        _ => None,
    };
    if let Some(missing) = missing {
        return Ok(Outcome::skipped(missing));
    }
    let mut random = Random::new(seed);
    let mut codes = |rows: usize| -> Vec<i8> {
        (0..rows * k)
            .map(|_| (random.below(255) as i32 - 127) as i8)
            .collect()
    };
    let (a, b) = (codes(m), codes(n));
    let scales =
        |rows: usize| -> Vec<f32> { (0..rows).map(|i| (1 + i % 7) as f32 * 0.003).collect() };
    let (sa, sb) = (scales(m), scales(n));
    // Columns beyond the last multiple of 64 and rows beyond the last are not to be looked at.
    let mut side = |rows: usize, most: f64| -> Vec<f32> {
        let mut all = vec![f32::NAN; (rows + BEYOND) * MOST];
        for row in all.chunks_mut(MOST).take(rows) {
            row[..columns.next_multiple_of(64)].fill(0.0);
            row[..columns].fill_with(|| round((random.normal() * most) as f32, F16));
        }
        all
    };
    let (xa, mut xb) = (side(m, reach), side(n, 40.0));
    xb.iter_mut().for_each(|x| *x = x.round());
    let list: Vec<u32> = std::iter::once(columns as u32)
        .chain((0..MOST as u32).map(|c| c * 3))
        .collect();
    let upload =
        |host: &[f32], rows: usize| Tensor::from_f32(ctx, F16, host, [rows + BEYOND, MOST]);
    let (ta, tb) = (
        Tensor::from_slice(ctx, &a, [m, k])?,
        Tensor::from_slice(ctx, &b, [n, k])?,
    );
    let (tsa, tsb) = (
        Tensor::from_slice(ctx, &sa, [m])?,
        Tensor::from_slice(ctx, &sb, [n])?,
    );
    let (txa, txb) = (upload(&xa, m)?, upload(&xb, n)?);
    let columns_of = Tensor::from_slice(ctx, &list, [1 + MOST])?;
    let out = poisoned(ctx, F32, [m, n])?;
    let mut args = Gemm8Args::new(Operand::rows(&ta, &tsa), Operand::rows(&tb, &tsb), &out);
    args.outliers = Some(Outliers {
        columns: &columns_of,
        a: &txa,
        b: &txb,
    });
    let op = Gemm8::default();
    ctx.record(|pass| match by {
        By::Plan => op.run(pass, &args),
        By::Packed(tile, per) => op.run_with(
            pass,
            &args,
            &Gemm8Tuning::Packed(PackedTiling { tile, per }),
        ),
        By::Matrix(t) => op.run_with(pass, &args, &Gemm8Tuning::Matrix(t)),
    })?;
    // Naive arithmetic adds up the columns alone, or one after the other to the rest, from either end.
    let (mut exact, mut naive) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    for (row, col) in (0..m * n).map(|i| (i / n, i % n)) {
        let pairs = a[row * k..(row + 1) * k]
            .iter()
            .zip(&b[col * k..(col + 1) * k]);
        let sum: i32 = pairs.map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
        let pair = |c: usize| (xa[row * MOST + c], xb[col * MOST + c]);
        let near: f64 = (0..columns)
            .map(pair)
            .map(|(x, y)| f64::from(x) * f64::from(y))
            .sum();
        exact.push(f64::from(sb[col]) * (f64::from(sa[row]) * f64::from(sum) + near));
        let add = |s: f32, c: usize| s + pair(c).0 * pair(c).1;
        let rest = sa[row] * sum as f32;
        naive[0].push(sb[col] * (rest + (0..columns).fold(0.0, add)));
        naive[1].push(sb[col] * (0..columns).fold(rest, add));
        naive[2].push(sb[col] * (0..columns).rev().fold(rest, add));
    }
    let naive = tolerance::farther(&exact, naive);
    check(&out.to_f32_vec()?, &exact, &naive, Ulps(0.0))
}

/// What the planner makes of every kind of operand.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    kinds(caps).unwrap_or_default()
}

fn kinds(caps: &Capabilities) -> Result<Vec<Launch>> {
    let mut launches = Vec::new();
    let of = |dtype, shape: &[usize]| Layout::contiguous(dtype, shape);
    for (types, [m, n, k]) in [
        ([I8, I8, I32], [1000, 1000, 1024]),
        ([I8, I8, F16], [1000, 1000, 1008]),
        ([I8, I8, F32], [960, 640, 1024]),
        ([I8, I8, F32], [99, 77, 35]),
        ([F8E4M3, F8E5M2, F16], [960, 640, 1024]),
        ([F16, F8E4M3, F32], [99, 77, 36]),
        ([F16, I8, F16], [1000, 1000, 1024]),
    ] {
        let (a, b, out) = (
            of(types[0], &[m, k])?,
            of(types[1], &[n, k])?,
            of(types[2], &[m, n])?,
        );
        let (sa, sb, bias) = (of(F32, &[m])?, of(F32, &[n])?, of(F32, &[n])?);
        let mut args = Gemm8Args::new(Operand::plain(&a), Operand::plain(&b), &out);
        if types[2] != I32 {
            args.a = Operand::rows(&a, &sa);
            args.b = Operand::rows(&b, &sb);
            args.bias = Some(&bias);
        }
        let op = Gemm8::default();
        launches.push(op.plan(caps, &args)?);
        if m == 960 {
            for tuning in op.candidates(caps, &args)? {
                launches.push(op.plan_with(caps, &args, &tuning)?);
            }
        }
        let (za, zb) = (of(I32, &[m, 2])?, of(I32, &[n, 2])?);
        if types[..2] == [I8; 2] {
            args.a.zeros = Some(&za);
            args.b.zeros = Some(&zb);
            args.bias = None;
            launches.push(op.plan(caps, &args)?);
        }
    }
    for dtype in [F32, F16] {
        let (x, codes, scales, zeros) = (
            of(dtype, &[64, 1024])?,
            of(I8, &[64, 1024])?,
            of(F32, &[64])?,
            of(I32, &[64, 2])?,
        );
        let weight = of(F32, &[1024])?;
        let args = QuantizeArgs::new(&x, &codes, &scales);
        launches.push(Quantize::Symmetric.plan(caps, &args)?);
        let args = QuantizeArgs {
            norm: Some((&weight, 1e-5)),
            zeros: Some(&zeros),
            ..args
        };
        launches.push(Quantize::Asymmetric.plan(caps, &args)?);
        let args = LlmInt8Args {
            x: &x,
            weight: Operand::rows(&codes, &scales),
            bias: None,
            residual: Residual::None,
            out: &of(dtype, &[64, 64])?,
        };
        launches.extend(LlmInt8::default().plan(caps, &args)?);
    }
    Ok(launches)
}
