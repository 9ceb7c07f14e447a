//! What a layout covers: heads, lengths, block size, causality, and the arithmetic of their blocks.

use crate::error::{Error, Result};

/// Sides of a block that kernels have: queries and keys alike.
pub const BLOCK_SIZES: [usize; 4] = [16, 32, 64, 128];

/// Which keys a query may see at all, whatever is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Causality {
    /// All.
    Full,
    /// Those not after it, the last query being the last key's: query i sees keys j <= i + keys - queries.
    Causal,
}

impl Causality {
    /// The name in recipes and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Causal => "causal",
        }
    }
}

/// The extent of a layout, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub block: usize,
    pub causality: Causality,
}

impl Geometry {
    pub(super) fn check(&self) -> Result<()> {
        if !BLOCK_SIZES.contains(&self.block) {
            let allowed = "16, 32, 64 or 128";
            return Err(Error::argument("block", self.block, allowed));
        }
        for (name, count, most) in [
            ("heads", self.heads, 1 << 16),
            ("queries", self.queries, 1 << 30),
            ("keys", self.keys, 1 << 30),
        ] {
            if count == 0 || count > most {
                return Err(Error::argument(name, count, format!("1 to {most}")));
            }
        }
        Ok(())
    }

    /// Blocks of queries.
    pub(super) fn lines(&self) -> usize {
        self.queries.div_ceil(self.block)
    }

    /// Blocks of keys.
    pub(super) fn columns(&self) -> usize {
        self.keys.div_ceil(self.block)
    }

    /// Queries of a line; the last may have fewer than a block.
    pub(super) fn rows_of(&self, line: usize) -> std::ops::Range<usize> {
        line * self.block..((line + 1) * self.block).min(self.queries)
    }

    /// Keys that a row may see: so many, from the first on.
    pub(super) fn seen(&self, row: usize) -> usize {
        match self.causality {
            Causality::Full => self.keys,
            Causality::Causal => (row + 1 + self.keys)
                .saturating_sub(self.queries)
                .min(self.keys),
        }
    }

    /// Blocks of keys that some row of the line may see: so many, from the first on.
    pub(super) fn reach(&self, line: usize) -> usize {
        self.seen(self.rows_of(line).end - 1).div_ceil(self.block)
    }

    /// Whether every row of the line sees every key of a block.
    pub(super) fn is_full(&self, line: usize, column: usize) -> bool {
        (column + 1) * self.block <= self.seen(line * self.block)
    }

    /// Pairs of a query and a key that may see each other in a block.
    pub(super) fn pairs(&self, line: usize, column: usize) -> u64 {
        let rows = self.rows_of(line);
        if self.is_full(line, column) {
            return (rows.len() * self.block) as u64;
        }
        let first = column * self.block;
        let of_row = |row| self.seen(row).saturating_sub(first).min(self.block) as u64;
        rows.map(of_row).sum()
    }

    /// All pairs that may see each other.
    pub(super) fn all_pairs(&self) -> u64 {
        let (queries, keys) = (self.queries as u64, self.keys as u64);
        match self.causality {
            Causality::Full => queries * keys,
            // Rows see 1 + keys - queries keys or none, then one more each, up to all.
            Causality::Causal => {
                let before = keys.saturating_sub(queries);
                (keys * (keys + 1) - before * (before + 1)) / 2
            }
        }
    }

    /// The first and the last block of the keys that stand beside a line's queries (both sequences end together): the
    /// line's own block where they are alike.
    pub(super) fn diagonal(&self, line: usize) -> (usize, usize) {
        let rows = self.rows_of(line);
        let beside = |row: usize| {
            let key = (row + self.keys).saturating_sub(self.queries);
            key.min(self.keys - 1) / self.block
        };
        (beside(rows.start), beside(rows.end - 1))
    }
}
