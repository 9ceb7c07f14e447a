//! Sparse MLPs and products.

use anyhow::{Result, bail};
use flashwave::Tensor;
use flashwave::kernels::gemm::{Gating, Residual};
use flashwave::kernels::mlp::{
    Keep, Predictor, SparseLinear, SparseLinearArgs, SparseMlp, SparseMlpArgs,
};

use super::call::Call;
use super::dense::{ACTIVATION, activation, chosen_activation};
use super::entry::{DTYPE, Default, Entry, Kind, Output, Param, float, optional};

const THRESHOLD: Param = Param {
    name: "threshold",
    kind: Kind::Number,
    default: Default::Value("0"),
    about: "what a magnitude has to be above",
};

const OUT: &[Output] = &[Output {
    name: "out",
    shape: "[.., n]",
}];

/// The kernels.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "sparse_mlp",
        about: "gated MLP of the neurons whose |F(gate)| is above the threshold, plus residual (CATS)",
        inputs: &[
            float("x", "[.., k], at most 16 rows"),
            float("gate", "[n, k]"),
            float("pairs", "[n, 2k]: a neuron's up row, then its down column"),
            optional("residual", "[.., k]"),
        ],
        params: &[activation("silu"), THRESHOLD, DTYPE],
        outputs: &[Output {
            name: "out",
            shape: "[.., k]",
        }],
        run: mlp,
    },
    Entry {
        name: "sparse_linear",
        about: "F(x weight) + residual of the inputs whose magnitude is above the threshold (TEAL)",
        inputs: &[
            float("x", "[.., k], at most 16 rows"),
            float(
                "weight",
                "[k, n], or [k, 2n] gated: gate columns, then up columns",
            ),
            optional("residual", "[.., n]"),
        ],
        params: &[
            ACTIVATION,
            THRESHOLD,
            Param {
                name: "gated",
                kind: Kind::Choice(&["no", "yes"]),
                default: Default::Value("no"),
                about: "F(gate) * up",
            },
            DTYPE,
        ],
        outputs: OUT,
        run: linear,
    },
    Entry {
        name: "predict",
        about: "neurons whose score up (down x) is above the threshold for some row, ascending (PowerInfer)",
        inputs: &[
            float("x", "[.., k], at most 16 rows"),
            float("down", "[r, k]"),
            float("up", "[n, r]"),
        ],
        params: &[THRESHOLD],
        outputs: &[Output {
            name: "listed",
            shape: "[1 + n], u32: how many, then which",
        }],
        run: predict,
    },
    Entry {
        name: "keep",
        about: "F(a) b where |F(a)| is above the threshold, 0 elsewhere",
        inputs: &[float("a", "[.., n]"), optional("b", "[.., n]")],
        params: &[ACTIVATION, THRESHOLD, DTYPE],
        outputs: OUT,
        run: keep,
    },
];

fn threshold(call: &Call<'_>) -> Result<f32> {
    Ok(call.number("threshold")?.unwrap_or(0.0) as f32)
}

fn mlp(call: &mut Call<'_>) -> Result<()> {
    let (x, gate, pairs) = (
        call.tensor("x")?,
        call.tensor("gate")?,
        call.tensor("pairs")?,
    );
    let residual = call.optional("residual")?;
    let out = Tensor::empty(call.ctx(), call.dtype(&x)?, x.shape())?;
    let op = SparseMlp {
        activation: chosen_activation(call)?,
        threshold: threshold(call)?,
    };
    let args = SparseMlpArgs {
        residual: residual.as_ref().map_or(Residual::None, Residual::From),
        ..SparseMlpArgs::new(&x, &gate, &pairs, &out)
    };
    call.ctx().record(|pass| op.run(pass, &args))?;
    call.output("out", out)
}

fn linear(call: &mut Call<'_>) -> Result<()> {
    let (x, weight) = (call.tensor("x")?, call.tensor("weight")?);
    let residual = call.optional("residual")?;
    let (Some((_, leading)), &[_, columns]) = (x.shape().split_last(), weight.shape()) else {
        let (x, weight) = (x.shape(), weight.shape());
        bail!("x and weight: shapes {x:?} and {weight:?}; allowed: [.., k] and [k, n]");
    };
    let (gating, factor) = match call.choice("gated")? {
        Some("yes") => (Gating::GateUp, 2),
        _ => (Gating::None, 1),
    };
    let shape = [leading, &[columns / factor]].concat();
    let out = Tensor::empty(call.ctx(), call.dtype(&x)?, shape)?;
    let op = SparseLinear {
        activation: chosen_activation(call)?,
        gating,
        threshold: threshold(call)?,
    };
    let args = SparseLinearArgs {
        residual: residual.as_ref().map_or(Residual::None, Residual::From),
        ..SparseLinearArgs::new(&x, &weight, &out)
    };
    call.ctx().record(|pass| op.run(pass, &args))?;
    call.output("out", out)
}

fn predict(call: &mut Call<'_>) -> Result<()> {
    let (x, down, up) = (call.tensor("x")?, call.tensor("down")?, call.tensor("up")?);
    let predictor = Predictor::new(down, up, threshold(call)?)?;
    let rows = x.layout().as_rows("x")?.rows;
    let to = predictor.memory(call.ctx(), rows)?;
    // Beyond the list there is nothing.
    to.listed.write(&vec![0u32; to.listed.len()])?;
    call.ctx()
        .record(|pass| predictor.run(pass, &x, None, &to))?;
    call.output("listed", to.listed)
}

fn keep(call: &mut Call<'_>) -> Result<()> {
    let (a, b) = (call.tensor("a")?, call.optional("b")?);
    let out = Tensor::empty(call.ctx(), call.dtype(&a)?, a.shape())?;
    let op = Keep {
        activation: chosen_activation(call)?,
        threshold: threshold(call)?,
    };
    call.ctx()
        .record(|pass| op.run(pass, &a, b.as_ref(), &out))?;
    call.output("out", out)
}
