//! Short depthwise causal convolutions, as in front of the gates of long-convolution and state-space models.

mod backward;

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::elementwise::Activation;
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

pub use backward::{GradientPlan, Gradients};

/// Elements that an invocation has.
const RUN: usize = 4;
/// Invocations of a workgroup.
const WORKGROUP: usize = 64;

/// What lies before the first element of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State<T> {
    /// Zeros.
    None,
    /// The last taps - 1 inputs so far, oldest first, [batch, channels, taps - 1] f32, contiguous; replaced by those after this
    /// sequence.
    Update(T),
}

/// Operands: tensors to run it, layouts to plan it. x and y are [batch, channels, length] with any strides, so that a transposed
/// view of token-major data will do for either; all but the state are f32, f16 or bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortConvArgs<T> {
    /// What is convolved.
    pub x: T,
    /// [channels, taps], 2 to 16 of them: weight[c, j] multiplies x[t - j].
    pub weight: T,
    /// \[channels\], added.
    pub bias: Option<T>,
    /// What lies before.
    pub state: State<T>,
    /// The result.
    pub y: T,
}

/// y[b, c, t] = f(bias\[c\] + sum over j of weight[c, j] x[b, c, t - j]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShortConv {
    /// f.
    pub activation: Activation,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Place {
    offset: u32,
    batch: u32,
    channel: u32,
    time: u32,
}

impl Place {
    fn of(l: &Layout) -> Self {
        Self {
            offset: l.offset() as u32,
            batch: l.strides()[0] as u32,
            channel: l.strides()[1] as u32,
            time: l.strides()[2] as u32,
        }
    }
}

/// Mirrors `Params` of shortconv.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    batch: u32,
    channels: u32,
    length: u32,
    runs: u32,
    x: Place,
    y: Place,
    weight_offset: u32,
    weight_channel: u32,
    bias_offset: u32,
    bias_channel: u32,
    state_offset: u32,
}

/// Mirrors `Params` of state.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StateParams {
    batch: u32,
    channels: u32,
    length: u32,
    x: Place,
    state_offset: u32,
}

/// The dispatches of a short convolution.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The convolution.
    pub convolve: Launch,
    /// The state's update, where a sequence has several invocations.
    pub update: Option<Launch>,
}

impl ShortConv {
    /// Plans the dispatches. Errors name the operand whose type or shape does not fit, or taps that are not 2 to 16.
    pub fn plan(self, caps: &Capabilities, args: &ShortConvArgs<&Layout>) -> Result<Plan> {
        let ShortConvArgs {
            x,
            weight,
            bias,
            state,
            y,
        } = *args;
        for (name, layout) in [
            ("x", Some(x)),
            ("weight", Some(weight)),
            ("bias", bias),
            ("y", Some(y)),
        ] {
            layout.map_or(Ok(()), |l| l.require_float(name))?;
        }
        let [batch, channels, length] = *x.shape() else {
            return Err(Error::argument(
                "x",
                format!("{x:?}"),
                "[batch, channels, length]",
            ));
        };
        let [weights, taps] = *weight.shape() else {
            return Err(Error::argument(
                "weight",
                format!("{weight:?}"),
                "[channels, taps]",
            ));
        };
        if weights != channels || !(2..=16).contains(&taps) || weight.strides()[1] != 1 {
            let allowed = format!("[{channels}, 2 to 16], adjacent taps");
            return Err(Error::argument("weight", format!("{weight:?}"), allowed));
        }
        if let Some(bias) = bias {
            bias.require_shape("bias", &[channels])?;
        }
        y.require_shape("y", x.shape())?;
        let state = match state {
            State::None => None,
            State::Update(state) => {
                state.require_dtype("state", DType::F32)?;
                state.require_shape("state", &[batch, channels, taps - 1])?;
                if !state.is_contiguous() {
                    return Err(Error::argument("state", format!("{state:?}"), "contiguous"));
                }
                Some(state)
            }
        };
        let aligned = |l: &Layout| {
            let s = l.strides();
            let spaced =
                (batch == 1 || s[0].is_multiple_of(4)) && (channels == 1 || s[1].is_multiple_of(4));
            s[2] == 1 && l.offset().is_multiple_of(4) && spaced
        };
        let vec = if length.is_multiple_of(4) && aligned(x) && aligned(y) {
            4
        } else {
            1
        };
        let runs = length.div_ceil(RUN);
        let here = runs == 1;
        let inner = if channels > 1 && x.strides()[1] < x.strides()[2] {
            "channel"
        } else {
            "time"
        };
        let recipe = Recipe::new("shortconv/shortconv")
            .with("K", taps as u32)
            .with("F", self.activation.name())
            .with("X", x.dtype())
            .with("W", weight.dtype())
            .with("BIAS", bias.map(Layout::dtype))
            .with("STATE", u32::from(state.is_some()))
            .with("UPDATE", u32::from(state.is_some() && here))
            .with("Y", y.dtype())
            .with("VEC", vec)
            .with("INNER", inner);
        let params = Params {
            batch: batch as u32,
            channels: channels as u32,
            length: length as u32,
            runs: runs as u32,
            x: Place::of(x),
            y: Place::of(y),
            weight_offset: weight.offset() as u32,
            weight_channel: weight.strides()[0] as u32,
            bias_offset: bias.map_or(0, Layout::offset) as u32,
            bias_channel: bias.map_or(0, |b| b.strides()[0]) as u32,
            state_offset: state.map_or(0, Layout::offset) as u32,
        };
        let grid = |count: usize| linear_grid(caps, count.div_ceil(WORKGROUP));
        let update = match state {
            Some(state) if !here => {
                let recipe = Recipe::new("shortconv/state")
                    .with("K", taps as u32)
                    .with("X", x.dtype());
                let params = StateParams {
                    batch: batch as u32,
                    channels: channels as u32,
                    length: length as u32,
                    x: Place::of(x),
                    state_offset: state.offset() as u32,
                };
                Some(Launch::new(caps, recipe, grid(batch * channels), &params)?)
            }
            _ => None,
        };
        Ok(Plan {
            convolve: Launch::new(caps, recipe, grid(batch * channels * runs), &params)?,
            update,
        })
    }

    /// Records the convolution.
    pub fn run(self, pass: &mut Pass<'_>, args: &ShortConvArgs<&Tensor>) -> Result<()> {
        let state = match args.state {
            State::None => None,
            State::Update(state) => Some(state),
        };
        let layouts = ShortConvArgs {
            x: args.x.layout(),
            weight: args.weight.layout(),
            bias: args.bias.map(Tensor::layout),
            state: state.map_or(State::None, |s| State::Update(s.layout())),
            y: args.y.layout(),
        };
        let plan = self.plan(pass.capabilities(), &layouts)?;
        let mut tensors = arrayvec::ArrayVec::<&Tensor, 5>::new();
        tensors.extend([args.x, args.weight]);
        tensors.extend(args.bias.into_iter().chain(state));
        tensors.push(args.y);
        pass.launch(&plan.convolve, &tensors)?;
        match (plan.update, state) {
            (Some(update), Some(state)) => pass.launch(&update, &[args.x, state]),
            _ => Ok(()),
        }
    }
}
