//! Lists of blocks, one a line, in one array; the other way round; and as the words that kernels read.

use std::cmp::Reverse;

/// The bit of an entry whose block has pairs that are hidden.
pub const PARTIAL: u32 = 1 << 31;

/// A listed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Every pair in it is seen.
    Full(usize),
    /// The layout's causality, or the end of the keys, hides some pairs.
    Partial(usize),
}

impl Entry {
    pub(super) fn of(word: u32) -> Self {
        let block = (word & !PARTIAL) as usize;
        match word & PARTIAL {
            0 => Self::Full(block),
            _ => Self::Partial(block),
        }
    }

    /// The block's number.
    pub fn block(self) -> usize {
        match self {
            Self::Full(block) | Self::Partial(block) => block,
        }
    }
}

/// Lines of all heads, head by head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lists {
    /// Lines of one head.
    pub lines: usize,
    /// Where each line's entries begin, and the end of the last.
    pub offsets: Vec<u32>,
    /// Blocks with [`PARTIAL`], ascending within a line.
    pub entries: Vec<u32>,
}

impl Lists {
    pub(super) fn new(lines: usize) -> Self {
        Self {
            lines,
            offsets: vec![0],
            entries: Vec::new(),
        }
    }

    pub(super) fn heads(&self) -> usize {
        (self.offsets.len() - 1) / self.lines
    }

    /// The entries of a line, `head * lines + line`.
    pub(super) fn line(&self, line: usize) -> &[u32] {
        &self.entries[self.offsets[line] as usize..self.offsets[line + 1] as usize]
    }

    pub(super) fn close_line(&mut self) {
        self.offsets.push(self.entries.len() as u32);
    }

    /// For each of `columns` blocks the lines that list it.
    pub(super) fn transposed(&self, columns: usize) -> Self {
        let heads = self.heads();
        let mut offsets = vec![0u32; heads * columns + 1];
        let places = |line: usize| {
            let head = line / self.lines;
            let of = move |word: &u32| head * columns + (word & !PARTIAL) as usize;
            self.line(line)
                .iter()
                .map(move |word| (of(word), word & PARTIAL))
        };
        let all = || (0..heads * self.lines).flat_map(|line| places(line).map(move |p| (line, p)));
        for (_, (column, _)) in all() {
            offsets[column + 1] += 1;
        }
        for i in 1..offsets.len() {
            offsets[i] += offsets[i - 1];
        }
        let mut next = offsets.clone();
        let mut entries = vec![0; self.entries.len()];
        for (line, (column, partial)) in all() {
            entries[next[column] as usize] = (line % self.lines) as u32 | partial;
            next[column] += 1;
        }
        Self {
            lines: columns,
            offsets,
            entries,
        }
    }

    /// All lines in the order in which kernels take them: head by head, so that what neighbouring lines read stays in a
    /// cache; the longest list first, so that short ones are left to the end.
    fn order(&self) -> Vec<usize> {
        let length = |line: usize| Reverse(self.line(line).len());
        let mut heads: Vec<Vec<usize>> = (0..self.heads())
            .map(|head| (head * self.lines..(head + 1) * self.lines).collect())
            .collect();
        for lines in &mut heads {
            lines.sort_by_key(|&line| length(line));
        }
        heads.sort_by_key(|lines| length(lines[0]));
        heads.concat()
    }

    /// Words before the entries.
    fn header_words(&self) -> usize {
        4 + 2 * self.offsets.len() - 1
    }

    /// Words on the device.
    pub(super) fn words(&self) -> usize {
        self.header_words() + 2 * self.entries.len()
    }

    /// What kernels read, as shaders/lib/sparse.wgsl describes it; `page` tells where a block of a head lies.
    pub(super) fn encode(&self, shift: i32, page: impl Fn(usize, u32) -> u32) -> Vec<u32> {
        let mut words = Vec::with_capacity(self.words());
        words.extend([
            self.lines as u32,
            self.heads() as u32,
            shift as u32,
            self.header_words() as u32,
        ]);
        words.extend(&self.offsets);
        words.extend(self.order().iter().map(|&line| line as u32));
        for line in 0..self.offsets.len() - 1 {
            let head = line / self.lines;
            for &word in self.line(line) {
                words.extend([word, page(head, word & !PARTIAL)]);
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two heads of two lines over three columns.
    fn lists() -> Lists {
        let mut lists = Lists::new(2);
        for line in [&[0, 2 | PARTIAL][..], &[], &[1], &[0, 1, 2]] {
            lists.entries.extend(line);
            lists.close_line();
        }
        lists
    }

    #[test]
    fn transposing_twice_gives_the_same() {
        let there = lists().transposed(3);
        assert_eq!(there.lines, 3);
        assert_eq!(there.line(2), [PARTIAL]);
        assert_eq!(there.line(4), [0, 1]);
        assert_eq!(there.transposed(2), lists());
    }

    #[test]
    fn words_are_header_offsets_order_entries() {
        let words = lists().encode(-5, |head, block| 10 * head as u32 + block);
        assert_eq!(words.len(), lists().words());
        let expected = [
            &[2, 2, -5i32 as u32, 13][..],
            &[0, 2, 2, 3, 6],
            // The second head has the longest list.
            &[3, 2, 0, 1],
            &[0, 0, 2 | PARTIAL, 2],
            &[1, 11],
            &[0, 10, 1, 11, 2, 12],
        ];
        assert_eq!(words, expected.concat());
    }
}
