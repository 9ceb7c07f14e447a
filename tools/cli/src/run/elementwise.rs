//! Activations, sums, products, casts.

use anyhow::{Result, bail};
use flashwave::Tensor;
use flashwave::kernels::elementwise::{Activation, Binary, BinaryOp, Unary};

use super::call::Call;
use super::entry::{DTYPE, Default, Entry, Kind, Output, Param, float};

const OUT: &[Output] = &[Output {
    name: "out",
    shape: "the input's shape",
}];

/// The kernels.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "silu",
        about: "x / (1 + exp(-x))",
        inputs: &[float("x", "any shape")],
        params: &[DTYPE],
        outputs: OUT,
        run: |call| unary(call, Activation::Silu),
    },
    Entry {
        name: "gelu",
        about: "x/2 (1 + erf(x / sqrt 2)), or its approximation by tanh",
        inputs: &[float("x", "any shape")],
        params: &[
            Param {
                name: "approximate",
                kind: Kind::Choice(&["none", "tanh"]),
                default: Default::Value("none"),
                about: "the formula",
            },
            DTYPE,
        ],
        outputs: OUT,
        run: |call| {
            let f = match call.choice("approximate")? {
                Some("tanh") => Activation::GeluTanh,
                _ => Activation::GeluErf,
            };
            unary(call, f)
        },
    },
    Entry {
        name: "relu",
        about: "max(x, 0)",
        inputs: &[float("x", "any shape")],
        params: &[DTYPE],
        outputs: OUT,
        run: |call| unary(call, Activation::Relu),
    },
    Entry {
        name: "cast",
        about: "x in another element type, rounded to nearest",
        inputs: &[float("x", "any shape")],
        params: &[DTYPE],
        outputs: OUT,
        run: |call| unary(call, Activation::None),
    },
    Entry {
        name: "swiglu",
        about: "silu(gate) * up",
        inputs: &[float("gate", "any shape"), float("up", "the shape of gate")],
        params: &[DTYPE],
        outputs: OUT,
        run: |call| binary(call, BinaryOp::Gated(Activation::Silu), ["gate", "up"]),
    },
    Entry {
        name: "add",
        about: "a + b",
        inputs: &[float("a", "any shape"), float("b", "the shape of a")],
        params: &[DTYPE],
        outputs: OUT,
        run: |call| binary(call, BinaryOp::Add, ["a", "b"]),
    },
    Entry {
        name: "mul",
        about: "a * b",
        inputs: &[float("a", "any shape"), float("b", "the shape of a")],
        params: &[DTYPE],
        outputs: OUT,
        run: |call| binary(call, BinaryOp::Mul, ["a", "b"]),
    },
];

fn unary(call: &mut Call<'_>, f: Activation) -> Result<()> {
    let x = call.tensor("x")?;
    let out = Unary(f).forward_as(&x, call.dtype(&x)?)?;
    call.output("out", out)
}

fn binary(call: &mut Call<'_>, op: BinaryOp, [a, b]: [&str; 2]) -> Result<()> {
    let (ta, tb) = (call.tensor(a)?, call.tensor(b)?);
    if ta.shape() != tb.shape() {
        let (was, allowed) = (tb.shape(), ta.shape());
        bail!("input {b}: shape {was:?}; allowed: the shape of {a}, {allowed:?}");
    }
    let out = Tensor::empty(call.ctx(), call.dtype(&ta)?, ta.shape())?;
    call.ctx()
        .record(|pass| Binary(op).run(pass, &ta, &tb, &out))?;
    call.output("out", out)
}
