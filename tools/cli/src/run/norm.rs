//! Normalisation of rows.

use anyhow::Result;
use flashwave::Tensor;
use flashwave::kernels::norm::{Norm, NormArgs, NormKind, Residual};

use super::call::Call;
use super::entry::{DTYPE, Default, Entry, Input, Kind, Output, Param, float, optional};

const INPUTS: [Input; 4] = [
    float("x", "[.., n]"),
    optional("weight", "[n]"),
    optional("bias", "[n]"),
    optional("residual", "[.., n], added to x first"),
];

const PARAMS: [Param; 2] = [
    Param {
        name: "eps",
        kind: Kind::Number,
        default: Default::Value("1e-5"),
        about: "added to the mean square or variance",
    },
    DTYPE,
];

const OUTPUTS: [Output; 2] = [
    Output {
        name: "out",
        shape: "[.., n]",
    },
    Output {
        name: "sum",
        shape: "x + residual, where there is one",
    },
];

/// The kernels.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "rms_norm",
        about: "x / sqrt(mean(x^2) + eps) * weight + bias",
        inputs: &INPUTS,
        params: &PARAMS,
        outputs: &OUTPUTS,
        run: |call| norm(call, NormKind::Rms),
    },
    Entry {
        name: "layer_norm",
        about: "(x - mean) / sqrt(variance + eps) * weight + bias",
        inputs: &INPUTS,
        params: &PARAMS,
        outputs: &OUTPUTS,
        run: |call| norm(call, NormKind::Layer),
    },
];

fn norm(call: &mut Call<'_>, kind: NormKind) -> Result<()> {
    let x = call.tensor("x")?;
    let (weight, bias) = (call.optional("weight")?, call.optional("bias")?);
    let eps = call.number("eps")?.unwrap_or(0.0) as f32;
    let out = Tensor::empty(call.ctx(), call.dtype(&x)?, x.shape())?;
    let added = match call.optional("residual")? {
        Some(add) => Some((add, Tensor::empty(call.ctx(), x.dtype(), x.shape())?)),
        None => None,
    };
    let args = NormArgs {
        x: &x,
        residual: match &added {
            Some((add, sum)) => Residual::Into { add, sum },
            None => Residual::None,
        },
        weight: weight.as_ref(),
        bias: bias.as_ref(),
        y: &out,
    };
    call.ctx()
        .record(|pass| Norm { kind, eps }.run(pass, args))?;
    call.output("out", out)?;
    match added {
        Some((_, sum)) => call.output("sum", sum),
        None => Ok(()),
    }
}
