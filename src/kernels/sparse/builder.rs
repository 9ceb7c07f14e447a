//! Compiling a pattern, a closure, a matrix or lists into a layout.

use super::geometry::{Causality, Geometry};
use super::layout::SparseLayout;
use super::lists::{Lists, PARTIAL};
use super::pattern::Pattern;
use crate::error::{Error, Result};

/// Collects what a [`SparseLayout`] covers; one of its last four methods compiles it. Blocks are 64 by 64 and causal
/// unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Builder {
    geometry: Geometry,
}

impl Builder {
    pub(super) fn new(heads: usize, queries: usize, keys: usize) -> Self {
        let geometry = Geometry {
            heads,
            queries,
            keys,
            block: 64,
            causality: Causality::Causal,
        };
        Self { geometry }
    }

    /// The side of a block: 16, 32, 64 or 128.
    pub fn block(mut self, block: usize) -> Self {
        self.geometry.block = block;
        self
    }

    /// Which keys a query may see at all.
    pub fn causality(mut self, causality: Causality) -> Self {
        self.geometry.causality = causality;
        self
    }

    /// The layout of a pattern, in time proportional to the blocks it lists.
    pub fn pattern(self, pattern: &Pattern) -> Result<SparseLayout> {
        pattern.check()?;
        let g = self.geometry;
        self.compile(|head, line, found| {
            pattern.line(&g, head, line, found);
            Ok(())
        })
    }

    /// The layout of the blocks for which `listed(head, block of queries, block of keys)` holds; it is asked for every
    /// block that causality leaves visible.
    pub fn from_fn(self, listed: impl Fn(usize, usize, usize) -> bool) -> Result<SparseLayout> {
        let g = self.geometry;
        self.compile(|head, line, found| {
            found.extend((0..g.reach(line)).filter(|&block| listed(head, line, block)));
            Ok(())
        })
    }

    /// The layout of a matrix `[heads, blocks of queries, blocks of keys]`, row-major: what is not zero is listed.
    pub fn dense(self, matrix: &[u8]) -> Result<SparseLayout> {
        let g = self.checked()?;
        let shape = [g.heads, g.lines(), g.columns()];
        if matrix.len() != shape.iter().product::<usize>() {
            let was = format!("{} elements", matrix.len());
            let allowed = format!("heads, blocks of queries and blocks of keys: {shape:?}");
            return Err(Error::argument("matrix", was, allowed));
        }
        let [_, lines, columns] = shape;
        self.from_fn(|head, line, block| matrix[(head * lines + line) * columns + block] != 0)
    }

    /// The layout of given lists of blocks of keys, one for each block of queries of each head, head by head. What
    /// causality hides as a whole is left out.
    pub fn lists(self, lists: &[impl AsRef<[u32]>]) -> Result<SparseLayout> {
        let g = self.checked()?;
        if lists.len() != g.heads * g.lines() {
            let allowed = format!("{} heads of {} blocks of queries", g.heads, g.lines());
            return Err(Error::argument(
                "lists",
                format!("{} lists", lists.len()),
                allowed,
            ));
        }
        self.compile(|head, line, found| {
            for &block in lists[head * g.lines() + line].as_ref() {
                let block = block as usize;
                if block >= g.columns() {
                    return Err(Error::argument(
                        format!("lists[{}]", head * g.lines() + line),
                        format!("block {block}"),
                        format!(
                            "0 to {}: {} keys in blocks of {}",
                            g.columns() - 1,
                            g.keys,
                            g.block
                        ),
                    ));
                }
                found.push(block);
            }
            Ok(())
        })
    }

    fn checked(&self) -> Result<Geometry> {
        self.geometry.check()?;
        Ok(self.geometry)
    }

    fn compile(
        self,
        line_of: impl Fn(usize, usize, &mut Vec<usize>) -> Result<()>,
    ) -> Result<SparseLayout> {
        let g = self.checked()?;
        let mut lists = Lists::new(g.lines());
        let mut pairs = vec![0; g.heads];
        let mut found = Vec::new();
        for (head, pairs) in pairs.iter_mut().enumerate() {
            for line in 0..g.lines() {
                found.clear();
                line_of(head, line, &mut found)?;
                let reach = g.reach(line);
                found.retain(|&block| block < reach);
                found.sort_unstable();
                found.dedup();
                for &block in &found {
                    *pairs += g.pairs(line, block);
                    let partial = if g.is_full(line, block) { 0 } else { PARTIAL };
                    lists.entries.push(block as u32 | partial);
                }
                lists.close_line();
            }
            if lists.entries.len() > 1 << 29 {
                let was = format!("over {} blocks", lists.entries.len());
                return Err(Error::argument("layout", was, "at most 2^29 listed blocks"));
            }
        }
        if lists.entries.is_empty() {
            return Err(Error::argument("layout", "no block listed", "at least one"));
        }
        Ok(SparseLayout::new(g, lists, pairs, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_extents_are_named() {
        let layout = |heads, queries, keys, block| {
            SparseLayout::builder(heads, queries, keys)
                .block(block)
                .pattern(&Pattern::Dense)
                .expect_err("refused")
                .to_string()
        };
        assert_eq!(
            layout(1, 64, 64, 48),
            "block: 48; allowed: 16, 32, 64 or 128"
        );
        assert_eq!(layout(0, 64, 64, 16), "heads: 0; allowed: 1 to 65536");
        assert!(layout(1, 0, 64, 16).starts_with("queries: 0"));
        assert!(layout(1, 64, 1 << 31, 16).starts_with("keys: 2147483648"));
    }

    #[test]
    fn bad_blocks_are_named() {
        let builder = SparseLayout::builder(1, 40, 40).block(16);
        let error = builder
            .lists(&[vec![0], vec![0, 3], vec![1]])
            .expect_err("beyond");
        assert_eq!(
            error.to_string(),
            "lists[1]: block 3; allowed: 0 to 2: 40 keys in blocks of 16"
        );
        let error = builder.lists(&[vec![0]]).expect_err("too few");
        assert!(error.to_string().starts_with("lists: 1 lists"), "{error}");
        let error = builder.dense(&[1; 8]).expect_err("too few");
        assert!(error.to_string().contains("[1, 3, 3]"), "{error}");
        let error = builder.from_fn(|_, _, _| false).expect_err("empty");
        assert!(error.to_string().contains("no block listed"), "{error}");
    }

    #[test]
    fn a_pattern_a_closure_a_matrix_and_lists_give_the_same_layout() {
        let builder = SparseLayout::builder(2, 100, 100).block(16);
        let pattern = builder
            .pattern(&Pattern::Banded { left: 1, right: 0 })
            .expect("valid");
        let listed = |_, q: usize, k: usize| k == q || k + 1 == q;
        let closure = builder.from_fn(listed).expect("valid");
        let cells = (0..2 * 49).map(|i| u8::from(listed(0, i / 7 % 7, i % 7)));
        let matrix = builder.dense(&cells.collect::<Vec<_>>()).expect("valid");
        let line = |q: u32| vec![q, q.saturating_sub(1)];
        let lists: Vec<_> = (0..14).map(|i| line(i % 7)).collect();
        let lists = builder.lists(&lists).expect("valid");
        assert_eq!(pattern, closure);
        assert_eq!(pattern, matrix);
        assert_eq!(pattern, lists);
    }
}
