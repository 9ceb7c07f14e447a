//! The operators of models that convolve: Hyena's over a prompt, SpaceTime's step by step.

use anyhow::{Result, bail};
use flashwave::kernels::fftconv::{ConvArgs, FftConv};
use flashwave::kernels::hyena::{Prompt, PromptArgs, Short};
use flashwave::kernels::spacetime::{Recurrence, RecurrenceArgs};
use flashwave::{Context, DType, Tensor};

use super::call::Call;
use super::entry::{Default, Entry, Kind, Output, Param, float, optional};

/// The kernels.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "hyena",
        about: "the Hyena operator over a prompt: x0 * conv(x1 * v, k), x0, x1 and v convolved briefly before",
        inputs: &[
            float("projection", "f32 [tokens, 3 channels]: x0, x1, v"),
            float(
                "short",
                "f32 [3 channels, taps + 1]: the oldest tap first, then the bias",
            ),
            float("k", "[channels, tokens]: the long filters"),
        ],
        params: &[],
        outputs: &[Output {
            name: "out",
            shape: "f32 [channels, tokens]",
        }],
        run: hyena,
    },
    Entry {
        name: "spacetime",
        about: "companion-matrix state spaces (SpaceTime) step by step, on inputs or on their own outputs",
        inputs: &[
            float("a", "f32 [channels, order]: the matrices' last columns"),
            float("b", "f32 [channels, order]: where the input enters"),
            float("c", "f32 [channels, order]: what the output sees"),
            float("d", "f32 [channels]: from the input to the output"),
            float("u", "f32 [channels, steps]; closed: [channels, 1]"),
            optional("state", "f32 [channels, order]; zeros"),
        ],
        params: &[
            Param {
                name: "loop",
                kind: Kind::Choice(&["open", "closed"]),
                default: Default::Value("open"),
                about: "inputs are u, or after the first the outputs before",
            },
            Param {
                name: "steps",
                kind: Kind::Count,
                default: Default::Derived("u's"),
                about: "outputs of the closed loop",
            },
        ],
        outputs: &[
            Output {
                name: "out",
                shape: "f32 [channels, steps]",
            },
            Output {
                name: "state",
                shape: "f32 [channels, order]",
            },
        ],
        run: spacetime,
    },
];

fn zeros(ctx: &Context, shape: [usize; 2]) -> Result<Tensor> {
    let values = vec![0.0f32; shape[0] * shape[1]];
    Ok(Tensor::from_slice(ctx, &values, shape)?)
}

fn hyena(call: &mut Call<'_>) -> Result<()> {
    let (projection, weights, k) = (
        call.tensor("projection")?,
        call.tensor("short")?,
        call.tensor("k")?,
    );
    let (&[tokens, projected], &[channels, _]) = (projection.shape(), k.shape()) else {
        bail!("inputs projection and k: allowed: two dimensions each");
    };
    let taps = weights
        .shape()
        .last()
        .map_or(0, |&columns| columns.max(1) - 1);
    let state = zeros(call.ctx(), [taps.max(2) - 1, projected])?;
    let empty = || Tensor::empty(call.ctx(), DType::F32, [channels, tokens]);
    let (gate, z, out) = (empty()?, empty()?, empty()?);
    let filter = FftConv::causal().filter(&k, None, tokens)?;
    call.ctx().record(|pass| {
        let short = Short {
            weights: &weights,
            state: &state,
        };
        Prompt.run(
            pass,
            PromptArgs {
                projection: &projection,
                short,
                gate: &gate,
                z: &z,
            },
        )?;
        filter.run(pass, &ConvArgs::new(&z, &out).gate_out(&gate))
    })?;
    call.output("out", out)
}

fn spacetime(call: &mut Call<'_>) -> Result<()> {
    let [a, b, c, d, u] = ["a", "b", "c", "d", "u"].map(|name| call.tensor(name));
    let (a, b, c, d, u) = (a?, b?, c?, d?, u?);
    let (&[channels, order], &[_, given]) = (a.shape(), u.shape()) else {
        bail!("inputs a and u: allowed: two dimensions each");
    };
    let (form, steps) = match call.choice("loop")? {
        Some("closed") => (
            Recurrence::ClosedLoop,
            call.count("steps")?.unwrap_or(given),
        ),
        _ => (Recurrence::OpenLoop, given),
    };
    let state = match call.optional("state")? {
        Some(state) => state,
        None => zeros(call.ctx(), [channels, order])?,
    };
    let out = Tensor::empty(call.ctx(), DType::F32, [channels, steps])?;
    let args = RecurrenceArgs {
        a: &a,
        b: &b,
        c: &c,
        d: &d,
        u: &u,
        state: &state,
        y: &out,
    };
    call.ctx().record(|pass| form.run(pass, args))?;
    call.output("out", out)?;
    call.output("state", state)
}
