//! Normalisation over the last dimension: RMSNorm and LayerNorm, with the residual addition fused.

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::error::{Error, Result};
use crate::kernels::rows::RowTuning;
use crate::layout::{Layout, Rows};
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// What a row is normalised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Its root mean square: h / sqrt(mean(h^2) + eps) (RMSNorm, arXiv 1910.07467).
    Rms,
    /// Its mean and standard deviation: (h - mean) / sqrt(variance + eps) (LayerNorm, arXiv 1607.06450).
    Layer,
}

impl NormKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Rms => "rms",
            Self::Layer => "layer",
        }
    }
}

/// What is added to x before it is normalised, and where the sum goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual<T> {
    /// Nothing: h = x.
    None,
    /// x becomes x + this.
    InPlace(T),
    /// sum = x + add; x stays.
    Into {
        /// The second term.
        add: T,
        /// Where the sum is written.
        sum: T,
    },
}

/// The operands of a normalisation: tensors to run it, layouts to plan it.
///
/// x, y and the residual's tensors have one shape; weight and bias are `[cols]`. Element types are f32, f16 or bf16,
/// each tensor its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormArgs<T> {
    /// What is normalised, with the residual.
    pub x: T,
    /// What is added first.
    pub residual: Residual<T>,
    /// Multiplies the normalised row.
    pub weight: Option<T>,
    /// Added to that.
    pub bias: Option<T>,
    /// The result.
    pub y: T,
}

impl<T> NormArgs<T> {
    /// y = norm(x) * weight, with neither residual nor bias.
    pub fn new(x: T, weight: T, y: T) -> Self {
        Self {
            x,
            residual: Residual::None,
            weight: Some(weight),
            bias: None,
            y,
        }
    }
}

impl<'a> NormArgs<&'a Tensor> {
    fn layouts(&self) -> NormArgs<&'a Layout> {
        NormArgs {
            x: self.x.layout(),
            residual: match self.residual {
                Residual::None => Residual::None,
                Residual::InPlace(add) => Residual::InPlace(add.layout()),
                Residual::Into { add, sum } => Residual::Into {
                    add: add.layout(),
                    sum: sum.layout(),
                },
            },
            weight: self.weight.map(Tensor::layout),
            bias: self.bias.map(Tensor::layout),
            y: self.y.layout(),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    groups: u32,
    x_offset: u32,
    x_stride: u32,
    add_offset: u32,
    add_stride: u32,
    sum_offset: u32,
    sum_stride: u32,
    weight_offset: u32,
    bias_offset: u32,
    y_offset: u32,
    y_stride: u32,
    eps: f32,
}

/// y = normalised(x + residual) * weight + bias, over the last dimension.
///
/// Rows (the last dimension) must be of adjacent elements and evenly spaced. A sum is normalised as it was added up
/// where a row stays in registers, otherwise after it was rounded to the type that it is stored in. A row of zeros
/// with `eps` 0 gives NaN, as the formula does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// What a row is normalised by.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub eps: f32,
}

impl Norm {
    /// RMSNorm.
    pub const fn rms(eps: f32) -> Self {
        Self {
            kind: NormKind::Rms,
            eps,
        }
    }

    /// LayerNorm.
    pub const fn layer(eps: f32) -> Self {
        Self {
            kind: NormKind::Layer,
            eps,
        }
    }

    /// Plans the dispatch.
    pub fn plan(self, caps: &Capabilities, args: &NormArgs<&Layout>) -> Result<Launch> {
        let rows = args.x.as_rows("x")?;
        let picked = RowTuning::pick(
            caps,
            || self.recipe(args),
            args.x.dtype(),
            [rows.rows, rows.cols],
            args.x.bytes() + args.y.bytes(),
        );
        let launch = self.plan_with(caps, args, picked.tuning)?;
        Ok(launch.of_class(picked.class))
    }

    /// Plans the dispatch with a tuning of the caller's, which has to fit the device and the row.
    pub fn plan_with(
        self,
        caps: &Capabilities,
        args: &NormArgs<&Layout>,
        tuning: RowTuning,
    ) -> Result<Launch> {
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(Error::argument("eps", self.eps, "finite, at least 0"));
        }
        let shape = args.x.shape();
        let cols = shape.last().copied().unwrap_or(1);
        let absent = Rows {
            rows: 1,
            cols: 0,
            stride: 0,
            offset: 0,
        };
        let mut aligned = 8;
        let mut rows_of = |name: &str, layout: &Layout, shape: &[usize]| -> Result<Rows> {
            layout.require_float(name)?;
            layout.require_shape(name, shape)?;
            let rows = layout.as_rows(name)?;
            aligned = aligned.min(rows.alignment());
            Ok(rows)
        };
        let x = rows_of("x", args.x, shape)?;
        let (add, sum) = match args.residual {
            Residual::None => (absent, absent),
            Residual::InPlace(add) => (rows_of("residual", add, shape)?, x),
            Residual::Into { add, sum } => (
                rows_of("residual", add, shape)?,
                rows_of("sum", sum, shape)?,
            ),
        };
        let mut vector = |name, layout: Option<&Layout>| {
            layout.map_or(Ok(absent), |layout| rows_of(name, layout, &[cols]))
        };
        let (weight, bias) = (vector("weight", args.weight)?, vector("bias", args.bias)?);
        let y = rows_of("y", args.y, shape)?;
        let groups = cols.div_ceil(4);
        let tuning = tuning.check(caps, groups)?;
        let recipe = tuning.constants(self.recipe(args), caps, aligned);
        let params = Params {
            rows: x.rows as u32,
            cols: cols as u32,
            groups: groups as u32,
            x_offset: x.offset as u32,
            x_stride: x.stride as u32,
            add_offset: add.offset as u32,
            add_stride: add.stride as u32,
            sum_offset: sum.offset as u32,
            sum_stride: sum.stride as u32,
            weight_offset: weight.offset as u32,
            bias_offset: bias.offset as u32,
            y_offset: y.offset as u32,
            y_stride: y.stride as u32,
            eps: self.eps,
        };
        let grid = linear_grid(caps, x.rows.div_ceil(tuning.rows as usize));
        Launch::new(caps, recipe, grid, &params)
    }

    fn recipe(self, args: &NormArgs<&Layout>) -> Recipe {
        let dtype = |layout: Option<&Layout>| layout.map(Layout::dtype);
        let (residual, add, sum) = match args.residual {
            Residual::None => ("none", None, None),
            Residual::InPlace(add) => ("in_place", Some(add), None),
            Residual::Into { add, sum } => ("into", Some(add), Some(sum)),
        };
        Recipe::new("norm/norm")
            .with("KIND", self.kind.name())
            .with("X", args.x.dtype())
            .with("RESIDUAL", residual)
            .with("ADD", dtype(add))
            .with("SUM", dtype(sum))
            .with("WEIGHT", dtype(args.weight))
            .with("BIAS", dtype(args.bias))
            .with("Y", args.y.dtype())
    }

    /// Records the normalisation.
    pub fn run(self, pass: &mut Pass<'_>, args: NormArgs<&Tensor>) -> Result<()> {
        let launch = self.plan(pass.capabilities(), &args.layouts())?;
        record(pass, &launch, &args)
    }

    /// Records the normalisation with a tuning of the caller's.
    pub fn run_with(
        self,
        pass: &mut Pass<'_>,
        args: NormArgs<&Tensor>,
        tuning: RowTuning,
    ) -> Result<()> {
        let launch = self.plan_with(pass.capabilities(), &args.layouts(), tuning)?;
        record(pass, &launch, &args)
    }
    /// The normalised x as a new tensor of x's type.
    pub fn forward(
        self,
        x: &Tensor,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let y = Tensor::empty(x.context(), x.dtype(), x.shape())?;
        let args = NormArgs {
            x,
            residual: Residual::None,
            weight,
            bias,
            y: &y,
        };
        x.context().record(|pass| self.run(pass, args))?;
        Ok(y)
    }
}

fn record(pass: &mut Pass<'_>, launch: &Launch, args: &NormArgs<&Tensor>) -> Result<()> {
    let mut tensors = arrayvec::ArrayVec::<&Tensor, 6>::new();
    tensors.push(args.x);
    match args.residual {
        Residual::None => {}
        Residual::InPlace(add) => tensors.push(add),
        Residual::Into { add, sum } => tensors.extend([add, sum]),
    }
    tensors.extend(args.weight.into_iter().chain(args.bias));
    tensors.push(args.y);
    pass.launch(launch, &tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::kernels::rows::Access;

    fn layout(dtype: DType, shape: &[usize]) -> Layout {
        Layout::contiguous(dtype, shape).unwrap()
    }

    fn refused(norm: Norm, args: NormArgs<&Layout>) -> String {
        let caps = Capabilities::webgpu_default();
        norm.plan(&caps, &args).unwrap_err().to_string()
    }

    #[test]
    fn bad_arguments_are_named() {
        let (x, w) = (layout(DType::F32, &[3, 8]), layout(DType::F16, &[8]));
        let (other, ints) = (layout(DType::F32, &[3, 9]), layout(DType::U32, &[3, 8]));
        let turned = layout(DType::F32, &[8, 3]).transpose(0, 1).unwrap();
        let good = NormArgs {
            x: &x,
            residual: Residual::None,
            weight: Some(&w),
            bias: Some(&w),
            y: &x,
        };
        let caps = Capabilities::webgpu_default();
        assert!(Norm::rms(0.0).plan(&caps, &good).is_ok());
        for eps in [f32::NAN, f32::INFINITY, -1e-6] {
            assert!(refused(Norm::layer(eps), good).starts_with("eps: "));
        }
        let norm = Norm::rms(1e-5);
        let into = |add, sum| Residual::Into { add, sum };
        for (args, name) in [
            (NormArgs { x: &ints, ..good }, "x: u32"),
            (NormArgs { x: &turned, ..good }, "x: f32 [3, 8] strides"),
            (NormArgs { y: &other, ..good }, "y: shape [3, 9]"),
            (NormArgs { y: &ints, ..good }, "y: u32"),
            (
                NormArgs {
                    weight: Some(&x),
                    ..good
                },
                "weight: shape [3, 8]",
            ),
            (
                NormArgs {
                    bias: Some(&ints),
                    ..good
                },
                "bias: u32",
            ),
            (
                NormArgs {
                    residual: Residual::InPlace(&other),
                    ..good
                },
                "residual: shape",
            ),
            (
                NormArgs {
                    residual: into(&x, &other),
                    ..good
                },
                "sum: shape",
            ),
        ] {
            let message = refused(norm, args);
            assert!(message.starts_with(name), "{message}");
        }
        for (team, rows, unroll) in [(3, 1, 1), (1, 1, 1), (512, 1, 1), (0, 1, 0), (2, 0, 4)] {
            let access = Access::Four;
            let tuning = RowTuning {
                team,
                rows,
                unroll,
                access,
            };
            let error = norm
                .plan_with(&caps, &good, tuning)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("tuning: "), "{error}");
        }
    }

    #[test]
    fn every_candidate_fits() {
        let caps = Capabilities::webgpu_default();
        for cols in [1, 33, 4096, 100_000] {
            let x = layout(DType::F16, &[300, cols]);
            let args = NormArgs {
                x: &x,
                residual: Residual::None,
                weight: None,
                bias: None,
                y: &x,
            };
            for tuning in RowTuning::candidates(&caps, DType::F16, 300, cols) {
                Norm::rms(1e-5).plan_with(&caps, &args, tuning).unwrap();
            }
        }
    }
}
