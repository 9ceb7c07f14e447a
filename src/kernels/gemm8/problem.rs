//! A product of 8-bit operands that has been checked, and what it means to the shaders.

use bytemuck::{Pod, Zeroable};

use super::super::elementwise::Activation;
use super::super::gemm::{Residual, require_bias};
use super::{Gemm8Args, Gemm8Tuning, Operand, Scales};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Layout, Rows};
use crate::recipe::Recipe;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    m: u32,
    n: u32,
    k: u32,
    tiles_m: u32,
    tiles_n: u32,
    a_offset: u32,
    a_stride: u32,
    b_offset: u32,
    b_stride: u32,
    out_offset: u32,
    out_stride: u32,
    residual_offset: u32,
    residual_stride: u32,
    bias_offset: u32,
    a_scale_offset: u32,
    a_scale_stride: u32,
    a_scale_rows: u32,
    b_scale_offset: u32,
    b_scale_stride: u32,
    b_scale_rows: u32,
    a_zero_offset: u32,
    b_zero_offset: u32,
    group: u32,
    outlier_stride: u32,
}

/// Scales as the shaders find them: `offset + row / rows * stride + k / steps`.
#[derive(Clone, Copy)]
struct Placed {
    constant: &'static str,
    offset: usize,
    stride: usize,
    rows: usize,
}

/// A checked problem.
pub(super) struct Problem<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    a: Rows,
    b: Rows,
    out: Rows,
    residual: Option<Rows>,
    scales: [Placed; 2],
    zeros: [usize; 2],
    /// Steps along k that share scales, if these change along k.
    pub group: Option<usize>,
    pub args: &'a Gemm8Args<'a, Layout>,
}

const CODES: &str = "i8, f8e4m3, f8e5m2 or f16";

impl<'a> Problem<'a> {
    pub fn new(args: &'a Gemm8Args<'a, Layout>) -> Result<Self> {
        let rows = |name: &str, layout: &Layout| -> Result<Rows> {
            match layout.dtype() {
                DType::I8 | DType::F8E4M3 | DType::F8E5M2 | DType::F16 => layout.as_rows(name),
                other => Err(Error::argument(name, other, CODES)),
            }
        };
        let (a, b) = (rows("a", args.a.codes)?, rows("b", args.b.codes)?);
        let out = args.out.as_rows("out")?;
        let (m, n, k) = (a.rows, b.rows, a.cols);
        if b.cols != k {
            let was = format!("{:?}", args.b.codes);
            return Err(Error::argument("b", was, format!("rows of {k}, as A's")));
        }
        if (out.rows, out.cols) != (m, n) {
            let was = format!("{:?}", args.out);
            return Err(Error::argument("out", was, format!("{m} rows of {n}")));
        }
        let integers = args.a.codes.dtype() == DType::I8 && args.b.codes.dtype() == DType::I8;
        let most = match (integers, args.a.zeros) {
            (true, None) => 131_071,
            (true, Some(_)) => 33_025,
            (false, _) => u32::MAX as usize - 2048,
        };
        if k > most || m.max(n) > u32::MAX as usize - 2048 {
            let was = format!("{m} x {n} x {k}");
            return Err(Error::argument("sizes", was, format!("k at most {most}")));
        }
        let alone = args.bias.is_none()
            && args.residual == Residual::None
            && args.outliers.is_none()
            && [args.a, args.b].iter().all(|o| o.scales == Scales::None);
        if args.out.dtype() == DType::I32 && integers && alone {
            // The sums themselves.
        } else if !args.out.dtype().is_float() {
            return Err(Error::argument(
                "out",
                args.out.dtype(),
                "f32, f16, bf16, or i32 for int8 by int8 with nothing around it",
            ));
        }
        if let Some(bias) = args.bias {
            require_bias(bias, n)?;
        }
        let residual = match args.residual {
            Residual::From(layout) => {
                layout.require_float("residual")?;
                let residual = layout.as_rows("residual")?;
                if (residual.rows, residual.cols) != (m, n) {
                    let was = format!("{layout:?}");
                    return Err(Error::argument("residual", was, format!("{m} rows of {n}")));
                }
                Some(residual)
            }
            Residual::None | Residual::InOut => None,
        };
        let (zeros, symmetric) = zeros(args, integers)?;
        let sizes = [("a", &args.a, m), ("b", &args.b, n)];
        let mut scales = [Placed {
            constant: "none",
            offset: 0,
            stride: 0,
            rows: 1,
        }; 2];
        let mut group = None;
        for (placed, (name, operand, rows)) in scales.iter_mut().zip(sizes) {
            *placed = place(name, operand, rows, k, &mut group)?;
        }
        if let Some(outliers) = &args.outliers {
            outliers.check(m, n, integers && symmetric && group.is_none())?;
        }
        if group.is_some() && !symmetric {
            return Err(Error::argument(
                "zeros",
                "with scales of blocks",
                "zero points with scales of rows or tensors",
            ));
        }
        Ok(Self {
            m,
            n,
            k,
            a,
            b,
            out,
            residual,
            scales,
            zeros,
            group,
            args,
        })
    }

    /// Whether both operands are int8.
    pub fn integers(&self) -> bool {
        [&self.args.a, &self.args.b]
            .iter()
            .all(|o| o.codes.dtype() == DType::I8)
    }

    /// The element types of A and B.
    pub fn types(&self) -> [DType; 2] {
        [self.args.a.codes.dtype(), self.args.b.codes.dtype()]
    }

    /// The widest access, in elements of 16, 4 and 1, that every row of codes is made of.
    pub fn alignment(&self) -> u32 {
        let all = |n: usize| self.a.multiple_of(n) && self.b.multiple_of(n);
        match (all(16), all(4)) {
            (true, _) => 16,
            (_, true) => 4,
            _ => 1,
        }
    }

    pub fn recipe(&self, tuning: &Gemm8Tuning, activation: Activation) -> Recipe {
        let args = self.args;
        let [tile_m, tile_n, tile_k] = tuning.tile();
        let even = self.m.is_multiple_of(tile_m) && self.n.is_multiple_of(tile_n);
        let edges = match tuning {
            _ if !self.k.is_multiple_of(tile_k) => "all",
            _ if even => "none",
            Gemm8Tuning::Matrix(_) => "outer",
            Gemm8Tuning::Packed(_) => "all",
        };
        let wide = self.out.multiple_of(4)
            && self.residual.is_none_or(|r| r.multiple_of(4))
            && args.bias.is_none_or(|b| b.offset().is_multiple_of(4));
        let [a, b] = self.types();
        let moved = self.types().iter().filter(|t| **t == DType::F8E4M3).count();
        let recipe = Recipe::new(tuning.shader())
            .with("A", a)
            .with("B", b)
            .with("SUMS", if self.integers() { "i32" } else { "f32" })
            .with("FACTOR", ["", " * 256.0", " * 65536.0"][moved])
            .with("OUT", args.out.dtype())
            .with("OUT_VEC", if wide { 4u32 } else { 1 })
            .with("BIAS", args.bias.map(Layout::dtype))
            .with("RESIDUAL", args.residual.constant())
            .with("F", activation.name())
            .with("A_SCALES", self.scales[0].constant)
            .with("B_SCALES", self.scales[1].constant)
            .with("ZEROS", args.a.zeros.is_some() as u32)
            .with("APART", args.outliers.is_some() as u32)
            .with("EDGES", edges);
        match tuning {
            Gemm8Tuning::Matrix(_) => recipe,
            Gemm8Tuning::Packed(_) => recipe
                .with("VEC", self.alignment())
                .with("GROUPS", self.group.is_some() as u32),
        }
    }

    pub fn params(&self, tiles: [usize; 2]) -> Params {
        let args = self.args;
        let [a_scales, b_scales] = self.scales;
        Params {
            m: self.m as u32,
            n: self.n as u32,
            k: self.k as u32,
            tiles_m: tiles[0] as u32,
            tiles_n: tiles[1] as u32,
            a_offset: self.a.offset as u32,
            a_stride: self.a.stride as u32,
            b_offset: self.b.offset as u32,
            b_stride: self.b.stride as u32,
            out_offset: self.out.offset as u32,
            out_stride: self.out.stride as u32,
            residual_offset: self.residual.map_or(0, |r| r.offset as u32),
            residual_stride: self.residual.map_or(0, |r| r.stride as u32),
            bias_offset: args.bias.map_or(0, |b| b.offset() as u32),
            a_scale_offset: a_scales.offset as u32,
            a_scale_stride: a_scales.stride as u32,
            a_scale_rows: a_scales.rows as u32,
            b_scale_offset: b_scales.offset as u32,
            b_scale_stride: b_scales.stride as u32,
            b_scale_rows: b_scales.rows as u32,
            a_zero_offset: self.zeros[0] as u32,
            b_zero_offset: self.zeros[1] as u32,
            group: self.group.map_or(0, |g| g as u32),
            outlier_stride: args.outliers.map_or(0, |o| o.vectors() as u32),
        }
    }
}

/// Offsets of the zero points, and whether there are none.
fn zeros(args: &Gemm8Args<'_, Layout>, integers: bool) -> Result<([usize; 2], bool)> {
    let (za, zb) = match (args.a.zeros, args.b.zeros) {
        (None, None) => return Ok(([0; 2], true)),
        (Some(a), Some(b)) if integers => (a, b),
        _ => {
            return Err(Error::argument(
                "zeros",
                format!("{:?} and {:?}", args.a.zeros, args.b.zeros),
                "zero points of int8 operands, of both or neither",
            ));
        }
    };
    let mut offsets = [0; 2];
    for (offset, (name, layout, codes)) in offsets
        .iter_mut()
        .zip([("a.zeros", za, args.a.codes), ("b.zeros", zb, args.b.codes)])
    {
        layout.require_dtype(name, DType::I32)?;
        layout.require_shape(name, &[codes.as_rows(name)?.rows, 2])?;
        if !layout.is_contiguous() {
            return Err(Error::argument(name, format!("{layout:?}"), "contiguous"));
        }
        *offset = layout.offset();
    }
    Ok((offsets, false))
}

fn place(
    name: &str,
    operand: &Operand<'_, Layout>,
    rows: usize,
    k: usize,
    group: &mut Option<usize>,
) -> Result<Placed> {
    let name = format!("{name}.scales");
    let (constant, shape, stride, per) = match operand.scales {
        Scales::None => ("none", None, 0, 1),
        Scales::Tensor(_) => ("rows", Some(vec![1]), 0, 1),
        Scales::Rows(_) => ("rows", Some(vec![rows]), 1, 1),
        Scales::Blocks {
            rows: per, steps, ..
        } => {
            let fits = steps > 0 && steps.is_multiple_of(32) && group.is_none_or(|g| g == steps);
            if per == 0 || !fits {
                return Err(Error::argument(
                    &name,
                    format!("blocks of {per} x {steps}"),
                    "one row or more by a multiple of 32, as many as the other operand's",
                ));
            }
            *group = Some(steps);
            let groups = k.div_ceil(steps);
            (
                "groups",
                Some(vec![rows.div_ceil(per), groups]),
                groups,
                per,
            )
        }
    };
    let mut offset = 0;
    if let (Some(layout), Some(shape)) = (operand.scales.tensor(), shape) {
        layout.require_dtype(&name, DType::F32)?;
        layout.require_shape(&name, &shape)?;
        if !layout.is_contiguous() {
            return Err(Error::argument(&name, format!("{layout:?}"), "contiguous"));
        }
        offset = layout.offset();
    }
    Ok(Placed {
        constant,
        offset,
        stride,
        rows: per,
    })
}
