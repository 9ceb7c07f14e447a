//! Which blocks of keys a cache has to keep, and where.

use super::geometry::Causality;
use super::layout::SparseLayout;
use super::lists::{Lists, PARTIAL};
use crate::error::{Error, Result};

/// Where a cache keeps each block of keys of each key head: pages of one block, taken when the block is written and
/// free again once no later query of the heads that share the key head meets it. Known before the first token, since
/// the layout says it all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residency {
    kv_heads: usize,
    columns: usize,
    /// By key head and block.
    pages: Vec<u32>,
    /// The last block of queries that meets each block of keys, by key head and block; its own where none does.
    last: Vec<u32>,
    total: usize,
}

impl Residency {
    pub(super) fn new(layout: &SparseLayout, kv_heads: usize, chunk: usize) -> Result<Self> {
        let g = layout.geometry();
        if g.causality != Causality::Causal || g.queries != g.keys {
            let was = format!("{layout:?}");
            let allowed = "causal with as many queries as keys: tokens of one text";
            return Err(Error::argument("layout", was, allowed));
        }
        let heads = g.heads;
        if kv_heads == 0 || !(heads.is_multiple_of(kv_heads) || kv_heads.is_multiple_of(heads)) {
            let allowed = format!("a divisor or a multiple of the layout's {heads} heads");
            return Err(Error::argument("kv_heads", kv_heads, allowed));
        }
        let columns = g.columns();
        // A pass over `chunk` tokens writes all their keys before any of them is met.
        let slack = chunk.div_ceil(g.block) + 1;
        let mut residency = Self {
            kv_heads,
            columns,
            pages: vec![0; kv_heads * columns],
            last: (0..kv_heads * columns)
                .map(|i| (i % columns) as u32)
                .collect(),
            total: 0,
        };
        let lists = layout.lists();
        for kv_head in 0..kv_heads {
            let at = kv_head * columns;
            for head in heads_of(heads, kv_heads, kv_head) {
                for line in 0..columns {
                    for &word in lists.line(head * columns + line) {
                        let last = &mut residency.last[at + (word & !PARTIAL) as usize];
                        *last = (*last).max(line as u32);
                    }
                }
            }
            residency.assign(at, slack);
        }
        Ok(residency)
    }

    /// Pages for the blocks of one key head, in the order in which they are written.
    fn assign(&mut self, at: usize, slack: usize) {
        let mut free: Vec<u32> = Vec::new();
        // Pages by the block from which on they are free.
        let mut leaving: Vec<Vec<u32>> = vec![Vec::new(); self.columns];
        for block in 0..self.columns {
            free.append(&mut leaving[block]);
            let page = free.pop().unwrap_or_else(|| {
                self.total += 1;
                self.total as u32 - 1
            });
            self.pages[at + block] = page;
            let until = self.last[at + block] as usize + slack;
            if let Some(list) = leaving.get_mut(until.max(block + 1)) {
                list.push(page);
            }
        }
    }

    /// Key heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Pages of all key heads: what a cache allocates.
    pub fn total_pages(&self) -> usize {
        self.total
    }

    /// Of all blocks of all key heads the share that is kept at most.
    pub fn share(&self) -> f64 {
        self.total as f64 / self.pages.len() as f64
    }

    /// Where a block of keys of a key head lies.
    pub fn page(&self, kv_head: usize, block: usize) -> u32 {
        self.pages[kv_head * self.columns + block]
    }

    /// The pages of all blocks, `[kv_heads, blocks of keys]`, row-major.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// The last block of queries that meets a block of keys of a key head.
    pub fn last_line(&self, kv_head: usize, block: usize) -> usize {
        self.last[kv_head * self.columns + block] as usize
    }

    /// The blocks of keys of a key head that queries from block `line` on still meet, of those before it.
    pub fn live(&self, kv_head: usize, line: usize) -> impl Iterator<Item = usize> {
        (0..line.min(self.columns)).filter(move |&block| self.last_line(kv_head, block) >= line)
    }
}

/// The layout's heads whose queries share a key head.
fn heads_of(heads: usize, kv_heads: usize, kv_head: usize) -> std::ops::Range<usize> {
    match heads >= kv_heads {
        true => kv_head * (heads / kv_heads)..(kv_head + 1) * (heads / kv_heads),
        false => kv_head / (kv_heads / heads)..kv_head / (kv_heads / heads) + 1,
    }
}

impl SparseLayout {
    /// What a cache of `kv_heads` key heads keeps, for passes over at most `chunk` tokens.
    ///
    /// Errors unless the layout is causal with as many queries as keys, and `kv_heads` divides its heads or is a multiple
    /// of them.
    pub fn residency(&self, kv_heads: usize, chunk: usize) -> Result<Residency> {
        Residency::new(self, kv_heads, chunk)
    }

    /// The layout for such a cache: the same blocks, with the pages where its keys and values lie, and as many heads as
    /// there are key heads or more. Errors as [`residency`](Self::residency).
    pub fn resident(&self, kv_heads: usize, chunk: usize) -> Result<SparseLayout> {
        let residency = self.residency(kv_heads, chunk)?;
        let (rows, mut geometry) = (self.lists(), *self.geometry());
        let repeats = (kv_heads / self.heads()).max(1);
        geometry.heads = self.heads() * repeats;
        let mut repeated = Lists::new(rows.lines);
        let mut pairs = Vec::with_capacity(geometry.heads);
        for head in (0..self.heads()).flat_map(|h| std::iter::repeat_n(h, repeats)) {
            for line in 0..rows.lines {
                repeated.entries.extend(rows.line(head * rows.lines + line));
                repeated.close_line();
            }
            pairs.push(self.pairs_of(head));
        }
        Ok(SparseLayout::new(
            geometry,
            repeated,
            pairs,
            Some(residency),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Pattern;
    use super::*;

    fn layout(pattern: &str, heads: usize) -> SparseLayout {
        let builder = SparseLayout::builder(heads, 16 * 60, 16 * 60).block(16);
        builder
            .pattern(&pattern.parse::<Pattern>().expect(pattern))
            .expect("valid")
    }

    /// Plays a text in passes of `chunk` tokens that begin anywhere: nothing that is still met is overwritten.
    fn play(layout: &SparseLayout, kv_heads: usize, chunk: usize) -> Residency {
        let residency = layout.residency(kv_heads, chunk).expect("valid");
        let mut memory = vec![None; residency.total_pages()];
        let mut start = 0;
        while start < layout.keys() {
            let end = (start + chunk - start % 7).min(layout.keys());
            for kv_head in 0..kv_heads {
                for block in start / 16..end.div_ceil(16) {
                    memory[residency.page(kv_head, block) as usize] = Some((kv_head, block));
                }
            }
            for head in 0..layout.heads().max(kv_heads) {
                let (of_layout, kv_head) = match layout.heads() >= kv_heads {
                    true => (head, head / (layout.heads() / kv_heads)),
                    false => (head / (kv_heads / layout.heads()), head),
                };
                for line in start / 16..end.div_ceil(16) {
                    for entry in layout.line(of_layout, line) {
                        let page = residency.page(kv_head, entry.block());
                        let kept = memory[page as usize];
                        assert_eq!(kept, Some((kv_head, entry.block())), "line {line}");
                    }
                }
            }
            start = end;
        }
        residency
    }

    #[test]
    fn what_is_still_met_is_never_overwritten() {
        for pattern in [
            "s2:stride=8,window=2",
            "s2:stride=4/16,window=3,sinks=1",
            "longgen:window=4,sinks=1,stride=16",
            "bigbird:window=2,global=1,random=2",
            "banded:left=2",
            "dense",
        ] {
            for (heads, kv_heads) in [(8, 8), (8, 2), (2, 4), (1, 2)] {
                for chunk in [7, 16, 100] {
                    play(&layout(pattern, heads), kv_heads, chunk);
                }
            }
        }
    }

    #[test]
    fn only_shards_and_windows_are_kept() {
        // Of 60 blocks the shard's 7 or 8, the window's 2, and 2 more for a pass under way.
        let residency = play(&layout("s2:stride=8,window=2", 8), 8, 16);
        assert!(
            residency.total_pages() <= 8 * 12,
            "{}",
            residency.total_pages()
        );
        // Of the shards of the four heads of a key head each is kept.
        let shared = play(&layout("s2:stride=8,window=2", 8), 2, 16);
        assert!(
            shared.total_pages() <= 2 * (4 * 8 + 4),
            "{}",
            shared.total_pages()
        );
        assert_eq!(play(&layout("dense", 2), 2, 16).share(), 1.0);
        // Dilated windows move on with the queries: what a head passes over now it meets later.
        let dilated = layout("dilated:window=8,dilation=8", 1);
        assert!(dilated.residency(1, 16).expect("valid").share() > 0.8);
    }

    #[test]
    fn live_blocks_are_those_that_later_lines_list() {
        let layout = layout("s2:stride=4/16,window=3,sinks=1", 4);
        let residency = layout.residency(2, 16).expect("valid");
        for kv_head in 0..2 {
            for line in [0, 1, 17, 59] {
                let expected: Vec<usize> = (0..line)
                    .filter(|&block| {
                        (2 * kv_head..2 * kv_head + 2).any(|h| {
                            (line..60).any(|l| layout.line(h, l).any(|e| e.block() == block))
                        })
                    })
                    .collect();
                let live: Vec<usize> = residency.live(kv_head, line).collect();
                assert_eq!(live, expected, "line {line}");
            }
        }
    }

    #[test]
    fn what_has_no_residency_is_named() {
        let refused = |layout: &SparseLayout, kv_heads| {
            let error = layout.residency(kv_heads, 16).expect_err("refused");
            error.to_string()
        };
        let causal = layout("dense", 6);
        assert!(refused(&causal, 4).starts_with("kv_heads: 4; allowed: a divisor or a multiple"));
        assert!(refused(&causal, 0).starts_with("kv_heads: 0"));
        let shorter = SparseLayout::builder(1, 16, 32).block(16);
        let shorter = shorter.pattern(&Pattern::Dense).expect("valid");
        assert!(refused(&shorter, 1).contains("allowed: causal with as many queries as keys"));
    }
}
