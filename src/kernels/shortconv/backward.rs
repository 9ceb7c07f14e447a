//! Gradients of a short convolution.

use bytemuck::{Pod, Zeroable};

use super::{Place, WORKGROUP};
use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Operands of the gradients of y\[b, c, t\] = bias\[c\] + sum over j of weight[c, j] x[b, c, t - j], before any activation and with zeros before
/// the first element: what the convolution took, the gradient of y, and the gradients that are wanted. Tensors or layouts, as in
/// [`ShortConvArgs`](super::ShortConvArgs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gradients<T> {
    /// What was convolved, [batch, channels, length] at any strides.
    pub x: T,
    /// [channels, taps], 2 to 16 of them.
    pub weight: T,
    /// The gradient of y, of x's shape.
    pub dy: T,
    /// Gradient of x, of its shape.
    pub dx: Option<T>,
    /// Gradient of weight, f32 and contiguous.
    pub dweight: Option<T>,
    /// Gradient of bias, \[channels\] f32 and contiguous.
    pub dbias: Option<T>,
}

/// Mirrors `Params` of backward_x.wgsl and backward_weight.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    batch: u32,
    channels: u32,
    length: u32,
    x: Place,
    dy: Place,
    weight_offset: u32,
    weight_channel: u32,
    dweight_offset: u32,
    dbias_offset: u32,
}

/// The dispatches: dx, then weight's and bias's.
#[derive(Clone, Debug)]
pub struct GradientPlan {
    /// dx, if it is wanted.
    pub x: Option<Launch>,
    /// dweight and dbias, if either is.
    pub weight: Option<Launch>,
}

impl Gradients<&Layout> {
    /// Plans the dispatches. Errors name the operand whose type or shape does not fit.
    pub fn plan(&self, caps: &Capabilities) -> Result<GradientPlan> {
        let Self {
            x,
            weight,
            dy,
            dx,
            dweight,
            dbias,
        } = *self;
        let [batch, channels, length] = *x.shape() else {
            return Err(Error::argument(
                "x",
                format!("{x:?}"),
                "[batch, channels, length]",
            ));
        };
        for (name, layout) in [("x", Some(x)), ("dy", Some(dy)), ("dx", dx)] {
            if let Some(layout) = layout {
                layout.require_float(name)?;
                layout.require_shape(name, x.shape())?;
            }
        }
        weight.require_float("weight")?;
        let taps = match *weight.shape() {
            [rows, taps]
                if rows == channels && (2..=16).contains(&taps) && weight.strides()[1] == 1 =>
            {
                taps
            }
            _ => {
                let allowed = format!("[{channels}, 2 to 16], adjacent taps");
                return Err(Error::argument("weight", format!("{weight:?}"), allowed));
            }
        };
        for (name, layout, shape) in [
            ("dweight", dweight, &[channels, taps][..]),
            ("dbias", dbias, &[channels][..]),
        ] {
            if let Some(layout) = layout {
                layout.require_dtype(name, DType::F32)?;
                layout.require_shape(name, shape)?;
                if !layout.is_contiguous() {
                    return Err(Error::argument(name, format!("{layout:?}"), "contiguous"));
                }
            }
        }
        let params = |x: &Layout| Params {
            batch: batch as u32,
            channels: channels as u32,
            length: length as u32,
            x: Place::of(x),
            dy: Place::of(dy),
            weight_offset: weight.offset() as u32,
            weight_channel: weight.strides()[0] as u32,
            dweight_offset: dweight.map_or(0, Layout::offset) as u32,
            dbias_offset: dbias.map_or(0, Layout::offset) as u32,
        };
        let plan_x = |dx: &Layout| {
            let recipe = Recipe::new("shortconv/backward_x")
                .with("K", taps as u32)
                .with("DY", dy.dtype())
                .with("W", weight.dtype())
                .with("DX", dx.dtype());
            let count = (batch * channels * length).div_ceil(WORKGROUP);
            Launch::new(caps, recipe, linear_grid(caps, count), &params(dx))
        };
        let plan_weight = || {
            let recipe = Recipe::new("shortconv/backward_weight")
                .with("K", taps as u32)
                .with("X", x.dtype())
                .with("DY", dy.dtype())
                .with("DWEIGHT", u32::from(dweight.is_some()))
                .with("DBIAS", u32::from(dbias.is_some()));
            Launch::new(caps, recipe, linear_grid(caps, channels), &params(x))
        };
        Ok(GradientPlan {
            x: dx.map(plan_x).transpose()?,
            weight: (dweight.is_some() || dbias.is_some())
                .then(plan_weight)
                .transpose()?,
        })
    }
}

impl Gradients<&Tensor> {
    /// Records the gradients.
    pub fn run(&self, pass: &mut Pass<'_>) -> Result<()> {
        let layouts = Gradients {
            x: self.x.layout(),
            weight: self.weight.layout(),
            dy: self.dy.layout(),
            dx: self.dx.map(Tensor::layout),
            dweight: self.dweight.map(Tensor::layout),
            dbias: self.dbias.map(Tensor::layout),
        };
        let plan = layouts.plan(pass.capabilities())?;
        if let (Some(launch), Some(dx)) = (&plan.x, self.dx) {
            pass.launch(launch, &[self.dy, self.weight, dx])?;
        }
        if let Some(launch) = &plan.weight {
            let mut tensors = arrayvec::ArrayVec::<&Tensor, 4>::new();
            tensors.extend([self.x, self.dy]);
            tensors.extend(self.dweight.into_iter().chain(self.dbias));
            pass.launch(launch, &tensors)?;
        }
        Ok(())
    }
}
