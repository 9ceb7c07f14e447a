//! GGUF's blocks (ggml's block_q4_0 to block_q6_K), taken apart into codes and scales: nothing is rounded.

use super::format::Format;
use super::layout::QuantLayout;
use super::matrix::QuantMatrix;
use crate::error::{Error, Result};

/// A kind of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(non_camel_case_types, reason = "the names of the formats")]
pub enum GgufBlock {
    /// 4 bits, a scale for 32.
    Q4_0,
    /// 4 bits, scale and minimum for 32.
    Q4_1,
    /// 5 bits, a scale for 32.
    Q5_0,
    /// 5 bits, scale and minimum for 32.
    Q5_1,
    /// 8 bits, a scale for 32.
    Q8_0,
    /// 2 bits, 4-bit scales and minima for 16.
    Q2_K,
    /// 3 bits, 6-bit scales for 16.
    Q3_K,
    /// 4 bits, 6-bit scales and minima for 32.
    Q4_K,
    /// 5 bits, 6-bit scales and minima for 32.
    Q5_K,
    /// 6 bits, 8-bit scales for 16.
    Q6_K,
}

/// A block taken apart.
struct Opened {
    codes: [u8; 256],
    /// Scale and minimum of each group, as the matrix stores them.
    numbers: [[u32; 2]; 16],
    /// Outer scale and minimum.
    outer: [u32; 2],
}

impl GgufBlock {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// ggml's number of the type.
    pub const fn ggml_type(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
        }
    }

    /// The format that its parts make.
    pub const fn format(self) -> Format {
        match self {
            Self::Q4_0 => Format::Q4_0,
            Self::Q4_1 => Format::Q4_1,
            Self::Q5_0 => Format::Q5_0,
            Self::Q5_1 => Format::Q5_1,
            Self::Q8_0 => Format::Q8_0,
            Self::Q2_K => Format::Q2_K,
            Self::Q3_K => Format::Q3_K,
            Self::Q4_K => Format::Q4_K,
            Self::Q5_K => Format::Q5_K,
            Self::Q6_K => Format::Q6_K,
        }
    }

    /// Elements and bytes of a block.
    pub const fn size(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// A matrix of rows of whole blocks. Errors if a row is not of whole blocks, or if there are not as many bytes as it
    /// takes.
    pub fn read(self, [rows, cols]: [usize; 2], bytes: &[u8]) -> Result<QuantMatrix> {
        let (elements, size) = self.size();
        let format = self.format();
        if !cols.is_multiple_of(elements) {
            let allowed = format!("a multiple of {elements}, the elements of a block");
            return Err(Error::argument("columns", cols, allowed));
        }
        let blocks = cols / elements;
        if rows.checked_mul(blocks * size) != Some(bytes.len()) {
            let allowed = format!("{size} for each of {rows} x {blocks} blocks of {self:?}");
            return Err(Error::argument("bytes", bytes.len(), allowed));
        }
        let mut matrix = QuantMatrix::zeroed(QuantLayout::new(format, rows, cols)?);
        let layout = *matrix.layout();
        let groups = layout.groups_per_row() / blocks;
        for (i, block) in bytes.chunks_exact(size).enumerate() {
            let (row, at) = (i / blocks, i % blocks);
            let opened = self.open(block);
            matrix.set_codes(row, at * elements, &opened.codes[..elements]);
            for g in 0..groups {
                for which in 0..layout.numbers() {
                    matrix.set_number(i * groups + g, which, opened.numbers[g][which]);
                }
            }
            if layout.outer_per_row() > 0 {
                for which in 0..layout.numbers() {
                    matrix.set_outer(i, which, opened.outer[which]);
                }
            }
        }
        Ok(matrix)
    }

    fn open(self, block: &[u8]) -> Opened {
        let mut o = Opened {
            codes: [0; 256],
            numbers: [[0; 2]; 16],
            outer: [0; 2],
        };
        let half = |at: usize| u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
        // Of two planes of 16: the low nibbles first, then the high.
        let nibbles = |o: &mut Opened, at: usize, high: u32| {
            for j in 0..16 {
                let q = block[at + j];
                o.codes[j] = q & 15 | ((high >> j) as u8 & 1) << 4;
                o.codes[j + 16] = q >> 4 | ((high >> (j + 16)) as u8 & 1) << 4;
            }
        };
        let word = |at: usize| half(at) | half(at + 2) << 16;
        match self {
            Self::Q4_0 => {
                o.numbers[0] = [half(0), 0];
                nibbles(&mut o, 2, 0);
            }
            Self::Q4_1 => {
                o.numbers[0] = [half(0), half(2)];
                nibbles(&mut o, 4, 0);
            }
            Self::Q5_0 => {
                o.numbers[0] = [half(0), 0];
                nibbles(&mut o, 6, word(2));
            }
            Self::Q5_1 => {
                o.numbers[0] = [half(0), half(2)];
                nibbles(&mut o, 8, word(4));
            }
            Self::Q8_0 => {
                o.numbers[0] = [half(0), 0];
                o.codes[..32].copy_from_slice(&block[2..]);
            }
            Self::Q2_K => {
                o.outer = [half(80), half(82)];
                for (g, &s) in block[..16].iter().enumerate() {
                    o.numbers[g] = [u32::from(s & 15), u32::from(s >> 4)];
                }
                for i in 0..256 {
                    let q = block[16 + i / 128 * 32 + i % 32];
                    o.codes[i] = q >> (i % 128 / 32 * 2) & 3;
                }
            }
            Self::Q3_K => {
                o.outer = [half(108), 0];
                let scales = &block[96..108];
                for g in 0..16 {
                    let low = scales[g % 8] >> (g / 8 * 4) & 15;
                    let high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
                    o.numbers[g] = [u32::from((low | high << 4).wrapping_sub(32)), 0];
                }
                for i in 0..256 {
                    let low = block[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
                    let high = block[i % 32] >> (i / 32) & 1;
                    o.codes[i] = low | high << 2;
                }
            }
            Self::Q4_K | Self::Q5_K => {
                o.outer = [half(0), half(2)];
                let s = &block[4..16];
                for g in 0..8 {
                    let (scale, min) = if g < 4 {
                        (s[g] & 63, s[g + 4] & 63)
                    } else {
                        let (low, high) = (s[g + 4] & 15, s[g + 4] >> 4);
                        (low | s[g - 4] >> 6 << 4, high | s[g] >> 6 << 4)
                    };
                    o.numbers[g] = [scale.into(), min.into()];
                }
                let five = self == Self::Q5_K;
                let at = if five { 48 } else { 16 };
                for i in 0..256 {
                    let low = block[at + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
                    let high = if five {
                        block[16 + i % 32] >> (i / 32) & 1
                    } else {
                        0
                    };
                    o.codes[i] = low | high << 4;
                }
            }
            Self::Q6_K => {
                o.outer = [half(208), 0];
                for (g, &s) in block[192..208].iter().enumerate() {
                    o.numbers[g] = [s.into(), 0];
                }
                for i in 0..256 {
                    let (n, l) = (i / 128, i % 128);
                    let low = block[n * 64 + l % 64] >> (l / 64 * 4) & 15;
                    let high = block[128 + n * 32 + l % 32] >> (l / 32 * 2) & 3;
                    o.codes[i] = low | high << 4;
                }
            }
        }
        o
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::gguf::dequantize;

    #[test]
    fn blocks_mean_what_ggml_says() {
        for kind in GgufBlock::ALL {
            let (elements, size) = kind.size();
            let (rows, cols) = (3, 2 * elements);
            let mut state = 12345u32;
            let mut bytes: Vec<u8> = (0..rows * 2 * size)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            // Scales of ordinary size.
            let halves: &[usize] = match kind {
                GgufBlock::Q4_0 | GgufBlock::Q5_0 | GgufBlock::Q8_0 => &[0],
                GgufBlock::Q2_K => &[80, 82],
                GgufBlock::Q3_K => &[108],
                GgufBlock::Q6_K => &[208],
                _ => &[0, 2],
            };
            for block in bytes.chunks_mut(size) {
                for &at in halves {
                    block[at + 1] = block[at + 1] & 0x83 | 0x2c;
                }
            }
            let expected: Vec<f64> = bytes
                .chunks(size)
                .flat_map(|b| dequantize(kind, b))
                .collect();
            let matrix = kind.read([rows, cols], &bytes).unwrap();
            assert_eq!(matrix.decode(), expected, "{kind:?}");
        }
    }

    #[test]
    fn truncated_data_is_refused() {
        let error = GgufBlock::Q4_K.read([2, 256], &[0; 287]).unwrap_err();
        assert!(error.to_string().starts_with("bytes: 287"), "{error}");
        let error = GgufBlock::Q8_0.read([1, 40], &[0; 34]).unwrap_err();
        assert!(error.to_string().starts_with("columns: 40"), "{error}");
    }
}
