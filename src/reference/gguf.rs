//! GGUF's blocks as ggml's dequantize_row functions read them, in f64.

use half::f16;

use crate::quant::GgufBlock;

/// The elements of one block.
pub fn dequantize(kind: GgufBlock, b: &[u8]) -> Vec<f64> {
    let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f64();
    let mut y = vec![0.0; kind.size().0];
    match kind {
        GgufBlock::Q4_0 | GgufBlock::Q4_1 => {
            let (d, m, qs) = match kind {
                GgufBlock::Q4_0 => (half(0), -8.0 * half(0), &b[2..]),
                _ => (half(0), half(2), &b[4..]),
            };
            for j in 0..16 {
                y[j] = f64::from(qs[j] & 15) * d + m;
                y[j + 16] = f64::from(qs[j] >> 4) * d + m;
            }
        }
        GgufBlock::Q5_0 | GgufBlock::Q5_1 => {
            let (d, m, at) = match kind {
                GgufBlock::Q5_0 => (half(0), -16.0 * half(0), 2),
                _ => (half(0), half(2), 4),
            };
            let qh = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
            for j in 0..16 {
                let q = b[at + 4 + j];
                let (h0, h1) = (((qh >> j) << 4) & 16, (qh >> (j + 12)) & 16);
                y[j] = f64::from(u32::from(q & 15) | h0) * d + m;
                y[j + 16] = f64::from(u32::from(q >> 4) | h1) * d + m;
            }
        }
        GgufBlock::Q8_0 => {
            for j in 0..32 {
                y[j] = f64::from(b[2 + j] as i8) * half(0);
            }
        }
        GgufBlock::Q2_K => {
            let (d, min) = (half(80), half(82));
            let (mut at, mut is) = (0, 0);
            for n in 0..2 {
                let q = &b[16 + 32 * n..];
                for j in 0..4 {
                    for half in 0..2 {
                        let sc = b[is];
                        is += 1;
                        let (dl, ml) = (d * f64::from(sc & 15), min * f64::from(sc >> 4));
                        for l in 0..16 {
                            y[at] = dl * f64::from(q[16 * half + l] >> (2 * j) & 3) - ml;
                            at += 1;
                        }
                    }
                }
            }
        }
        GgufBlock::Q3_K => {
            let d = half(108);
            let s = &b[96..108];
            let (mut at, mut is, mut m) = (0, 0, 1u8);
            for n in 0..2 {
                let q = &b[32 + 32 * n..];
                for j in 0..4 {
                    for half in 0..2 {
                        let low = if is < 8 { s[is] & 15 } else { s[is - 8] >> 4 };
                        let high = s[8 + is % 4] >> (2 * (is / 4)) & 3;
                        let dl = d * (f64::from(low | high << 4) - 32.0);
                        is += 1;
                        for l in 0..16 {
                            let low = f64::from(q[16 * half + l] >> (2 * j) & 3);
                            let high = if b[16 * half + l] & m != 0 { 0.0 } else { 4.0 };
                            y[at] = dl * (low - high);
                            at += 1;
                        }
                    }
                    m = m.wrapping_shl(1);
                }
            }
        }
        GgufBlock::Q4_K | GgufBlock::Q5_K => {
            let (d, min) = (half(0), half(2));
            let s = &b[4..16];
            let scale_min = |j: usize| match j {
                0..4 => (s[j] & 63, s[j + 4] & 63),
                _ => (
                    (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4),
                    (s[j + 4] >> 4) | ((s[j] >> 6) << 4),
                ),
            };
            let (qs, qh) = match kind {
                GgufBlock::Q4_K => (&b[16..], &[0u8; 32][..]),
                _ => (&b[48..], &b[16..48]),
            };
            for g in 0..8 {
                let (sc, m) = scale_min(g);
                let (dl, ml) = (d * f64::from(sc), min * f64::from(m));
                for l in 0..32 {
                    let q = qs[g / 2 * 32 + l] >> (g % 2 * 4) & 15;
                    let high = if qh[l] >> g & 1 == 1 { 16.0 } else { 0.0 };
                    y[g * 32 + l] = dl * (f64::from(q) + high) - ml;
                }
            }
        }
        GgufBlock::Q6_K => {
            let d = half(208);
            for n in 0..2 {
                let (ql, qh, sc) = (&b[64 * n..], &b[128 + 32 * n..], &b[192 + 8 * n..]);
                for l in 0..32 {
                    let is = l / 16;
                    let scale = |k: usize| d * f64::from(sc[is + k] as i8);
                    let q = |low: u8, high: u8| f64::from(low | (high & 3) << 4) - 32.0;
                    let y = &mut y[128 * n..];
                    y[l] = scale(0) * q(ql[l] & 15, qh[l]);
                    y[l + 32] = scale(2) * q(ql[l + 32] & 15, qh[l] >> 2);
                    y[l + 64] = scale(4) * q(ql[l] >> 4, qh[l] >> 4);
                    y[l + 96] = scale(6) * q(ql[l + 32] >> 4, qh[l] >> 6);
                }
            }
        }
    }
    y
}
