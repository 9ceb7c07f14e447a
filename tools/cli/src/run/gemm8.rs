//! Products of 8-bit operands, and quantisation of rows.

use anyhow::{Result, bail};
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::gemm8::{
    Gemm8, Gemm8Args, LlmInt8, LlmInt8Args, Operand, Quantize, QuantizeArgs, Scales,
};
use flashwave::{DType, Tensor};
use safetensors::Dtype;

use super::call::Call;
use super::dense::residual;
use super::entry::{
    DTYPE, Default, Entry, Input, Kind, Need, Output, Param, float, optional, optional_f32,
};

const fn codes(name: &'static str, shape: &'static str) -> Input {
    Input {
        name,
        dtypes: &[Dtype::I8, Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::F16],
        shape,
        need: Need::Required,
    }
}

const fn int8(name: &'static str, shape: &'static str) -> Input {
    Input {
        dtypes: &[Dtype::I8],
        ..codes(name, shape)
    }
}

const OUT: &[Output] = &[Output {
    name: "out",
    shape: "[.., n]",
}];

/// The kernels.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "gemm8",
        about: "a b^T of codes times their scales, + bias, + residual: exact integers for int8 by int8",
        inputs: &[
            codes("a", "[.., m, k]"),
            codes("b", "[n, k]"),
            optional_f32("a_scales", "[1] or [rows]"),
            optional_f32("b_scales", "[1] or [n]"),
            optional("bias", "[n]"),
            optional("residual", "[.., m, n]"),
        ],
        params: &[DTYPE],
        outputs: OUT,
        run: gemm8,
    },
    Entry {
        name: "quantize_int8",
        about: "rows as int8: x = scale (code - zero), after an RMSNorm if there is a weight for it",
        inputs: &[float("x", "[.., k]"), optional("weight", "[k]")],
        params: &[
            Param {
                name: "codes",
                kind: Kind::Choice(&["symmetric", "asymmetric"]),
                default: Default::Value("symmetric"),
                about: "between -max and max, or between the least and the largest number",
            },
            Param {
                name: "eps",
                kind: Kind::Number,
                default: Default::Value("1e-5"),
                about: "added to the norm's mean square",
            },
        ],
        outputs: &[
            Output {
                name: "codes",
                shape: "[.., k] of i8",
            },
            Output {
                name: "scales",
                shape: "[rows] of f32",
            },
            Output {
                name: "zeros",
                shape: "[rows, 2] of i32: the code of zero, the sum of the codes",
            },
        ],
        run: quantize,
    },
    Entry {
        name: "llm_int8",
        about: "x weight^T with x in int8 but for columns of outliers, which are f16: LLM.int8()",
        inputs: &[
            float("x", "[.., m, k]"),
            int8("weight", "[n, k]"),
            Input {
                need: Need::Required,
                ..optional_f32("scales", "[n]")
            },
            optional("bias", "[n]"),
            optional("residual", "[.., m, n]"),
        ],
        params: &[
            Param {
                name: "threshold",
                kind: Kind::Number,
                default: Default::Value("6"),
                about: "the least outlier's magnitude",
            },
            Param {
                name: "most",
                kind: Kind::Count,
                default: Default::Value("256"),
                about: "columns taken apart at most, a multiple of 16",
            },
            DTYPE,
        ],
        outputs: OUT,
        run: llm_int8,
    },
];

/// A tensor for rows of x times rows of `weight`: f32 unless x is of another floating-point type, or --set says so.
fn out(call: &Call<'_>, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (Some((_, leading)), &[n, _]) = (x.shape().split_last(), weight.shape()) else {
        let (x, weight) = (x.shape(), weight.shape());
        bail!("shapes {x:?} and {weight:?}; allowed: [.., k] and two dimensions, [n, k]");
    };
    let dtype = match call.dtype(x)? {
        dtype if dtype.is_float() => dtype,
        _ => DType::F32,
    };
    Ok(Tensor::empty(call.ctx(), dtype, [leading, &[n]].concat())?)
}

fn operand<'a>(codes: &'a Tensor, scales: &'a Option<Tensor>) -> Operand<'a, Tensor> {
    Operand {
        codes,
        scales: match scales {
            None => Scales::None,
            Some(one) if one.shape() == [1] => Scales::Tensor(one),
            Some(rows) => Scales::Rows(rows),
        },
        zeros: None,
    }
}

fn gemm8(call: &mut Call<'_>) -> Result<()> {
    let (a, b) = (call.tensor("a")?, call.tensor("b")?);
    let (a_scales, b_scales) = (call.optional("a_scales")?, call.optional("b_scales")?);
    let (bias, added) = (call.optional("bias")?, call.optional("residual")?);
    let out = out(call, &a, &b)?;
    let args = Gemm8Args {
        bias: bias.as_ref(),
        residual: residual(&added),
        ..Gemm8Args::new(operand(&a, &a_scales), operand(&b, &b_scales), &out)
    };
    call.ctx()
        .record(|pass| Gemm8::default().run(pass, &args))?;
    call.output("out", out)
}

fn quantize(call: &mut Call<'_>) -> Result<()> {
    let (x, weight) = (call.tensor("x")?, call.optional("weight")?);
    let how = match call.choice("codes")? {
        Some("asymmetric") => Quantize::Asymmetric,
        _ => Quantize::Symmetric,
    };
    let eps = call.number("eps")?.unwrap_or(1e-5) as f32;
    let rows = x.layout().as_rows("x")?.rows;
    let codes = Tensor::empty(call.ctx(), DType::I8, x.shape())?;
    let scales = Tensor::empty(call.ctx(), DType::F32, [rows])?;
    let zeros = Tensor::empty(call.ctx(), DType::I32, [rows, 2])?;
    let args = QuantizeArgs {
        norm: weight.as_ref().map(|w| (w, eps)),
        zeros: Some(&zeros),
        ..QuantizeArgs::new(&x, &codes, &scales)
    };
    call.ctx().record(|pass| how.run(pass, &args))?;
    call.output("codes", codes)?;
    call.output("scales", scales)?;
    call.output("zeros", zeros)
}

fn llm_int8(call: &mut Call<'_>) -> Result<()> {
    let (x, weight, scales) = (
        call.tensor("x")?,
        call.tensor("weight")?,
        call.tensor("scales")?,
    );
    let (bias, added) = (call.optional("bias")?, call.optional("residual")?);
    let out = out(call, &x, &weight)?;
    let op = LlmInt8 {
        threshold: call.number("threshold")?.unwrap_or(6.0) as f32,
        most: call.count("most")?.unwrap_or(256),
        activation: Activation::None,
    };
    let args = LlmInt8Args {
        x: &x,
        weight: Operand::rows(&weight, &scales),
        bias: bias.as_ref(),
        residual: residual(&added),
        out: &out,
    };
    call.ctx().record(|pass| op.run(pass, &args))?;
    call.output("out", out)
}
