//! Known patterns of sparse attention, as data.

use super::geometry::{Causality, Geometry};
use crate::error::{Error, Result};

/// Which blocks of keys a block of queries meets; all sizes and distances are counted in blocks. Causality cuts off what
/// lies after the queries. Its text form is `s2:stride=16,window=4`; see [`Pattern::from_str`](std::str::FromStr).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Everything.
    Dense,
    /// S2-Attention (arXiv 2407.17678): head h meets every `stride`-th block from an offset of its own on, the last
    /// `window` blocks and the first `sinks`. What is met once is met by all later queries, so that a cache keeps only
    /// each head's own blocks. Heads take `strides` in turn (heterogeneous), and those of one stride the offsets
    /// `offset`, `offset` + 1, ..: as many heads as their stride cover the context together. With fewer heads, layers
    /// whose `offset` differs by the number of heads cover it.
    S2 {
        /// Distances between the blocks of a head: heads take them in turn.
        strides: Vec<usize>,
        /// Where the first head of each stride begins.
        offset: usize,
        /// Blocks up to and with the queries' own.
        window: usize,
        /// Blocks at the start.
        sinks: usize,
    },
    /// LongGen (arXiv 2410.01485): window, attention sinks, and every `stride`-th block, alike for all heads.
    LongGen {
        /// Blocks up to and with the queries' own.
        window: usize,
        /// Blocks at the start.
        sinks: usize,
        /// Distance between the blocks in between.
        stride: usize,
    },
    /// BigBird (arXiv 2007.14062): window, the first `global` blocks met by all and meeting all, and `random` blocks a
    /// line, other ones for each head.
    BigBird {
        /// Blocks up to and with the queries' own, and as many after it where those are visible.
        window: usize,
        /// Blocks at the start.
        global: usize,
        /// Blocks drawn for each line and head.
        random: usize,
        /// Of the draw.
        seed: u64,
    },
    /// `window` blocks, `dilation` apart, back from the queries' own (arXiv 2004.05150).
    Dilated {
        /// Blocks up to and with the queries' own, and as many after it where those are visible.
        window: usize,
        /// Distance between them.
        dilation: usize,
    },
    /// The queries' own block, `left` before it and `right` after it.
    Banded {
        /// Blocks before.
        left: usize,
        /// Blocks after, where those are visible.
        right: usize,
    },
}

impl Pattern {
    /// S2-Attention with one stride for all heads.
    pub fn s2(stride: usize, window: usize) -> Self {
        Self::S2 {
            strides: vec![stride],
            offset: 0,
            window,
            sinks: 0,
        }
    }

    /// The pattern for layer number `layer` of a stack with `heads` heads: S2's shards move on by the heads of the layers
    /// before, so that layers cover together what the heads of one cannot. Other patterns are alike in every layer.
    pub fn for_layer(&self, layer: usize, heads: usize) -> Self {
        let mut pattern = self.clone();
        if let Self::S2 {
            offset, strides, ..
        } = &mut pattern
        {
            *offset += layer * heads;
            if let [stride] = strides[..] {
                *offset %= stride.max(1);
            }
        }
        pattern
    }

    /// Whether all heads have the same blocks, so that one list serves them.
    pub fn is_alike(&self) -> bool {
        !matches!(self, Self::S2 { .. } | Self::BigBird { random: 1.., .. })
    }

    pub(super) fn check(&self) -> Result<()> {
        let zeros: &[(&str, usize)] = match self {
            Self::Dense | Self::Banded { .. } => &[],
            Self::S2 {
                strides, window, ..
            } => {
                if strides.is_empty() || strides.contains(&0) {
                    let was = format!("{strides:?}");
                    return Err(Error::argument(
                        "stride",
                        was,
                        "at least one, each from 1 on",
                    ));
                }
                &[("window", *window)]
            }
            Self::LongGen { window, stride, .. } => &[("window", *window), ("stride", *stride)],
            Self::BigBird { window, .. } => &[("window", *window)],
            Self::Dilated { window, dilation } => &[("window", *window), ("dilation", *dilation)],
        };
        match zeros.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::argument(*name, 0, "1 or more blocks")),
            None => Ok(()),
        }
    }

    /// The stride of an S2 head and where its blocks begin.
    fn shard(strides: &[usize], offset: usize, head: usize) -> (usize, usize) {
        let stride = strides[head % strides.len()];
        // Heads before this one with the same stride.
        let same = |n: usize| strides[..n].iter().filter(|&&s| s == stride).count();
        let rank = head / strides.len() * same(strides.len()) + same(head % strides.len());
        (stride, (offset + rank) % stride)
    }

    /// Appends the blocks of keys of a line, in any order, some perhaps twice or out of sight.
    pub(super) fn line(&self, g: &Geometry, head: usize, line: usize, found: &mut Vec<usize>) {
        let reach = g.reach(line);
        let (low, high) = g.diagonal(line);
        let after = |n: usize| match g.causality {
            Causality::Causal => reach,
            Causality::Full => (high + n).min(reach),
        };
        let window = |n: usize| low.saturating_sub(n - 1)..after(n);
        match *self {
            Self::Dense => found.extend(0..reach),
            Self::S2 {
                ref strides,
                offset,
                window: w,
                sinks,
            } => {
                let (stride, first) = Self::shard(strides, offset, head);
                found.extend(0..sinks.min(reach));
                found.extend((first..reach).step_by(stride));
                found.extend(window(w));
            }
            Self::LongGen {
                window: w,
                sinks,
                stride,
            } => {
                found.extend(0..sinks.min(reach));
                found.extend((stride - 1..reach).step_by(stride));
                found.extend(window(w));
            }
            Self::BigBird {
                window: w,
                global,
                random,
                seed,
            } => {
                if line < global {
                    found.extend(0..reach);
                    return;
                }
                found.extend(0..global.min(reach));
                found.extend(window(w));
                let mut state = seed ^ ((head as u64) << 40) ^ line as u64;
                found.extend((0..random.min(reach)).map(|_| draw(&mut state, reach)));
            }
            Self::Dilated {
                window: w,
                dilation,
            } => {
                for n in 0..w {
                    let Some(block) = low.checked_sub(n * dilation) else {
                        break;
                    };
                    found.push(block);
                }
                // A line that lies across two blocks has both for its own.
                found.extend(
                    (0..w)
                        .map(|n| high + n * dilation)
                        .take_while(|&b| b < reach),
                );
            }
            Self::Banded { left, right } => {
                found.extend(low.saturating_sub(left)..(high + right + 1).min(reach));
            }
        }
    }
}

/// A number below `n` (SplitMix64).
fn draw(state: &mut u64, n: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::super::SparseLayout;
    use super::*;

    fn layout(text: &str, heads: usize, blocks: usize, causality: Causality) -> SparseLayout {
        let builder = SparseLayout::builder(heads, 16 * blocks, 16 * blocks).block(16);
        let pattern = text.parse::<Pattern>().expect(text);
        builder.causality(causality).pattern(&pattern).expect(text)
    }

    fn blocks(layout: &SparseLayout, head: usize, line: usize) -> Vec<usize> {
        layout.line(head, line).map(|e| e.block()).collect()
    }

    #[test]
    fn heads_of_s2_cover_the_context_together() {
        for (text, heads) in [
            ("s2:stride=8", 8),
            ("s2:stride=8", 11),
            ("s2:stride=16,window=3,offset=5", 16),
            ("s2:stride=1,window=2", 1),
            ("s2:stride=4/16", 8),
            ("s2:stride=2/3/4,sinks=1", 6),
        ] {
            for causality in [Causality::Causal, Causality::Full] {
                let layout = layout(text, heads, 70, causality);
                assert_eq!(layout.uncovered(), None, "{text}, {heads} heads");
            }
        }
        // Seven heads of stride eight leave every eighth block out.
        let layout = layout("s2:stride=8", 7, 70, Causality::Causal);
        assert_eq!(layout.uncovered(), Some((8, 7)));
    }

    #[test]
    fn layers_of_s2_cover_what_the_heads_of_one_cannot() {
        let pattern = Pattern::s2(16, 2);
        let builder = SparseLayout::builder(4, 1024, 1024).block(16);
        let layers: Vec<SparseLayout> = (0..4)
            .map(|layer| {
                builder
                    .pattern(&pattern.for_layer(layer, 4))
                    .expect("valid")
            })
            .collect();
        assert!(layers.iter().all(|layer| layer.uncovered().is_some()));
        let union = SparseLayout::builder(16, 1024, 1024).block(16);
        let union = union.from_fn(|head, line, block| {
            layers[head / 4]
                .line(head % 4, line)
                .any(|e| e.block() == block)
        });
        assert_eq!(union.expect("valid").uncovered(), None);
    }

    #[test]
    fn heads_of_s2_differ_and_each_meets_its_window_and_its_shard() {
        let layout = layout("s2:stride=4/8,window=3,sinks=2", 4, 40, Causality::Causal);
        assert_eq!(blocks(&layout, 0, 20), [0, 1, 4, 8, 12, 16, 18, 19, 20]);
        assert_eq!(blocks(&layout, 1, 20), [0, 1, 8, 16, 18, 19, 20]);
        assert_eq!(blocks(&layout, 2, 20), [0, 1, 5, 9, 13, 17, 18, 19, 20]);
        assert_eq!(blocks(&layout, 3, 20), [0, 1, 9, 17, 18, 19, 20]);
    }

    #[test]
    fn the_other_patterns_list_what_they_say() {
        let line = |text| blocks(&layout(text, 1, 20, Causality::Causal), 0, 12);
        assert_eq!(line("longgen:window=2,sinks=1,stride=5"), [0, 4, 9, 11, 12]);
        assert_eq!(line("dilated:window=4,dilation=3"), [3, 6, 9, 12]);
        assert_eq!(line("banded:left=2,right=3"), [10, 11, 12]);
        assert_eq!(line("dense"), (0..13).collect::<Vec<_>>());
        let line = |text| blocks(&layout(text, 1, 20, Causality::Full), 0, 12);
        assert_eq!(line("banded:left=2,right=3"), (10..16).collect::<Vec<_>>());
        assert_eq!(line("dilated:window=3,dilation=4"), [4, 8, 12, 16]);
    }

    #[test]
    fn bigbird_is_seeded_and_its_global_blocks_meet_all() {
        let text = "bigbird:window=2,global=2,random=3,seed=1";
        let one = layout(text, 2, 64, Causality::Full);
        assert_eq!(one, layout(text, 2, 64, Causality::Full));
        assert_ne!(
            one,
            layout(&text.replace("=1", "=2"), 2, 64, Causality::Full)
        );
        assert_eq!(blocks(&one, 0, 1).len(), 64);
        assert_ne!(blocks(&one, 0, 30), blocks(&one, 1, 30));
        for line in 2..64 {
            let found = blocks(&one, 1, line);
            assert!(found.starts_with(&[0, 1]) && found.contains(&line) && found.len() <= 8);
        }
    }

    #[test]
    fn full_and_partial_blocks_are_told_apart_at_ragged_ends() {
        for causality in [Causality::Causal, Causality::Full] {
            for (queries, keys) in [(50, 50), (33, 70), (70, 33), (1, 40), (16, 64)] {
                let builder = SparseLayout::builder(1, queries, keys).block(16);
                let layout = builder
                    .causality(causality)
                    .pattern(&Pattern::Dense)
                    .expect("valid");
                let sees = |i: usize, j: usize| {
                    let after = (j + queries) as isize - (i + keys) as isize;
                    j < keys && (causality == Causality::Full || after <= 0)
                };
                let mut pairs = 0;
                for line in 0..layout.lines() {
                    let rows = line * 16..(line * 16 + 16).min(queries);
                    let listed: Vec<_> = layout.line(0, line).collect();
                    for block in 0..layout.columns() {
                        let cells = rows
                            .clone()
                            .flat_map(|i| (0..16).map(move |j| (i, block * 16 + j)));
                        let seen = cells.clone().filter(|&(i, j)| sees(i, j)).count();
                        let expected = match (seen, seen == cells.count()) {
                            (0, _) => None,
                            (_, true) => Some(super::super::Entry::Full(block)),
                            _ => Some(super::super::Entry::Partial(block)),
                        };
                        let found = listed.iter().copied().find(|e| e.block() == block);
                        assert_eq!(found, expected, "{queries} x {keys}: {line}, {block}");
                        pairs += seen as u64;
                    }
                    for i in rows {
                        (0..keys + 3).for_each(|j| assert_eq!(layout.sees(0, i, j), sees(i, j)));
                    }
                }
                assert_eq!(layout.pairs(), pairs);
                assert_eq!(layout.density(), 1.0);
            }
        }
    }

    /// Construction takes time by what is listed: half a second for this on a slow machine, unoptimised.
    #[test]
    fn a_long_context_compiles_and_stays_small() {
        let layout = SparseLayout::builder(8, 131_072, 131_072).block(64);
        let layout = layout.pattern(&Pattern::s2(32, 4)).expect("valid");
        assert!(layout.density() > 1.0 / 32.0 && layout.density() < 1.0 / 24.0);
        assert!(layout.bytes() < 8 << 20, "{} bytes", layout.bytes());
    }
}
