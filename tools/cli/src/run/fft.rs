//! Transforms, long and short convolutions.

use anyhow::{Result, bail};
use flashwave::Tensor;
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::fft::{Fft, Normalization, RealFft};
use flashwave::kernels::fftconv::{ConvArgs, FftConv, Pattern};
use flashwave::kernels::shortconv::{ShortConv, ShortConvArgs, State};

use super::call::Call;
use super::entry::{DTYPE, Default, Entry, Kind, Output, Param, float, optional};

const NORMALIZATION: Param = Param {
    name: "normalization",
    kind: Kind::Choice(&["none", "by_length", "orthonormal"]),
    default: Default::Derived("none forward, by_length inverse"),
    about: "factor: 1, 1 / n, 1 / sqrt(n)",
};

const DIRECTION: Param = Param {
    name: "direction",
    kind: Kind::Choice(&["forward", "inverse"]),
    default: Default::Value("forward"),
    about: "sign of the exponent: minus, plus",
};

/// The kernels.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "fft",
        about: "discrete Fourier transform of any length up to 2^22",
        inputs: &[float("x", "[.., n, 2]: real, imaginary")],
        params: &[DIRECTION, NORMALIZATION, DTYPE],
        outputs: &[Output {
            name: "out",
            shape: "[.., n, 2]",
        }],
        run: fft,
    },
    Entry {
        name: "real_fft",
        about: "discrete Fourier transform of real sequences, and back",
        inputs: &[float("x", "[.., n]; inverse: [.., n / 2 + 1, 2]")],
        params: &[
            DIRECTION,
            NORMALIZATION,
            Param {
                name: "length",
                kind: Kind::Count,
                default: Default::Derived("twice the frequencies less two"),
                about: "points of the inverse",
            },
            DTYPE,
        ],
        outputs: &[Output {
            name: "out",
            shape: "[.., n / 2 + 1, 2]; inverse: [.., n]",
        }],
        run: real_fft,
    },
    Entry {
        name: "fft_conv",
        about: "long convolution by FFT: w * (conv(u * v, k) + d * u * v)",
        inputs: &[
            float("u", "[batch, channels, length]"),
            float("k", "[channels, taps], taps <= length"),
            optional("v", "u's"),
            optional("w", "u's"),
            optional("d", "[channels]"),
        ],
        params: &[
            Param {
                name: "boundary",
                kind: Kind::Choice(&["causal", "circular"]),
                default: Default::Value("causal"),
                about: "zeros before the first element, or the sequence's end",
            },
            Param {
                name: "arithmetic",
                kind: Kind::Choice(&["full", "half"]),
                default: Default::Value("full"),
                about: "f32, or f16 on matrix units where the device has them",
            },
            Param {
                name: "kept",
                kind: Kind::Count,
                default: Default::Derived("all"),
                about: "frequencies of each period that the filter keeps; for half",
            },
            DTYPE,
        ],
        outputs: &[Output {
            name: "out",
            shape: "u's",
        }],
        run: fft_conv,
    },
    Entry {
        name: "short_conv",
        about: "depthwise causal convolution with 2 to 16 taps",
        inputs: &[
            float("x", "[batch, channels, length]"),
            float("weight", "[channels, taps]: [c, j] multiplies x[t - j]"),
            optional("bias", "[channels]"),
        ],
        params: &[
            Param {
                name: "activation",
                kind: Kind::Choice(&[
                    "none",
                    "relu",
                    "relu_squared",
                    "silu",
                    "gelu_tanh",
                    "gelu_erf",
                ]),
                default: Default::Value("none"),
                about: "applied to the sum",
            },
            DTYPE,
        ],
        outputs: &[Output {
            name: "out",
            shape: "x's",
        }],
        run: short_conv,
    },
];

fn normalization(call: &Call<'_>, inverse: bool) -> Result<Normalization> {
    Ok(match call.choice("normalization")? {
        Some("by_length") => Normalization::ByLength,
        Some("orthonormal") => Normalization::Orthonormal,
        None if inverse => Normalization::ByLength,
        _ => Normalization::None,
    })
}

fn fft(call: &mut Call<'_>) -> Result<()> {
    let x = call.tensor("x")?;
    let inverse = call.choice("direction")? == Some("inverse");
    let fft = if inverse {
        Fft::inverse()
    } else {
        Fft::forward()
    };
    let fft = fft.normalization(normalization(call, inverse)?);
    let out = Tensor::empty(call.ctx(), call.dtype(&x)?, x.shape())?;
    call.ctx().record(|pass| fft.run(pass, &x, &out))?;
    call.output("out", out)
}

fn real_fft(call: &mut Call<'_>) -> Result<()> {
    let x = call.tensor("x")?;
    let inverse = call.choice("direction")? == Some("inverse");
    let mut shape = x.shape().to_vec();
    let fft = if inverse {
        let (Some(2), Some(frequencies)) = (shape.pop(), shape.pop()) else {
            bail!("input x: {:?}; allowed: [.., n / 2 + 1, 2]", x.layout());
        };
        let derived = 2 * frequencies.max(2) - 2;
        shape.push(call.count("length")?.unwrap_or(derived));
        RealFft::inverse()
    } else {
        let Some(n) = shape.pop() else {
            bail!("input x: a scalar; allowed: [.., n]");
        };
        shape.extend([n / 2 + 1, 2]);
        RealFft::forward()
    };
    let fft = fft.normalization(normalization(call, inverse)?);
    let out = Tensor::empty(call.ctx(), call.dtype(&x)?, shape)?;
    call.ctx().record(|pass| fft.run(pass, &x, &out))?;
    call.output("out", out)
}

fn fft_conv(call: &mut Call<'_>) -> Result<()> {
    let (u, k) = (call.tensor("u")?, call.tensor("k")?);
    let (v, w, d) = (
        call.optional("v")?,
        call.optional("w")?,
        call.optional("d")?,
    );
    let conv = match call.choice("boundary")? {
        Some("circular") => FftConv::circular(),
        _ => FftConv::causal(),
    };
    let conv = match call.choice("arithmetic")? {
        Some("half") => conv.half(),
        _ => conv,
    };
    let conv = match call.count("kept")? {
        Some(kept) => conv.sparse(Pattern::Kept(u32::try_from(kept)?)),
        None => conv,
    };
    let length = u.shape().last().copied().unwrap_or(0);
    let filter = conv.filter(&k, d.as_ref(), length)?;
    let out = Tensor::empty(call.ctx(), call.dtype(&u)?, u.shape())?;
    let args = ConvArgs {
        u: &u,
        gate_in: v.as_ref(),
        gate_out: w.as_ref(),
        y: &out,
    };
    call.ctx().record(|pass| filter.run(pass, &args))?;
    call.output("out", out)
}

fn short_conv(call: &mut Call<'_>) -> Result<()> {
    let (x, weight) = (call.tensor("x")?, call.tensor("weight")?);
    let bias = call.optional("bias")?;
    let name = call.choice("activation")?;
    let found = Activation::ALL.into_iter().find(|a| Some(a.name()) == name);
    let activation = found.unwrap_or(Activation::None);
    let out = Tensor::empty(call.ctx(), call.dtype(&x)?, x.shape())?;
    let args = ShortConvArgs {
        x: &x,
        weight: &weight,
        bias: bias.as_ref(),
        state: State::None,
        y: &out,
    };
    call.ctx()
        .record(|pass| ShortConv { activation }.run(pass, &args))?;
    call.output("out", out)
}
