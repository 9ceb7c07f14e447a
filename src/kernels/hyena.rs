//! The kernels of the Hyena operator (arXiv 2302.10866): a token ([`Step`]), a prompt up to its long convolution
//! ([`Prompt`]), and a block of a convolution, directly ([`BlockConv`]).
//!
//! Decoding is a relaxed convolution: what a token's output needs of the tokens in its own block ([`Relaxed::block`]) is summed
//! when it comes ([`Step`]); after every block, the last 2^q inputs, 2^q being the largest power of two that divides the
//! number of tokens since the prompt, are pushed at once into the 2^q outputs after them. Every pair of an input and a
//! later output meets exactly once, and the work is that of O(log n) convolutions of doubling sizes instead of a sum over
//! the whole text for every token (van der Hoeven, J. Symb. Comput. 34, 2002; arXiv 2410.12982).

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Layout, Rows};
use crate::model::HyenaConfig;
use crate::recipe::{Launch, Recipe};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// How a relaxed convolution is cut: one row of a tuning table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Relaxed {
    /// Tokens of a block, whose contributions to one another are summed token by token: a power of two. As large as the
    /// text, every token's sum is over the whole text, and nothing is ever pushed.
    pub block: usize,
    /// Largest block, and largest text of a prompt, that is convolved directly ([`BlockConv`]); larger ones by FFT.
    pub direct: usize,
}

impl Default for Relaxed {
    fn default() -> Self {
        Self {
            block: 64,
            direct: 512,
        }
    }
}

impl Relaxed {
    /// Errors unless the block is a power of two.
    pub fn check(&self) -> Result<()> {
        if self.block.is_power_of_two() {
            return Ok(());
        }
        Err(Error::argument("block", self.block, "a power of two"))
    }
}

/// Invocations of a workgroup.
const WORKGROUP: u32 = 256;
/// Invocations that share a channel in [`Step`].
const LANES: u32 = 16;
/// Channels and tokens of a workgroup in [`Prompt`].
const TILE: usize = 32;

/// A matrix of f32 rows with adjacent elements: `rows` by `cols`.
fn matrix(name: &str, layout: &Layout, rows: usize, cols: usize) -> Result<Rows> {
    layout.require_dtype(name, DType::F32)?;
    layout.require_shape(name, &[rows, cols])?;
    layout.as_rows(name)
}

/// As [`matrix`], without gaps and from the start of its memory.
fn whole(name: &str, layout: &Layout, rows: usize, cols: usize) -> Result<()> {
    matrix(name, layout, rows, cols)?;
    layout.require_whole(name)
}

/// The operator's short convolutions, one each for x0, x1 and v of every channel.
#[derive(Clone, Copy, Debug)]
pub struct Short<'a, T> {
    /// `[3 channels, taps + 1]`: the oldest tap first, then the bias. Contiguous f32.
    pub weights: &'a T,
    /// `[max(taps - 1, 1), 3 channels]`: the projections before, oldest first. Contiguous f32.
    pub state: &'a T,
}

impl<'a> Short<'a, Tensor> {
    fn layouts(&self) -> Short<'a, Layout> {
        Short {
            weights: self.weights.layout(),
            state: self.state.layout(),
        }
    }
}

impl Short<'_, Layout> {
    /// Number of taps.
    fn taps(&self, channels: usize) -> Result<usize> {
        let taps = match self.weights.shape() {
            &[_, columns] => columns - 1,
            _ => 0,
        };
        if !(1..=HyenaConfig::MAX_SHORT_FILTER).contains(&taps) {
            let allowed = format!(
                "[3 channels, taps + 1], 1 to {} taps",
                HyenaConfig::MAX_SHORT_FILTER
            );
            return Err(Error::argument(
                "weights",
                format!("{:?}", self.weights),
                allowed,
            ));
        }
        whole("weights", self.weights, 3 * channels, taps + 1)?;
        whole("state", self.state, (taps - 1).max(1), 3 * channels)?;
        Ok(taps)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StepParams {
    channels: u32,
    position: u32,
    block: u32,
    projection_offset: u32,
    z_stride: u32,
    carried_stride: u32,
    taps_stride: u32,
    out_offset: u32,
}

/// The tensors of a [`Step`], or their layouts: all f32, rows of adjacent elements.
#[derive(Clone, Copy, Debug)]
pub struct StepArgs<'a, T> {
    /// `[1, 3 channels]`: x0, then x1, then v.
    pub projection: &'a T,
    /// Its short convolutions; their state moves on by this token.
    pub short: Short<'a, T>,
    /// `[channels, ..]`: the long convolution's inputs x1 v by position; this token's is written.
    pub z: &'a T,
    /// `[channels, ..]`: what earlier blocks contribute to each position.
    pub carried: &'a T,
    /// `[channels, ..]`: the long filters by lag; at least `block + 1` lags.
    pub taps: &'a T,
    /// `[1, channels]`.
    pub out: &'a T,
}

impl<'a> StepArgs<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> StepArgs<'a, Layout> {
        StepArgs {
            projection: self.projection.layout(),
            short: self.short.layouts(),
            z: self.z.layout(),
            carried: self.carried.layout(),
            taps: self.taps.layout(),
            out: self.out.layout(),
        }
    }

    /// Records a dispatch planned for tensors of these layouts.
    pub fn launch(&self, pass: &mut Pass<'_>, launch: &Launch) -> Result<()> {
        let Short { weights, state } = self.short;
        let tensors = [
            self.projection,
            weights,
            state,
            self.z,
            self.carried,
            self.taps,
            self.out,
        ];
        pass.launch(launch, &tensors)
    }
}

/// One token of the operator: out = x0 (carried + the sum over the last `block` tokens and this one of taps and x1 v).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Tokens before this one.
    pub position: usize,
    /// How many of them are not in `carried`.
    pub block: usize,
}

impl Step {
    /// Plans the dispatch.
    pub fn plan(self, caps: &Capabilities, args: &StepArgs<'_, Layout>) -> Result<Launch> {
        let channels = args.out.shape().last().copied().unwrap_or(1);
        let out = matrix("out", args.out, 1, channels)?;
        let projection = matrix("projection", args.projection, 1, 3 * channels)?;
        let taps_short = args.short.taps(channels)?;
        let columns = |name: &str, layout: &Layout, least: usize| -> Result<u32> {
            let columns = layout.shape().last().copied().unwrap_or(1);
            let rows = matrix(name, layout, channels, columns)?;
            if columns < least || rows.offset != 0 {
                let was = format!("{layout:?} from {}", layout.offset());
                let allowed = format!("[{channels}, {least} or more], from 0 on");
                return Err(Error::argument(name, was, allowed));
            }
            Ok(rows.stride as u32)
        };
        if self.block > self.position {
            return Err(Error::argument(
                "block",
                self.block,
                format!("at most the position, {}", self.position),
            ));
        }
        let params = StepParams {
            channels: channels as u32,
            position: self.position as u32,
            block: self.block as u32,
            projection_offset: projection.offset as u32,
            z_stride: columns("z", args.z, self.position + 1)?,
            carried_stride: columns("carried", args.carried, self.position + 1)?,
            taps_stride: columns("taps", args.taps, self.block + 1)?,
            out_offset: out.offset as u32,
        };
        let recipe = Recipe::new("hyena/step")
            .with("SHORT", taps_short as u32)
            .with("LANES", LANES)
            .with("WG", WORKGROUP);
        let grid = [channels.div_ceil((WORKGROUP / LANES) as usize), 1, 1];
        Launch::new(caps, recipe, grid, &params)
    }

    /// Records it.
    pub fn run(self, pass: &mut Pass<'_>, args: StepArgs<'_, Tensor>) -> Result<()> {
        let launch = self.plan(pass.capabilities(), &args.layouts())?;
        args.launch(pass, &launch)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PromptParams {
    channels: u32,
    tokens: u32,
    projection_offset: u32,
    projection_stride: u32,
    gate_offset: u32,
    gate_stride: u32,
    z_offset: u32,
    z_stride: u32,
    z_columns: u32,
}

/// The tensors of a [`Prompt`], or their layouts: all f32, rows of adjacent elements.
#[derive(Clone, Copy, Debug)]
pub struct PromptArgs<'a, T> {
    /// `[tokens, 3 channels]`: x0, then x1, then v.
    pub projection: &'a T,
    /// Its short convolutions; the state is read, not moved on.
    pub short: Short<'a, T>,
    /// `[channels, tokens]`: x0.
    pub gate: &'a T,
    /// `[channels, tokens or more]`: x1 v, and zeros after the tokens.
    pub z: &'a T,
}

impl<'a> PromptArgs<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> PromptArgs<'a, Layout> {
        PromptArgs {
            projection: self.projection.layout(),
            short: self.short.layouts(),
            gate: self.gate.layout(),
            z: self.z.layout(),
        }
    }
}

/// The short convolutions of many tokens and the gate before the long one, from token-major to channel-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompt;

impl Prompt {
    /// Plans the dispatch.
    pub fn plan(self, caps: &Capabilities, args: &PromptArgs<'_, Layout>) -> Result<Launch> {
        let &[channels, tokens] = args.gate.shape() else {
            let was = format!("{:?}", args.gate);
            return Err(Error::argument("gate", was, "[channels, tokens]"));
        };
        let gate = matrix("gate", args.gate, channels, tokens)?;
        let columns = args.z.shape().last().copied().unwrap_or(1);
        if columns < tokens {
            let allowed = format!("[{channels}, {tokens} or more]");
            return Err(Error::argument("z", format!("{:?}", args.z), allowed));
        }
        let z = matrix("z", args.z, channels, columns)?;
        let projection = matrix("projection", args.projection, tokens, 3 * channels)?;
        let short = args.short.taps(channels)?;
        let params = PromptParams {
            channels: channels as u32,
            tokens: tokens as u32,
            projection_offset: projection.offset as u32,
            projection_stride: projection.stride as u32,
            gate_offset: gate.offset as u32,
            gate_stride: gate.stride as u32,
            z_offset: z.offset as u32,
            z_stride: z.stride as u32,
            z_columns: columns as u32,
        };
        let recipe = Recipe::new("hyena/prompt")
            .with("SHORT", short as u32)
            .with("TILE", TILE as u32)
            .with("WG", WORKGROUP);
        let grid = [columns.div_ceil(TILE), channels.div_ceil(TILE), 1];
        Launch::new(caps, recipe, grid, &params)
    }

    /// Records it.
    pub fn run(self, pass: &mut Pass<'_>, args: PromptArgs<'_, Tensor>) -> Result<()> {
        let launch = self.plan(pass.capabilities(), &args.layouts())?;
        let Short { weights, state } = args.short;
        pass.launch(
            &launch,
            &[args.projection, weights, state, args.gate, args.z],
        )
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BlockParams {
    inputs: u32,
    outputs: u32,
    lag: u32,
    count: u32,
    x_offset: u32,
    x_stride: u32,
    taps_offset: u32,
    taps_stride: u32,
    y_offset: u32,
    y_stride: u32,
}

/// Whether a result replaces what is there or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It replaces it.
    Store,
    /// It is added to it.
    Add,
}

/// y\[c, r\] = or += sum over s of taps\[c, lag + r - s\] x\[c, s\]: a block of inputs into a block of outputs, `lag` from
/// the first input to the first output; lags that `taps` does not have contribute nothing.
///
/// x `[channels, inputs]`, taps `[channels, count]`, y `[channels, outputs]`, f32, rows of adjacent elements. Direct: for short
/// blocks; the arithmetic is inputs times outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockConv {
    /// From the first input to the first output.
    pub lag: usize,
    /// What happens to what y holds.
    pub output: Output,
}

impl BlockConv {
    /// Plans the dispatch.
    pub fn plan(
        self,
        caps: &Capabilities,
        x: &Layout,
        taps: &Layout,
        y: &Layout,
    ) -> Result<Launch> {
        let (&[channels, outputs], &[_, inputs], &[_, count]) =
            (y.shape(), x.shape(), taps.shape())
        else {
            let was = format!("x {x:?}, taps {taps:?}, y {y:?}");
            return Err(Error::argument("tensors", was, "two dimensions each"));
        };
        let x = matrix("x", x, channels, inputs)?;
        let taps = matrix("taps", taps, channels, count)?;
        let y = matrix("y", y, channels, outputs)?;
        // Lags are compared as i32.
        if (self.lag + inputs + outputs).max(count) > 1 << 30 {
            return Err(Error::argument(
                "lag",
                format!("{} with {inputs} inputs, {outputs} outputs", self.lag),
                "at most 2^30 in all",
            ));
        }
        let params = BlockParams {
            inputs: inputs as u32,
            outputs: outputs as u32,
            lag: self.lag as u32,
            count: count as u32,
            x_offset: x.offset as u32,
            x_stride: x.stride as u32,
            taps_offset: taps.offset as u32,
            taps_stride: taps.stride as u32,
            y_offset: y.offset as u32,
            y_stride: y.stride as u32,
        };
        let workgroup = match outputs {
            ..=64 => 16,
            65..=128 => 32,
            _ => 64,
        };
        let recipe = Recipe::new("hyena/block")
            .with(
                "OUT",
                match self.output {
                    Output::Store => "store",
                    Output::Add => "add",
                },
            )
            .with("CHUNK", 4 * workgroup)
            .with("WG", workgroup);
        let grid = [outputs.div_ceil(4 * workgroup as usize), channels, 1];
        Launch::new(caps, recipe, grid, &params)
    }

    /// Records it.
    pub fn run(self, pass: &mut Pass<'_>, x: &Tensor, taps: &Tensor, y: &Tensor) -> Result<()> {
        let launch = self.plan(pass.capabilities(), x.layout(), taps.layout(), y.layout())?;
        pass.launch(&launch, &[x, taps, y])
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AccumulateParams {
    cols: u32,
    x_offset: u32,
    x_stride: u32,
    y_offset: u32,
    y_stride: u32,
}

/// Plans [`accumulate`]: x and y of one shape `[rows, cols]`, f32, rows of adjacent elements.
pub fn plan_accumulate(caps: &Capabilities, x: &Layout, y: &Layout) -> Result<Launch> {
    let &[rows, cols] = y.shape() else {
        return Err(Error::argument("y", format!("{y:?}"), "two dimensions"));
    };
    let (x, y) = (matrix("x", x, rows, cols)?, matrix("y", y, rows, cols)?);
    let params = AccumulateParams {
        cols: cols as u32,
        x_offset: x.offset as u32,
        x_stride: x.stride as u32,
        y_offset: y.offset as u32,
        y_stride: y.stride as u32,
    };
    let recipe = Recipe::new("hyena/accumulate").with("WG", WORKGROUP);
    let grid = [cols.div_ceil(WORKGROUP as usize), rows, 1];
    Launch::new(caps, recipe, grid, &params)
}

/// Records y += x.
pub fn accumulate(pass: &mut Pass<'_>, x: &Tensor, y: &Tensor) -> Result<()> {
    let launch = plan_accumulate(pass.capabilities(), x.layout(), y.layout())?;
    pass.launch(&launch, &[x, y])
}
