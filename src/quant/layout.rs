//! Where the parts of a quantised matrix lie.

use super::format::{Format, Group, Scale, Zero};
use crate::error::{Error, Result};

/// A quantised matrix in 32-bit words, each part from a multiple of four words (16 bytes) on:
///
/// 1. `low`: the low 8, 4 or 2 bits of the codes, row by row; element i of a row is at bits `i * low_bits` of it,
///    little-endian. Rows are padded with level zero to whole units of 16 bytes.
/// 2. `high`: the rest of the bits of codes of 3, 5 and 6 bits, likewise; as many elements a row as `low` has.
/// 3. `scales`: of the groups, row (or row of blocks) by row. A scale is an f32, an f16, or a byte; followed by the
///    group's zero point or minimum of the same type, if the format has such.
/// 4. `outer`: what byte scales are multiplied with, f32 or f16, likewise a pair where there are minima.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuantLayout {
    /// The format.
    pub format: Format,
    /// Rows.
    pub rows: usize,
    /// Columns: elements of a row.
    pub cols: usize,
}

impl QuantLayout {
    /// Errors if the format's parts do not go together, a size is zero, or there are 2^32 elements or more.
    pub fn new(format: Format, rows: usize, cols: usize) -> Result<Self> {
        format.check()?;
        let layout = Self { format, rows, cols };
        let elements = rows.checked_mul(cols.next_multiple_of(64));
        let fits = elements.is_some_and(|n| n > 0 && u32::try_from(n).is_ok()) && cols > 0;
        if !fits || u32::try_from(layout.words()).is_err() {
            return Err(Error::argument(
                "matrix",
                format!("[{rows}, {cols}]"),
                "sizes from 1 on, fewer than 2^32 elements",
            ));
        }
        Ok(layout)
    }

    /// Elements of a unit: 16 bytes of the low plane.
    pub const fn unit(&self) -> usize {
        128 / self.format.code.low_bits() as usize
    }

    /// Elements of a row with its padding.
    pub fn padded_cols(&self) -> usize {
        self.cols.next_multiple_of(self.unit())
    }

    /// Words of a row of the low plane.
    pub fn low_row(&self) -> usize {
        self.padded_cols() * self.format.code.low_bits() as usize / 32
    }

    /// Words of a row of the high plane.
    pub fn high_row(&self) -> usize {
        self.padded_cols() * self.format.code.high_bits() as usize / 32
    }

    /// Groups side by side.
    pub fn groups_per_row(&self) -> usize {
        let [_, cols] = self.format.group_size([self.rows, self.cols]);
        self.cols.div_ceil(cols)
    }

    /// Groups one below the other.
    pub fn group_rows(&self) -> usize {
        let [rows, _] = self.format.group_size([self.rows, self.cols]);
        self.rows.div_ceil(rows)
    }

    /// Groups in all.
    pub fn groups(&self) -> usize {
        self.groups_per_row() * self.group_rows()
    }

    /// The group of an element.
    pub fn group_of(&self, row: usize, col: usize) -> usize {
        let [rows, cols] = self.format.group_size([self.rows, self.cols]);
        row / rows * self.groups_per_row() + col / cols
    }

    /// Numbers that a group has: its scale, and a zero point or minimum.
    pub fn numbers(&self) -> usize {
        if self.format.zero == Zero::None { 1 } else { 2 }
    }

    /// Outer scales beside each other; zero without such.
    pub fn outer_per_row(&self) -> usize {
        match self.format.scale {
            Scale::ByteF32(groups) | Scale::ByteF16(groups) => {
                self.groups_per_row().div_ceil(groups as usize)
            }
            _ => 0,
        }
    }

    /// Bits of a group's scale.
    pub const fn scale_bits(&self) -> usize {
        match self.format.scale {
            Scale::F32 => 32,
            Scale::F16 => 16,
            Scale::E8M0 | Scale::ByteF32(_) | Scale::ByteF16(_) => 8,
        }
    }

    /// Bits of an outer scale.
    pub const fn outer_bits(&self) -> usize {
        match self.format.scale {
            Scale::ByteF32(_) => 32,
            _ => 16,
        }
    }

    /// The first word of the high plane.
    pub fn high_at(&self) -> usize {
        self.rows * self.low_row()
    }

    /// The first word of the scales.
    pub fn scales_at(&self) -> usize {
        (self.high_at() + self.rows * self.high_row()).next_multiple_of(4)
    }

    /// The first word of the outer scales.
    pub fn outer_at(&self) -> usize {
        let words = (self.groups() * self.numbers() * self.scale_bits()).div_ceil(32);
        (self.scales_at() + words).next_multiple_of(4)
    }

    /// Words in all.
    pub fn words(&self) -> usize {
        let outer = self.group_rows() * self.outer_per_row() * self.numbers();
        (self.outer_at() + (outer * self.outer_bits()).div_ceil(32)).next_multiple_of(4)
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        4 * self.words() as u64
    }

    /// Whether matrices one below the other keep their scales: false for one scale for the whole.
    pub fn stacks(&self) -> bool {
        match self.format.group {
            Group::Tensor => false,
            Group::Row | Group::Along(_) => true,
            Group::Block(rows, _) => self.rows.is_multiple_of(rows as usize),
        }
    }
}
