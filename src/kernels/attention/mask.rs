//! Which keys a query sees by their positions.

use std::fmt;
use std::str::FromStr;

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};

/// Which keys a query sees, before a mask tensor hides more.
///
/// Positions are aligned at the bottom right: the last query stands at the last key, so that query i is at position
/// p = i + kv_len - q_len. Tiles of keys that nobody in a tile of queries sees are not visited, and those that all
/// see are not masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All.
    Full,
    /// Those not after it: keys j <= p.
    Causal,
    /// A sliding window (Longformer, Mistral), with attention sinks (StreamingLLM, arXiv 2309.17453): keys
    /// p - left <= j <= p + right, and of the first `sinks` keys those with j <= p + right.
    Window {
        /// Keys before the query's own that it sees.
        left: u32,
        /// Keys after it that it sees; 0 is causal.
        right: u32,
        /// First keys of the sequence that stay visible.
        sinks: u32,
    },
    /// A prefix language model: the first so many keys are seen by every query, the others causally.
    Prefix(u32),
}

/// A mask in the form that kernels take: query p sees the keys p - left <= j < max(p + right + 1, prefix), and
/// j < sinks of those before.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Band {
    /// Keys before the query's position that it sees; at most [`Band::ALL`], which is all.
    pub left: u32,
    /// Keys after it.
    pub right: u32,
    /// First keys that the left end does not hide.
    pub sinks: u32,
    /// First keys that the right end does not hide.
    pub prefix: u32,
}

impl Band {
    /// Further than any sequence reaches: lengths are at most 2^30, and positions stay signed 32-bit numbers.
    pub const ALL: u32 = (1 << 30) - 1;

    /// Whether a query at position `p` (may be negative: more queries than keys) sees key `j`.
    pub fn sees(&self, p: i64, j: i64) -> bool {
        let end = (p + i64::from(self.right) + 1).max(self.prefix.into());
        j < end && (j >= p - i64::from(self.left) || j < self.sinks.into())
    }

    /// How many pairs of a query and a key see each other: the work of attention, in units of 2 (head_dim + v_dim)
    /// operations.
    pub fn pairs(&self, q_len: usize, kv_len: usize) -> u64 {
        let (q_len, kv_len) = (q_len as i64, kv_len as i64);
        let row = |i: i64| {
            let p = i + kv_len - q_len;
            let end = (p + i64::from(self.right) + 1)
                .max(self.prefix.into())
                .clamp(0, kv_len);
            let begin = (p - i64::from(self.left)).clamp(0, end);
            (end - begin + begin.min(self.sinks.into())) as u64
        };
        (0..q_len).map(row).sum()
    }

    /// How many keys some query sees: what attention has to read.
    pub fn visits(&self, q_len: usize, kv_len: usize) -> usize {
        let (last, first) = (kv_len as i64 - 1, kv_len as i64 - q_len as i64);
        let end = (last + i64::from(self.right) + 1)
            .max(self.prefix.into())
            .clamp(0, kv_len as i64);
        let begin = (first - i64::from(self.left)).clamp(0, end);
        (end - begin + begin.min(self.sinks.into())) as usize
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Full | Self::Causal => Ok(()),
            Self::Window { left, right, sinks } => {
                write!(f, ":left={left},right={right},sinks={sinks}")
            }
            Self::Prefix(n) => write!(f, ":{n}"),
        }
    }
}

/// Reads what `Display` writes; a window needs `left` alone, `right` and `sinks` are zero without.
impl FromStr for Mask {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            let allowed = "full, causal, window:left=N,right=N,sinks=N (left needed) or prefix:N";
            Error::argument("mask", text, allowed)
        };
        let number = |text: &str| text.parse::<u32>().map_err(|_| unknown());
        match text.split_once(':') {
            None if text == "full" => Ok(Self::Full),
            None if text == "causal" => Ok(Self::Causal),
            Some(("prefix", n)) => Ok(Self::Prefix(number(n)?)),
            Some(("window", parts)) => {
                let mut found = [None; 3];
                for part in parts.split(',') {
                    let (name, n) = part.split_once('=').ok_or_else(unknown)?;
                    let names = ["left", "right", "sinks"];
                    let at = names.iter().position(|x| *x == name).ok_or_else(unknown)?;
                    if found[at].replace(number(n)?).is_some() {
                        return Err(unknown());
                    }
                }
                let [left, right, sinks] = found;
                Ok(Self::Window {
                    left: left.ok_or_else(unknown)?,
                    right: right.unwrap_or(0),
                    sinks: sinks.unwrap_or(0),
                })
            }
            _ => Err(unknown()),
        }
    }
}

impl Mask {
    /// The name of its kind.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Causal => "causal",
            Self::Window { .. } => "window",
            Self::Prefix(_) => "prefix",
        }
    }

    /// The variant of a kernel that serves it: windows and prefixes of any size share one.
    pub(super) const fn variant(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Causal => "causal",
            Self::Window { .. } | Self::Prefix(_) => "band",
        }
    }

    /// The mask as kernels take it.
    pub fn band(self) -> Band {
        let cut = |n: u32| n.min(Band::ALL);
        match self {
            Self::Full => Band {
                left: Band::ALL,
                right: Band::ALL,
                sinks: 0,
                prefix: 0,
            },
            Self::Causal => Band {
                left: Band::ALL,
                right: 0,
                sinks: 0,
                prefix: 0,
            },
            Self::Window { left, right, sinks } => Band {
                left: cut(left),
                right: cut(right),
                sinks: cut(sinks),
                prefix: 0,
            },
            Self::Prefix(prefix) => Band {
                left: Band::ALL,
                right: 0,
                sinks: 0,
                prefix: cut(prefix),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_those_that_see_each_other() {
        let window = |left, right, sinks| Mask::Window { left, right, sinks };
        let masks = [
            Mask::Full,
            Mask::Causal,
            window(3, 0, 0),
            window(0, 2, 1),
            window(2, 1, 4),
            window(u32::MAX, u32::MAX, 0),
            Mask::Prefix(5),
            Mask::Prefix(u32::MAX),
        ];
        for mask in masks {
            for (q_len, kv_len) in [(1, 1), (7, 7), (3, 9), (9, 3), (16, 5)] {
                let band = mask.band();
                let seen = |(i, j)| band.sees(i + kv_len - q_len, j);
                let all = (0..q_len).flat_map(|i| (0..kv_len).map(move |j| (i, j)));
                let expected = all.filter(|&at| seen(at)).count() as u64;
                let pairs = band.pairs(q_len as usize, kv_len as usize);
                assert_eq!(pairs, expected, "{mask} {q_len} x {kv_len}");
                let visited = |j: &i64| (0..q_len).any(|i| seen((i, *j)));
                let visits = band.visits(q_len as usize, kv_len as usize);
                // The keys between those that the first query sees and the last does are not counted out.
                assert!(
                    visits >= (0..kv_len).filter(visited).count(),
                    "{mask} {q_len} x {kv_len}"
                );
            }
        }
    }

    #[test]
    fn masks_read_what_they_print() {
        let window = Mask::Window {
            left: 128,
            right: 0,
            sinks: 4,
        };
        for mask in [Mask::Full, Mask::Causal, window, Mask::Prefix(16)] {
            assert_eq!(mask.to_string().parse::<Mask>().expect("a mask"), mask);
        }
        assert_eq!(
            "window:sinks=4,left=128".parse::<Mask>().expect("a mask"),
            window
        );
        for bad in [
            "",
            "Full",
            "causal:",
            "window",
            "window:",
            "window:right=1",
            "window:left=-1",
            "window:left=1,left=2",
            "window:left=1,up=2",
            "prefix",
            "prefix:",
            "prefix:1.5",
        ] {
            let error = bad.parse::<Mask>().expect_err(bad).to_string();
            assert!(
                error.starts_with(&format!("mask: {bad}; allowed: full")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_window_without_a_left_end_is_causal() {
        let open = Mask::Window {
            left: u32::MAX,
            right: 0,
            sinks: 0,
        };
        assert_eq!(open.band(), Mask::Causal.band());
        assert_eq!(Mask::Prefix(0).band(), Mask::Causal.band());
    }
}
