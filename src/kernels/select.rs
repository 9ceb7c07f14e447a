//! Selection: the greatest element of every row, and the k greatest in order.
//!
//! Both order floats by integer keys, so that results equal the CPU's exactly: greater first, ties by the lower index,
//! NaN before every number (a broken row shows), -0 equal to 0.

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Layout, Rows};
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;
/// The slots of scratch memory for what one dispatch of an operator hands on to its next: never read after it.
const SCRATCH: [usize; 2] = [0, 1];

/// A contiguous output of one element type with `count` elements in a row, and where it begins.
fn output(name: &str, layout: &Layout, dtype: DType, rows: usize, count: usize) -> Result<u32> {
    layout.require_dtype(name, dtype)?;
    if !layout.is_contiguous() || layout.len() != rows * count {
        let allowed = format!("contiguous, {count} for each of {rows} rows");
        return Err(Error::argument(name, format!("{layout:?}"), allowed));
    }
    Ok(layout.offset() as u32)
}

/// The greatest element of every row (the last dimension) of an f32, f16 or bf16 tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgMax {
    /// Elements a workgroup reads, a multiple of four: a longer row is split, and a second dispatch picks the best of its
    /// parts.
    pub chunk: usize,
}

impl Default for ArgMax {
    fn default() -> Self {
        Self { chunk: 8192 }
    }
}

/// The dispatches of an [`ArgMax`].
#[derive(Clone, Debug)]
pub struct ArgMaxPlan {
    /// Finds the best of every part of every row.
    pub scan: Launch,
    /// Picks the best of the parts, where rows have several.
    pub merge: Option<Launch>,
    /// 32-bit words of memory between the two.
    pub scratch: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScanParams {
    workgroups: u32,
    chunks: u32,
    chunk: u32,
    cols: u32,
    x_offset: u32,
    x_stride: u32,
    index_offset: u32,
    value_offset: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BestParams {
    rows: u32,
    chunks: u32,
    index_offset: u32,
    value_offset: u32,
}

impl ArgMax {
    /// Chunks worth timing.
    pub const CANDIDATES: [usize; 5] = [2048, 4096, 8192, 16384, 65536];

    /// Groups of four that an invocation has in flight.
    const UNROLL: usize = 4;
    /// With this many rows there is work for every multiprocessor without splitting them.
    const MANY_ROWS: usize = 128;

    /// Plans the dispatches. `index` (u32) and `value` (f32) have one element a row.
    pub fn plan(
        self,
        caps: &Capabilities,
        x: &Layout,
        index: &Layout,
        value: Option<&Layout>,
    ) -> Result<ArgMaxPlan> {
        x.require_float("x")?;
        let Rows {
            rows,
            cols,
            stride,
            offset,
        } = x.as_rows("x")?;
        let index_offset = output("index", index, DType::U32, rows, 1)?;
        let value_offset = value.map_or(Ok(0), |v| output("value", v, DType::F32, rows, 1))?;
        if self.chunk == 0 || !self.chunk.is_multiple_of(4) || self.chunk > 1 << 30 {
            return Err(Error::argument(
                "chunk",
                self.chunk,
                "a multiple of 4, at most 2^30",
            ));
        }
        let whole = cols.next_multiple_of(4);
        let chunk = if rows >= Self::MANY_ROWS {
            whole
        } else {
            self.chunk.min(whole)
        };
        let chunks = cols.div_ceil(chunk);
        let wide = Rows {
            rows,
            cols,
            stride,
            offset,
        }
        .multiple_of(4);
        let last = if value.is_some() { "value" } else { "index" };
        let recipe = Recipe::new("select/argmax")
            .with("X", x.dtype())
            .with("OUT", if chunks > 1 { "pairs" } else { last })
            .with("VEC", if wide { 4 } else { 1 })
            .with("WG", WORKGROUP as u32)
            .with("UNROLL", Self::UNROLL as u32);
        let params = ScanParams {
            workgroups: (rows * chunks) as u32,
            chunks: chunks as u32,
            chunk: chunk as u32,
            cols: cols as u32,
            x_offset: offset as u32,
            x_stride: stride as u32,
            index_offset,
            value_offset,
        };
        let scan = Launch::new(caps, recipe, linear_grid(caps, rows * chunks), &params)?;
        let merge = (chunks > 1).then(|| {
            let recipe = Recipe::new("select/argmax_merge")
                .with("OUT", last)
                .with("WG", WORKGROUP as u32);
            let params = BestParams {
                rows: rows as u32,
                chunks: chunks as u32,
                index_offset,
                value_offset,
            };
            Launch::new(caps, recipe, linear_grid(caps, rows), &params)
        });
        Ok(ArgMaxPlan {
            scan,
            merge: merge.transpose()?,
            scratch: if chunks > 1 { 2 * rows * chunks } else { 0 },
        })
    }

    /// Records the dispatches.
    pub fn run(
        self,
        pass: &mut Pass<'_>,
        x: &Tensor,
        index: &Tensor,
        value: Option<&Tensor>,
    ) -> Result<()> {
        let caps = pass.capabilities();
        let plan = self.plan(caps, x.layout(), index.layout(), value.map(Tensor::layout))?;
        let launch = |pass: &mut Pass<'_>, launch: &Launch, from: &Tensor| {
            let mut tensors = arrayvec::ArrayVec::<&Tensor, 3>::from_iter([from, index]);
            tensors.extend(value);
            pass.launch(launch, &tensors)
        };
        let Some(merge) = &plan.merge else {
            return launch(pass, &plan.scan, x);
        };
        let pairs = pass.scratch(SCRATCH[0], DType::U32, [plan.scratch])?;
        pass.launch(&plan.scan, &[x, &pairs])?;
        launch(pass, merge, &pairs)
    }

    /// The index of every row's greatest element: u32, x's shape without its last dimension.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        let leading = x
            .shape()
            .split_last()
            .map_or(&[][..], |(_, leading)| leading);
        let index = Tensor::empty(x.context(), DType::U32, leading)?;
        x.context().record(|pass| self.run(pass, x, &index, None))?;
        Ok(index)
    }
}

/// Records index[row] = the place of the row's greatest element: [`ArgMax`] with its defaults.
pub fn argmax(pass: &mut Pass<'_>, x: &Tensor, index: &Tensor) -> Result<()> {
    ArgMax::default().run(pass, x, index, None)
}
