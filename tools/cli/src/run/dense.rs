//! Matrix products.

use anyhow::{Result, bail};
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::gemm::{Gating, Gemm, GemmArgs, Residual, Transpose};
use flashwave::kernels::gemv::Gemv;
use flashwave::kernels::linear::{GatedLinear, GatedLinearArgs, Linear, LinearArgs};
use flashwave::kernels::quant;
use flashwave::{DType, Tensor};

use super::call::Call;
use super::entry::{DTYPE, Default, Entry, Kind, Output, Param, float, optional};

const ACTIVATION: Param = activation("none");

const fn activation(default: &'static str) -> Param {
    Param {
        name: "activation",
        kind: Kind::Choice(&["none", "relu", "silu", "gelu", "gelu_tanh"]),
        default: Default::Value(default),
        about: "F",
    }
}

/// The format that weights are quantised to, on the device.
const FORMAT: Param = Param {
    name: "format",
    kind: Kind::Choice(&[
        "none",
        "int8",
        "int8-tensor",
        "int8-g128",
        "uint8",
        "int4",
        "uint4",
        "nf4",
        "fp4",
        "e4m3",
        "e4m3-tensor",
        "e4m3-128x128",
        "e5m2",
        "mxfp4",
        "mxfp8",
        "bfp8",
        "q8_0",
        "q4_0",
        "q4_1",
        "q5_0",
        "q5_1",
    ]),
    default: Default::Value("none"),
    about: "quantises the weights first",
};

const fn transposed(name: &'static str, about: &'static str) -> Param {
    Param {
        name,
        kind: Kind::Choice(&["no", "yes"]),
        default: Default::Value("no"),
        about,
    }
}

/// The kernels.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "gemm",
        about: "F(alpha a b + bias) + residual, in batches",
        inputs: &[
            float("a", "[.., m, k]"),
            float("b", "[.., k, n], or [k, n] for all batches"),
            optional("bias", "[n]"),
            optional("residual", "[.., m, n]"),
        ],
        params: &[
            transposed("transpose_a", "a is [.., k, m]"),
            transposed("transpose_b", "b is [.., n, k]"),
            Param {
                name: "alpha",
                kind: Kind::Number,
                default: Default::Value("1"),
                about: "factor of the product",
            },
            ACTIVATION,
            DTYPE,
        ],
        outputs: &[Output {
            name: "out",
            shape: "[.., m, n]",
        }],
        run: gemm,
    },
    Entry {
        name: "linear",
        about: "F(x weight^T + bias) + residual, by the kernel that suits the number of rows",
        inputs: &LINEAR,
        params: &[ACTIVATION, FORMAT, DTYPE],
        outputs: LINEAR_OUT,
        run: |call| linear(call, Streaming::IfFew),
    },
    Entry {
        name: "gemv",
        about: "linear by the kernel that streams the weights, for few rows",
        inputs: &LINEAR,
        params: &[ACTIVATION, FORMAT, DTYPE],
        outputs: LINEAR_OUT,
        run: |call| linear(call, Streaming::Always),
    },
    Entry {
        name: "gated_linear",
        about: "F(x gate^T) * (x up^T): the first half of a gated MLP",
        inputs: &[
            float("x", "[.., k]"),
            float("weight", "[2n, k]: n gate rows, then n up rows"),
        ],
        params: &[activation("silu"), FORMAT, DTYPE],
        outputs: LINEAR_OUT,
        run: gated_linear,
    },
    Entry {
        name: "quantize",
        about: "x in a format and back: what kernels read",
        inputs: &[float("x", "[rows, cols]")],
        params: &[FORMAT, DTYPE],
        outputs: &[Output {
            name: "y",
            shape: "[rows, cols]",
        }],
        run: there_and_back,
    },
];

const LINEAR: [super::entry::Input; 4] = [
    float("x", "[.., k]"),
    float("weight", "[n, k]"),
    optional("bias", "[n]"),
    optional("residual", "[.., n]"),
];

const LINEAR_OUT: &[Output] = &[Output {
    name: "out",
    shape: "[.., n]",
}];

enum Streaming {
    IfFew,
    Always,
}

fn chosen_activation(call: &Call<'_>) -> Result<Activation> {
    Ok(match call.choice("activation")? {
        Some("relu") => Activation::Relu,
        Some("silu") => Activation::Silu,
        Some("gelu") => Activation::GeluErf,
        Some("gelu_tanh") => Activation::GeluTanh,
        _ => Activation::None,
    })
}

pub(super) fn residual(tensor: &Option<Tensor>) -> Residual<'_, Tensor> {
    tensor.as_ref().map_or(Residual::None, Residual::From)
}

fn gemm(call: &mut Call<'_>) -> Result<()> {
    let (a, b) = (call.tensor("a")?, call.tensor("b")?);
    let (bias, added) = (call.optional("bias")?, call.optional("residual")?);
    let transpose = |name| -> Result<Transpose> {
        Ok(match call.choice(name)? {
            Some("yes") => Transpose::Yes,
            _ => Transpose::No,
        })
    };
    let op = Gemm {
        a: transpose("transpose_a")?,
        b: transpose("transpose_b")?,
        alpha: call.number("alpha")?.unwrap_or(1.0) as f32,
        activation: chosen_activation(call)?,
        gating: Gating::None,
    };
    let (left, right) = (a.layout().as_matrices("a")?, b.layout().as_matrices("b")?);
    let batched = if left.batch >= right.batch { &a } else { &b };
    let mut shape = batched.shape()[..batched.shape().len() - 2].to_vec();
    shape.push(match op.a {
        Transpose::No => left.rows,
        Transpose::Yes => left.cols,
    });
    shape.push(match op.b {
        Transpose::No => right.cols,
        Transpose::Yes => right.rows,
    });
    let out = Tensor::empty(call.ctx(), call.dtype(&a)?, shape)?;
    let args = GemmArgs {
        bias: bias.as_ref(),
        residual: residual(&added),
        ..GemmArgs::new(&a, &b, &out)
    };
    call.ctx().record(|pass| op.run(pass, &args))?;
    call.output("out", out)
}

/// A tensor for rows of x times `weight`, which makes `factor` of its rows one column.
fn rows_out(call: &Call<'_>, x: &Tensor, weight: &Tensor, factor: usize) -> Result<Tensor> {
    let (Some((_, leading)), &[n, _]) = (x.shape().split_last(), weight.shape()) else {
        let (x, weight) = (x.shape(), weight.shape());
        bail!(
            "x and weight: shapes {x:?} and {weight:?}; allowed: [.., k] and two dimensions, [n, k]"
        );
    };
    let shape = [leading, &[n / factor]].concat();
    Ok(Tensor::empty(call.ctx(), call.dtype(x)?, shape)?)
}

/// `weight` in the format that is set.
fn in_format(call: &Call<'_>, weight: Tensor) -> Result<Tensor> {
    let Some(name) = call.choice("format")?.filter(|&n| n != "none") else {
        return Ok(weight);
    };
    let dtype = DType::Quant(name.parse()?);
    let quantised = Tensor::empty(call.ctx(), dtype, weight.shape())?;
    call.ctx()
        .record(|pass| quant::quantize(pass, &weight, &quantised))?;
    Ok(quantised)
}

fn there_and_back(call: &mut Call<'_>) -> Result<()> {
    let x = call.tensor("x")?;
    let dtype = call.dtype(&x)?;
    let quantised = in_format(call, x)?;
    if quantised.dtype().quant().is_none() {
        bail!("format: none; allowed: any other");
    }
    let y = Tensor::empty(call.ctx(), dtype, quantised.shape())?;
    call.ctx()
        .record(|pass| quant::dequantize(pass, &quantised, &y))?;
    call.output("y", y)
}

fn linear(call: &mut Call<'_>, streaming: Streaming) -> Result<()> {
    let (x, weight) = (call.tensor("x")?, in_format(call, call.tensor("weight")?)?);
    let (bias, added) = (call.optional("bias")?, call.optional("residual")?);
    let activation = chosen_activation(call)?;
    let out = rows_out(call, &x, &weight, 1)?;
    let args = LinearArgs {
        bias: bias.as_ref(),
        residual: residual(&added),
        ..LinearArgs::new(&x, &weight, &out)
    };
    call.ctx().record(|pass| match streaming {
        Streaming::IfFew => Linear { activation }.run(pass, args),
        Streaming::Always => {
            let gating = Gating::None;
            Gemv { activation, gating }.run(pass, &args)
        }
    })?;
    call.output("out", out)
}

fn gated_linear(call: &mut Call<'_>) -> Result<()> {
    let (x, weight) = (call.tensor("x")?, in_format(call, call.tensor("weight")?)?);
    let activation = chosen_activation(call)?;
    let out = rows_out(call, &x, &weight, 2)?;
    let args = GatedLinearArgs {
        x: &x,
        weight: &weight,
        norm: None,
        out: &out,
    };
    call.ctx()
        .record(|pass| GatedLinear { activation }.run(pass, args))?;
    call.output("out", out)
}
