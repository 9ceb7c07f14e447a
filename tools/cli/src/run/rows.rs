//! Softmax and selection over the last dimension.

use anyhow::{Result, anyhow, bail};
use flashwave::kernels::select::{ArgMax, TopK};
use flashwave::kernels::softmax::{Softmax, SoftmaxKind};
use flashwave::{DType, Tensor};

use super::call::Call;
use super::entry::{DTYPE, Default, Entry, Input, Kind, Output, Param, float, optional};

const INPUTS: [Input; 2] = [
    float("x", "[.., n]"),
    optional(
        "mask",
        "[.., n], added to scale x; its rows repeat over those of x",
    ),
];

const PARAMS: [Param; 2] = [
    Param {
        name: "scale",
        kind: Kind::Number,
        default: Default::Value("1"),
        about: "multiplies x",
    },
    DTYPE,
];

const OUT: &[Output] = &[Output {
    name: "out",
    shape: "[.., n]",
}];

/// The kernels.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "softmax",
        about: "exp(v) / sum(exp(v)) of v = scale x + mask",
        inputs: &INPUTS,
        params: &PARAMS,
        outputs: OUT,
        run: |call| softmax(call, SoftmaxKind::Softmax),
    },
    Entry {
        name: "log_softmax",
        about: "v - log(sum(exp(v))) of v = scale x + mask",
        inputs: &INPUTS,
        params: &PARAMS,
        outputs: OUT,
        run: |call| softmax(call, SoftmaxKind::Log),
    },
    Entry {
        name: "argmax",
        about: "the place of every row's greatest element, the first among equals",
        inputs: &[float("x", "[.., n]")],
        params: &[],
        outputs: &[
            Output {
                name: "index",
                shape: "u32 [..]",
            },
            Output {
                name: "value",
                shape: "f32 [..]",
            },
        ],
        run: argmax,
    },
    Entry {
        name: "top_k",
        about: "the k greatest elements of every row, greatest first, the first among equals",
        inputs: &[float("x", "[.., n]")],
        params: &[Param {
            name: "k",
            kind: Kind::Count,
            default: Default::Derived("has to be set"),
            about: "how many, at most n",
        }],
        outputs: &[
            Output {
                name: "values",
                shape: "f32 [.., k]",
            },
            Output {
                name: "indices",
                shape: "u32 [.., k]",
            },
        ],
        run: top_k,
    },
];

fn softmax(call: &mut Call<'_>, kind: SoftmaxKind) -> Result<()> {
    let (x, mask) = (call.tensor("x")?, call.optional("mask")?);
    let scale = call.number("scale")?.unwrap_or(1.0) as f32;
    let out = Tensor::empty(call.ctx(), call.dtype(&x)?, x.shape())?;
    let op = Softmax { kind, scale };
    call.ctx()
        .record(|pass| op.run(pass, &x, mask.as_ref(), &out))?;
    call.output("out", out)
}

/// x's shape without its last dimension.
fn leading(x: &Tensor) -> Result<&[usize]> {
    let (_, leading) = x
        .shape()
        .split_last()
        .ok_or_else(|| anyhow!("input x: shape []; allowed: one or more dimensions"))?;
    Ok(leading)
}

fn argmax(call: &mut Call<'_>) -> Result<()> {
    let x = call.tensor("x")?;
    let index = Tensor::empty(call.ctx(), DType::U32, leading(&x)?)?;
    let value = Tensor::empty(call.ctx(), DType::F32, leading(&x)?)?;
    call.ctx()
        .record(|pass| ArgMax::default().run(pass, &x, &index, Some(&value)))?;
    call.output("index", index)?;
    call.output("value", value)
}

fn top_k(call: &mut Call<'_>) -> Result<()> {
    let x = call.tensor("x")?;
    let most = x.shape().last().copied().unwrap_or(1);
    let Some(k) = call.count("k")?.filter(|k| (1..=most).contains(k)) else {
        let was = call.count("k")?.map_or("not set".into(), |k| k.to_string());
        bail!("k: {was}; allowed: 1 to {most}");
    };
    let (values, indices) = TopK::default().forward(&x, k)?;
    call.output("values", values)?;
    call.output("indices", indices)
}
