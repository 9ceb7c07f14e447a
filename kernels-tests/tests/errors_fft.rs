//! What transforms and convolutions refuse, by name: no GPU needed.

use flashwave::DType::{F16, F32, U32};
use flashwave::capabilities::DeviceClass;
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::fft::{Fft, MAX_LENGTH, RealFft};
use flashwave::kernels::fftconv::{ConvArgs, FftConv, FilterPlan, Tuning};
use flashwave::kernels::shortconv::{ShortConv, ShortConvArgs, State};
use flashwave::{Capabilities, DType, Layout};

fn layout(dtype: DType, shape: &[usize]) -> Layout {
    Layout::contiguous(dtype, shape).expect("a layout")
}

/// Errors begin with the argument's name, and say what is allowed.
fn begins<T>(result: flashwave::Result<T>, start: &str) {
    let error = result.err().expect("refused").to_string();
    assert!(error.starts_with(start), "{error}");
}

#[test]
fn filters_that_cannot_be() {
    let caps = Capabilities::webgpu_default();
    let k = layout(F32, &[3, 64]);
    let plan = |conv, k: &Layout, length| FilterPlan::new(&caps, conv, k, length, None);
    begins(plan(FftConv::causal(), &k, 0), "length: 0");
    begins(plan(FftConv::causal(), &k, 63), "k: 64 taps");
    assert!(plan(FftConv::circular(), &k, 65).is_ok());
    begins(
        plan(FftConv::causal(), &layout(U32, &[3, 64]), 64),
        "k: u32",
    );
    // 2^25 points of 8 bytes are over this device's 128 MiB a binding.
    let long = layout(F32, &[1, 1 << 24]);
    begins(plan(FftConv::causal(), &long, 1 << 25), "length: ");
    // 4M elements fit.
    assert!(plan(FftConv::causal(), &layout(F32, &[1, 1 << 22]), 1 << 22).is_ok());
}

/// A card: more workgroup memory and larger bindings, with matrix units or without.
fn card(matrix_elements: bool) -> Capabilities {
    Capabilities {
        class: DeviceClass::Discrete,
        shader_f16: true,
        spirv: matrix_elements,
        matrix_elements,
        invocations: 1024,
        workgroup_bytes: 48 << 10,
        binding_bytes: (1 << 31) - 4,
        buffer_bytes: 1 << 32,
        ..Capabilities::webgpu_default()
    }
}

/// Every length up to 4,194,304 is planned, whatever its neighbours are; on matrix units a length that is no multiple of 8 is refused.
#[test]
fn every_length_is_planned() {
    let lengths = (0..=22).flat_map(|bits| [(1usize << bits) - 1, 1 << bits, (1 << bits) + 1]);
    let lengths: Vec<usize> = lengths.filter(|l| (1..=1 << 22).contains(l)).collect();
    for caps in [Capabilities::webgpu_default(), card(false), card(true)] {
        for &length in &lengths {
            for (conv, dtype) in [
                (FftConv::causal(), F32),
                (FftConv::circular(), F32),
                (FftConv::causal().half(), F16),
            ] {
                let (k, u) = (layout(F32, &[2, length]), layout(dtype, &[3, 2, length]));
                let plan = FilterPlan::new(&caps, conv, &k, length, None).expect("a plan");
                let spectrum = plan.spectrum(&caps, &k, None).expect("a spectrum");
                let run = plan.convolution(&caps, &ConvArgs::new(&u, &u));
                assert!(!spectrum.is_empty() && plan.tuning().points() >= length);
                match plan.tuning() {
                    Tuning::Monarch(_) if length % 8 != 0 => begins(run, "u: "),
                    _ => assert!(!run.expect("a convolution").is_empty(), "{length}"),
                }
            }
        }
    }
}

#[test]
fn sequences_that_do_not_fit_the_filter() {
    let caps = Capabilities::webgpu_default();
    let causal = FilterPlan::new(&caps, FftConv::causal(), &layout(F32, &[3, 64]), 64, None);
    let causal = causal.expect("a plan");
    let run = |u: &Layout, y: &Layout| causal.convolution(&caps, &ConvArgs::new(u, y));
    let u = layout(F16, &[2, 3, 64]);
    assert!(run(&u, &u).is_ok());
    begins(
        run(&layout(F16, &[2, 3, 65]), &layout(F16, &[2, 3, 65])),
        "u: length 65",
    );
    begins(
        run(&layout(F16, &[2, 4, 64]), &layout(F16, &[2, 4, 64])),
        "u: 4 channels",
    );
    begins(run(&u, &layout(F16, &[2, 3, 32])), "y: shape");
    begins(run(&u, &layout(U32, &[2, 3, 64])), "y: u32");
    let circular = FilterPlan::new(&caps, FftConv::circular(), &layout(F32, &[3, 64]), 64, None);
    let short = layout(F32, &[2, 3, 32]);
    let found = circular
        .expect("a plan")
        .convolution(&caps, &ConvArgs::new(&short, &short));
    begins(found, "u: length 32");
}

#[test]
fn transforms_that_cannot_be() {
    let caps = Capabilities::webgpu_default();
    let plan = |x: &Layout, y: &Layout| Fft::forward().plan(&caps, x, y);
    let x = layout(F32, &[2, 8, 2]);
    assert!(plan(&x, &x).is_ok());
    begins(plan(&layout(F32, &[8]), &layout(F32, &[8])), "x: f32 [8]");
    begins(plan(&x, &layout(F32, &[2, 9, 2])), "y: shape");
    begins(
        plan(&layout(U32, &[2, 8, 2]), &layout(U32, &[2, 8, 2])),
        "x: u32",
    );
    let long = layout(F32, &[1, 2 * MAX_LENGTH, 2]);
    begins(plan(&long, &long), "x: 8388608 points");
    let real = |x: &Layout, y: &Layout| RealFft::forward().plan(&caps, x, y);
    begins(real(&layout(F32, &[8]), &layout(F32, &[8, 2])), "y: shape");
    assert!(Layout::contiguous(F32, [0, 2]).is_err(), "length zero");
}

#[test]
fn short_convolutions_that_cannot_be() {
    let caps = Capabilities::webgpu_default();
    let conv = ShortConv {
        activation: Activation::None,
    };
    let (x, weight) = (layout(F32, &[2, 3, 8]), layout(F32, &[3, 4]));
    let state = layout(F32, &[2, 3, 2]);
    let good = ShortConvArgs {
        x: &x,
        weight: &weight,
        bias: None,
        state: State::None,
        y: &x,
    };
    assert!(conv.plan(&caps, &good).is_ok());
    for taps in [1, 17] {
        let weight = layout(F32, &[3, taps]);
        let args = ShortConvArgs {
            weight: &weight,
            ..good
        };
        begins(conv.plan(&caps, &args), "weight: ");
    }
    let args = ShortConvArgs {
        state: State::Update(&state),
        ..good
    };
    begins(conv.plan(&caps, &args), "state: shape");
    begins(
        conv.plan(
            &caps,
            &ShortConvArgs {
                bias: Some(&x),
                ..good
            },
        ),
        "bias: shape",
    );
}
