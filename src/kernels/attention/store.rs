//! Caches of keys or values on the device: their memory, the table of their pages, and writing to them.

use bytemuck::{Pod, Zeroable};

use super::format::{KvLayout, Scaling};
use crate::capabilities::Capabilities;
use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::{Constant, Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Cached keys or values.
#[derive(Clone, Debug)]
pub struct KvStore {
    layout: KvLayout,
    memory: Tensor,
}

impl KvStore {
    /// Memory whose contents are unspecified until rows are written.
    pub fn empty(ctx: &Context, layout: KvLayout) -> Result<Self> {
        Ok(Self {
            layout,
            memory: Tensor::empty(ctx, DType::U32, [layout.words()])?,
        })
    }

    /// Where everything lies.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// The words of [`KvLayout`], u32.
    pub fn memory(&self) -> &Tensor {
        &self.memory
    }
}

/// The shape of a [`BlockTable`], to plan with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// Sequences.
    pub batch: usize,
    /// Blocks of each.
    pub blocks: usize,
    /// Pages of the pools that it was checked against.
    pub pages: usize,
    /// Tokens of a page.
    pub page_size: usize,
    /// Tokens of the longest sequence.
    pub longest: usize,
}

/// Which pages of a pool hold each sequence's tokens, and how many tokens it has: token i of sequence b lies in page
/// `blocks[b][i / page_size]` at `i % page_size`.
///
/// What a shader reads cannot be checked when it is planned, so it is checked here; besides, the kernels stay within
/// the pool whatever the table says.
#[derive(Clone, Debug)]
pub struct BlockTable {
    layout: BlockLayout,
    /// u32: lengths [batch], then blocks [batch, blocks].
    memory: Tensor,
}

impl BlockTable {
    /// A table for pools of this layout: the tokens of each sequence (zero allowed), and the pages of its blocks in
    /// row-major order [batch, blocks]. Blocks that hold no token may be anything.
    ///
    /// Errors name the entry that lies outside the pool.
    pub fn new(ctx: &Context, pool: &KvLayout, lengths: &[u32], blocks: &[u32]) -> Result<Self> {
        let layout = BlockLayout::new(pool, lengths, blocks)?;
        let memory = Tensor::empty(ctx, DType::U32, [lengths.len() + blocks.len()])?;
        let table = Self { layout, memory };
        table.upload(lengths, blocks)?;
        Ok(table)
    }

    /// Replaces lengths and blocks; their numbers stay.
    pub fn update(&mut self, pool: &KvLayout, lengths: &[u32], blocks: &[u32]) -> Result<()> {
        let layout = BlockLayout::new(pool, lengths, blocks)?;
        if (layout.batch, layout.blocks) != (self.layout.batch, self.layout.blocks) {
            return Err(Error::argument(
                "blocks",
                format!("[{}, {}]", layout.batch, layout.blocks),
                format!("[{}, {}]", self.layout.batch, self.layout.blocks),
            ));
        }
        self.layout = layout;
        self.upload(lengths, blocks)
    }

    fn upload(&self, lengths: &[u32], blocks: &[u32]) -> Result<()> {
        self.memory.write(&[lengths, blocks].concat())
    }

    /// Its shape.
    pub fn layout(&self) -> BlockLayout {
        self.layout
    }

    pub(super) fn memory(&self) -> &Tensor {
        &self.memory
    }
}

impl BlockLayout {
    /// The shape of a table with these entries, checked as [`BlockTable::new`] does; needs no GPU.
    pub fn new(pool: &KvLayout, lengths: &[u32], blocks: &[u32]) -> Result<Self> {
        let batch = lengths.len();
        if batch == 0 || blocks.is_empty() || !blocks.len().is_multiple_of(batch) {
            return Err(Error::argument(
                "blocks",
                format!("{} entries for {batch} sequences", blocks.len()),
                "as many for each sequence, at least one",
            ));
        }
        let count = blocks.len() / batch;
        for (b, (&length, row)) in lengths.iter().zip(blocks.chunks(count)).enumerate() {
            let length = length as usize;
            if length > count * pool.page_size {
                return Err(Error::argument(
                    format!("lengths[{b}]"),
                    length,
                    format!("at most {count} blocks of {} tokens", pool.page_size),
                ));
            }
            let used = &row[..length.div_ceil(pool.page_size)];
            if let Some(i) = used.iter().position(|&page| page as usize >= pool.pages) {
                return Err(Error::argument(
                    format!("blocks[{b}][{i}]"),
                    format!("page {}", used[i]),
                    format!("a page of the pool: less than {}", pool.pages),
                ));
            }
        }
        Ok(Self {
            batch,
            blocks: count,
            pages: pool.pages,
            page_size: pool.page_size,
            longest: lengths.iter().copied().max().unwrap_or(0) as usize,
        })
    }

    /// The variant of `lib/pages.wgsl`.
    pub(super) fn variant(&self) -> Constant {
        match self.blocks {
            1 => "whole".into(),
            _ => (self.page_size as u32).into(),
        }
    }

    /// Errors unless it is a table for pools of this layout.
    pub(super) fn require(&self, name: &str, pool: &KvLayout) -> Result<()> {
        if (self.pages, self.page_size) == (pool.pages, pool.page_size) {
            return Ok(());
        }
        Err(Error::argument(
            name,
            format!("{} pages of {} tokens", pool.pages, pool.page_size),
            format!(
                "{} pages of {}, for which the block table was made",
                self.pages, self.page_size
            ),
        ))
    }
}

/// The order in which keys' channels are stored: for each key head, stored channel c is channel `order[c]`.
///
/// Queries are read in the same order, so that dot products stay. Channels of like magnitude side by side share the
/// exponent of a block without loss (Accurate block quantization, arXiv 2403.20137).
#[derive(Clone, Debug)]
pub struct ChannelOrder {
    memory: Tensor,
}

impl ChannelOrder {
    /// An order [heads, dim]; errors unless each head has every channel once.
    pub fn new(ctx: &Context, order: &[u32], heads: usize, dim: usize) -> Result<Self> {
        let shape = [heads, dim];
        if order.len() != heads * dim || order.is_empty() {
            return Err(Error::argument(
                "order",
                format!("{} channels", order.len()),
                format!("{shape:?}"),
            ));
        }
        for (head, row) in order.chunks(dim).enumerate() {
            let mut seen = vec![false; dim];
            for &c in row {
                match seen.get_mut(c as usize) {
                    Some(seen) if !*seen => *seen = true,
                    _ => {
                        return Err(Error::argument(
                            format!("order[{head}]"),
                            format!("channel {c}, out of range or twice"),
                            format!("every channel below {dim} once"),
                        ));
                    }
                }
            }
        }
        Ok(Self {
            memory: Tensor::from_slice(ctx, order, shape)?,
        })
    }

    /// Channels by their largest magnitude in a sample of keys [heads, tokens, dim], least first.
    pub fn by_magnitude(sample: &[f32], heads: usize, dim: usize) -> Vec<u32> {
        let tokens = sample.len() / (heads * dim).max(1);
        let mut order = Vec::with_capacity(heads * dim);
        for head in sample.chunks((tokens * dim).max(1)).take(heads) {
            let mut most = vec![0f32; dim];
            for row in head.chunks(dim) {
                for (m, x) in most.iter_mut().zip(row) {
                    *m = m.max(x.abs());
                }
            }
            let mut channels: Vec<u32> = (0..dim as u32).collect();
            channels.sort_by(|&a, &b| most[a as usize].total_cmp(&most[b as usize]));
            order.extend(channels);
        }
        order
    }

    pub(super) fn memory(&self) -> &Tensor {
        &self.memory
    }

    pub(super) fn require(&self, heads: usize, dim: usize) -> Result<()> {
        self.memory.layout().require_shape("order", &[heads, dim])
    }
}

/// Which tokens of each sequence a call is about.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// Every sequence has a page of its own, page b of sequence b, and so many tokens.
    Contiguous(usize),
    /// As a table says.
    Paged(&'a BlockTable),
}

/// [`Tokens`], to plan with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenLayout {
    /// Every sequence has a page of its own and so many tokens.
    Contiguous(usize),
    /// A table of this shape.
    Paged(BlockLayout),
}

impl Tokens<'_> {
    /// To plan with.
    pub fn layout(&self) -> TokenLayout {
        match self {
            Self::Contiguous(n) => TokenLayout::Contiguous(*n),
            Self::Paged(table) => TokenLayout::Paged(table.layout()),
        }
    }

    pub(super) fn table(&self) -> Option<&Tensor> {
        match self {
            Self::Contiguous(_) => None,
            Self::Paged(table) => Some(table.memory()),
        }
    }
}

impl TokenLayout {
    /// Tokens of the longest sequence; errors unless they fit a cache of this layout for so many sequences.
    pub(super) fn check(&self, name: &str, cache: &KvLayout, batch: usize) -> Result<usize> {
        match self {
            Self::Contiguous(n) => {
                if cache.pages != batch {
                    return Err(Error::argument(
                        name,
                        format!("{} pages without a block table", cache.pages),
                        format!("a page for each of {batch} sequences"),
                    ));
                }
                if *n > cache.page_size {
                    return Err(Error::argument(
                        "tokens",
                        n,
                        format!("at most {}, the capacity of {name}", cache.page_size),
                    ));
                }
                Ok(*n)
            }
            Self::Paged(table) => {
                table.require(name, cache)?;
                if table.batch != batch {
                    return Err(Error::argument(
                        "blocks",
                        format!("{} sequences", table.batch),
                        format!("{batch}"),
                    ));
                }
                Ok(table.longest)
            }
        }
    }

    /// The variant of `lib/pages.wgsl`.
    pub(super) fn variant(&self) -> Constant {
        match self {
            Self::Contiguous(_) => "none".into(),
            Self::Paged(table) => table.variant(),
        }
    }

    /// Blocks of a sequence.
    pub(super) fn blocks(&self) -> u32 {
        match self {
            Self::Contiguous(_) => 1,
            Self::Paged(table) => table.blocks as u32,
        }
    }
}

/// Mirrors the shader's `Params`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AppendParams {
    x_offset: u32,
    x_batch: u32,
    x_head: u32,
    x_row: u32,
    heads: u32,
    n: u32,
    count: u32,
    first: u32,
    page_size: u32,
    pages: u32,
    blocks: u32,
    batches: u32,
    scales: u32,
}

const APPEND_WORKGROUP: u32 = 64;

/// Plans to write `rows` [batch, heads, n, dim] (f32, f16 or bf16, adjacent elements in the last dimension) as the last
/// n of each sequence's tokens.
pub fn plan_append(
    caps: &Capabilities,
    rows: &Layout,
    cache: &KvLayout,
    tokens: TokenLayout,
    order: bool,
) -> Result<Launch> {
    rows.require_float("rows")?;
    let (&[batch, heads, n, dim], &[x_batch, x_head, x_row, stride]) =
        (rows.shape(), rows.strides())
    else {
        return Err(Error::argument(
            "rows",
            format!("{rows:?}"),
            "[batch, heads, tokens, dim]",
        ));
    };
    rows.require_shape("rows", &[batch, cache.heads, n, cache.dim])?;
    if dim > 1 && stride != 1 {
        return Err(Error::argument(
            "rows",
            format!("{rows:?}"),
            "adjacent elements in the last dimension",
        ));
    }
    let longest = tokens.check("cache", cache, batch)?;
    if n > longest {
        return Err(Error::argument(
            "rows",
            format!("{n} tokens"),
            format!("at most {longest}: lengths count those that are written"),
        ));
    }
    let units = (cache.row().div_ceil(16) as u32).next_power_of_two();
    if units > APPEND_WORKGROUP {
        return Err(Error::argument(
            "rows",
            format!("{dim} channels"),
            "at most 1024",
        ));
    }
    let wide = super::problem::multiple_of(rows, 4);
    let count = batch * heads * n;
    let scaling = cache.format.scaling();
    let recipe = Recipe::new("attention/append")
        .with("X", rows.dtype())
        .with("K", cache.format.code())
        .with("SCALE", scaling.name())
        .with("KB", scaling.block())
        .with("D", dim as u32)
        .with("PAGE", tokens.variant())
        .with("ORDER", u32::from(order))
        .with("VEC", if wide && !order { 4 } else { 1 })
        .with("UP", units)
        .with("WG", APPEND_WORKGROUP);
    let params = AppendParams {
        x_offset: rows.offset() as u32,
        x_batch: x_batch as u32,
        x_head: x_head as u32,
        x_row: x_row as u32,
        heads: heads as u32,
        n: n as u32,
        count: count as u32,
        first: (longest - n) as u32,
        page_size: cache.page_size as u32,
        pages: cache.pages as u32,
        blocks: tokens.blocks(),
        batches: batch as u32,
        scales: cache.scales_at() as u32,
    };
    let workgroups = count.div_ceil((APPEND_WORKGROUP / units) as usize);
    Launch::new(caps, recipe, linear_grid(caps, workgroups), &params)
}

impl KvStore {
    /// Records writing `rows` [batch, heads, n, dim] as the last n tokens of each sequence, in the cache's format;
    /// every sequence must have as many. For keys, `order` is that of the queries' reading.
    pub fn append(
        &self,
        pass: &mut Pass<'_>,
        rows: &Tensor,
        tokens: Tokens<'_>,
        order: Option<&ChannelOrder>,
    ) -> Result<()> {
        if let Some(order) = order {
            order.require(self.layout.heads, self.layout.dim)?;
        }
        let launch = plan_append(
            pass.capabilities(),
            rows.layout(),
            &self.layout,
            tokens.layout(),
            order.is_some(),
        )?;
        let mut tensors = arrayvec::ArrayVec::<&Tensor, 4>::from_iter([rows, &self.memory]);
        tensors.extend(tokens.table());
        tensors.extend(order.map(ChannelOrder::memory));
        pass.launch(&launch, &tensors)
    }
}

/// What the decode kernel has to know of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) code: DType,
    pub(super) scaling: Scaling,
    /// Codes from row to row.
    pub(super) row: usize,
    pub(super) scales_at: usize,
}

impl From<&KvLayout> for Rows {
    fn from(layout: &KvLayout) -> Self {
        Self {
            code: layout.format.code(),
            scaling: layout.format.scaling(),
            row: layout.row(),
            scales_at: layout.scales_at(),
        }
    }
}
