//! Calls that visit listed blocks of keys alone.

use super::{Band, PrefillTuning};
use crate::error::{Error, Result};
use crate::kernels::sparse::{Causality, SparseLayout};

/// Which blocks of keys a call visits, and where they lie.
#[derive(Clone, Copy, Debug)]
pub enum Blocks<'a> {
    /// k and v hold all keys. The call's keys are the layout's first, its last query stands at the last of them.
    Listed(&'a SparseLayout),
    /// k and v, [1, 1, pages * block, channels], are the pages of a cache that keeps only blocks that are still met.
    Pages {
        /// Made by [`SparseLayout::resident`].
        layout: &'a SparseLayout,
        /// Keys so far, those dropped as well.
        keys: usize,
    },
}

impl<'a> Blocks<'a> {
    /// The layout.
    pub fn layout(self) -> &'a SparseLayout {
        match self {
            Self::Listed(layout) | Self::Pages { layout, .. } => layout,
        }
    }
}

/// The sizes of a call that a layout has to suit.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub heads: usize,
    pub q_len: usize,
    pub kv_len: usize,
    pub band: Band,
}

/// A layout that suits the call.
#[derive(Clone, Copy)]
pub(super) struct Listed<'a> {
    pub layout: &'a SparseLayout,
    /// Query heads that share lists.
    pub share: usize,
    /// The call's first block of queries, and how many.
    pub lines: (usize, usize),
}

impl<'a> Listed<'a> {
    pub(super) fn new(layout: &'a SparseLayout, sizes: Sizes) -> Result<Self> {
        let refused = |was: String, allowed: String| Err(Error::argument("sparse", was, allowed));
        let Sizes {
            heads,
            q_len,
            kv_len,
            band,
        } = sizes;
        if !heads.is_multiple_of(layout.heads()) {
            let was = format!("a layout for {} heads", layout.heads());
            return refused(was, format!("a divisor of q's {heads} heads"));
        }
        // The layout's row of the call's first query.
        let first = kv_len as i64 - q_len as i64 - i64::from(layout.shift());
        if kv_len > layout.keys() || first < 0 || first as usize + q_len > layout.queries() {
            let was = format!(
                "a layout of {} queries by {} keys",
                layout.queries(),
                layout.keys()
            );
            let allowed = format!(
                "one that has the {q_len} queries that end at key {kv_len}: at least as many keys, and its own last \
                 query at its own last key"
            );
            return refused(was, allowed);
        }
        if layout.causality() == Causality::Causal && (band.right > 0 || band.prefix > 0) {
            let was = "a causal layout under a mask that shows later keys".into();
            return refused(was, "a mask that is causal, or a layout that is not".into());
        }
        let begin = first as usize / layout.block();
        let end = (first as usize + q_len).div_ceil(layout.block());
        Ok(Self {
            layout,
            share: heads / layout.heads(),
            lines: (begin, end - begin),
        })
    }

    /// Tiles of so many queries and heads of a line, lines, heads of lists: see shaders/lib/sparse.wgsl.
    pub(super) fn grid(&self, queries: usize, batch: usize) -> [usize; 3] {
        [
            self.layout.block() / queries * self.share * batch,
            self.lines.1,
            self.layout.heads(),
        ]
    }

    /// Keys that the longest line of the call visits.
    pub(super) fn visits(&self) -> usize {
        let (first, count) = self.lines;
        let of_head =
            |head| (first..first + count).map(move |line| self.layout.line(head, line).len());
        let longest = (0..self.layout.heads()).flat_map(of_head).max();
        longest.unwrap_or(0).max(1) * self.layout.block()
    }

    /// The tuning with tiles that a block is made of.
    pub(super) fn fit(&self, mut tuning: PrefillTuning) -> PrefillTuning {
        let block = self.layout.block() as u32;
        while tuning.query_threads * tuning.rows > block {
            match tuning.rows {
                8 => tuning.rows = 4,
                _ => tuning.query_threads /= 2,
            }
        }
        while 4 * tuning.key_threads > block {
            tuning.key_threads /= 2;
        }
        tuning.value_keys = tuning.value_keys.min(4 * tuning.key_threads);
        tuning
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Attention, AttentionLayouts, Mask};
    use super::*;
    use crate::dtype::DType;
    use crate::kernels::sparse::Pattern;
    use crate::layout::Layout;
    use crate::{Capabilities, Launch};

    fn layout(heads: usize, queries: usize, keys: usize) -> SparseLayout {
        let builder = SparseLayout::builder(heads, queries, keys).block(16);
        builder.pattern(&Pattern::s2(4, 2)).expect("valid")
    }

    fn plan(blocks: Blocks<'_>, mask: Mask, [q_len, kv_len]: [usize; 2]) -> Result<Launch> {
        let made = |shape: [usize; 4]| Layout::contiguous(DType::F16, shape).expect("a layout");
        let q = made([1, 8, q_len, 64]);
        let k = match blocks {
            Blocks::Listed(_) => made([1, 2, kv_len, 64]),
            Blocks::Pages { layout, .. } => {
                let pages = layout.pages().map_or(1, |p| p.total_pages());
                made([1, 1, pages * layout.block(), 64])
            }
        };
        let layouts = AttentionLayouts {
            sparse: Some(blocks),
            ..AttentionLayouts::new(&q, &k, &k, &q)
        };
        let plan = Attention::new(mask).plan(&Capabilities::webgpu_default(), layouts)?;
        Ok(plan.launches().next().cloned().expect("a launch"))
    }

    #[test]
    fn the_grid_covers_the_lines_of_the_call() {
        let layout = layout(4, 1000, 1000);
        let grid = |q_len, kv_len| {
            let launch = plan(Blocks::Listed(&layout), Mask::Causal, [q_len, kv_len]);
            launch.expect("valid").grid
        };
        assert_eq!(grid(1000, 1000), [2, 63, 4]);
        assert_eq!(grid(32, 96), [2, 2, 4]);
        assert_eq!(grid(32, 97), [2, 3, 4]);
    }

    #[test]
    fn layouts_that_do_not_suit_are_named() {
        let refused = |layout: &SparseLayout, mask, sizes| {
            let error = plan(Blocks::Listed(layout), mask, sizes).expect_err("refused");
            error.to_string()
        };
        let text = layout(8, 100, 100);
        let three = layout(3, 100, 100);
        let error = refused(&three, Mask::Causal, [50, 50]);
        assert!(
            error.contains("for 3 heads; allowed: a divisor of q's 8 heads"),
            "{error}"
        );
        let error = refused(&text, Mask::Causal, [50, 101]);
        assert!(
            error.starts_with("sparse: a layout of 100 queries by 100 keys"),
            "{error}"
        );
        let error = refused(&text, Mask::Causal, [50, 40]);
        assert!(
            error.starts_with("sparse: a layout of 100 queries by 100 keys"),
            "{error}"
        );
        let error = refused(&text, Mask::Full, [50, 50]);
        assert!(
            error.contains("under a mask that shows later keys"),
            "{error}"
        );
        let resident = text.resident(2, 16).expect("valid");
        let error = refused(&resident, Mask::Causal, [50, 50]);
        assert!(
            error.contains("allowed: for pages, Blocks::Pages"),
            "{error}"
        );
        let pages = |layout| Blocks::Pages { layout, keys: 50 };
        let error = plan(pages(&text), Mask::Causal, [50, 50]).expect_err("no pages");
        assert!(
            error.to_string().contains("SparseLayout::resident"),
            "{error}"
        );
        plan(pages(&resident), Mask::Causal, [50, 50]).expect("valid");
    }
}
