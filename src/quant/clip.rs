//! Calibration: how far from zero a group's levels reach. Outliers beyond are clipped, which leaves finer steps for the rest
//! (arXiv 2106.08295).

use std::fmt;
use std::str::FromStr;

use super::format::Format;
use super::layout::QuantLayout;
use super::quantize::quantize;
use crate::error::{Error, Result};

/// How a group's range is found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Clip {
    /// Its largest magnitude: nothing is clipped.
    #[default]
    AbsMax,
    /// The magnitude that so many percent of its elements do not pass, over 0 and up to 100.
    Percentile(f64),
    /// Of 24 ranges, from the largest magnitude down to 0.31 of it, the one with the least mean squared error.
    Mse,
}

/// Ranges that [`Clip::Mse`] tries.
const RANGES: usize = 24;

/// `values` `[rows, cols]`, those of each group of `format` clipped to its range: what [`quantize`] is then given.
///
/// # Errors
/// As [`quantize`]; for a percentile out of range.
pub fn clip(how: Clip, format: Format, shape: [usize; 2], values: &[f32]) -> Result<Vec<f32>> {
    let layout = QuantLayout::new(format, shape[0], shape[1])?;
    if values.len() != shape[0] * shape[1] {
        let allowed = format!("{} x {}", shape[0], shape[1]);
        return Err(Error::argument("values", values.len(), allowed));
    }
    if how == Clip::AbsMax {
        return Ok(values.to_vec());
    }
    let group = |i: usize| layout.group_of(i / shape[1], i % shape[1]);
    let clipped = |ranges: &[f32]| -> Vec<f32> {
        let each = values.iter().enumerate();
        // NaN stays what it is.
        each.map(|(i, &v)| {
            if v.abs() > ranges[group(i)] {
                ranges[group(i)].copysign(v)
            } else {
                v
            }
        })
        .collect()
    };
    let mut members = vec![Vec::new(); layout.groups()];
    for (i, v) in values.iter().enumerate() {
        members[group(i)].push(v.abs());
    }
    for m in &mut members {
        m.sort_unstable_by(f32::total_cmp);
    }
    let most: Vec<f32> = members
        .iter()
        .map(|m| m.last().copied().unwrap_or(0.0))
        .collect();
    match how {
        Clip::AbsMax => Ok(clipped(&most)),
        Clip::Percentile(p) => {
            check(p)?;
            let at = |m: &Vec<f32>| {
                let rank = (p / 100.0 * m.len() as f64).ceil() as usize;
                m.get(rank.max(1) - 1).copied().unwrap_or(0.0)
            };
            Ok(clipped(&members.iter().map(at).collect::<Vec<f32>>()))
        }
        Clip::Mse => {
            let errors = |decoded: Vec<f64>| {
                let mut sums = vec![0.0; layout.groups()];
                for (i, (d, &v)) in decoded.iter().zip(values).enumerate() {
                    sums[group(i)] += (d - f64::from(v)).powi(2);
                }
                sums
            };
            let (mut best, mut least) = (
                most.clone(),
                errors(quantize(format, shape, values)?.decode()),
            );
            for step in 1..RANGES {
                let ranges: Vec<f32> = most
                    .iter()
                    .map(|m| m * (1.0 - 0.03 * step as f32))
                    .collect();
                let found = errors(quantize(format, shape, &clipped(&ranges))?.decode());
                for (g, &error) in found.iter().enumerate() {
                    if error < least[g] {
                        (least[g], best[g]) = (error, ranges[g]);
                    }
                }
            }
            Ok(clipped(&best))
        }
    }
}

fn check(percent: f64) -> Result<()> {
    match percent > 0.0 && percent <= 100.0 {
        true => Ok(()),
        false => Err(Error::argument("percentile", percent, "over 0, up to 100")),
    }
}

impl fmt::Display for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AbsMax => f.write_str("absmax"),
            Self::Percentile(p) => write!(f, "percentile:{p}"),
            Self::Mse => f.write_str("mse"),
        }
    }
}

/// As it prints.
impl FromStr for Clip {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::argument("clip", text, "absmax, percentile:P or mse");
        match text {
            "absmax" => Ok(Self::AbsMax),
            "mse" => Ok(Self::Mse),
            _ => {
                let p = text.strip_prefix("percentile:").ok_or_else(wrong)?;
                let p = p.parse().map_err(|_| wrong())?;
                check(p).map(|()| Self::Percentile(p))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of uniform numbers, with an outlier in each row.
    fn values([rows, cols]: [usize; 2]) -> Vec<f32> {
        let mut state = 1u32;
        let mut uniform = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0 - 0.5
        };
        (0..rows * cols)
            .map(|i| match i % cols {
                7 => 8.0,
                _ => (0..4).map(|_| uniform()).sum(),
            })
            .collect()
    }

    fn error(format: Format, shape: [usize; 2], from: &[f32], exact: &[f32]) -> f64 {
        let decoded = quantize(format, shape, from).unwrap().decode();
        let each = decoded.iter().zip(exact);
        each.map(|(d, &e)| (d - f64::from(e)).powi(2)).sum()
    }

    #[test]
    fn the_least_error_is_no_larger_than_without_clipping_in_any_group() {
        for format in [
            Format::INT4,
            Format::INT8,
            Format::NF4,
            Format::UINT4,
            Format::MXFP4,
        ] {
            let shape = [3, 256];
            let v = values(shape);
            let clipped = clip(Clip::Mse, format, shape, &v).unwrap();
            let [with, without] = [&clipped, &v].map(|from| error(format, shape, from, &v));
            assert!(with <= without, "{format}: {with} {without}");
        }
        // Eight standard deviations: clipping an outlier costs more than finer steps give with 256 levels, and less with 16
        // where few elements share it.
        let v = values([1, 64]);
        assert!(clip(Clip::Mse, Format::INT8, [1, 64], &v).unwrap() == v);
    }

    #[test]
    fn percentiles_clip_what_passes_them() {
        let v: Vec<f32> = (1..=64)
            .map(|i| if i % 2 == 0 { i as f32 } else { -(i as f32) })
            .collect();
        let clipped = clip(Clip::Percentile(75.0), Format::INT4, [1, 64], &v).unwrap();
        for (c, v) in clipped.iter().zip(&v) {
            assert_eq!(*c, v.clamp(-48.0, 48.0));
        }
        assert_eq!(
            clip(Clip::Percentile(100.0), Format::INT4, [1, 64], &v).unwrap(),
            v
        );
        assert!(clip(Clip::Percentile(0.0), Format::INT4, [1, 64], &v).is_err());
        for text in ["absmax", "mse", "percentile:99.9"] {
            assert_eq!(text.parse::<Clip>().unwrap().to_string(), text);
        }
        assert!("percentile:101".parse::<Clip>().is_err());
    }
}
