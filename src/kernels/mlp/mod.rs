//! MLPs and linear layers that read only the weights they need: activation sparsity.
//!
//! [`SparseMlp`] computes a gated MLP for the neurons whose gate fires (CATS, arXiv 2404.08763), [`SparseLinear`] a product
//! for the inputs that are large enough (TEAL, arXiv 2408.14690). Both choose on the device, for every token, by a
//! threshold that calibration found ([`Histogram`]). A magnitude passes if it is **above** the threshold: zero leaves out
//! zeros alone, which is exact and skips what a ReLU has silenced; NaN passes, and shows in the result. The dense gated
//! MLP is [`GatedLinear`](super::linear::GatedLinear), then [`Linear`](super::linear::Linear).
//!
//! Weights are read by neuron or by input, so they lie that way: see [`SparseMlpArgs`] and [`SparseLinearArgs`].

mod histogram;
mod inputs;
mod keep;
mod neurons;
mod predictor;
mod staged;

pub(crate) use histogram::check_sparsity;
pub use histogram::{BINS, Histogram};
pub use inputs::{InputTuning, SparseLinear, SparseLinearArgs};
pub use keep::Keep;
pub use neurons::{NeuronTuning, SparseMlp, SparseMlpArgs};
pub use predictor::{Predicted, Predictor};
pub use staged::StagedMlpArgs;

use bytemuck::{Pod, Zeroable};

use super::elementwise::Activation;
use super::gemm::{Gating, Residual};
use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Layout, Rows};
use crate::recipe::{Launch, Recipe};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Most rows of x that a sparse kernel takes: beyond, nearly every neuron fires for one of them, and products of the
/// masked values ([`Keep`]) are faster.
pub const MAX_ROWS: usize = 16;

/// Rows of x that one reading of the weights serves, at most.
const SHARED_ROWS: usize = 4;

/// The bits of a threshold, which kernels compare; errors unless it is finite and not negative.
pub(crate) fn threshold_bits(threshold: f32) -> Result<u32> {
    if threshold.is_finite() && threshold >= 0.0 {
        return Ok(threshold.abs().to_bits());
    }
    let allowed = "finite and not negative";
    Err(Error::argument("threshold", threshold, allowed))
}

/// `rows` in even parts of at most `most`.
fn even_parts(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

fn check_rows(x: &Rows) -> Result<()> {
    if x.rows <= MAX_ROWS {
        return Ok(());
    }
    let was = format!("{} rows", x.rows);
    Err(Error::argument(
        "x",
        was,
        format!("at most {MAX_ROWS} rows"),
    ))
}

/// Elements of an access to rows that all are multiples of as many: 8, 4 or 1.
fn chunk(rows: &[&Rows]) -> u32 {
    let aligned = |n: usize| rows.iter().all(|r| r.multiple_of(n));
    match () {
        () if aligned(8) => 8,
        () if aligned(4) => 4,
        () => 1,
    }
}

/// Weights: floats, or i8 with a scale for each of `units`, which must then be read by eight.
fn check_weights(
    weight: (&str, &Layout),
    scales: Option<&Layout>,
    shape: &[usize],
    chunk: u32,
) -> Result<()> {
    let (name, layout) = weight;
    match (layout.dtype(), scales) {
        (DType::I8, Some(scales)) => {
            scales.require_dtype("scales", DType::F32)?;
            scales.require_shape("scales", shape)?;
            scales.require_whole("scales")?;
            if chunk != 8 {
                let was = format!("{layout:?}");
                return Err(Error::argument(
                    name,
                    was,
                    "rows of a multiple of 8 elements",
                ));
            }
            Ok(())
        }
        (DType::I8, None) => Err(Error::argument("scales", "none", "scales for i8 weights")),
        (_, Some(_)) => Err(Error::argument("scales", "given", "none for float weights")),
        (_, None) => layout.require_float(name),
    }
}

/// The error for a tuning that is not as documented or over the device's limits.
fn unfit(tuning: &impl std::fmt::Debug, caps: &Capabilities) -> Error {
    let allowed = format!(
        "what fits {} invocations and {} bytes of workgroup memory",
        caps.invocations, caps.workgroup_bytes
    );
    Error::argument("tuning", format!("{tuning:?}"), allowed)
}

fn check_norm(norm: Option<(&Layout, f32)>, k: usize) -> Result<Option<Rows>> {
    let Some((weight, eps)) = norm else {
        return Ok(None);
    };
    weight.require_float("norm weight")?;
    weight.require_shape("norm weight", &[k])?;
    if !(eps.is_finite() && eps >= 0.0) {
        return Err(Error::argument("eps", eps, "finite and not negative"));
    }
    weight.as_rows("norm weight").map(Some)
}

/// Where a result goes: its rows, and what is added to it.
struct Output<'a> {
    y: Rows,
    dtype: DType,
    residual: Residual<'a, Layout>,
    residual_rows: Option<Rows>,
}

impl<'a> Output<'a> {
    fn new(out: &Layout, residual: Residual<'a, Layout>, rows: usize, cols: usize) -> Result<Self> {
        let checked = |layout: &Layout, name: &str| {
            layout.require_float(name)?;
            let found = layout.as_rows(name)?;
            if (found.rows, found.cols) != (rows, cols) {
                let allowed = format!("{rows} rows of {cols}");
                return Err(Error::argument(name, format!("{layout:?}"), allowed));
            }
            Ok(found)
        };
        Ok(Self {
            y: checked(out, "out")?,
            dtype: out.dtype(),
            residual_rows: match residual {
                Residual::From(layout) => Some(checked(layout, "residual")?),
                Residual::None | Residual::InOut => None,
            },
            residual,
        })
    }

    fn vec(&self) -> u32 {
        let wide = |r: &Rows| r.multiple_of(4);
        if wide(&self.y) && self.residual_rows.as_ref().is_none_or(wide) {
            4
        } else {
            1
        }
    }

    fn residual_at(&self) -> [u32; 2] {
        self.residual_rows
            .as_ref()
            .map_or([0, 0], |r| [r.offset as u32, r.stride as u32])
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SumParams {
    n: u32,
    rows: u32,
    parts: u32,
    stride: u32,
    up: u32,
    y_offset: u32,
    y_stride: u32,
    residual_offset: u32,
    residual_stride: u32,
}

/// The kernel that adds up what workgroups left: [parts, rows, stride], of gated products the up columns from `up` on.
struct Sum {
    parts: usize,
    stride: usize,
    up: usize,
    activation: Activation,
    gating: Gating,
}

impl Sum {
    fn plan(&self, caps: &Capabilities, out: &Output<'_>) -> Result<Launch> {
        // 128 bytes of a row of partial sums an access; as many teams as there is work for.
        const LANES: usize = 8;
        const TEAMS: usize = 32;
        const AHEAD: usize = 4;
        let teams = (self.parts.div_ceil(4).next_power_of_two()).clamp(4, TEAMS);
        let ahead = self.parts.div_ceil(teams).min(AHEAD);
        let [residual_offset, residual_stride] = out.residual_at();
        let params = SumParams {
            n: out.y.cols as u32,
            rows: out.y.rows as u32,
            parts: self.parts as u32,
            stride: self.stride as u32,
            up: self.up as u32,
            y_offset: out.y.offset as u32,
            y_stride: out.y.stride as u32,
            residual_offset,
            residual_stride,
        };
        let recipe = Recipe::new("mlp/sum")
            .with("Y", out.dtype)
            .with("RESIDUAL", out.residual.constant())
            .with("F", self.activation.name())
            .with("GATED", self.gating.constant())
            .with("VEC", out.vec())
            .with("L", LANES as u32)
            .with("AHEAD", ahead as u32)
            .with("WG", (LANES * teams) as u32);
        let grid = [out.y.cols.div_ceil(4 * LANES), 1, out.y.rows];
        Launch::new(caps, recipe, grid, &params)
    }
}

/// Dispatches of a sparse product: the product, and the sum of its parts if there are any.
#[derive(Clone, Debug)]
pub struct SparsePlan {
    /// The kernel that reads the weights.
    pub product: Launch,
    /// The kernel that adds up what the workgroups of the first left.
    pub sum: Option<Launch>,
    /// Elements between the two, f32.
    partial: usize,
    /// Where the threshold is among the product's parameters.
    threshold_at: usize,
}

impl SparsePlan {
    /// The same for another threshold, which must be finite and not negative.
    pub fn at_threshold(&self, threshold: f32) -> Result<Self> {
        let bits = threshold_bits(threshold)?;
        let mut plan = self.clone();
        plan.product.params = plan.product.params.with_word(self.threshold_at, bits);
        Ok(plan)
    }

    /// With what planners were told of its class.
    fn of_class(mut self, class: Option<Recipe>) -> Self {
        if let Some(sum) = &mut self.sum {
            sum.class.clone_from(&class);
        }
        self.product.class = class;
        self
    }

    /// All dispatches.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        std::iter::once(&self.product).chain(&self.sum)
    }

    /// `tensors` are the product's, with `out` at number `at`, or what goes between the two in its place.
    fn launch(
        &self,
        pass: &mut Pass<'_>,
        tensors: &[&Tensor],
        at: usize,
        residual: Residual<'_, Tensor>,
    ) -> Result<()> {
        let Some(sum) = &self.sum else {
            return pass.launch(&self.product, tensors);
        };
        let partial = pass.scratch(0, DType::F32, [self.partial])?;
        let mut product: arrayvec::ArrayVec<&Tensor, 8> = tensors.iter().copied().collect();
        let out = product[at];
        product[at] = &partial;
        pass.launch(&self.product, &product)?;
        match residual {
            Residual::From(residual) => pass.launch(sum, &[&partial, out, residual]),
            Residual::None | Residual::InOut => pass.launch(sum, &[&partial, out]),
        }
    }
}
