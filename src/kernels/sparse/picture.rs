//! Layouts as pictures: text, and cells of grey for whoever draws.

use std::fmt;

use super::layout::SparseLayout;

/// Characters of a text picture, at most, across and down.
const CELLS: usize = 64;

impl SparseLayout {
    /// A head's picture in at most `most` by `most` cells, line by line: of the blocks of each cell that causality leaves
    /// visible the share that is listed; `None` where none is visible.
    pub fn picture(&self, head: usize, most: usize) -> Vec<Vec<Option<f64>>> {
        let g = self.geometry();
        // Cells are square: both sides shrink alike.
        let side = g.lines().max(g.columns()).div_ceil(most.max(1));
        let (down, across) = (g.lines().div_ceil(side), g.columns().div_ceil(side));
        let mut cells = vec![vec![(0u32, 0u32); across]; down];
        for line in 0..g.lines() {
            let row = &mut cells[line / side];
            let reach = g.reach(line);
            for (at, cell) in row.iter_mut().enumerate() {
                cell.1 += reach.saturating_sub(at * side).min(side) as u32;
            }
            self.line(head, line)
                .for_each(|e| row[e.block() / side].0 += 1);
        }
        let share = |(listed, visible): (u32, u32)| match visible {
            0 => None,
            n => Some(f64::from(listed) / f64::from(n)),
        };
        cells
            .into_iter()
            .map(|row| row.into_iter().map(share).collect())
            .collect()
    }

    /// Runs of heads whose lists are alike.
    pub fn alike(&self) -> Vec<std::ops::Range<usize>> {
        let all =
            |head| (0..self.lines()).map(move |line| self.lists().line(head * self.lines() + line));
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        for head in 0..self.heads() {
            match runs.last_mut() {
                Some(run) if all(run.start).eq(all(head)) => run.end = head + 1,
                _ => runs.push(head..head + 1),
            }
        }
        runs
    }
}

fn character(cell: Option<f64>) -> char {
    match cell {
        None => ' ',
        Some(0.0) => '.',
        Some(share) if share <= 0.25 => ':',
        Some(share) if share <= 0.5 => '+',
        Some(share) if share < 1.0 => '*',
        Some(_) => '#',
    }
}

/// Each head's picture, a character for one or more blocks: `#` all listed, `*` over half, `+` over a quarter, `:` some, `.`
/// none, blank what causality hides. Heads that are alike are drawn once.
impl fmt::Display for SparseLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lines, columns) = (self.lines(), self.columns());
        let side = lines.max(columns).div_ceil(CELLS);
        writeln!(
            f,
            "{} queries by {} keys, {}, blocks of {}: {lines} by {columns}, a character for {side} by {side}",
            self.queries(),
            self.keys(),
            self.causality().name(),
            self.block(),
        )?;
        for heads in self.alike() {
            let name = match heads.len() {
                1 => format!("head {}", heads.start),
                _ => format!("heads {} to {}", heads.start, heads.end - 1),
            };
            writeln!(f, "{name}: density {:.4}", self.head_density(heads.start))?;
            for row in self.picture(heads.start, CELLS) {
                let text: String = row.into_iter().map(character).collect();
                writeln!(f, "{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Pattern, SparseLayout};

    #[test]
    fn a_small_layout_is_drawn_block_by_block() {
        let layout = SparseLayout::builder(2, 80, 80).block(16);
        let layout = layout.pattern(&Pattern::s2(2, 1)).expect("valid");
        let expected = "\
80 queries by 80 keys, causal, blocks of 16: 5 by 5, a character for 1 by 1
head 0: density 0.6840
#
##
#.#
#.##
#.#.#
head 1: density 0.5259
#
.#
.##
.#.#
.#.##
";
        assert_eq!(layout.to_string(), expected);
    }

    #[test]
    fn a_large_layout_is_shrunk_and_alike_heads_are_drawn_once() {
        let layout = SparseLayout::builder(4, 8192, 8192).block(16);
        let pattern = Pattern::Banded { left: 3, right: 0 };
        let layout = layout.pattern(&pattern).expect("valid");
        assert_eq!(layout.alike(), std::slice::from_ref(&(0..4)));
        let text = layout.to_string();
        assert_eq!(text.lines().count(), 2 + 64);
        assert!(text.contains("heads 0 to 3: density 0.0"), "{text}");
    }
}
