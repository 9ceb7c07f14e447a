//! Bad input to matrix products and linear layers: errors that name the argument. No GPU needed.

use flashwave::capabilities::{CooperativeShape, SubgroupSizes};
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::gemm::{
    CooperativeTiling, FmaTiling, Gating, Gemm, GemmArgs, GemmTuning, Prefetch, Residual, Transpose,
};
use flashwave::kernels::gemv::{Gemv, GemvTuning, Team};
use flashwave::kernels::linear::{GatedLinear, GatedLinearArgs, Linear, LinearArgs, fuses_norm};
use flashwave::{Capabilities, DType, Layout, Result};

fn f32(shape: &[usize]) -> Layout {
    Layout::contiguous(DType::F32, shape).expect("a layout")
}

/// The error's text, which has to begin with the argument's name.
#[track_caller]
fn names<T: std::fmt::Debug>(argument: &str, planned: Result<T>) {
    let message = planned.expect_err("an error").to_string();
    assert!(message.starts_with(argument), "{message}");
    assert!(message.contains("allowed"), "{message}");
}

const LINEAR: Linear = Linear {
    activation: Activation::None,
};

#[test]
fn products_of_shapes_that_do_not_match() {
    let caps = Capabilities::webgpu_default();
    let plan = |gemm: Gemm, a: &[usize], b: &[usize], out: &[usize]| {
        let (a, b, out) = (f32(a), f32(b), f32(out));
        gemm.plan(&caps, &GemmArgs::new(&a, &b, &out))
    };
    let plain = Gemm::default();
    assert!(plan(plain, &[2, 3], &[3, 4], &[2, 4]).is_ok());
    names("b", plan(plain, &[2, 3], &[4, 4], &[2, 4]));
    names("b", plan(plain, &[2, 3], &[3, 5], &[2, 4]));
    names("out", plan(plain, &[2, 3], &[3, 4], &[3, 4]));
    names("a", plan(plain, &[3], &[3, 4], &[1, 4]));
    names("a", plan(plain, &[2, 2, 3], &[3, 4], &[3, 2, 4]));
    names("b", plan(plain, &[2, 2, 3], &[5, 3, 4], &[2, 2, 4]));
    let turned = Gemm {
        b: Transpose::Yes,
        ..plain
    };
    names("b", plan(turned, &[2, 3], &[3, 4], &[2, 4]));
    for alpha in [f32::NAN, f32::INFINITY] {
        names(
            "alpha",
            plan(Gemm { alpha, ..plain }, &[2, 3], &[3, 4], &[2, 4]),
        );
    }
    let gated = Gemm {
        gating: Gating::GateUp,
        ..plain
    };
    names("gating", plan(gated, &[2, 3], &[3, 4], &[2, 2]));
    // More matrices than a dispatch has workgroups in z.
    names("grid", plan(plain, &[70000, 1, 1], &[1, 1], &[70000, 1, 1]));
}

#[test]
fn tensors_of_other_types_and_layouts() {
    let caps = Capabilities::webgpu_default();
    let (a, b, out) = (f32(&[4, 4]), f32(&[4, 4]), f32(&[4, 4]));
    let ids = Layout::contiguous(DType::U32, [4, 4]).expect("a layout");
    let gemm = Gemm::default();
    names("b", gemm.plan(&caps, &GemmArgs::new(&a, &ids, &out)));
    let turned = a.transpose(0, 1).expect("a view");
    names("a", gemm.plan(&caps, &GemmArgs::new(&turned, &b, &out)));
    let (long, pair) = (f32(&[5]), f32(&[2, 4]));
    let bias = GemmArgs {
        bias: Some(&long),
        ..GemmArgs::new(&a, &b, &out)
    };
    names("bias", gemm.plan(&caps, &bias));
    let residual = GemmArgs {
        residual: Residual::From(&pair),
        ..GemmArgs::new(&a, &b, &out)
    };
    names("residual", gemm.plan(&caps, &residual));
}

#[test]
fn layers_name_what_does_not_fit() {
    let caps = Capabilities::webgpu_default();
    for m in [1, 64] {
        let (x, w, out) = (f32(&[m, 8]), f32(&[6, 8]), f32(&[m, 6]));
        let args = || LinearArgs::new(&x, &w, &out);
        assert!(LINEAR.plan(&caps, &args()).is_ok());
        let (narrow, other, bias) = (f32(&[6, 7]), f32(&[m + 1, 6]), f32(&[8]));
        names(
            "weight",
            LINEAR.plan(
                &caps,
                &LinearArgs {
                    weight: &narrow,
                    ..args()
                },
            ),
        );
        names(
            "out",
            LINEAR.plan(
                &caps,
                &LinearArgs {
                    out: &other,
                    ..args()
                },
            ),
        );
        names(
            "bias",
            LINEAR.plan(
                &caps,
                &LinearArgs {
                    bias: Some(&bias),
                    ..args()
                },
            ),
        );
        let residual = Residual::From(&other);
        names(
            "residual",
            LINEAR.plan(&caps, &LinearArgs { residual, ..args() }),
        );
        let short = f32(&[6]);
        names(
            "norm weight",
            LINEAR.plan(
                &caps,
                &LinearArgs {
                    norm: Some((&short, 1e-5)),
                    ..args()
                },
            ),
        );
        let weight = f32(&[8]);
        for eps in [f32::NAN, f32::INFINITY, -1.0] {
            names(
                "eps",
                LINEAR.plan(
                    &caps,
                    &LinearArgs {
                        norm: Some((&weight, eps)),
                        ..args()
                    },
                ),
            );
        }
        let fused = LINEAR.plan(
            &caps,
            &LinearArgs {
                norm: Some((&weight, 1e-5)),
                ..args()
            },
        );
        assert_eq!(fused.is_ok(), fuses_norm(&caps, m));
        if let Err(error) = fused {
            assert!(error.to_string().starts_with("norm"), "{error}");
        }
        let gated = GatedLinear {
            activation: Activation::Silu,
        };
        names(
            "weight",
            gated.plan(
                &caps,
                &GatedLinearArgs {
                    x: &x,
                    weight: &w,
                    norm: None,
                    out: &out,
                },
            ),
        );
    }
}

#[test]
fn tunings_that_a_device_cannot_run() {
    let caps = Capabilities::webgpu_default();
    let square = f32(&[64, 64]);
    let fits = FmaTiling {
        tile_m: 64,
        tile_n: 64,
        tile_k: 16,
        per_m: 4,
        per_n: 4,
        prefetch: Prefetch::On,
        group: 8,
    };
    let gemm = Gemm::default();
    let args = GemmArgs::new(&square, &square, &square);
    assert!(gemm.plan_with(&caps, &args, &GemmTuning::Fma(fits)).is_ok());
    for tuning in [
        FmaTiling {
            tile_m: 128,
            tile_n: 128,
            ..fits
        },
        FmaTiling { tile_k: 64, ..fits },
        FmaTiling { tile_m: 48, ..fits },
        FmaTiling { per_m: 0, ..fits },
        FmaTiling { group: 0, ..fits },
    ] {
        names(
            "tuning",
            gemm.plan_with(&caps, &args, &GemmTuning::Fma(tuning)),
        );
    }
    let gemv = Gemv {
        activation: Activation::None,
        gating: Gating::None,
    };
    let fits = GemvTuning {
        team: Team::Workgroup,
        per_team: 2,
        per_workgroup: 4,
        unroll: 2,
        workgroup: 64,
    };
    let x = f32(&[1, 64]);
    let args = LinearArgs::new(&x, &square, &x);
    assert!(gemv.plan_with(&caps, &args, &fits).is_ok());
    for tuning in [
        GemvTuning {
            team: Team::Subgroup,
            ..fits
        },
        GemvTuning {
            workgroup: 512,
            ..fits
        },
        GemvTuning {
            per_team: 0,
            ..fits
        },
        GemvTuning {
            per_workgroup: 6,
            ..fits
        },
        GemvTuning { unroll: 0, ..fits },
    ] {
        names("tuning", gemv.plan_with(&caps, &args, &tuning));
    }
}

#[test]
fn cooperative_tilings_where_they_do_not_belong() {
    let tensors = Capabilities {
        shader_f16: true,
        spirv: true,
        subgroups: Some(SubgroupSizes { min: 32, max: 32 }),
        cooperative: vec![CooperativeShape::F16],
        workgroup_bytes: 48 << 10,
        ..Capabilities::webgpu_default()
    };
    let half = |shape: &[usize]| Layout::contiguous(DType::F16, shape).expect("a layout");
    let (even, odd, float) = (half(&[64, 64]), half(&[60, 60]), f32(&[64, 64]));
    let fits = CooperativeTiling::new([64, 64, 64], [32, 32]);
    let gemm = Gemm::default();
    let plan = |caps: &Capabilities, a: &Layout, tiling| {
        gemm.plan_with(
            caps,
            &GemmArgs::new(a, a, a),
            &GemmTuning::Cooperative(tiling),
        )
    };
    assert!(plan(&tensors, &even, fits).is_ok());
    names("tuning", plan(&Capabilities::webgpu_default(), &even, fits));
    names("tuning", plan(&tensors, &odd, fits));
    names("tuning", plan(&tensors, &float, fits));
    for tiling in [
        CooperativeTiling { sub_m: 24, ..fits },
        CooperativeTiling { sub_n: 0, ..fits },
        CooperativeTiling { tile_k: 48, ..fits },
        CooperativeTiling { group: 0, ..fits },
        CooperativeTiling::new([256, 256, 64], [64, 64]),
    ] {
        names("tuning", plan(&tensors, &even, tiling));
    }
}

#[test]
fn products_of_eight_bits_name_what_is_wrong() {
    use flashwave::kernels::gemm8::{Gemm8, Gemm8Args, Operand, Quantize, QuantizeArgs, Scales};
    let caps = Capabilities::webgpu_default();
    let of = |dtype, shape: &[usize]| Layout::contiguous(dtype, shape).expect("a layout");
    let (a, b) = (of(DType::I8, &[8, 64]), of(DType::I8, &[4, 64]));
    let (out, sums) = (of(DType::F32, &[8, 4]), of(DType::I32, &[8, 4]));
    let plan = |a: Operand<'_, Layout>, b: Operand<'_, Layout>, out: &Layout| {
        Gemm8::default().plan(&caps, &Gemm8Args::new(a, b, out))
    };
    let plain = Operand::plain;
    assert!(plan(plain(&a), plain(&b), &sums).is_ok());
    let (float, short) = (f32(&[8, 64]), of(DType::I8, &[4, 60]));
    names("a", plan(plain(&float), plain(&b), &out));
    names("b", plan(plain(&a), plain(&short), &out));
    names("out", plan(plain(&a), plain(&b), &f32(&[8, 5])));
    let long = (of(DType::I8, &[8, 140_000]), of(DType::I8, &[4, 140_000]));
    names("sizes", plan(plain(&long.0), plain(&long.1), &out));
    let (rows, wrong, blocks) = (f32(&[8]), f32(&[7]), f32(&[8, 3]));
    assert!(plan(Operand::rows(&a, &rows), plain(&b), &out).is_ok());
    names("a.scales", plan(Operand::rows(&a, &wrong), plain(&b), &out));
    names("out", plan(Operand::rows(&a, &rows), plain(&b), &sums));
    let blocked = |scales, steps| Operand {
        scales: Scales::Blocks {
            scales,
            rows: 1,
            steps,
        },
        ..plain(&a)
    };
    // 64 steps are two blocks of 32, not three; blocks of 24 are none.
    names("a.scales", plan(blocked(&blocks, 32), plain(&b), &out));
    names("a.scales", plan(blocked(&blocks, 24), plain(&b), &out));
    let zeros = of(DType::I32, &[8, 2]);
    let with_zeros = Operand {
        zeros: Some(&zeros),
        ..plain(&a)
    };
    names("zeros", plan(with_zeros, plain(&b), &out));
    let args = QuantizeArgs::new(&float, &a, &rows);
    assert!(Quantize::Symmetric.plan(&caps, &args).is_ok());
    names("zeros", Quantize::Asymmetric.plan(&caps, &args));
    let ragged = (f32(&[8, 63]), of(DType::I8, &[8, 63]));
    let args = QuantizeArgs::new(&ragged.0, &ragged.1, &rows);
    names("codes", Quantize::Symmetric.plan(&caps, &args));
}
