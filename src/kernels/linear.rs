//! Linear layers: the product of rows with a weight matrix as Hugging Face stores it, with everything
//! around it fused, by the kernel that suits the number of rows.

use arrayvec::ArrayVec;

use super::elementwise::Activation;
use super::gemm::{Gating, Gemm, GemmArgs, Residual, Transpose};
use super::gemv::Gemv;
use super::quant;
use crate::capabilities::{Capabilities, DeviceClass};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::Launch;
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// The tensors of a [`Linear`], or their layouts.
#[derive(Debug)]
pub struct LinearArgs<'a, T> {
    /// [.., k]: rows evenly spaced.
    pub x: &'a T,
    /// [n, k], of a floating-point type or a quantised format.
    pub weight: &'a T,
    /// \[n\].
    pub bias: Option<&'a T>,
    /// [.., n].
    pub residual: Residual<'a, T>,
    /// RMSNorm of x on its way in: its weight \[k\] and epsilon. Only where [`fuses_norm`] says so.
    pub norm: Option<(&'a T, f32)>,
    /// [.., n].
    pub out: &'a T,
}

impl<'a, T> LinearArgs<'a, T> {
    /// out = x W^T, and nothing around it.
    pub fn new(x: &'a T, weight: &'a T, out: &'a T) -> Self {
        Self {
            x,
            weight,
            bias: None,
            residual: Residual::None,
            norm: None,
            out,
        }
    }

    /// The same product with other weights.
    fn with_weight<'b>(&'b self, weight: &'b T) -> LinearArgs<'b, T> {
        LinearArgs {
            x: self.x,
            weight,
            bias: self.bias,
            residual: self.residual.map(|r| r),
            norm: self.norm,
            out: self.out,
        }
    }
}

impl<'a> LinearArgs<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> LinearArgs<'a, Layout> {
        LinearArgs {
            x: self.x.layout(),
            weight: self.weight.layout(),
            bias: self.bias.map(Tensor::layout),
            residual: self.residual.map(Tensor::layout),
            norm: self.norm.map(|(weight, eps)| (weight.layout(), eps)),
            out: self.out.layout(),
        }
    }

    /// Records what was planned for tensors of these layouts: the hot loop's form, for models that plan once and
    /// launch for every layer.
    pub fn launch(&self, pass: &mut Pass<'_>, plan: &LinearPlan) -> Result<()> {
        let Some((expand, dtype)) = &plan.expand else {
            return self.bind(pass, &plan.product);
        };
        let expanded = pass.scratch(0, *dtype, self.weight.shape())?;
        pass.launch(expand, &[self.weight, &expanded])?;
        self.with_weight(&expanded).bind(pass, &plan.product)
    }

    /// Records a product. Both kernels bind the tensors in this order.
    pub(super) fn bind(&self, pass: &mut Pass<'_>, launch: &Launch) -> Result<()> {
        let mut tensors: ArrayVec<&Tensor, 6> =
            [self.x, self.weight, self.out].into_iter().collect();
        tensors.extend(self.bias);
        if let Residual::From(residual) = self.residual {
            tensors.push(residual);
        }
        tensors.extend(self.norm.map(|(weight, _)| weight));
        pass.launch(launch, &tensors)
    }
}

impl LinearArgs<'_, Layout> {
    /// Errors unless shapes and element types agree.
    pub(super) fn check(&self, gating: Gating) -> Result<()> {
        self.x.require_float("x")?;
        self.weight.require_weights("weight")?;
        self.out.require_float("out")?;
        let (x, out) = (self.x.as_rows("x")?, self.out.as_rows("out")?);
        self.weight
            .require_shape("weight", &[out.cols * gating.factor(), x.cols])?;
        if out.rows != x.rows {
            return Err(Error::argument(
                "out",
                format!("{:?}", self.out),
                format!("{} rows, as many as x of {:?} has", x.rows, self.x),
            ));
        }
        if let (Gating::GateUp, Some(bias)) = (gating, self.bias) {
            let was = format!("{bias:?}");
            return Err(Error::argument("bias", was, "none for a gated product"));
        }
        if let Residual::From(residual) = self.residual {
            residual.require_float("residual")?;
            let r = residual.as_rows("residual")?;
            if (r.rows, r.cols) != (out.rows, out.cols) {
                return Err(Error::argument(
                    "residual",
                    format!("{residual:?}"),
                    format!("{} rows of {}, as out has", out.rows, out.cols),
                ));
            }
        }
        if let Some((weight, eps)) = self.norm {
            weight.require_float("norm weight")?;
            weight.require_shape("norm weight", &[x.cols])?;
            weight.as_rows("norm weight")?;
            if !(eps.is_finite() && eps >= 0.0) {
                return Err(Error::argument("eps", eps, "finite and not negative"));
            }
        }
        Ok(())
    }

    fn rows(&self) -> Result<usize> {
        Ok(self.x.as_rows("x")?.rows)
    }
}

/// The dispatches of a product.
#[derive(Clone, Debug)]
pub struct LinearPlan {
    /// Quantised weights as numbers of this type first, where there are many rows of x.
    pub expand: Option<(Launch, DType)>,
    /// The product.
    pub product: Launch,
}

impl LinearPlan {
    /// The dispatches in their order.
    pub fn launches(self) -> impl Iterator<Item = Launch> {
        let expand = self.expand.map(|(launch, _)| launch);
        expand.into_iter().chain([self.product])
    }
}

/// Rows up to which the kernel that streams the weights is used. A GPU is short of memory bandwidth until the
/// weights have been read a few times over; a processor is short of arithmetic, which tiles share better.
pub(crate) fn streamed_rows(caps: &Capabilities) -> usize {
    match caps.class {
        DeviceClass::Software => 16,
        _ => 32,
    }
}

/// Whether [`Linear`] and [`GatedLinear`] take the norm of x with them at this number of rows. If not, the
/// caller runs the norm before.
pub fn fuses_norm(caps: &Capabilities, rows: usize) -> bool {
    rows <= streamed_rows(caps)
}

/// out = F(norm(x) W^T + bias) + residual, with everything but the product optional.
///
/// x, W, bias, residual, norm weight and out may be of different types of f32, f16 and bf16; sums are f32. W may be of
/// any quantised format: with few rows it is decoded in registers, with many it is first expanded to x's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// F.
    pub activation: Activation,
}

impl Linear {
    /// Plans the dispatch.
    pub fn plan(self, caps: &Capabilities, args: &LinearArgs<'_, Layout>) -> Result<LinearPlan> {
        plan(self.activation, Gating::None, caps, args)
    }

    /// Records the product.
    pub fn run(self, pass: &mut Pass<'_>, args: LinearArgs<'_, Tensor>) -> Result<()> {
        run(self.activation, Gating::None, pass, &args)
    }

    /// F(x W^T) as a new tensor of x's element type.
    pub fn forward(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let out = output(x, weight, Gating::None)?;
        x.context()
            .record(|pass| self.run(pass, LinearArgs::new(x, weight, &out)))?;
        Ok(out)
    }
}

/// The tensors of a [`GatedLinear`], or their layouts.
#[derive(Debug)]
pub struct GatedLinearArgs<'a, T> {
    /// [.., k]: rows evenly spaced.
    pub x: &'a T,
    /// [2n, k]: n gate rows, then n up rows.
    pub weight: &'a T,
    /// RMSNorm of x on its way in: its weight \[k\] and epsilon. Only where [`fuses_norm`] says so.
    pub norm: Option<(&'a T, f32)>,
    /// [.., n].
    pub out: &'a T,
}

impl<'a> GatedLinearArgs<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> GatedLinearArgs<'a, Layout> {
        let LinearArgs {
            x,
            weight,
            norm,
            out,
            ..
        } = self.linear().layouts();
        GatedLinearArgs {
            x,
            weight,
            norm,
            out,
        }
    }

    /// Records a dispatch planned for tensors of these layouts.
    pub fn launch(&self, pass: &mut Pass<'_>, plan: &LinearPlan) -> Result<()> {
        self.linear().launch(pass, plan)
    }
}

impl<'a, T> GatedLinearArgs<'a, T> {
    fn linear(&self) -> LinearArgs<'a, T> {
        LinearArgs {
            norm: self.norm,
            ..LinearArgs::new(self.x, self.weight, self.out)
        }
    }
}

/// out = F(norm(x) G^T) * (norm(x) U^T): the first half of a gated MLP in one dispatch; with SiLU it is
/// SwiGLU (arXiv 2002.05202). Element types as for [`Linear`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatedLinear {
    /// F.
    pub activation: Activation,
}

impl GatedLinear {
    /// Plans the dispatch.
    pub fn plan(
        self,
        caps: &Capabilities,
        args: &GatedLinearArgs<'_, Layout>,
    ) -> Result<LinearPlan> {
        plan(self.activation, Gating::GateUp, caps, &args.linear())
    }

    /// Records the product.
    pub fn run(self, pass: &mut Pass<'_>, args: GatedLinearArgs<'_, Tensor>) -> Result<()> {
        run(self.activation, Gating::GateUp, pass, &args.linear())
    }

    /// F(x G^T) * (x U^T) as a new tensor of x's element type.
    pub fn forward(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let out = output(x, weight, Gating::GateUp)?;
        let args = GatedLinearArgs {
            x,
            weight,
            norm: None,
            out: &out,
        };
        x.context().record(|pass| self.run(pass, args))?;
        Ok(out)
    }
}

/// A new tensor for the product of x and the weights.
fn output(x: &Tensor, weight: &Tensor, gating: Gating) -> Result<Tensor> {
    let n = weight.layout().as_rows("weight")?.rows / gating.factor();
    let mut shape = x.shape().to_vec();
    match shape.last_mut() {
        Some(last) => *last = n,
        None => shape.push(n),
    }
    Tensor::empty(x.context(), x.dtype(), shape)
}

fn plan(
    activation: Activation,
    gating: Gating,
    caps: &Capabilities,
    args: &LinearArgs<'_, Layout>,
) -> Result<LinearPlan> {
    let just = |product| LinearPlan {
        expand: None,
        product,
    };
    if args.rows()? <= streamed_rows(caps) {
        return Gemv { activation, gating }.plan(caps, args).map(just);
    }
    if args.weight.quant().is_none() {
        return plan_tiled(activation, gating, caps, args).map(just);
    }
    args.check(gating)?;
    let dtype = args.x.dtype();
    let expanded = Layout::contiguous(dtype, args.weight.shape())?;
    let expand = quant::plan(caps, args.weight, None, &expanded)?;
    let args = args.with_weight(&expanded);
    Ok(LinearPlan {
        expand: Some((expand, dtype)),
        product: plan_tiled(activation, gating, caps, &args)?,
    })
}

/// The product for many rows: all leading dimensions of x are rows of one matrix.
fn plan_tiled(
    activation: Activation,
    gating: Gating,
    caps: &Capabilities,
    args: &LinearArgs<'_, Layout>,
) -> Result<Launch> {
    args.check(gating)?;
    if args.norm.is_some() {
        return Err(Error::argument(
            "norm",
            format!("given for {} rows", args.rows()?),
            format!("at most {} rows (fuses_norm)", streamed_rows(caps)),
        ));
    }
    let flat = |layout: &Layout, name: &str| layout.flatten_rows(name);
    let (x, out) = (flat(args.x, "x")?, flat(args.out, "out")?);
    let residual = match args.residual {
        Residual::From(layout) => Some(flat(layout, "residual")?),
        Residual::None | Residual::InOut => None,
    };
    let gemm = Gemm {
        b: Transpose::Yes,
        activation,
        gating,
        ..Gemm::default()
    };
    let args = GemmArgs {
        a: &x,
        b: args.weight,
        bias: args.bias,
        residual: match (&residual, &args.residual) {
            (Some(layout), _) => Residual::From(layout),
            (None, Residual::InOut) => Residual::InOut,
            (None, _) => Residual::None,
        },
        out: &out,
    };
    gemm.plan(caps, &args)
}

fn run(
    activation: Activation,
    gating: Gating,
    pass: &mut Pass<'_>,
    args: &LinearArgs<'_, Tensor>,
) -> Result<()> {
    let launch = plan(activation, gating, pass.capabilities(), &args.layouts())?;
    args.launch(pass, &launch)
}
