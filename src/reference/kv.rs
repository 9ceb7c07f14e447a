//! Cached keys and values: what a format makes of a row, bit by bit as the GPU does, and back.

use half::{bf16, f16};

use crate::kernels::attention::{KvFormat, KvLayout};
use crate::quant::{MiniFloat, Overflow};

const E4M3: MiniFloat = MiniFloat::E4M3;
const E5M2: MiniFloat = MiniFloat::E5M2;

/// A row as stored: its codes in whole words, and the words of its scales.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRow {
    /// Codes, zeros up to the row's end.
    pub codes: Vec<u32>,
    /// Scales.
    pub scales: Vec<u32>,
}

/// A row of `layout.dim` numbers in its format.
pub fn encode(layout: &KvLayout, row: &[f32]) -> StoredRow {
    let mut bytes: Vec<u8> = Vec::new();
    let mut scales = Vec::new();
    match layout.format {
        KvFormat::F32 => bytes.extend(row.iter().flat_map(|x| x.to_le_bytes())),
        KvFormat::F16 => bytes.extend(row.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
        KvFormat::BF16 => bytes.extend(row.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        KvFormat::F8E4M3 => bytes.extend(row.iter().map(|&x| encode8(E4M3, x))),
        KvFormat::F8E5M2 => bytes.extend(row.iter().map(|&x| encode8(E5M2, x))),
        KvFormat::Int8 => {
            let scale = row_scale(largest(row));
            scales.push(scale.to_bits());
            bytes.extend(row.iter().map(|&x| nearest(x, scale) as u8));
        }
        KvFormat::Block8(channels) => {
            let mut exponents = Vec::new();
            for block in row.chunks(channels as usize) {
                let exponent = block_exponent(largest(block));
                exponents.push(exponent as u8);
                let inverse = f32::from_bits((254 - exponent) << 23);
                let code = |&x: &f32| (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
                bytes.extend(block.iter().map(|x| code(x) as u8));
            }
            exponents.resize(layout.scale_words() * 4, 0);
            scales = words(&exponents);
        }
    }
    bytes.resize(layout.row() * layout.format.code().size(), 0);
    StoredRow {
        codes: words(&bytes),
        scales,
    }
}

/// The numbers that a stored row means: all of them are f32 numbers.
pub fn decode(layout: &KvLayout, row: &StoredRow) -> Vec<f32> {
    let bytes: Vec<u8> = row.codes.iter().flat_map(|w| w.to_le_bytes()).collect();
    let codes = &bytes[..layout.dim * layout.format.code().size()];
    match layout.format {
        KvFormat::F32 => bytemuck::pod_collect_to_vec(codes),
        KvFormat::F16 => codes
            .chunks(2)
            .map(|c| f16::from_le_bytes([c[0], c[1]]).to_f32())
            .collect(),
        KvFormat::BF16 => codes
            .chunks(2)
            .map(|c| bf16::from_le_bytes([c[0], c[1]]).to_f32())
            .collect(),
        KvFormat::F8E4M3 => codes.iter().map(|&c| E4M3.decode(c.into())).collect(),
        KvFormat::F8E5M2 => codes.iter().map(|&c| E5M2.decode(c.into())).collect(),
        KvFormat::Int8 => {
            let scale = f32::from_bits(row.scales[0]);
            codes.iter().map(|&c| f32::from(c as i8) * scale).collect()
        }
        KvFormat::Block8(channels) => {
            let exponents: Vec<u8> = row.scales.iter().flat_map(|w| w.to_le_bytes()).collect();
            let scale =
                |i: usize| f32::from_bits(u32::from(exponents[i / channels as usize]) << 23);
            let value = |(i, &c): (usize, &u8)| f32::from(c as i8) * scale(i);
            codes.iter().enumerate().map(value).collect()
        }
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// The bits of the largest magnitude, as a finite number.
fn largest(row: &[f32]) -> u32 {
    let bits = row.iter().map(|x| x.to_bits() & 0x7fff_ffff).max();
    bits.unwrap_or(0).min(0x7f7f_ffff)
}

/// A scale of 11 significant bits, so that it times half an integer below 2^9 is exact, and 127 of it reach the
/// largest magnitude but for a rounding.
fn row_scale(largest: u32) -> f32 {
    let scale = (f32::from_bits(largest) * (1.0 / 127.0)).to_bits();
    f32::from_bits((scale.max(LEAST_SCALE) + 0x1fff) & !0x1fff)
}

/// 2^-100: no product with it is subnormal.
const LEAST_SCALE: u32 = 27 << 23;

/// The integer nearest to x / scale (ties upwards), found by exact comparisons: divisions differ between devices.
fn nearest(x: f32, scale: f32) -> i8 {
    let code = (x * (1.0 / scale)).round_ties_even().clamp(-127.0, 127.0);
    let up = f32::from(x >= (code + 0.5) * scale);
    let down = f32::from(x < (code - 0.5) * scale);
    (code + up - down).clamp(-127.0, 127.0) as i8
}

/// The exponent byte of a block: the largest magnitude is 64 to 128 units.
fn block_exponent(largest: u32) -> u32 {
    (largest >> 23).max(7) - 6
}

/// The code of a cache: saturates, and NaN is the largest number of its sign.
fn encode8(float: MiniFloat, x: f32) -> u8 {
    let x = if x.is_nan() {
        f32::INFINITY.copysign(x)
    } else {
        x
    };
    float.encode(x, Overflow::Saturate) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::attention::ChannelOrder;

    fn layout(format: KvFormat, dim: usize) -> KvLayout {
        KvLayout::new(format, 1, 1, 1, dim).expect("a layout")
    }

    fn there_and_back(format: KvFormat, row: &[f32]) -> Vec<f32> {
        let layout = layout(format, row.len());
        decode(&layout, &encode(&layout, row))
    }

    #[test]
    fn every_code_of_fp8_is_its_own_nearest() {
        for (format, most) in [(KvFormat::F8E4M3, 0x7eu8), (KvFormat::F8E5M2, 0x7b)] {
            let codes: Vec<u8> = (0..=most).chain(0x80..=most | 0x80).collect();
            let layout = layout(format, codes.len().next_multiple_of(16));
            let mut bytes = codes;
            bytes.resize(layout.dim, 0);
            let stored = StoredRow {
                codes: words(&bytes),
                scales: Vec::new(),
            };
            assert_eq!(
                encode(&layout, &decode(&layout, &stored)),
                stored,
                "{format}"
            );
        }
        assert_eq!(encode8(E4M3, f32::NAN), 0x7e);
        assert_eq!(encode8(E5M2, -f32::INFINITY), 0xfb);
    }

    #[test]
    fn integers_are_within_half_a_step() {
        let row: Vec<f32> = (0..64)
            .map(|i| ((i * 37) as f32).sin() * 10f32.powi(i % 5 - 2))
            .collect();
        let most = row.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (x, y) in row.iter().zip(there_and_back(KvFormat::Int8, &row)) {
            // The scale is rounded up by at most 2^-10.
            assert!((x - y).abs() <= most / 127.0 / 2.0 * 1.002, "{x} {y}");
        }
        for (block, back) in row
            .chunks(32)
            .zip(there_and_back(KvFormat::Block8(32), &row).chunks(32))
        {
            let most = block.iter().fold(0f32, |m, x| m.max(x.abs()));
            for (x, y) in block.iter().zip(back) {
                // A step is at most 1 / 64 of the largest; which itself may be cut by a step's half.
                assert!((x - y).abs() <= most / 64.0 / 2.0 + 1e-9, "{x} {y}");
            }
        }
    }

    #[test]
    fn multiples_of_a_power_of_two_are_kept() {
        let row: Vec<f32> = (-100..=100).map(|i| i as f32 * 0.25).collect();
        assert_eq!(
            there_and_back(KvFormat::Block8(128), &row[..128]),
            &row[..128]
        );
        for format in KvFormat::ALL {
            assert_eq!(there_and_back(format, &[0.0; 24]), [0.0; 24], "{format}");
            assert!(
                there_and_back(format, &[f32::MAX, 1.0])
                    .iter()
                    .all(|x| !x.is_nan())
            );
        }
    }

    #[test]
    fn channels_in_order_of_magnitude_lose_less_in_blocks() {
        // 16 of 64 channels are outliers, in every block of 16 as they come, and one block of their own in order.
        let (tokens, dim) = (50, 64);
        let sample: Vec<f32> = (0..tokens * dim)
            .map(|i| ((i * i % 977) as f32 * 0.7).sin() * if i % 4 == 3 { 40.0 } else { 1.0 })
            .collect();
        let order = ChannelOrder::by_magnitude(&sample, 1, dim);
        let error = |order: &[u32]| -> f32 {
            let row_error = |row: &[f32]| {
                let turned: Vec<f32> = order.iter().map(|&c| row[c as usize]).collect();
                let back = there_and_back(KvFormat::Block8(16), &turned);
                // Of the ordinary channels: outliers are as near either way.
                let ordinary = turned.iter().zip(&back).filter(|(x, _)| x.abs() < 1.0);
                ordinary.map(|(x, y)| (x - y).powi(2)).sum::<f32>()
            };
            sample.chunks(dim).map(row_error).sum()
        };
        let as_is: Vec<u32> = (0..dim as u32).collect();
        assert!(error(&order) * 100.0 < error(&as_is));
        let mut all = order;
        all.sort_unstable();
        assert_eq!(all, as_is);
    }
}
