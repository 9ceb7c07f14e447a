//! Matrix products and linear layers: ragged sizes, all transpositions, types, batches, fusions, tilings.

use flashwave::DType::{BF16, F16, F32};
use flashwave::capabilities::MatrixTier;
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::gemm::{
    CooperativeTiling, FmaTiling, Gating, Gemm, GemmArgs, GemmTuning, Prefetch, Residual, Transpose,
};
use flashwave::kernels::gemv::{Gemv, GemvTuning, Team};
use flashwave::kernels::linear::{GatedLinear, GatedLinearArgs, Linear, LinearArgs, fuses_norm};
use flashwave::reference::Real;
use flashwave::reference::gemm::{Matrix, Order, finish, gate, matmul, rms_normed};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Result, Tensor};

use super::elementwise::slack as activation_slack;
use crate::inputs::{Random, poisoned, round};
use crate::tolerance::{self, Outcome, Ulps, check};
use crate::{Case, Failure};

/// Where a product's residual comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Added {
    Nothing,
    InPlace,
    Another(DType),
}

/// Everything that a product can have, with host data made from a seed.
#[derive(Clone, Copy, Debug)]
struct Product {
    /// Of A (or x), B (or the weights), out.
    types: [DType; 3],
    /// m, n, k.
    size: [usize; 3],
    a: Transpose,
    b: Transpose,
    /// Of A, B and out.
    batch: [usize; 3],
    /// Elements between the rows of A, beyond their own.
    gap: usize,
    alpha: f32,
    bias: Option<DType>,
    f: Activation,
    added: Added,
    gating: Gating,
    norm: Option<(DType, f32)>,
}

const PLAIN: Product = Product {
    types: [F32; 3],
    size: [1; 3],
    a: Transpose::No,
    b: Transpose::No,
    batch: [1; 3],
    gap: 0,
    alpha: 1.0,
    bias: None,
    f: Activation::None,
    added: Added::Nothing,
    gating: Gating::None,
    norm: None,
};

/// A linear layer of m rows, n outputs and k inputs.
const LINEAR: Product = Product {
    b: Transpose::Yes,
    ..PLAIN
};

/// What runs a product: a kernel of the two, planned or with a tuning.
#[derive(Clone, Copy, Debug)]
enum By {
    Gemm(Option<GemmTuning>),
    Gemv(Option<GemvTuning>),
    /// Whatever the planner of linear layers chooses.
    Layer,
}

/// Host data of a product, in its storage types.
struct Data {
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
    norm: Option<Vec<f32>>,
}

impl Product {
    fn factor(&self) -> usize {
        match self.gating {
            Gating::None => 1,
            Gating::GateUp => 2,
        }
    }

    /// Rows and columns as A and B are stored.
    fn stored(&self) -> [[usize; 2]; 2] {
        let [m, n, k] = self.size;
        let turn = |by, [r, c]: [usize; 2]| if by == Transpose::No { [r, c] } else { [c, r] };
        [turn(self.a, [m, k]), turn(self.b, [k, n * self.factor()])]
    }

    fn data(&self, seed: u64) -> Data {
        let mut random = Random::new(seed);
        let [m, n, k] = self.size;
        let [a, b] = self.stored();
        let normals = |random: &mut Random, n, dtype| random.normals(n, dtype);
        Data {
            a: normals(
                &mut random,
                self.batch[0] * a[0] * (a[1] + self.gap),
                self.types[0],
            ),
            // Weights as layers have them: products stay of the size of x.
            b: random.scaled_normals(
                self.batch[1] * b[0] * b[1],
                self.types[1],
                1.0 / (k as f64).sqrt(),
            ),
            bias: self.bias.map(|t| normals(&mut random, n, t)),
            residual: match self.added {
                Added::Nothing => None,
                Added::InPlace => Some(normals(&mut random, self.batch[2] * m * n, self.types[2])),
                Added::Another(t) => Some(normals(&mut random, self.batch[2] * m * n, t)),
            },
            norm: self.norm.map(|(t, _)| normals(&mut random, k, t)),
        }
    }

    /// The naive formula.
    fn reference<R: Real>(&self, data: &Data, order: Order) -> Vec<R> {
        let of = |v: &[f32]| -> Vec<R> { v.iter().map(|&x| R::of(x.into())).collect() };
        let [m, n, k] = self.size;
        let [[a_rows, a_cols], [b_rows, b_cols]] = self.stored();
        let width = a_cols + self.gap;
        let mut a = of(&data.a);
        if let (Some(weight), Some((_, eps))) = (&data.norm, self.norm) {
            let rows: Vec<R> = a.chunks(width).flat_map(|r| r[..a_cols].to_vec()).collect();
            let normed = rms_normed(&rows, &of(weight), R::of(eps.into()));
            for (row, from) in a.chunks_mut(width).zip(normed.chunks(a_cols)) {
                row[..a_cols].copy_from_slice(from);
            }
        }
        let b = of(&data.b);
        let (bias, residual) = (
            data.bias.as_deref().map(of),
            data.residual.as_deref().map(of),
        );
        let mut out = Vec::new();
        for z in 0..self.batch[2] {
            let part = |i: usize, len: usize| if self.batch[i] == 1 { 0 } else { z * len };
            let (at_a, at_b) = (part(0, a_rows * width), part(1, b_rows * b_cols));
            let mut left = Matrix::rows(&a[at_a..], width);
            let mut right = Matrix::rows(&b[at_b..], b_cols);
            if self.a == Transpose::Yes {
                left = left.transposed();
            }
            if self.b == Transpose::Yes {
                right = right.transposed();
            }
            let product = matmul(left, right, [m, n * self.factor(), k], order);
            let added = residual.as_deref().map(|r| &r[z * m * n..(z + 1) * m * n]);
            let alpha = R::of(self.alpha.into());
            out.extend(match self.gating {
                Gating::None => finish(&product, n, alpha, bias.as_deref(), self.f, added),
                Gating::GateUp => {
                    let scaled: Vec<R> = product.iter().map(|&p| alpha * p).collect();
                    let gated = gate(&scaled, n, self.f);
                    finish(&gated, n, R::one(), None, Activation::None, added)
                }
            });
        }
        out
    }

    fn slack(&self) -> Ulps {
        let Ulps(activation) = activation_slack(self.f);
        // inverseSqrt 2 ulp and a division of 2.5.
        Ulps(activation + if self.norm.is_some() { 9.0 } else { 0.0 })
    }

    fn run(&self, ctx: &Context, by: By, seed: u64) -> Result<Outcome, Failure> {
        if let By::Gemv(Some(tuning)) = by
            && tuning.team == Team::Subgroup
            && ctx.capabilities().subgroups.is_none()
        {
            return Ok(Outcome::skipped("subgroups"));
        }
        if let By::Gemm(Some(GemmTuning::Cooperative(_))) = by
            && ctx.capabilities().matrix_tier() == MatrixTier::Fma
        {
            return Ok(Outcome::skipped("cooperative matrices"));
        }
        let data = self.data(seed);
        let [m, n, _] = self.size;
        let [[a_rows, a_cols], [b_rows, b_cols]] = self.stored();
        let a = Tensor::from_f32(
            ctx,
            self.types[0],
            &data.a,
            [self.batch[0], a_rows, a_cols + self.gap],
        )?
        .narrow(2, 0..a_cols)?;
        let b = Tensor::from_f32(ctx, self.types[1], &data.b, [self.batch[1], b_rows, b_cols])?;
        let shape = [self.batch[2], m, n];
        let vector = |dtype: Option<DType>, host: &Option<Vec<f32>>| {
            let both = dtype.zip(host.as_ref());
            both.map(|(t, v)| Tensor::from_f32(ctx, t, v, [v.len()]))
                .transpose()
        };
        let bias = vector(self.bias, &data.bias)?;
        let norm = vector(self.norm.map(|(t, _)| t), &data.norm)?;
        let (out, residual) = match (self.added, &data.residual) {
            (Added::InPlace, Some(host)) => {
                (Tensor::from_f32(ctx, self.types[2], host, shape)?, None)
            }
            (Added::Another(t), Some(host)) => (
                poisoned(ctx, self.types[2], shape)?,
                Some(Tensor::from_f32(ctx, t, host, shape)?),
            ),
            _ => (poisoned(ctx, self.types[2], shape)?, None),
        };
        let added = match (&residual, self.added) {
            (Some(tensor), _) => Residual::From(tensor),
            (None, Added::InPlace) => Residual::InOut,
            (None, _) => Residual::None,
        };
        match by {
            By::Gemm(tuning) => {
                let gemm = Gemm {
                    a: self.a,
                    b: self.b,
                    alpha: self.alpha,
                    activation: self.f,
                    gating: self.gating,
                };
                let args = GemmArgs {
                    a: &a,
                    b: &b,
                    bias: bias.as_ref(),
                    residual: added,
                    out: &out,
                };
                ctx.record(|pass| match tuning {
                    None => gemm.run(pass, &args),
                    Some(tuning) => gemm.run_with(pass, &args, &tuning),
                })?;
            }
            By::Gemv(_) | By::Layer => {
                let weight = b.reshape([b_rows, b_cols])?;
                let norm = norm.as_ref().zip(self.norm).map(|(w, (_, eps))| (w, eps));
                let args = LinearArgs {
                    x: &a,
                    weight: &weight,
                    bias: bias.as_ref(),
                    residual: added,
                    norm,
                    out: &out,
                };
                let gemv = Gemv {
                    activation: self.f,
                    gating: self.gating,
                };
                let activation = self.f;
                ctx.record(|pass| match by {
                    By::Gemv(Some(tuning)) => gemv.run_with(pass, &args, &tuning),
                    By::Gemv(None) => gemv.run(pass, &args),
                    _ if self.gating == Gating::None => Linear { activation }.run(pass, args),
                    _ => {
                        let args = GatedLinearArgs {
                            x: &a,
                            weight: &weight,
                            norm,
                            out: &out,
                        };
                        GatedLinear { activation }.run(pass, args)
                    }
                })?;
            }
        }
        let exact: Vec<f64> = self.reference(&data, Order::Forward);
        let naive = [Order::Forward, Order::Backward].map(|order| {
            let naive = self.reference::<f32>(&data, order);
            naive.into_iter().map(|v| round(v, self.types[2])).collect()
        });
        let naive = tolerance::farther(&exact, naive);
        check(&out.to_f32_vec()?, &exact, &naive, self.slack())
    }

    fn case(self, group: &str, by: By) -> Case {
        let name = format!("{by:?} {self:?}");
        Case::new("gemm", group, name.clone(), move |ctx| {
            self.run(ctx, by, Case::seed(&name))
        })
    }
}

const fn tiling(tile: [u32; 3], per: [u32; 2], prefetch: Prefetch) -> GemmTuning {
    GemmTuning::Fma(FmaTiling {
        tile_m: tile[0],
        tile_n: tile[1],
        tile_k: tile[2],
        per_m: per[0],
        per_n: per[1],
        prefetch,
        group: 3,
    })
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = gemm_cases();
    cases.extend(cooperative_cases());
    cases.extend(gemv_cases());
    cases.extend(layer_cases());
    cases
}

fn gemm_cases() -> Vec<Case> {
    use Transpose::{No, Yes};
    let mut cases = Vec::new();
    let planned = By::Gemm(None);
    // ggml's odd shapes, and the tails of a 64 x 64 x 16 tile.
    const SIZES: [[usize; 3]; 12] = [
        [83, 2, 128],
        [64, 45, 128],
        [64, 77, 77],
        [64, 32, 65],
        [64, 32, 80],
        [1056, 1, 67],
        [1, 1056, 193],
        [1, 1, 1],
        [64, 128, 48],
        [65, 63, 17],
        [128, 68, 20],
        [3, 5, 31],
    ];
    for size in SIZES {
        for (a, b) in [(No, No), (No, Yes)] {
            let product = Product {
                size,
                a,
                b,
                ..PLAIN
            };
            cases.push(product.case("sizes", planned));
        }
    }
    for size in [[64, 45, 128], [68, 76, 24], [65, 63, 17]] {
        for (a, b) in [(Yes, No), (Yes, Yes)] {
            let product = Product {
                size,
                a,
                b,
                ..PLAIN
            };
            cases.push(product.case("transposed", planned));
        }
    }
    let types = [
        [F16, F16, F16],
        [BF16, BF16, BF16],
        [F32, F16, F32],
        [F16, F16, F32],
        [F32, BF16, F16],
        [BF16, F32, BF16],
    ];
    for (types, size) in types
        .into_iter()
        .zip([[68, 60, 72], [33, 35, 37]].into_iter().cycle())
    {
        let product = Product {
            types,
            size,
            ..LINEAR
        };
        cases.push(product.case("types", planned));
    }
    for batch in [[2, 2, 2], [3, 1, 3], [1, 2, 2], [1, 1, 1]] {
        for (a, b) in [(No, No), (Yes, Yes)] {
            let product = Product {
                size: [20, 36, 28],
                batch,
                gap: 4,
                a,
                b,
                added: Added::InPlace,
                ..PLAIN
            };
            cases.push(product.case("batches", planned));
        }
    }
    // Rows of A that start anywhere.
    for gap in [1, 4] {
        let product = Product {
            size: [37, 20, 24],
            gap,
            types: [F16, F32, F32],
            ..LINEAR
        };
        cases.push(product.case("strided", planned));
    }
    let fused = [
        (Some(F32), Activation::None, Added::Nothing),
        (None, Activation::Silu, Added::Another(F32)),
        (Some(F16), Activation::GeluErf, Added::InPlace),
        (Some(BF16), Activation::GeluTanh, Added::Another(F16)),
        (None, Activation::Relu, Added::Nothing),
    ];
    let shapes = [([36, 52, 40], F32), ([17, 35, 19], F16)];
    for ((bias, f, added), (size, out)) in fused.into_iter().zip(shapes.into_iter().cycle()) {
        let product = Product {
            size,
            types: [F32, F32, out],
            alpha: 0.75,
            bias,
            f,
            added,
            ..LINEAR
        };
        cases.push(product.case("fused", planned));
    }
    for (size, types, added) in [
        ([33, 32, 48], [F32; 3], Added::Nothing),
        ([35, 37, 20], [F16; 3], Added::InPlace),
        ([9, 86, 32], [F32, BF16, F32], Added::Another(F32)),
    ] {
        let product = Product {
            size,
            types,
            added,
            gating: Gating::GateUp,
            f: Activation::Silu,
            ..LINEAR
        };
        cases.push(product.case("gated", planned));
    }
    // Other tilings: whole tiles, and tails of all three sizes.
    let tilings = [
        tiling([128, 128, 16], [8, 8], Prefetch::On),
        tiling([64, 128, 8], [8, 8], Prefetch::Off),
        tiling([16, 64, 32], [4, 4], Prefetch::On),
        tiling([32, 32, 32], [4, 4], Prefetch::On),
    ];
    for tuning in tilings {
        let GemmTuning::Fma(tiling) = tuning else {
            continue;
        };
        let (m, n, k) = (
            tiling.tile_m as usize,
            tiling.tile_n as usize,
            tiling.tile_k as usize,
        );
        for (size, a, b) in [
            ([m, 2 * n, 2 * k], No, Yes),
            ([m + 1, n + 3, k + 5], No, No),
            ([2 * m - 4, n + 4, 2 * k], Yes, No),
        ] {
            let product = Product {
                size,
                a,
                b,
                ..PLAIN
            };
            cases.push(product.case("tilings", By::Gemm(Some(tuning))));
        }
    }
    let gated = Product {
        size: [70, 68, 36],
        gating: Gating::GateUp,
        f: Activation::GeluTanh,
        ..LINEAR
    };
    cases.push(gated.case("tilings", By::Gemm(Some(tilings[0]))));
    cases
}

/// Products of f16 by matrix units: every way operands lie, whole tiles and tails of all three sizes, all that is fused.
fn cooperative_cases() -> Vec<Case> {
    use Transpose::{No, Yes};
    let mut cases = Vec::new();
    let half = Product {
        types: [F16; 3],
        ..PLAIN
    };
    let tilings = [
        CooperativeTiling::new([128, 128, 64], [64, 64]),
        CooperativeTiling::new([128, 128, 32], [64, 64]),
        CooperativeTiling::new([192, 128, 64], [48, 64]),
        CooperativeTiling::new([160, 128, 32], [80, 64]),
        CooperativeTiling::new([128, 160, 32], [64, 80]),
        CooperativeTiling::new([64, 64, 64], [32, 32]),
        CooperativeTiling::new([32, 64, 32], [16, 32]),
    ];
    for tiling in tilings {
        let by = By::Gemm(Some(GemmTuning::Cooperative(tiling)));
        let (m, n, k) = (
            tiling.tile_m as usize,
            tiling.tile_n as usize,
            tiling.tile_k as usize,
        );
        for (a, b) in [(No, No), (No, Yes), (Yes, No), (Yes, Yes)] {
            // Rows of 24 or 20 vectors do not divide among the invocations.
            let along = |tile: u32, k: bool| k || tile.is_power_of_two();
            if !along(tiling.tile_m, a == No) || !along(tiling.tile_n, b == Yes) {
                continue;
            }
            for size in [
                [m, 2 * n, 2 * k],
                [m + 8, n - 8, 3 * k],
                [2 * m - 16, n + 24, k + 8],
            ] {
                let product = Product { size, a, b, ..half };
                cases.push(product.case("cooperative", by));
            }
        }
        // Sizes that are no multiple of eight where the layout allows it, f32 out, everything around the product.
        let around = [
            (F16, None, Activation::None, Added::InPlace, [1, 1, 1]),
            (
                F32,
                Some(F32),
                Activation::Silu,
                Added::Another(F16),
                [2, 1, 2],
            ),
            (
                BF16,
                Some(F16),
                Activation::GeluErf,
                Added::Nothing,
                [3, 3, 3],
            ),
        ];
        for (out, bias, f, added, batch) in around {
            let product = Product {
                types: [F16, F16, out],
                size: [m + 3, n - 5, k + 16],
                alpha: 0.75,
                bias,
                f,
                added,
                batch,
                gap: 8,
                b: Yes,
                ..half
            };
            cases.push(product.case("cooperative fused", by));
        }
        if tiling.sub_n.is_power_of_two() {
            for (size, added) in [
                ([m, n, k], Added::Nothing),
                ([m - 5, n + 3, 2 * k - 8], Added::InPlace),
            ] {
                let product = Product {
                    size,
                    added,
                    gating: Gating::GateUp,
                    f: Activation::Silu,
                    b: Yes,
                    ..half
                };
                cases.push(product.case("cooperative gated", by));
            }
        }
    }
    for (size, b) in [
        ([300, 264, 1000], No),
        ([1, 8, 8], Yes),
        ([257, 67, 136], Yes),
    ] {
        let product = Product { size, b, ..half };
        cases.push(product.case("cooperative planned", By::Gemm(None)));
    }
    cases
}

fn gemv_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let planned = By::Gemv(None);
    // m x 16 x 256 are ggml's; then tails along n and k, by eight, by four, by element.
    for m in [1, 2, 4, 7, 9, 16] {
        let product = Product {
            size: [m, 16, 256],
            types: [F32, F16, F32],
            ..LINEAR
        };
        cases.push(product.case("rows", planned));
    }
    for (size, dtype) in [
        ([1, 1056, 193], F16),
        ([2, 1056, 67], F32),
        ([1, 83, 128], F32),
        ([3, 45, 172], F16),
        ([1, 1, 1], F16),
        ([1, 5, 2048], F16),
        ([17, 7, 24], F32),
    ] {
        let product = Product {
            size,
            types: [dtype; 3],
            ..LINEAR
        };
        cases.push(product.case("vector sizes", planned));
    }
    for (types, size, gap) in [
        ([BF16; 3], [1, 36, 264], 8),
        ([F16, F32, BF16], [2, 35, 129], 1),
        ([F32, BF16, F16], [2, 36, 132], 4),
    ] {
        let product = Product {
            size,
            types,
            gap,
            ..LINEAR
        };
        cases.push(product.case("vector types", planned));
    }
    let fused = [
        (Some(F32), Activation::None, Added::InPlace, None),
        (
            None,
            Activation::Silu,
            Added::Another(F16),
            Some((F32, 1e-5)),
        ),
        (
            Some(F16),
            Activation::GeluErf,
            Added::Nothing,
            Some((F16, 0.1)),
        ),
    ];
    for (bias, f, added, norm) in fused {
        for (size, types) in [
            ([1, 40, 520], [F32, F16, F32]),
            ([3, 21, 77], [F16, F16, F16]),
        ] {
            let product = Product {
                size,
                types,
                bias,
                f,
                added,
                norm,
                ..LINEAR
            };
            cases.push(product.case("vector fused", planned));
        }
    }
    for (size, types, added, norm) in [
        (
            [1, 172, 64],
            [F32, F16, F32],
            Added::Nothing,
            Some((F32, 1e-5)),
        ),
        ([5, 19, 100], [F16; 3], Added::InPlace, Some((F16, 1e-6))),
        ([2, 24, 40], [BF16; 3], Added::Nothing, None),
    ] {
        let product = Product {
            size,
            types,
            added,
            norm,
            gating: Gating::GateUp,
            f: Activation::Silu,
            ..LINEAR
        };
        cases.push(product.case("vector gated", planned));
    }
    // Every way to cut the work: rows of W that do not divide, more than one pass a team.
    let cut = |team, per_team, per_workgroup, unroll, workgroup| GemvTuning {
        team,
        per_team,
        per_workgroup,
        unroll,
        workgroup,
    };
    let tunings = [
        cut(Team::Subgroup, 1, 8, 4, 64),
        cut(Team::Subgroup, 2, 16, 2, 32),
        cut(Team::Subgroup, 4, 64, 1, 128),
        cut(Team::Workgroup, 1, 4, 8, 32),
        cut(Team::Workgroup, 2, 8, 2, 128),
    ];
    let shapes = [
        ([1, 67, 1032], [F32, F16, F32], None),
        ([4, 33, 140], [F16, F16, F16], Some((F32, 1e-5))),
    ];
    for (tuning, (size, types, norm)) in tunings.into_iter().zip(shapes.into_iter().cycle()) {
        let product = Product {
            size,
            types,
            norm,
            ..LINEAR
        };
        cases.push(product.case("vector tunings", By::Gemv(Some(tuning))));
    }
    cases
}

fn layer_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for m in [1, 17, 33] {
        for gating in [Gating::None, Gating::GateUp] {
            let product = Product {
                size: [m, 44, 64],
                types: [F32, F16, F32],
                bias: (gating == Gating::None).then_some(F32),
                added: if gating == Gating::None {
                    Added::InPlace
                } else {
                    Added::Nothing
                },
                f: Activation::Silu,
                gating,
                ..LINEAR
            };
            cases.push(product.case("layers", By::Layer));
        }
    }
    cases
}

/// Variants of both kernels: those that the planner chooses for shapes of models, and tunings of the sweeps.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    let layout = |dtype, shape: &[usize]| Layout::contiguous(dtype, shape);
    let activations = Activation::ALL.into_iter().cycle();
    let fused = [None, Some(F32), Some(F16)];
    let mut plan =
        |types: [DType; 3], [m, n, k]: [usize; 3], f, extra: Option<DType>, gating| -> Result<()> {
            let factor = if gating == Gating::None { 1 } else { 2 };
            let x = layout(types[0], &[m, k])?;
            let weight = layout(types[1], &[n * factor, k])?;
            let out = layout(types[2], &[m, n])?;
            let vector = extra.map(|t| layout(t, &[n])).transpose()?;
            let norm = extra.map(|t| layout(t, &[k])).transpose()?;
            let residual = extra.map(|t| layout(t, &[m, n])).transpose()?;
            let bias = vector.as_ref().filter(|_| gating == Gating::None);
            let added = match &residual {
                Some(layout) => [Residual::From(layout), Residual::InOut],
                None => [Residual::None, Residual::InOut],
            };
            for residual in added {
                let norm = norm
                    .as_ref()
                    .filter(|_| fuses_norm(caps, m))
                    .map(|n| (n, 1e-5));
                if gating == Gating::None {
                    let args = LinearArgs {
                        x: &x,
                        weight: &weight,
                        bias,
                        residual,
                        norm,
                        out: &out,
                    };
                    launches.extend(Linear { activation: f }.plan(caps, &args)?.launches());
                } else {
                    let args = GatedLinearArgs {
                        x: &x,
                        weight: &weight,
                        norm,
                        out: &out,
                    };
                    launches.extend(GatedLinear { activation: f }.plan(caps, &args)?.launches());
                }
            }
            Ok(())
        };
    let sizes = [
        [1, 4096, 14336],
        [1, 288, 172],
        [1, 33, 67],
        [2, 4096, 4096],
        [4, 64, 64],
        [8, 4096, 4096],
        [8, 35, 35],
        [40, 4096, 4096],
        [512, 4096, 4096],
        [512, 14336, 4096],
        [64, 64, 172],
        [39, 35, 33],
    ];
    let types = [
        [F32; 3],
        [F16; 3],
        [BF16; 3],
        [F32, F16, F32],
        [F32, BF16, F32],
        [F16, F16, F32],
    ];
    for ((size, types), f) in sizes
        .into_iter()
        .flat_map(|s| types.map(|t| (s, t)))
        .zip(activations)
    {
        for extra in fused {
            for gating in [Gating::None, Gating::GateUp] {
                plan(types, size, f, extra, gating).expect("a plan for every shape of a model");
            }
        }
    }
    // Sweeps are for whole devices: the portable tier's candidates and a large card's cover the others.
    if caps.subgroups.is_none_or(|s| s.min == 32) {
        launches.extend(sweeps(caps).expect("every candidate plans"));
    }
    launches
}

/// Every candidate of the sweeps, and the other ways an operand can lie.
fn sweeps(caps: &Capabilities) -> Result<Vec<Launch>> {
    let mut launches = Vec::new();
    let x = Layout::contiguous(F16, [8, 4096])?;
    for rows in [1, 3, 8] {
        let x = x.narrow(0, 0..rows)?;
        for gating in [Gating::None, Gating::GateUp] {
            let gemv = Gemv {
                activation: Activation::None,
                gating,
            };
            let n = if gating == Gating::None { 1000 } else { 500 };
            let (weight, out) = (
                Layout::contiguous(F16, [1000, 4096])?,
                Layout::contiguous(F32, [rows, n])?,
            );
            let args = LinearArgs::new(&x, &weight, &out);
            for tuning in gemv.candidates(caps, rows) {
                launches.push(gemv.plan_with(caps, &args, &tuning)?);
            }
        }
    }
    for (dtype, size) in [
        (F32, 1024),
        (F32, 1020),
        (F32, 1023),
        (F16, 1024),
        (F16, 1000),
    ] {
        let square = Layout::contiguous(dtype, [2, size, size])?;
        let args = GemmArgs::new(&square, &square, &square);
        for (a, b) in [
            (Transpose::No, Transpose::No),
            (Transpose::No, Transpose::Yes),
            (Transpose::Yes, Transpose::No),
            (Transpose::Yes, Transpose::Yes),
        ] {
            let gemm = Gemm {
                a,
                b,
                ..Gemm::default()
            };
            launches.push(gemm.plan(caps, &args)?);
            // Whole tiles of rows along n, ragged ones along k.
            let swept = match (dtype, b) {
                (F16, _) => size == 1000,
                (_, Transpose::No) => size == 1024,
                (_, Transpose::Yes) => size == 1023,
            };
            if a == Transpose::No && swept {
                for tuning in gemm.candidates(caps, [dtype; 2]) {
                    if dtype == F16 && matches!(tuning, GemmTuning::Fma(_)) {
                        continue;
                    }
                    launches.push(gemm.plan_with(caps, &args, &tuning)?);
                }
            }
        }
    }
    Ok(launches)
}
