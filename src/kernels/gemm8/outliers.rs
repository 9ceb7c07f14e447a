//! LLM.int8() (arXiv 2208.07339): columns of the activations that hold outliers are multiplied as f16, all others as int8.

use bytemuck::{Pod, Zeroable};

use super::super::elementwise::Activation;
use super::super::gemm::Residual;
use super::{Gemm8, Gemm8Args, Operand, Quantize, QuantizeArgs};
use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Columns of A that are left out of its codes (which are zero there), and added as f16.
#[derive(Debug, PartialEq, Eq)]
pub struct Outliers<'a, T> {
    /// [1 + most] of u32: how many there are, then their numbers.
    pub columns: &'a T,
    /// [m + 256 or more, most] of f16: A's numbers in those columns; columns to the next multiple of 64 are zero.
    pub a: &'a T,
    /// [n + 256 or more, most] of f16: B's codes in those columns.
    pub b: &'a T,
}

/// Rows that [`Outliers`] have beyond their operand's, read and not used: a tile's.
const BEYOND: usize = 256;

impl<'a, T> Outliers<'a, T> {
    pub(super) fn map<U>(self, f: impl Fn(&'a T) -> &'a U) -> Outliers<'a, U> {
        Outliers {
            columns: f(self.columns),
            a: f(self.a),
            b: f(self.b),
        }
    }
}

impl Outliers<'_, Layout> {
    /// Vectors of eight in a row.
    pub(super) fn vectors(&self) -> usize {
        self.a.shape().last().map_or(0, |n| n / 8)
    }

    pub(super) fn check(&self, m: usize, n: usize, symmetric_integers: bool) -> Result<()> {
        if !symmetric_integers {
            return Err(Error::argument(
                "outliers",
                "with other operands",
                "int8 operands without zero points, scales of rows or tensors",
            ));
        }
        self.columns.require_dtype("outliers.columns", DType::U32)?;
        let most = self.columns.len() - 1;
        for (name, layout, rows) in [("outliers.a", self.a, m), ("outliers.b", self.b, n)] {
            layout.require_dtype(name, DType::F16)?;
            let fits = layout.rank() == 2
                && layout.shape()[0] >= rows + BEYOND
                && layout.shape()[1] == most
                && most.is_multiple_of(64)
                && layout.is_contiguous()
                && layout.offset() == 0;
            if !fits {
                return Err(Error::argument(
                    name,
                    format!("{layout:?}"),
                    format!(
                        "contiguous, {} rows or more of {most} (a multiple of 64)",
                        rows + BEYOND
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// `out = F(x W^T + bias) + residual` with x quantised on the way: symmetric int8 by rows, but for columns with an element of
/// magnitude `threshold` or more, which are multiplied as f16. Nothing waits for the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LlmInt8 {
    /// The least outlier. The paper's is 6.
    pub threshold: f32,
    /// Columns taken apart at most, a multiple of 64: memory is kept for as many. The first ones in order are; any others
    /// are quantised like the rest.
    pub most: usize,
    /// F.
    pub activation: Activation,
}

impl Default for LlmInt8 {
    fn default() -> Self {
        Self {
            threshold: 6.0,
            most: 256,
            activation: Activation::None,
        }
    }
}

/// The tensors of an [`LlmInt8`], or their layouts.
#[derive(Debug)]
pub struct LlmInt8Args<'a, T> {
    /// [.., m, k]: f32, f16 or bf16; k a multiple of four. Outliers beyond 65504 become infinite.
    pub x: &'a T,
    /// [n, k] of int8, with scales.
    pub weight: Operand<'a, T>,
    /// \[n\].
    pub bias: Option<&'a T>,
    /// [.., m, n].
    pub residual: Residual<'a, T>,
    /// [.., m, n].
    pub out: &'a T,
}

impl<'a> LlmInt8Args<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> LlmInt8Args<'a, Layout> {
        LlmInt8Args {
            x: self.x.layout(),
            weight: self.weight.map(Tensor::layout),
            bias: self.bias.map(Tensor::layout),
            residual: self.residual.map(Tensor::layout),
            out: self.out.layout(),
        }
    }
}

/// What the dispatches hand on to each other.
struct Between<T> {
    /// Columns found, strip by strip.
    found: T,
    columns: T,
    slots: T,
    codes: T,
    scales: T,
    a: T,
    b: T,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScanParams {
    rows: u32,
    cols: u32,
    x_offset: u32,
    x_stride: u32,
    strip: u32,
    threshold: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ListParams {
    groups: u32,
    cols: u32,
    strips: u32,
    most: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatherParams {
    rows: u32,
    offset: u32,
    stride: u32,
    apart_stride: u32,
}

/// Slots of scratch memory for what one dispatch hands on to the next ones.
const SLOTS: usize = 48;
/// Rows that an invocation looks through, at least.
const STRIP: usize = 64;
/// Strips at most: the list is made from all of them by one workgroup.
const STRIPS: usize = 32;
/// Rows of weights that a workgroup gathers.
const ROWS: u32 = 16;
const LANES: u32 = 256;
const SCAN_LANES: u32 = 64;

impl LlmInt8 {
    /// Plans the five dispatches, in their order: look for columns, list them, gather the weights of those, quantise the
    /// rest, multiply.
    pub fn plan(&self, caps: &Capabilities, args: &LlmInt8Args<'_, Layout>) -> Result<[Launch; 5]> {
        if self.most == 0 || !self.most.is_multiple_of(64) {
            return Err(Error::argument("most", self.most, "a multiple of 64"));
        }
        if self.threshold.is_nan() || self.threshold <= 0.0 {
            return Err(Error::argument("threshold", self.threshold, "positive"));
        }
        let between = self.between(args)?;
        let [scan, list] = self.find(caps, args.x)?;
        let gather = self.gather(caps, args.weight.codes)?;
        let quantize = Quantize::Symmetric.plan(caps, &quantized(args.x, &between))?;
        let product = self.product().plan(caps, &multiplied(args, &between))?;
        Ok([scan, list, gather, quantize, product])
    }

    /// Records all of it.
    pub fn run(&self, pass: &mut Pass<'_>, args: &LlmInt8Args<'_, Tensor>) -> Result<()> {
        let layouts = args.layouts();
        let [scan, list, gather, ..] = self.plan(pass.capabilities(), &layouts)?;
        let kept = self.between(&layouts)?;
        let mut slot = SLOTS;
        let mut memory = |layout: Layout| {
            slot += 1;
            pass.scratch(slot, layout.dtype(), layout.shape())
        };
        let kept = Between {
            found: memory(kept.found)?,
            columns: memory(kept.columns)?,
            slots: memory(kept.slots)?,
            codes: memory(kept.codes)?,
            scales: memory(kept.scales)?,
            a: memory(kept.a)?,
            b: memory(kept.b)?,
        };
        pass.launch(&scan, &[args.x, &kept.found])?;
        pass.launch(&list, &[&kept.found, &kept.columns, &kept.slots])?;
        pass.launch(&gather, &[args.weight.codes, &kept.columns, &kept.b])?;
        Quantize::Symmetric.run(pass, &quantized(args.x, &kept))?;
        self.product().run(pass, &multiplied(args, &kept))
    }

    fn product(&self) -> Gemm8 {
        Gemm8 {
            activation: self.activation,
        }
    }

    fn between(&self, args: &LlmInt8Args<'_, Layout>) -> Result<Between<Layout>> {
        args.x.require_float("x")?;
        let x = args.x.as_rows("x")?;
        if !x.cols.is_multiple_of(4) {
            let was = format!("{:?}", args.x);
            return Err(Error::argument(
                "x",
                was,
                "rows of a multiple of four elements",
            ));
        }
        let n = args.weight.codes.as_rows("weight")?.rows;
        Ok(Between {
            found: Layout::contiguous(DType::U32, [strips(x.rows)[0], x.cols.div_ceil(8)])?,
            columns: Layout::contiguous(DType::U32, [1 + self.most])?,
            slots: Layout::contiguous(DType::U32, [x.cols])?,
            codes: Layout::contiguous(DType::I8, args.x.shape())?,
            scales: Layout::contiguous(DType::F32, [x.rows])?,
            a: Layout::contiguous(DType::F16, [x.rows + BEYOND, self.most])?,
            b: Layout::contiguous(DType::F16, [n + BEYOND, self.most])?,
        })
    }

    fn find(&self, caps: &Capabilities, x: &Layout) -> Result<[Launch; 2]> {
        let rows = x.as_rows("x")?;
        let [strips, strip] = strips(rows.rows);
        let groups = rows.cols.div_ceil(8);
        let wide = if rows.multiple_of(4) { 4u32 } else { 1 };
        let scan = Launch::new(
            caps,
            Recipe::new("gemm8/outliers_scan")
                .with("X", x.dtype())
                .with("VEC", wide)
                .with("WG", SCAN_LANES),
            [groups.div_ceil(SCAN_LANES as usize), strips, 1],
            &ScanParams {
                rows: rows.rows as u32,
                cols: rows.cols as u32,
                x_offset: rows.offset as u32,
                x_stride: rows.stride as u32,
                strip: strip as u32,
                threshold: self.threshold,
            },
        )?;
        let list = Launch::new(
            caps,
            Recipe::new("gemm8/outliers_list").with("WG", LANES.min(caps.invocations)),
            [1, 1, 1],
            &ListParams {
                groups: groups as u32,
                cols: rows.cols as u32,
                strips: strips as u32,
                most: self.most as u32,
            },
        )?;
        Ok([scan, list])
    }

    fn gather(&self, caps: &Capabilities, weight: &Layout) -> Result<Launch> {
        weight.require_dtype("weight", DType::I8)?;
        let codes = weight.as_rows("weight")?;
        if !codes.multiple_of(4) {
            let allowed = "rows, offset and strides multiples of four";
            return Err(Error::argument("weight", format!("{weight:?}"), allowed));
        }
        Launch::new(
            caps,
            Recipe::new("gemm8/outliers_gather")
                .with("WG", LANES.min(caps.invocations))
                .with("ROWS", ROWS),
            linear_grid(caps, codes.rows.div_ceil(ROWS as usize)),
            &GatherParams {
                rows: codes.rows as u32,
                offset: codes.offset as u32,
                stride: codes.stride as u32,
                apart_stride: (self.most / 8) as u32,
            },
        )
    }
}

/// How many strips of how many rows are looked through.
fn strips(rows: usize) -> [usize; 2] {
    let strip = STRIP.max(rows.div_ceil(STRIPS));
    [rows.div_ceil(strip), strip]
}

fn quantized<'a, T>(x: &'a T, between: &'a Between<T>) -> QuantizeArgs<'a, T> {
    QuantizeArgs {
        apart: Some([&between.columns, &between.slots, &between.a]),
        ..QuantizeArgs::new(x, &between.codes, &between.scales)
    }
}

fn multiplied<'a, T>(args: &LlmInt8Args<'a, T>, between: &'a Between<T>) -> Gemm8Args<'a, T> {
    Gemm8Args {
        a: Operand::rows(&between.codes, &between.scales),
        b: args.weight,
        bias: args.bias,
        residual: args.residual.map(|t| t),
        outliers: Some(Outliers {
            columns: &between.columns,
            a: &between.a,
            b: &between.b,
        }),
        out: args.out,
    }
}
