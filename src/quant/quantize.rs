//! The quantiser, in f32 arithmetic that is exact where it decides: shaders/quant/quantize.wgsl gives the same bits.
//!
//! - Numbers beyond +-2^126, infinities and NaN are taken as +-2^126 (NaN by its sign bit), those below 2^-100 as zero.
//! - Scales have few significant bits and are rounded up, so that the largest element is in range and half steps times
//!   scales are exact: 11 bits (f16 and f32), a power of two (E8M0), or a byte of 1 to 127 times an f32 of 5 bits.
//! - Codes are nearest by exact comparison, ties to even (integers, floats); see [`Code::nearest`] for NF4.
//! - A group of zeros has the least scale (2^-100; 0 for f16 and bytes) and codes of level zero.

use super::code::nearest_integer;
use super::format::{Format, Scale, Zero};
use super::layout::QuantLayout;
use super::matrix::QuantMatrix;
use crate::error::{Error, Result};

/// Magnitudes beyond this are taken as this.
const MOST: u32 = 253 << 23;
/// 2^-100: magnitudes below this are taken as zero, so that no product is subnormal.
const LEAST_BITS: u32 = 27 << 23;
const LEAST: f32 = f32::from_bits(LEAST_BITS);

/// `x` with its magnitude at most 2^126.
fn tame(x: f32) -> f32 {
    let bits = x.to_bits();
    let magnitude = (bits & 0x7fff_ffff).min(MOST);
    match magnitude {
        0..LEAST_BITS => 0.0,
        m => f32::from_bits(m | bits & 0x8000_0000),
    }
}

/// `x` rounded up to `bits` significant bits; x is not negative.
fn round_up(x: f32, bits: u32) -> f32 {
    let drop = 24 - bits;
    let mask = (1u32 << drop) - 1;
    f32::from_bits((x.to_bits() + mask) & !mask)
}

/// `x` (not negative) rounded up to an f16 number, at most 65504.
fn round_up_f16(x: f32) -> f32 {
    if x < f32::from_bits(113 << 23) {
        // Subnormal numbers of f16 are multiples of 2^-24.
        return (x * 16_777_216.0).ceil() * (1.0 / 16_777_216.0);
    }
    round_up(x, 11).min(65504.0)
}

/// The bits of a number that f16 has.
fn f16_bits(x: f32) -> u32 {
    half::f16::from_f32(x).to_bits().into()
}

/// A group's scale for numbers of at most this magnitude that `steps` steps reach.
fn scale_of(scale: Scale, magnitude: f32, steps: f32) -> f32 {
    let ideal = magnitude * (1.0 / steps);
    match scale {
        Scale::F32 => round_up(ideal.max(LEAST), 11),
        Scale::F16 => round_up_f16(ideal),
        // The least power of two from which the largest magnitude is at most as large as the largest level.
        Scale::E8M0 => round_up(ideal.max(LEAST), 1),
        Scale::ByteF32(_) | Scale::ByteF16(_) => ideal,
    }
}

/// A matrix `[rows, cols]` in a format.
///
/// Errors if there is another number of values, or if the format is one of those that are read and not written: bytes
/// times f16 scales.
pub fn quantize(format: Format, [rows, cols]: [usize; 2], values: &[f32]) -> Result<QuantMatrix> {
    let layout = QuantLayout::new(format, rows, cols)?;
    writable(format)?;
    if values.len() != rows * cols {
        let allowed = format!("{rows} x {cols}");
        return Err(Error::argument("values", values.len(), allowed));
    }
    let mut matrix = QuantMatrix::zeroed(layout);
    let (per_row, group_rows) = (layout.groups_per_row(), layout.group_rows());
    let outer_groups = match format.scale {
        Scale::ByteF32(groups) => groups as usize,
        _ => 1,
    };
    for group_row in 0..group_rows {
        for first in (0..per_row).step_by(outer_groups) {
            let groups = first..(first + outer_groups).min(per_row);
            let parts: Vec<Part> = groups
                .map(|g| Part::of(&layout, group_row * per_row + g))
                .collect();
            encode(&mut matrix, values, &parts, first / outer_groups);
        }
    }
    Ok(matrix)
}

/// Errors for formats that are read and not written.
pub(crate) fn writable(format: Format) -> Result<()> {
    match format.scale {
        Scale::ByteF16(_) => Err(Error::argument(
            "format",
            format,
            "one that is written; K formats are read",
        )),
        _ => Ok(()),
    }
}

/// The elements of a group.
struct Part {
    group: usize,
    group_row: usize,
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
}

impl Part {
    fn of(layout: &QuantLayout, group: usize) -> Self {
        let [rows, cols] = layout.format.group_size([layout.rows, layout.cols]);
        let (r, c) = (
            group / layout.groups_per_row(),
            group % layout.groups_per_row(),
        );
        Self {
            group,
            group_row: r,
            rows: r * rows..((r + 1) * rows).min(layout.rows),
            cols: c * cols..((c + 1) * cols).min(layout.cols),
        }
    }

    fn elements(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.rows
            .clone()
            .flat_map(|r| self.cols.clone().map(move |c| (r, c)))
    }

    /// The least and the largest number of a group, with zero among them.
    fn range(&self, values: &[f32], cols: usize) -> (f32, f32) {
        let each = self.elements().map(|(r, c)| tame(values[r * cols + c]));
        each.fold((0.0, 0.0), |(low, high): (f32, f32), x| {
            (low.min(x), high.max(x))
        })
    }
}

/// Groups that share an outer scale, or one group.
fn encode(matrix: &mut QuantMatrix, values: &[f32], parts: &[Part], outer: usize) {
    let layout = *matrix.layout();
    let Format {
        code, scale, zero, ..
    } = layout.format;
    let most = code.largest();
    let ranges: Vec<(f32, f32)> = parts.iter().map(|p| p.range(values, layout.cols)).collect();
    // Without the sign of a zero.
    let magnitude = |&(low, high): &(f32, f32)| high.max(-low).abs();
    // Bytes of one to 127 times a number of five bits.
    let mut step = 0.0;
    if let Scale::ByteF32(_) = scale {
        let largest = ranges.iter().map(magnitude).fold(0.0, f32::max);
        step = match largest {
            0.0 => 0.0,
            m => round_up((m * (1.0 / (127.0 * most))).max(LEAST), 5),
        };
        let at = parts[0].group_row * layout.outer_per_row() + outer;
        matrix.set_outer(at, 0, step.to_bits());
    }
    for (part, range) in parts.iter().zip(&ranges) {
        let (s, shift) = match zero {
            Zero::None => (scale_of(scale, magnitude(range), most), 0.0),
            _ => {
                let steps = most + most + 1.0;
                let s = scale_of(scale, range.1 - range.0, steps);
                (s, range.0)
            }
        };
        let s = match scale {
            Scale::ByteF32(_) if step > 0.0 => {
                let unit = step * most;
                let byte = nearest_integer(magnitude(range), unit, 127.0);
                let byte = if magnitude(range) > 0.0 {
                    byte.max(1)
                } else {
                    0
                };
                matrix.set_number(part.group, 0, byte as u32);
                byte as f32 * step
            }
            Scale::ByteF32(_) => 0.0,
            Scale::F32 => {
                matrix.set_number(part.group, 0, s.to_bits());
                s
            }
            Scale::F16 => {
                matrix.set_number(part.group, 0, f16_bits(s));
                s
            }
            _ => {
                matrix.set_number(part.group, 0, s.to_bits() >> 23);
                s
            }
        };
        // Codes of integers with a zero point start at the least: low = (least - z) s.
        let mut point = 0;
        let mut minimum = 0.0;
        match zero {
            Zero::None | Zero::NegatedMin => {}
            Zero::Point => {
                if s > 0.0 {
                    point = -(most as i32) - 1 - nearest_integer(shift, s, most + most + 1.0);
                }
                let bits = match scale {
                    Scale::F32 => (point as f32).to_bits(),
                    _ => f16_bits(point as f32),
                };
                matrix.set_number(part.group, 1, bits);
            }
            Zero::Min => {
                minimum = match scale {
                    Scale::F32 => 0.0 - shift.abs(),
                    _ => 0.0 - round_up_f16(shift.abs()),
                };
                let bits = match scale {
                    Scale::F32 => minimum.to_bits(),
                    _ => f16_bits(minimum),
                };
                matrix.set_number(part.group, 1, bits);
            }
        }
        if s == 0.0 && zero != Zero::Min {
            continue;
        }
        for (r, c) in part.elements() {
            let x = tame(values[r * layout.cols + c]);
            let chosen = match zero {
                Zero::None | Zero::NegatedMin => code.nearest(x, s),
                Zero::Point => {
                    let level = nearest_integer(x, s, most + most + 1.0) + point;
                    code.of_integer(level)
                }
                Zero::Min => {
                    let steps = if s == 0.0 {
                        0
                    } else {
                        nearest_integer(x - minimum, s, most + most + 1.0)
                    };
                    code.of_integer(steps - most as i32 - 1)
                }
            };
            matrix.set_code(r, c, chosen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Code, Group};

    fn values(n: usize) -> Vec<f32> {
        let value = |i: usize| {
            let x = ((i * 2_654_435_761) % 10007) as f32 / 10007.0 - 0.5;
            if i.is_multiple_of(97) { 10.0 * x } else { x }
        };
        (0..n).map(value).collect()
    }

    fn all() -> impl Iterator<Item = (&'static str, Format)> {
        let named = Format::NAMED.into_iter();
        named.filter(|(_, f)| writable(*f).is_ok())
    }

    #[test]
    fn values_are_within_half_a_step() {
        let (rows, cols) = (6, 200);
        let x = values(rows * cols);
        for (name, format) in all() {
            let matrix = quantize(format, [rows, cols], &x).unwrap();
            let layout = *matrix.layout();
            let back = matrix.decode();
            for (i, (&x, &y)) in x.iter().zip(&back).enumerate() {
                let (scale, _) = matrix.affine(layout.group_of(i / cols, i % cols));
                // Half the widest gap between levels at this magnitude.
                let step = match format.code {
                    Code::Int(_) => 0.5,
                    Code::Nf4 => 0.153,
                    Code::E4M3 => (f64::from(x.abs()) / scale / 16.0).max(1.0 / 1024.0),
                    Code::E5M2 => (f64::from(x.abs()) / scale / 8.0).max(1.0 / 131_072.0),
                    Code::E2M1 => 1.0,
                };
                // Byte scales are rounded to nearest, so that the largest may be cut; zero points too.
                let cut = match (format.scale, format.zero) {
                    (Scale::ByteF32(_), _) => 0.2 * f64::from(x.abs()),
                    (_, Zero::Point | Zero::Min) => 0.51 * scale,
                    _ => 0.0,
                };
                let error = (f64::from(x) - y).abs();
                assert!(
                    error <= step * scale * 1.0001 + cut,
                    "{name} {i}: {x} {y} {scale}"
                );
            }
        }
    }

    #[test]
    fn what_is_representable_is_kept() {
        // Every level of every code, times a scale that the largest decides.
        for (name, format) in all() {
            let short = matches!(format.group, Group::Along(_)) && format.code.bits() == 8;
            if format.zero != Zero::None || short || matches!(format.scale, Scale::ByteF32(_)) {
                continue;
            }
            let code = format.code;
            let levels: Vec<f32> = (0..1 << code.bits())
                .map(|c| code.level(c))
                .filter(|l| l.is_finite() && l.abs() <= code.largest())
                .collect();
            // Every group has all of them.
            let cols = levels.len().next_power_of_two();
            let x: Vec<f32> = levels.iter().cycle().take(2 * cols).copied().collect();
            let matrix = quantize(format, [2, cols], &x).unwrap();
            let back: Vec<f32> = matrix.decode().iter().map(|&v| v as f32).collect();
            assert_eq!(back, x, "{name}");
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_not_finite_saturates() {
        for (name, format) in all() {
            let matrix = quantize(format, [2, 64], &[0.0; 128]).unwrap();
            assert!(matrix.decode().iter().all(|&v| v == 0.0), "{name}");
            let mut x = values(128);
            x[3] = f32::INFINITY;
            x[70] = -f32::NAN;
            let back = quantize(format, [2, 64], &x).unwrap().decode();
            assert!(back.iter().all(|v| v.is_finite()), "{name}");
            assert!(
                back[3] > 60000.0 && back[70] < -60000.0,
                "{name} {} {}",
                back[3],
                back[70]
            );
        }
    }

    #[test]
    fn bad_arguments_are_named() {
        let error = quantize(Format::Q4_K, [1, 256], &[0.0; 256]).unwrap_err();
        assert!(error.to_string().starts_with("format: q4_k"), "{error}");
        let error = quantize(Format::INT8, [2, 5], &[0.0; 9]).unwrap_err();
        assert!(error.to_string().starts_with("values: 9"), "{error}");
        assert!(quantize(Format::INT8, [0, 5], &[]).is_err());
    }
}
