//! Softmax and log-softmax over the last dimension, scaled and masked.

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::error::{Error, Result};
use crate::kernels::rows::RowTuning;
use crate::layout::{Layout, Rows};
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SoftmaxKind {
    /// exp(v) / sum(exp(v)).
    Softmax,
    /// v - log(sum(exp(v))).
    Log,
}

/// y = softmax(scale * x + mask) over the last dimension, or its logarithm; large values do not overflow.
///
/// A row that is -inf throughout gives zeros, log-softmax -inf; NaN or infinity in a row makes all of it NaN. x and y
/// have one shape; the mask's rows are repeated over those of x (mask [q, k] under x [heads, q, k]). Element types are
/// f32, f16 or bf16, each tensor its own; rows must be of adjacent elements and evenly spaced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// Which of the two.
    pub kind: SoftmaxKind,
    /// Multiplies x: finite, over 0.
    pub scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    groups: u32,
    x_offset: u32,
    x_stride: u32,
    mask_offset: u32,
    mask_stride: u32,
    mask_rows: u32,
    y_offset: u32,
    y_stride: u32,
    scale: f32,
}

impl Softmax {
    /// Softmax of x as it is.
    pub const fn new() -> Self {
        Self {
            kind: SoftmaxKind::Softmax,
            scale: 1.0,
        }
    }

    /// Log-softmax of x as it is.
    pub const fn log() -> Self {
        Self {
            kind: SoftmaxKind::Log,
            scale: 1.0,
        }
    }

    /// With x multiplied by `scale`.
    pub const fn scale(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// Plans the dispatch.
    pub fn plan(
        self,
        caps: &Capabilities,
        x: &Layout,
        mask: Option<&Layout>,
        y: &Layout,
    ) -> Result<Launch> {
        let rows = x.as_rows("x")?;
        let picked = RowTuning::pick(
            caps,
            || self.recipe(x, mask, y),
            x.dtype(),
            [rows.rows, rows.cols],
            x.bytes() + y.bytes(),
        );
        let launch = self.plan_with(caps, x, mask, y, picked.tuning)?;
        Ok(launch.of_class(picked.class))
    }

    fn recipe(self, x: &Layout, mask: Option<&Layout>, y: &Layout) -> Recipe {
        let kind = match self.kind {
            SoftmaxKind::Softmax => "softmax",
            SoftmaxKind::Log => "log",
        };
        Recipe::new("softmax/softmax")
            .with("KIND", kind)
            .with("X", x.dtype())
            .with("MASK", mask.map(Layout::dtype))
            .with("Y", y.dtype())
    }

    /// Plans the dispatch with a tuning of the caller's, which has to fit the device and the row.
    pub fn plan_with(
        self,
        caps: &Capabilities,
        x: &Layout,
        mask: Option<&Layout>,
        y: &Layout,
        tuning: RowTuning,
    ) -> Result<Launch> {
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return Err(Error::argument("scale", self.scale, "finite, over 0"));
        }
        x.require_float("x")?;
        y.require_float("y")?;
        y.require_shape("y", x.shape())?;
        let (from, to) = (x.as_rows("x")?, y.as_rows("y")?);
        let masked = match mask {
            None => Rows {
                rows: 1,
                cols: 0,
                stride: 0,
                offset: 0,
            },
            Some(mask) => {
                mask.require_float("mask")?;
                let rows = mask.as_rows("mask")?;
                if rows.cols != from.cols || !from.rows.is_multiple_of(rows.rows) {
                    let allowed = format!("rows of {}, as many as divide {}", from.cols, from.rows);
                    return Err(Error::argument("mask", format!("{mask:?}"), allowed));
                }
                rows
            }
        };
        let groups = from.cols.div_ceil(4);
        let tuning = tuning.check(caps, groups)?;
        let aligned = [from, masked, to].map(Rows::alignment).into_iter().min();
        let recipe = self.recipe(x, mask, y);
        let recipe = tuning.constants(recipe, caps, aligned.unwrap_or(1));
        let params = Params {
            rows: from.rows as u32,
            cols: from.cols as u32,
            groups: groups as u32,
            x_offset: from.offset as u32,
            x_stride: from.stride as u32,
            mask_offset: masked.offset as u32,
            mask_stride: masked.stride as u32,
            mask_rows: masked.rows as u32,
            y_offset: to.offset as u32,
            y_stride: to.stride as u32,
            scale: self.scale,
        };
        let grid = linear_grid(caps, from.rows.div_ceil(tuning.rows as usize));
        Launch::new(caps, recipe, grid, &params)
    }

    /// Records the dispatch.
    pub fn run(
        self,
        pass: &mut Pass<'_>,
        x: &Tensor,
        mask: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<()> {
        let mask_layout = mask.map(Tensor::layout);
        let launch = self.plan(pass.capabilities(), x.layout(), mask_layout, y.layout())?;
        record(pass, &launch, x, mask, y)
    }

    /// Records the dispatch with a tuning of the caller's.
    pub fn run_with(
        self,
        pass: &mut Pass<'_>,
        x: &Tensor,
        mask: Option<&Tensor>,
        y: &Tensor,
        tuning: RowTuning,
    ) -> Result<()> {
        let (caps, mask_layout) = (pass.capabilities(), mask.map(Tensor::layout));
        let launch = self.plan_with(caps, x.layout(), mask_layout, y.layout(), tuning)?;
        record(pass, &launch, x, mask, y)
    }

    /// The result as a new tensor of x's type.
    pub fn forward(self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let y = Tensor::empty(x.context(), x.dtype(), x.shape())?;
        x.context().record(|pass| self.run(pass, x, mask, &y))?;
        Ok(y)
    }
}

impl Default for Softmax {
    fn default() -> Self {
        Self::new()
    }
}

fn record(
    pass: &mut Pass<'_>,
    launch: &Launch,
    x: &Tensor,
    mask: Option<&Tensor>,
    y: &Tensor,
) -> Result<()> {
    let mut tensors = arrayvec::ArrayVec::<&Tensor, 3>::new();
    tensors.push(x);
    tensors.extend(mask);
    tensors.push(y);
    pass.launch(launch, &tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn bad_arguments_are_named() {
        let caps = Capabilities::webgpu_default();
        let f = |shape: &[usize]| Layout::contiguous(DType::F32, shape).unwrap();
        let ints = Layout::contiguous(DType::U32, [6, 9]).unwrap();
        let (x, mask) = (f(&[6, 9]), f(&[3, 9]));
        assert!(Softmax::new().plan(&caps, &x, Some(&mask), &x).is_ok());
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let error = Softmax::new()
                .scale(scale)
                .plan(&caps, &x, None, &x)
                .unwrap_err();
            assert!(error.to_string().starts_with("scale: "));
        }
        let turned = f(&[9, 6]).transpose(0, 1).unwrap();
        for (x, mask, y, name) in [
            (&ints, None, &x, "x: u32"),
            (&turned, None, &x, "x: "),
            (&x, None, &f(&[6, 8]), "y: shape"),
            (&x, None, &ints, "y: u32"),
            (&x, Some(&ints), &x, "mask: u32"),
            (&x, Some(&f(&[4, 9])), &x, "mask: "),
            (&x, Some(&f(&[3, 8])), &x, "mask: "),
        ] {
            let error = Softmax::log()
                .plan(&caps, x, mask, y)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
