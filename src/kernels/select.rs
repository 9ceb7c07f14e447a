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

/// Records `index[row]` = the place of the row's greatest element: [`ArgMax`] with its defaults.
pub fn argmax(pass: &mut Pass<'_>, x: &Tensor, index: &Tensor) -> Result<()> {
    ArgMax::default().run(pass, x, index, None)
}

/// The k greatest elements of every row (the last dimension) of an f32, f16 or bf16 tensor, greatest first.
///
/// Blocks of a row are sorted; what is kept of them is sorted again in blocks as long as that shrinks it well, and
/// merged pair by pair otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK {
    /// Elements sorted in workgroup memory at once: a power of two from 64 to 2048 (16 KiB). Rows that are shorter take
    /// smaller blocks.
    pub block: usize,
}

impl Default for TopK {
    fn default() -> Self {
        Self { block: 2048 }
    }
}

/// The dispatches of a [`TopK`]: each reads what the one before it wrote.
#[derive(Clone, Debug)]
pub struct TopKPlan {
    /// In order. The first reads x, the last writes values and indices; between them the results of every step go to one
    /// of two pieces of memory in turn.
    pub steps: Vec<Launch>,
    /// 32-bit words of each of the two.
    pub scratch: [usize; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SortParams {
    workgroups: u32,
    blocks: u32,
    cols: u32,
    keep: u32,
    x_offset: u32,
    x_stride: u32,
    values_offset: u32,
    indices_offset: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MergeParams {
    total: u32,
    runs: u32,
    pairs: u32,
    length: u32,
    keep: u32,
    values_offset: u32,
    indices_offset: u32,
}

impl TopK {
    /// Blocks worth timing.
    pub const CANDIDATES: [usize; 3] = [512, 1024, 2048];

    /// Blocks are sorted again while that leaves at most this share of them; merging halves.
    const SHRINK: usize = 4;

    /// Plans the dispatches. `values` (f32) and `indices` (u32) are contiguous and have k elements a row, where k is their
    /// last dimension.
    pub fn plan(
        self,
        caps: &Capabilities,
        x: &Layout,
        values: &Layout,
        indices: &Layout,
    ) -> Result<TopKPlan> {
        x.require_float("x")?;
        let Rows {
            rows,
            cols,
            stride,
            offset,
        } = x.as_rows("x")?;
        let k = values.shape().last().copied().unwrap_or(1);
        if k > cols {
            return Err(Error::argument(
                "k",
                k,
                format!("at most {cols}, the length of a row"),
            ));
        }
        let values_offset = output("values", values, DType::F32, rows, k)?;
        let indices_offset = output("indices", indices, DType::U32, rows, k)?;
        if !self.block.is_power_of_two() || !(64..=2048).contains(&self.block) {
            return Err(Error::argument(
                "block",
                self.block,
                "a power of two from 64 to 2048",
            ));
        }
        if rows
            .checked_mul(cols.next_multiple_of(self.block))
            .is_none_or(|n| n > u32::MAX as usize / 2)
        {
            return Err(Error::argument(
                "x",
                format!("{x:?}"),
                "at most 2^31 elements in whole blocks",
            ));
        }
        let block = self.block.min(cols.next_power_of_two().max(64));
        let mut plan = TopKPlan {
            steps: Vec::new(),
            scratch: [0; 2],
        };
        let mut push =
            |recipe: Recipe, grid: usize, params: Step, words: Option<usize>| -> Result<()> {
                let recipe = recipe.with("OUT", if words.is_some() { "pairs" } else { "final" });
                let grid = linear_grid(caps, grid);
                let slot = &mut plan.scratch[plan.steps.len() % 2];
                *slot = (*slot).max(words.unwrap_or(0));
                plan.steps.push(match params {
                    Step::Sort(params) => Launch::new(caps, recipe, grid, &params)?,
                    Step::Merge(params) => Launch::new(caps, recipe, grid, &params)?,
                });
                Ok(())
            };
        // Elements a row still has, and the sorted runs that they are in.
        let mut left = cols;
        let mut source = "x";
        let keep = k.min(block);
        let mut runs = loop {
            let blocks = left.div_ceil(block);
            let recipe = Recipe::new("select/topk_sort")
                .with("X", x.dtype())
                .with("SOURCE", source)
                .with("BLOCK", block as u32)
                .with("WG", WORKGROUP.min(block / 2) as u32);
            let params = SortParams {
                workgroups: (rows * blocks) as u32,
                blocks: blocks as u32,
                cols: left as u32,
                keep: keep as u32,
                x_offset: offset as u32,
                x_stride: stride as u32,
                values_offset,
                indices_offset,
            };
            let words = (blocks > 1).then_some(2 * rows * blocks * keep);
            push(recipe, rows * blocks, Step::Sort(params), words)?;
            (source, left) = ("pairs", blocks * keep);
            if blocks == 1 || keep * Self::SHRINK > block {
                break blocks;
            }
        };
        let mut length = keep;
        while runs > 1 {
            let pairs = runs.div_ceil(2);
            let keep = k.min(2 * length);
            let params = MergeParams {
                total: (rows * pairs * 2 * length) as u32,
                runs: runs as u32,
                pairs: pairs as u32,
                length: length as u32,
                keep: keep as u32,
                values_offset,
                indices_offset,
            };
            let recipe = Recipe::new("select/topk_merge").with("WG", WORKGROUP as u32);
            let words = (pairs > 1).then_some(2 * rows * pairs * keep);
            let grid = (params.total as usize).div_ceil(WORKGROUP);
            push(recipe, grid, Step::Merge(params), words)?;
            (runs, length) = (pairs, keep);
        }
        Ok(plan)
    }

    /// Records the dispatches.
    pub fn run(
        self,
        pass: &mut Pass<'_>,
        x: &Tensor,
        values: &Tensor,
        indices: &Tensor,
    ) -> Result<()> {
        let caps = pass.capabilities();
        let plan = self.plan(caps, x.layout(), values.layout(), indices.layout())?;
        let mut source = x.clone();
        for (i, step) in plan.steps.iter().enumerate() {
            if i + 1 == plan.steps.len() {
                pass.launch(step, &[&source, values, indices])?;
            } else {
                let runs = pass.scratch(SCRATCH[i % 2], DType::U32, [plan.scratch[i % 2]])?;
                pass.launch(step, &[&source, &runs])?;
                source = runs;
            }
        }
        Ok(())
    }

    /// The values (f32) and indices (u32) of the k greatest elements of every row: x's shape with k as its last
    /// dimension.
    pub fn forward(self, x: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
        let mut shape = x.layout().shape().to_vec();
        match shape.last_mut() {
            Some(last) => *last = k,
            None => shape.push(k),
        }
        let values = Tensor::empty(x.context(), DType::F32, &shape)?;
        let indices = Tensor::empty(x.context(), DType::U32, &shape)?;
        x.context()
            .record(|pass| self.run(pass, x, &values, &indices))?;
        Ok((values, indices))
    }
}

/// Parameters of a step of [`TopK`].
enum Step {
    Sort(SortParams),
    Merge(MergeParams),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dtype: DType, shape: &[usize]) -> Layout {
        Layout::contiguous(dtype, shape).unwrap()
    }

    #[test]
    fn bad_arguments_are_named() {
        let caps = Capabilities::webgpu_default();
        let (x, ints) = (layout(DType::F32, &[3, 100]), layout(DType::U32, &[3]));
        let floats = layout(DType::F32, &[3]);
        let turned = layout(DType::F32, &[100, 3]).transpose(0, 1).unwrap();
        let gaps = layout(DType::U32, &[3, 2]).narrow(1, 0..1).unwrap();
        let good = ArgMax::default();
        assert!(good.plan(&caps, &x, &ints, Some(&floats)).is_ok());
        for (op, x, index, value, name) in [
            (good, &ints, &ints, &floats, "x: u32"),
            (good, &turned, &ints, &floats, "x: "),
            (good, &x, &floats, &floats, "index: f32"),
            (good, &x, &gaps, &floats, "index: "),
            (good, &x, &ints, &ints, "value: u32"),
            (good, &x, &ints, &x, "value: "),
            (ArgMax { chunk: 6 }, &x, &ints, &floats, "chunk: 6"),
            (ArgMax { chunk: 0 }, &x, &ints, &floats, "chunk: 0"),
        ] {
            let error = op
                .plan(&caps, x, index, Some(value))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(name), "{error}");
        }
        let good = TopK::default();
        let (values, indices) = (layout(DType::F32, &[3, 7]), layout(DType::U32, &[3, 7]));
        let (many, many_indices) = (layout(DType::F32, &[3, 101]), layout(DType::U32, &[3, 101]));
        assert!(good.plan(&caps, &x, &values, &indices).is_ok());
        for (op, x, values, indices, name) in [
            (good, &indices, &values, &indices, "x: u32"),
            (good, &x, &many, &many_indices, "k: 101"),
            (good, &x, &indices, &indices, "values: u32"),
            (good, &x, &values, &values, "indices: f32"),
            (good, &x, &values, &many_indices, "indices: "),
            (good, &x, &floats, &ints, "values: "),
            (TopK { block: 4096 }, &x, &values, &indices, "block: 4096"),
            (TopK { block: 96 }, &x, &values, &indices, "block: 96"),
        ] {
            let error = op.plan(&caps, x, values, indices).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn sampling_from_a_large_vocabulary_takes_three_steps() {
        let caps = Capabilities::webgpu_default();
        let x = layout(DType::F32, &[128_256]);
        let plan = |k| {
            let (values, indices) = (layout(DType::F32, &[k]), layout(DType::U32, &[k]));
            TopK::default().plan(&caps, &x, &values, &indices).unwrap()
        };
        assert_eq!(plan(50).steps.len(), 3);
        // One sort, then 63 blocks merge in pairs.
        assert_eq!(plan(9999).steps.len(), 1 + 6);
    }
}
