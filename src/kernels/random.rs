//! Random numbers made on the device: inputs for measurements and weights of models that are only timed.

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    len: u32,
    offset: u32,
    seed: u32,
    scale: f32,
}

/// Fills a tensor with numbers that depend on the seed and on each element's place alone: f32, f16 and bf16
/// uniform in [-scale, scale), u32 as 32 random bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Uniform {
    /// Another seed, other numbers.
    pub seed: u32,
    /// The largest magnitude; u32 ignores it.
    pub scale: f32,
}

impl Uniform {
    /// Plans the dispatch. `y` must be contiguous.
    pub fn plan(self, caps: &Capabilities, y: &Layout) -> Result<Launch> {
        if y.dtype() != DType::U32 {
            y.require_float("y")?;
        }
        if !y.is_contiguous() {
            return Err(Error::argument("y", format!("{y:?}"), "a contiguous one"));
        }
        if !self.scale.is_finite() {
            return Err(Error::argument("scale", self.scale, "a finite number"));
        }
        let wide = y.len().is_multiple_of(4) && y.offset().is_multiple_of(4);
        let recipe = Recipe::new("random/uniform")
            .with("Y", y.dtype())
            .with("VEC", if wide { 4 } else { 1 })
            .with("WG", WORKGROUP as u32);
        let params = Params {
            len: y.len() as u32,
            offset: y.offset() as u32,
            seed: self.seed,
            scale: self.scale,
        };
        let grid = linear_grid(caps, y.len().div_ceil(4 * WORKGROUP));
        Launch::new(caps, recipe, grid, &params)
    }

    /// Records the filling of `y`.
    pub fn run(self, pass: &mut Pass<'_>, y: &Tensor) -> Result<()> {
        let launch = self.plan(pass.capabilities(), y.layout())?;
        pass.launch(&launch, &[y])
    }

    /// A new tensor of random numbers.
    pub fn tensor(
        self,
        ctx: &crate::Context,
        dtype: DType,
        shape: impl AsRef<[usize]>,
    ) -> Result<Tensor> {
        let y = Tensor::empty(ctx, dtype, shape)?;
        ctx.record(|pass| self.run(pass, &y))?;
        Ok(y)
    }
}
