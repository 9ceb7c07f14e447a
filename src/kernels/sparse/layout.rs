//! The compiled layout: lists in host memory, and their copies on devices.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::builder::Builder;
use super::geometry::{Causality, Geometry};
use super::lists::{Entry, Lists};
use super::residency::Residency;
use crate::context::{Context, lock};
use crate::error::Result;
use crate::tensor::Tensor;

/// For each head and block of queries the blocks of keys that it meets, each full or partial. Clones share the lists,
/// and their copies on a device are made once.
///
/// A layout covers `queries` by `keys`, both ending at the same place. A call may be a part of it: fewer keys, and any run
/// of queries that ends with the last of them (a chunk of a prompt, a token).
#[derive(Clone)]
pub struct SparseLayout {
    inner: Arc<Inner>,
}

struct Inner {
    geometry: Geometry,
    rows: Lists,
    /// Visible pairs in listed blocks, by head.
    pairs: Vec<u64>,
    /// Where a cache that drops blocks keeps the others.
    residency: Option<Residency>,
    devices: Mutex<Vec<(Context, Tables)>>,
}

/// Copies on one device.
#[derive(Clone, Default)]
struct Tables {
    rows: Option<Tensor>,
    columns: Option<Tensor>,
    pages: Option<Tensor>,
}

impl SparseLayout {
    /// A layout for `heads` heads (of queries; or groups of them: a divisor of their number) and these lengths.
    pub fn builder(heads: usize, queries: usize, keys: usize) -> Builder {
        Builder::new(heads, queries, keys)
    }

    pub(super) fn new(
        geometry: Geometry,
        rows: Lists,
        pairs: Vec<u64>,
        residency: Option<Residency>,
    ) -> Self {
        let inner = Inner {
            geometry,
            rows,
            pairs,
            residency,
            devices: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.inner.geometry
    }

    /// Visible pairs in a head's listed blocks.
    pub(super) fn pairs_of(&self, head: usize) -> u64 {
        self.inner.pairs.get(head).copied().unwrap_or(0)
    }

    /// The cache that the layout is for, if it is one that drops blocks.
    pub fn pages(&self) -> Option<&Residency> {
        self.inner.residency.as_ref()
    }

    pub(super) fn lists(&self) -> &Lists {
        &self.inner.rows
    }

    /// Whether both are clones of one layout.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Heads with lists of their own.
    pub fn heads(&self) -> usize {
        self.geometry().heads
    }

    /// Queries that it covers.
    pub fn queries(&self) -> usize {
        self.geometry().queries
    }

    /// Keys that it covers.
    pub fn keys(&self) -> usize {
        self.geometry().keys
    }

    /// The side of a block.
    pub fn block(&self) -> usize {
        self.geometry().block
    }

    /// Which keys a query may see at all.
    pub fn causality(&self) -> Causality {
        self.geometry().causality
    }

    /// Blocks of queries.
    pub fn lines(&self) -> usize {
        self.geometry().lines()
    }

    /// Blocks of keys.
    pub fn columns(&self) -> usize {
        self.geometry().columns()
    }

    /// The blocks of keys that a block of queries meets, ascending.
    ///
    /// # Panics
    /// Where `head` or `line` is not below [`heads`](Self::heads) or [`lines`](Self::lines).
    pub fn line(&self, head: usize, line: usize) -> impl ExactSizeIterator<Item = Entry> {
        let line = self.lists().line(head * self.lines() + line);
        line.iter().map(|&word| Entry::of(word))
    }

    /// Listed blocks of all heads.
    pub fn blocks(&self) -> usize {
        self.lists().entries.len()
    }

    /// The longest list of a block of queries.
    pub fn longest(&self) -> usize {
        let offsets = self.lists().offsets.windows(2);
        offsets.map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
    }

    /// Whether a query meets a key: the mask that the layout stands for. False outside of it.
    pub fn sees(&self, head: usize, query: usize, key: usize) -> bool {
        let g = self.geometry();
        if head >= g.heads || query >= g.queries || key >= g.seen(query) {
            return false;
        }
        let line = self.lists().line(head * g.lines() + query / g.block);
        line.binary_search_by_key(&(key / g.block), |&word| Entry::of(word).block())
            .is_ok()
    }

    /// Pairs of a query and a key that meet, all heads together.
    pub fn pairs(&self) -> u64 {
        self.inner.pairs.iter().sum()
    }

    /// Of the pairs that causality leaves visible the share that meets.
    pub fn density(&self) -> f64 {
        self.pairs() as f64 / (self.heads() as u64 * self.geometry().all_pairs()) as f64
    }

    /// The same of one head; zero for a head that there is not.
    pub fn head_density(&self, head: usize) -> f64 {
        self.pairs_of(head) as f64 / self.geometry().all_pairs() as f64
    }

    /// The first block, by (block of queries, block of keys), that is visible and that no head meets; `None` if the heads
    /// cover the context together.
    pub fn uncovered(&self) -> Option<(usize, usize)> {
        let g = self.geometry();
        let mut covered = vec![false; g.columns()];
        (0..g.lines()).find_map(|line| {
            let reach = g.reach(line);
            covered[..reach].fill(false);
            for head in 0..g.heads {
                self.line(head, line)
                    .for_each(|e| covered[e.block()] = true);
            }
            let missing = covered[..reach].iter().position(|c| !c)?;
            Some((line, missing))
        })
    }

    /// Bytes of the lists on a device; `columns` are there only once a backward pass asked for them.
    pub fn bytes(&self) -> u64 {
        4 * self.lists().words() as u64
    }

    /// Keys less queries.
    pub(crate) fn shift(&self) -> i32 {
        self.keys() as i32 - self.queries() as i32
    }

    /// The lists of the blocks of queries, for kernels (shaders/lib/sparse.wgsl): u32, made at the first call for a device.
    pub fn row_table(&self, ctx: &Context) -> Result<Tensor> {
        let encode = || match self.pages() {
            Some(pages) => {
                let group = self.heads() / pages.kv_heads();
                let page = |head: usize, block: u32| pages.page(head / group, block as usize);
                self.lists().encode(self.shift(), page)
            }
            None => self.lists().encode(self.shift(), |_, block| block),
        };
        self.table(ctx, |t| &mut t.rows, encode)
    }

    /// The lists of the blocks of keys: which blocks of queries meet each, for the backward pass. As [`row_table`](Self::row_table).
    pub fn column_table(&self, ctx: &Context) -> Result<Tensor> {
        let encode = || {
            let columns = self.lists().transposed(self.columns());
            columns.encode(self.shift(), |_, block| block)
        };
        self.table(ctx, |t| &mut t.columns, encode)
    }

    /// Where the blocks of each key head lie, `[kv_heads, blocks of keys]`, for who writes keys; as
    /// [`row_table`](Self::row_table). Zeros for a layout without pages.
    pub fn page_table(&self, ctx: &Context) -> Result<Tensor> {
        let encode = || self.pages().map_or(vec![0], |pages| pages.pages().to_vec());
        self.table(ctx, |t| &mut t.pages, encode)
    }

    fn table(
        &self,
        ctx: &Context,
        slot: impl Fn(&mut Tables) -> &mut Option<Tensor>,
        encode: impl FnOnce() -> Vec<u32>,
    ) -> Result<Tensor> {
        let mut devices = lock(&self.inner.devices);
        let at = match devices
            .iter()
            .position(|(c, _)| Arc::ptr_eq(&c.inner, &ctx.inner))
        {
            Some(at) => at,
            None => {
                devices.push((ctx.clone(), Tables::default()));
                devices.len() - 1
            }
        };
        let slot = slot(&mut devices[at].1);
        if let Some(tensor) = slot {
            return Ok(tensor.clone());
        }
        let words = encode();
        let tensor = Tensor::from_slice(ctx, &words, [words.len()])?;
        Ok(slot.insert(tensor).clone())
    }
}

impl PartialEq for SparseLayout {
    /// The same extent and lists.
    fn eq(&self, other: &Self) -> bool {
        let same = Arc::ptr_eq(&self.inner, &other.inner);
        same || self.geometry() == other.geometry() && self.lists() == other.lists()
    }
}

impl fmt::Debug for SparseLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = self.geometry();
        write!(
            f,
            "SparseLayout({} heads, {} x {}, blocks of {}, {}, {} listed)",
            g.heads,
            g.queries,
            g.keys,
            g.block,
            g.causality.name(),
            self.blocks()
        )
    }
}
