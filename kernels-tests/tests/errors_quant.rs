//! Bad input to quantised matrices: errors that name the argument. No GPU needed.

use flashwave::DType::{F32, U32};
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::linear::{Linear, LinearArgs};
use flashwave::kernels::quant;
use flashwave::quant::{Format, GgufBlock, QuantLayout, QuantMatrix, quantize};
use flashwave::{Capabilities, DType, Layout, Result};

#[track_caller]
fn names<T: std::fmt::Debug>(argument: &str, result: Result<T>) {
    let message = result.expect_err("an error").to_string();
    assert!(message.starts_with(argument), "{message}");
    assert!(message.contains("allowed"), "{message}");
}

fn layout(dtype: DType, shape: &[usize]) -> Layout {
    Layout::contiguous(dtype, shape).expect("a layout")
}

#[test]
fn quantised_matrices_are_whole_and_of_two_dimensions() {
    let int4 = DType::Quant(Format::INT4);
    names("shape", Layout::contiguous(int4, [2, 3, 64]));
    let matrix = layout(int4, &[8, 96]);
    names("view", matrix.narrow(0, 0..4));
    names("view", matrix.reshape([4, 192]));
    names("view", matrix.transpose(0, 1));
    names("view", matrix.split_heads(2));
    assert!(matrix.narrow(0, 0..8).is_ok() && matrix.reshape([8, 96]).is_ok());
    names("matrix", QuantLayout::new(Format::INT4, 1 << 20, 1 << 20));
}

#[test]
fn products_name_what_does_not_fit() {
    let caps = Capabilities::webgpu_default();
    let linear = Linear {
        activation: Activation::None,
    };
    for m in [1, 64] {
        let (x, out) = (layout(F32, &[m, 96]), layout(F32, &[m, 8]));
        let weight = layout(DType::Quant(Format::INT4), &[8, 96]);
        assert!(
            linear
                .plan(&caps, &LinearArgs::new(&x, &weight, &out))
                .is_ok()
        );
        let narrow = layout(DType::Quant(Format::INT4), &[8, 64]);
        names(
            "weight",
            linear.plan(&caps, &LinearArgs::new(&x, &narrow, &out)),
        );
        names(
            "x",
            linear.plan(&caps, &LinearArgs::new(&weight, &weight, &out)),
        );
        let words = layout(U32, &[8, 96]);
        names(
            "weight",
            linear.plan(&caps, &LinearArgs::new(&x, &words, &out)),
        );
    }
}

#[test]
fn expanding_and_quantising_name_what_does_not_fit() {
    let caps = Capabilities::webgpu_default();
    let matrix = layout(DType::Quant(Format::NF4), &[8, 96]);
    let (plain, turned) = (layout(F32, &[8, 96]), layout(F32, &[96, 8]));
    assert!(quant::plan(&caps, &matrix, None, &plain).is_ok());
    names("matrix", quant::plan(&caps, &plain, None, &plain));
    names("out", quant::plan(&caps, &matrix, None, &turned));
    names("ids", quant::plan(&caps, &matrix, Some(&plain), &plain));
    assert!(quant::plan_quantize(&caps, &plain, &matrix).is_ok());
    names("x", quant::plan_quantize(&caps, &turned, &matrix));
    names("matrix", quant::plan_quantize(&caps, &plain, &plain));
    let read = layout(DType::Quant(Format::Q4_K), &[8, 256]);
    names(
        "format",
        quant::plan_quantize(&caps, &layout(F32, &[8, 256]), &read),
    );
}

#[test]
fn host_matrices_name_what_is_wrong() {
    names("values", quantize(Format::INT8, [2, 3], &[0.0; 5]));
    names("format", quantize(Format::Q6_K, [1, 256], &[0.0; 256]));
    names("format", "int9/row/f32".parse::<Format>());
    // Truncated blocks, and rows that are no whole blocks.
    names("bytes", GgufBlock::Q4_0.read([2, 32], &[0; 35]));
    names("columns", GgufBlock::Q4_K.read([1, 128], &[0; 72]));
    let layout = QuantLayout::new(Format::INT8, 2, 16).expect("a layout");
    names("words", QuantMatrix::from_words(layout, vec![0; 3]));
    let parts =
        [Format::INT8, Format::INT4].map(|f| quantize(f, [1, 32], &[1.0; 32]).expect("a matrix"));
    names("matrices", QuantMatrix::stack(&parts));
    names("matrices", QuantMatrix::stack(&[]));
}
