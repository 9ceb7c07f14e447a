//! A quantised matrix on the host.

use std::ops::Range;

use half::f16;

use super::code::Code;
use super::format::{Group, Scale, Zero};
use super::layout::QuantLayout;
use crate::error::{Error, Result};

/// A quantised matrix in words, as it lies on the device and in files.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantMatrix {
    layout: QuantLayout,
    words: Vec<u32>,
}

/// How a number of a group is read, and how it is written.
type Get = fn(&QuantMatrix, usize, usize) -> u32;
type Set = fn(&mut QuantMatrix, usize, usize, u32);

impl QuantMatrix {
    /// A matrix whose codes are of level zero, and whose scales are zero.
    pub fn zeroed(layout: QuantLayout) -> Self {
        let mut words = vec![0; layout.words()];
        let code = layout.format.code;
        let (low, high) = (code.low_bits(), code.high_bits());
        let fill = |value: u32, bits: u32| -> u32 {
            (0..32)
                .step_by(bits.max(1) as usize)
                .map(|at| value << at)
                .fold(0, |a, b| a | b)
        };
        words[..layout.high_at()].fill(fill(code.zero() & ((1 << low) - 1), low));
        if high > 0 {
            let end = layout.high_at() + layout.rows * layout.high_row();
            words[layout.high_at()..end].fill(fill(code.zero() >> low, high));
        }
        Self { layout, words }
    }

    /// A matrix of these words. Errors unless there are as many as the layout has.
    pub fn from_words(layout: QuantLayout, words: Vec<u32>) -> Result<Self> {
        if words.len() != layout.words() {
            return Err(Error::argument(
                "words",
                words.len(),
                format!(
                    "{} for {} [{}, {}]",
                    layout.words(),
                    layout.format,
                    layout.rows,
                    layout.cols
                ),
            ));
        }
        Ok(Self { layout, words })
    }

    /// Where its parts lie.
    pub fn layout(&self) -> &QuantLayout {
        &self.layout
    }

    /// Its words.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Matrices of one format and width, one below the other. Errors if they differ, if there are none, or if their
    /// scales do not allow it.
    pub fn stack(parts: &[Self]) -> Result<Self> {
        let refused = |was: String| {
            let allowed = "matrices of one format and width, whose scales belong to whole rows";
            Error::argument("matrices", was, allowed)
        };
        let Some((first, rest)) = parts.split_first() else {
            return Err(refused("none".into()));
        };
        if rest.is_empty() {
            return Ok(first.clone());
        }
        let of = first.layout;
        for (i, part) in parts.iter().enumerate() {
            let l = part.layout;
            let last = i + 1 == parts.len();
            if (l.format, l.cols) != (of.format, of.cols) || !(l.stacks() || last && of.stacks()) {
                return Err(refused(format!("{l:?} after {of:?}")));
            }
        }
        let rows = parts.iter().map(|p| p.layout.rows).sum();
        let mut all = Self::zeroed(QuantLayout::new(of.format, rows, of.cols)?);
        let (mut row, mut group_row) = (0, 0);
        for part in parts {
            let l = part.layout;
            let codes = |at: usize, row_words: usize| at..at + l.rows * row_words;
            let low = row * of.low_row();
            all.words[low..low + l.high_at()].copy_from_slice(&part.words[..l.high_at()]);
            let high = all.layout.high_at() + row * of.high_row();
            let from = codes(l.high_at(), l.high_row());
            all.words[high..high + from.len()].copy_from_slice(&part.words[from]);
            for g in 0..l.groups() {
                for which in 0..l.numbers() {
                    let bits = part.number(g, which);
                    all.set_number(group_row * of.groups_per_row() + g, which, bits);
                }
            }
            for o in 0..l.group_rows() * l.outer_per_row() {
                for which in 0..l.numbers() {
                    let bits = part.outer(o, which);
                    all.set_outer(group_row * of.outer_per_row() + o, which, bits);
                }
            }
            row += l.rows;
            group_row += l.group_rows();
        }
        Ok(all)
    }

    /// Rows of the matrix, one range of them after the other, as a matrix of their own; of one scale for the whole if the
    /// matrix is. Errors if there are none, if they are not in the matrix, or if they cut blocks that share a scale.
    pub fn pick(&self, ranges: &[Range<usize>]) -> Result<Self> {
        let of = self.layout;
        let whole = matches!(of.format.group, Group::Tensor);
        let [height, _] = of.format.group_size([1, of.cols]);
        let rows = ranges.iter().map(Range::len).sum();
        let mut picked = Self::zeroed(QuantLayout::new(of.format, rows, of.cols)?);
        let mut to = 0;
        for range in ranges {
            let cuts = [range.start, to].iter().any(|row| row % height != 0);
            if cuts || range.end > of.rows {
                let was = format!("{range:?} of {} to row {to}", of.rows);
                let allowed = format!("rows of the matrix, from a multiple of {height} to another");
                return Err(Error::argument("rows", was, allowed));
            }
            let l = picked.layout;
            let mut copy = |to: usize, from: usize, words: usize| {
                let source = &self.words[from..from + words];
                picked.words[to..to + words].copy_from_slice(source);
            };
            let low = of.low_row();
            copy(to * low, range.start * low, range.len() * low);
            let high = of.high_row();
            let from = of.high_at() + range.start * high;
            copy(l.high_at() + to * high, from, range.len() * high);
            let groups = match whole {
                true => 0..1,
                false => range.start / height..range.end.div_ceil(height),
            };
            let first = if whole { 0 } else { to / height };
            let mut numbers = |per_row: usize, get: Get, set: Set| {
                for at in 0..groups.len() * per_row {
                    for which in 0..l.numbers() {
                        let bits = get(self, groups.start * per_row + at, which);
                        set(&mut picked, first * per_row + at, which, bits);
                    }
                }
            };
            numbers(of.groups_per_row(), Self::number, Self::set_number);
            numbers(of.outer_per_row(), Self::outer, Self::set_outer);
            to += range.len();
        }
        Ok(picked)
    }

    /// An element's code.
    pub fn code(&self, row: usize, col: usize) -> u32 {
        let l = &self.layout;
        let code = l.format.code;
        let (low, high) = (code.low_bits() as usize, code.high_bits() as usize);
        let mut value = self.field(row * l.low_row() * 32 + col * low, low);
        if high > 0 {
            let at = (l.high_at() + row * l.high_row()) * 32 + col * high;
            value |= self.field(at, high) << low;
        }
        value
    }

    pub(crate) fn set_code(&mut self, row: usize, col: usize, value: u32) {
        let l = self.layout;
        let code = l.format.code;
        let (low, high) = (code.low_bits() as usize, code.high_bits() as usize);
        self.set_field(row * l.low_row() * 32 + col * low, low, value);
        if high > 0 {
            let at = (l.high_at() + row * l.high_row()) * 32 + col * high;
            self.set_field(at, high, value >> low);
        }
    }

    /// Codes of adjacent elements of a row.
    pub(crate) fn set_codes(&mut self, row: usize, first: usize, codes: &[u8]) {
        for (i, &code) in codes.iter().enumerate() {
            self.set_code(row, first + i, code.into());
        }
    }

    /// The bits of a group's scale (0) or of its zero point or minimum (1).
    pub(crate) fn number(&self, group: usize, which: usize) -> u32 {
        let (bits, numbers) = (self.layout.scale_bits(), self.layout.numbers());
        let at = self.layout.scales_at() * 32 + (group * numbers + which) * bits;
        self.field(at, bits)
    }

    pub(crate) fn set_number(&mut self, group: usize, which: usize, value: u32) {
        let (bits, numbers) = (self.layout.scale_bits(), self.layout.numbers());
        let at = self.layout.scales_at() * 32 + (group * numbers + which) * bits;
        self.set_field(at, bits, value);
    }

    /// The bits of an outer scale.
    pub(crate) fn outer(&self, index: usize, which: usize) -> u32 {
        let (bits, numbers) = (self.layout.outer_bits(), self.layout.numbers());
        let at = self.layout.outer_at() * 32 + (index * numbers + which) * bits;
        self.field(at, bits)
    }

    pub(crate) fn set_outer(&mut self, index: usize, which: usize, value: u32) {
        let (bits, numbers) = (self.layout.outer_bits(), self.layout.numbers());
        let at = self.layout.outer_at() * 32 + (index * numbers + which) * bits;
        self.set_field(at, bits, value);
    }

    /// A group's scale (0), or its zero point or minimum (1), exactly.
    pub fn group_number(&self, group: usize, which: usize) -> f64 {
        let bits = self.number(group, which);
        let half = |bits: u32| f16::from_bits(bits as u16).to_f64();
        match self.layout.format.scale {
            Scale::F32 => f32::from_bits(bits).into(),
            Scale::F16 => half(bits),
            Scale::E8M0 => match bits {
                255 => f64::NAN,
                e => f64::from(e as i32 - 127).exp2(),
            },
            Scale::ByteF32(groups) | Scale::ByteF16(groups) => {
                let per_row = self.layout.groups_per_row();
                let outer = group / per_row * self.layout.outer_per_row()
                    + group % per_row / groups as usize;
                let outer = self.outer(outer, which);
                let factor = match self.layout.format.scale {
                    Scale::ByteF32(_) => f32::from_bits(outer).into(),
                    _ => half(outer),
                };
                f64::from(bits as u8 as i8) * factor
            }
        }
    }

    /// What is multiplied with a group's levels, and what is added: value = level * scale + shift.
    pub fn affine(&self, group: usize) -> (f64, f64) {
        let scale = self.group_number(group, 0);
        let Code::Int(bits) = self.layout.format.code else {
            return (scale, 0.0);
        };
        // Codes count from zero, levels from the middle.
        let middle = f64::from(1u32 << (bits - 1)) * scale;
        let shift = match self.layout.format.zero {
            Zero::None => 0.0,
            Zero::Point => -self.group_number(group, 1) * scale,
            Zero::Min => self.group_number(group, 1) + middle,
            Zero::NegatedMin => middle - self.group_number(group, 1),
        };
        (scale, shift)
    }

    /// The number that an element means; exact, but for minima, whose sums with levels f64 may round.
    pub fn value(&self, row: usize, col: usize) -> f64 {
        let (scale, shift) = self.affine(self.layout.group_of(row, col));
        f64::from(self.layout.format.code.level(self.code(row, col))) * scale + shift
    }

    /// The numbers that all elements mean, row by row.
    pub fn decode(&self) -> Vec<f64> {
        let l = &self.layout;
        let affine: Vec<(f64, f64)> = (0..l.groups()).map(|g| self.affine(g)).collect();
        let levels: Vec<f64> = (0..1 << l.format.code.bits())
            .map(|c| l.format.code.level(c).into())
            .collect();
        let value = |i: usize| {
            let (row, col) = (i / l.cols, i % l.cols);
            let (scale, shift) = affine[l.group_of(row, col)];
            levels[self.code(row, col) as usize] * scale + shift
        };
        (0..l.rows * l.cols).map(value).collect()
    }

    /// [`decode`](Self::decode), rounded to f32.
    pub fn decode_f32(&self) -> Vec<f32> {
        self.decode().into_iter().map(|v| v as f32).collect()
    }

    fn field(&self, bit: usize, bits: usize) -> u32 {
        let mask = if bits == 32 {
            u32::MAX
        } else {
            (1 << bits) - 1
        };
        (self.words[bit / 32] >> (bit % 32)) & mask
    }

    fn set_field(&mut self, bit: usize, bits: usize, value: u32) {
        let mask = if bits == 32 {
            u32::MAX
        } else {
            (1 << bits) - 1
        };
        let word = &mut self.words[bit / 32];
        *word = *word & !(mask << (bit % 32)) | (value & mask) << (bit % 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;

    #[test]
    fn picked_rows_mean_what_they_meant() {
        for (name, format) in Format::NAMED {
            let layout = QuantLayout::new(format, 400, 300).unwrap();
            let mut matrix = QuantMatrix::zeroed(layout);
            let mut seed = 1u32;
            let scales = layout.scales_at();
            for word in &mut matrix.words[..scales] {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *word = seed;
            }
            for g in 0..layout.groups() {
                (0..layout.numbers()).for_each(|n| matrix.set_number(g, n, (g + n) as u32 & 127));
            }
            for o in 0..layout.group_rows() * layout.outer_per_row() {
                (0..layout.numbers()).for_each(|n| matrix.set_outer(o, n, 0x3c00 + o as u32));
            }
            let ranges = [256..384, 0..128, 384..400];
            let picked = matrix.pick(&ranges).unwrap();
            for (row, from) in ranges.into_iter().flatten().enumerate() {
                for col in (0..300).step_by(13) {
                    let (is, was) = (picked.value(row, col), matrix.value(from, col));
                    assert_eq!(is.to_bits(), was.to_bits(), "{name}");
                }
            }
            let beyond = 300..401;
            assert!(matrix.pick(&[beyond]).is_err());
            let block = matches!(format.group, Group::Block(..));
            let within = 7..9;
            assert_eq!(matrix.pick(&[within]).is_err(), block, "{name}");
        }
    }

    #[test]
    fn codes_and_numbers_come_back_from_where_they_were_put() {
        for (name, format) in Format::NAMED {
            let layout = QuantLayout::new(format, 5, 300).unwrap();
            let mut matrix = QuantMatrix::zeroed(layout);
            assert!(matrix.decode().iter().all(|&x| x == 0.0), "{name}");
            let most = (1u32 << format.code.bits()) - 1;
            let code = |r: usize, c: usize| (r as u32 * 31 + c as u32 * 7) & most;
            for (r, c) in (0..5).flat_map(|r| (0..300).map(move |c| (r, c))) {
                matrix.set_code(r, c, code(r, c));
            }
            for g in 0..layout.groups() {
                for which in 0..layout.numbers() {
                    matrix.set_number(g, which, (g * 3 + which) as u32 & 127);
                }
            }
            for o in 0..layout.group_rows() * layout.outer_per_row() {
                for which in 0..layout.numbers() {
                    matrix.set_outer(o, which, (o * 5 + which) as u32);
                }
            }
            for (r, c) in (0..5).flat_map(|r| (0..300).map(move |c| (r, c))) {
                assert_eq!(matrix.code(r, c), code(r, c), "{name}");
            }
            for g in 0..layout.groups() {
                assert_eq!(
                    matrix.number(g, layout.numbers() - 1),
                    (g * 3 + layout.numbers() - 1) as u32 & 127
                );
            }
            for o in 0..layout.group_rows() * layout.outer_per_row() {
                assert_eq!(matrix.outer(o, 0), (o * 5) as u32, "{name}");
            }
            let values = matrix.decode();
            let same = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan();
            assert!(same(values[2 * 300 + 77], matrix.value(2, 77)), "{name}");
        }
    }
}
