//! Sequences of unlike lengths, one after the other without padding.

use super::Mask;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Where packed documents begin and end: FlashAttention's `cu_seqlens`.
///
/// Document d has the queries `queries[d]..queries[d + 1]` and the keys `keys[d]..keys[d + 1]` of one sequence of
/// each. Its queries see keys of its own alone, and masks count positions from its start: aligned at the bottom
/// right of its own, its own first tokens as sinks or prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    queries: Vec<u32>,
    keys: Vec<u32>,
}

impl Packing {
    /// From cumulative lengths, both from zero on and growing, as many of either.
    pub fn new(queries: &[u32], keys: &[u32]) -> Result<Self> {
        for (name, lengths) in [("cu_q", queries), ("cu_k", keys)] {
            let sound = lengths.len() > 1
                && lengths[0] == 0
                && lengths.is_sorted_by(|a, b| a < b)
                && lengths.iter().all(|&n| n <= 1 << 30);
            if !sound {
                let at = (1..lengths.len()).find(|&d| lengths[d] <= lengths[d - 1]);
                let was = match (lengths, at) {
                    ([] | [_], _) => format!("{lengths:?}"),
                    (_, Some(d)) => format!("{} after {} at {d}", lengths[d], lengths[d - 1]),
                    ([first, .., last], None) => format!("{first} to {last}"),
                };
                let allowed = "0, then the end of each document, none empty, at most 2^30";
                return Err(Error::argument(name, was, allowed));
            }
        }
        if queries.len() != keys.len() {
            return Err(Error::argument(
                "cu_k",
                format!("{} documents", keys.len() - 1),
                format!("{}, as many as cu_q has", queries.len() - 1),
            ));
        }
        Ok(Self {
            queries: queries.to_vec(),
            keys: keys.to_vec(),
        })
    }

    /// Cumulative lengths of the queries.
    pub fn queries(&self) -> &[u32] {
        &self.queries
    }

    /// Cumulative lengths of the keys.
    pub fn keys(&self) -> &[u32] {
        &self.keys
    }

    /// Queries of all documents.
    pub fn q_len(&self) -> usize {
        self.queries.last().map_or(0, |&n| n as usize)
    }

    /// Keys of all documents.
    pub fn kv_len(&self) -> usize {
        self.keys.last().map_or(0, |&n| n as usize)
    }

    /// The queries and the keys of each document.
    pub fn documents(&self) -> impl Iterator<Item = [std::ops::Range<usize>; 2]> {
        let range = |ends: &[u32]| ends[0] as usize..ends[1] as usize;
        let pairs = self.queries.windows(2).zip(self.keys.windows(2));
        pairs.map(move |(q, k)| [range(q), range(k)])
    }

    /// As [`Band::pairs`](super::Band::pairs), over all documents.
    pub fn pairs(&self, mask: Mask) -> u64 {
        let band = mask.band();
        self.documents()
            .map(|[q, k]| band.pairs(q.len(), k.len()))
            .sum()
    }

    /// What shaders read of each query: the first key and the end of its document's, and what leads from a query's
    /// row to the key that it stands at.
    fn table(&self) -> Vec<u32> {
        let row = |[q, k]: [std::ops::Range<usize>; 2]| {
            let shift = (k.end as u32).wrapping_sub(q.end as u32);
            std::iter::repeat_n([k.start as u32, k.end as u32, shift, 0], q.len())
        };
        self.documents().flat_map(row).flatten().collect()
    }
}

/// A [`Packing`] on the device: 16 bytes a query.
#[derive(Clone, Debug)]
pub struct Documents {
    packing: Packing,
    table: Tensor,
}

impl Documents {
    /// From cumulative lengths, as for [`Packing::new`].
    pub fn new(ctx: &Context, queries: &[u32], keys: &[u32]) -> Result<Self> {
        let packing = Packing::new(queries, keys)?;
        let table = Tensor::from_slice(ctx, &packing.table(), [packing.q_len(), 4])?;
        Ok(Self { packing, table })
    }

    /// The lengths.
    pub fn packing(&self) -> &Packing {
        &self.packing
    }

    pub(super) fn table(&self) -> &Tensor {
        &self.table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_find_their_document() {
        let packing = Packing::new(&[0, 2, 3], &[0, 1, 6]).expect("sound");
        let table = packing.table();
        // The last query of each document stands at its last key.
        assert_eq!(table[..4], [0, 1, u32::MAX, 0]);
        assert_eq!(table[4..8], table[..4]);
        assert_eq!(table[8..], [1, 6, 3, 0]);
        assert_eq!((packing.q_len(), packing.kv_len()), (3, 6));
        assert_eq!(packing.pairs(Mask::Full), 2 + 5);
        assert_eq!(packing.pairs(Mask::Causal), 1 + 5);
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        let refused = |q: &[u32], k: &[u32]| match Packing::new(q, k) {
            Err(Error::Argument { name, was, .. }) => format!("{name}: {was}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&[], &[0, 1]), "cu_q: []");
        assert_eq!(refused(&[0], &[0, 1]), "cu_q: [0]");
        assert_eq!(refused(&[0, 3, 3], &[0, 1, 2]), "cu_q: 3 after 3 at 2");
        assert_eq!(refused(&[0, 3, 5], &[0, 4, 2]), "cu_k: 2 after 4 at 2");
        assert_eq!(refused(&[1, 3], &[0, 1]), "cu_q: 1 to 3");
        assert_eq!(refused(&[0, u32::MAX], &[0, 1]), "cu_q: 0 to 4294967295");
        assert_eq!(refused(&[0, 3], &[0, 1, 2]), "cu_k: 2 documents");
    }
}
