//! Rows of numbers as int8 codes with a scale each, after an RMSNorm if wanted.

use arrayvec::ArrayVec;
use bytemuck::{Pod, Zeroable};

use crate::capabilities::{Capabilities, ReduceTier};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// How codes are spread over a row's numbers, rounded to nearest, ties to even; scales have 11 significant bits, rounded up.
/// A row with a number that is not finite has scale NaN and codes 0, so that its products are NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantize {
    /// -127 to 127, by the largest magnitude; zero is code 0.
    Symmetric,
    /// -128 to 127, between the row's least and largest numbers and zero.
    Asymmetric,
}

/// The tensors of a [`Quantize`], or their layouts.
#[derive(Debug)]
pub struct QuantizeArgs<'a, T> {
    /// [.., k]: f32, f16 or bf16; k a multiple of four.
    pub x: &'a T,
    /// Of an RMSNorm before: weights \[k\], and what is added to the mean square.
    pub norm: Option<(&'a T, f32)>,
    /// [.., k] of int8.
    pub codes: &'a T,
    /// \[rows\] of f32.
    pub scales: &'a T,
    /// [rows, 2] of i32: the code of zero and the sum of the row's codes. Asymmetric codes need it.
    pub zeros: Option<&'a T>,
    /// Columns that have code 0 and are handed on as they are: the list, their slots, and [rows, ..] of f16 for them.
    pub apart: Option<[&'a T; 3]>,
}

impl<'a, T> QuantizeArgs<'a, T> {
    /// Neither norm nor zero points.
    pub fn new(x: &'a T, codes: &'a T, scales: &'a T) -> Self {
        Self {
            x,
            norm: None,
            codes,
            scales,
            zeros: None,
            apart: None,
        }
    }
}

impl<'a> QuantizeArgs<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> QuantizeArgs<'a, Layout> {
        QuantizeArgs {
            x: self.x.layout(),
            norm: self.norm.map(|(w, eps)| (w.layout(), eps)),
            codes: self.codes.layout(),
            scales: self.scales.layout(),
            zeros: self.zeros.map(Tensor::layout),
            apart: self.apart.map(|tensors| tensors.map(Tensor::layout)),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    x_offset: u32,
    x_stride: u32,
    weight_offset: u32,
    eps: f32,
    code_offset: u32,
    code_stride: u32,
    scale_offset: u32,
    zero_offset: u32,
    apart_stride: u32,
}

/// Groups of four elements that an invocation keeps in registers at most.
const MOST_UNROLL: usize = 16;

impl Quantize {
    const fn name(self) -> &'static str {
        match self {
            Self::Symmetric => "symmetric",
            Self::Asymmetric => "asymmetric",
        }
    }

    /// Plans the dispatch.
    pub fn plan(self, caps: &Capabilities, args: &QuantizeArgs<'_, Layout>) -> Result<Launch> {
        args.x.require_float("x")?;
        let x = args.x.as_rows("x")?;
        args.codes.require_dtype("codes", DType::I8)?;
        args.codes.require_shape("codes", args.x.shape())?;
        let codes = args.codes.as_rows("codes")?;
        if !codes.multiple_of(4) {
            return Err(Error::argument(
                "codes",
                format!("{:?}", args.codes),
                "rows, offset and strides multiples of four elements",
            ));
        }
        let of_rows = |name: &str, layout: &Layout, dtype, shape: &[usize]| {
            layout.require_dtype(name, dtype)?;
            layout.require_shape(name, shape)?;
            match layout.is_contiguous() {
                true => Ok(layout.offset()),
                false => Err(Error::argument(name, format!("{layout:?}"), "contiguous")),
            }
        };
        let scales = of_rows("scales", args.scales, DType::F32, &[x.rows])?;
        let zeros = match args.zeros {
            Some(zeros) => of_rows("zeros", zeros, DType::I32, &[x.rows, 2])?,
            None if self == Self::Asymmetric => {
                return Err(Error::argument("zeros", "none", "[rows, 2] of i32"));
            }
            None => 0,
        };
        let mut wide = x.multiple_of(4);
        let mut weight_offset = 0;
        if let Some((weight, eps)) = args.norm {
            weight.require_float("norm")?;
            weight.require_shape("norm", &[x.cols])?;
            let row = weight.as_rows("norm")?;
            wide &= row.multiple_of(4);
            weight_offset = row.offset;
            if !(eps.is_finite() && eps >= 0.0) {
                return Err(Error::argument("eps", eps, "finite, at least 0"));
            }
        }
        let most = (caps.invocations as usize).min(256);
        let lanes = x.cols.div_ceil(4).next_power_of_two().clamp(32, most);
        let lanes = match caps.subgroups {
            Some(s) => lanes.max(s.max as usize),
            None => lanes,
        };
        let unroll = x.cols.div_ceil(4 * lanes);
        let reduce = match caps.reduce_tier() {
            ReduceTier::Subgroup => "subgroup",
            ReduceTier::Workgroup => "workgroup",
        };
        let apart_stride = args.apart.map_or(0, |[_, _, apart]| apart.shape()[1] / 8);
        let recipe = Recipe::new("gemm8/quantize")
            .with("X", args.x.dtype())
            .with("NORM", args.norm.map(|(w, _)| w.dtype()))
            .with("SYMMETRY", self.name())
            .with("ZEROS", args.zeros.is_some() as u32)
            .with("APART", args.apart.is_some() as u32)
            .with("VEC", if wide { 4u32 } else { 1 })
            .with("WG", lanes as u32)
            .with(
                "UNROLL",
                if unroll <= MOST_UNROLL {
                    unroll as u32
                } else {
                    0
                },
            )
            .with("REDUCE", reduce);
        let params = Params {
            rows: x.rows as u32,
            cols: x.cols as u32,
            x_offset: x.offset as u32,
            x_stride: x.stride as u32,
            weight_offset: weight_offset as u32,
            eps: args.norm.map_or(0.0, |(_, eps)| eps),
            code_offset: (codes.offset / 4) as u32,
            code_stride: (codes.stride / 4) as u32,
            scale_offset: scales as u32,
            zero_offset: zeros as u32,
            apart_stride: apart_stride as u32,
        };
        Launch::new(caps, recipe, linear_grid(caps, x.rows), &params)
    }

    /// Records the dispatch.
    pub fn run(self, pass: &mut Pass<'_>, args: &QuantizeArgs<'_, Tensor>) -> Result<()> {
        let launch = self.plan(pass.capabilities(), &args.layouts())?;
        let mut tensors: ArrayVec<&Tensor, 8> = ArrayVec::new();
        tensors.push(args.x);
        tensors.extend(args.norm.map(|(weight, _)| weight));
        tensors.extend([args.codes, args.scales]);
        tensors.extend(args.zeros);
        tensors.extend(args.apart.into_iter().flatten());
        pass.launch(&launch, &tensors)
    }
}
