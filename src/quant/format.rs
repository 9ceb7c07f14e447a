//! Formats of quantised matrices, as data.

use std::fmt;
use std::str::FromStr;

use super::code::Code;
use crate::error::{Error, Result};

/// Which elements of a matrix `[rows, cols]` share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// All of them.
    Tensor,
    /// Those of a row (an output channel).
    Row,
    /// So many adjacent elements of a row; a row's last group may be shorter.
    Along(u32),
    /// So many rows by so many columns.
    Block(u32, u32),
}

/// How a group's scale is stored. Where there is a zero point or a minimum, it is stored alike, beside the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scale {
    /// f32.
    F32,
    /// f16.
    F16,
    /// A power of two, as its exponent byte (OCP MX: 2^(byte - 127)).
    E8M0,
    /// A signed byte, times an f32 for each so many groups of a row (double quantisation, arXiv 2305.14314).
    ByteF32(u32),
    /// A signed byte, times an f16 for each so many groups of a row (GGUF's K formats).
    ByteF16(u32),
}

/// What is added to scaled levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Zero {
    /// Nothing: value = level * scale.
    None,
    /// An integer z: value = (level - z) * scale.
    Point,
    /// A number m: value = code * scale + m, where codes count from zero.
    Min,
    /// As [`Min`](Self::Min) with m's negative stored (GGUF's K formats).
    NegatedMin,
}

/// A format of quantised matrices: what a code means, which elements share a scale, how scales are stored.
///
/// The elements of a [`Tensor`](crate::Tensor) may be of such a format ([`DType::Quant`](crate::DType::Quant)); it then is
/// a matrix `[rows, cols]` in one piece, laid out as [`QuantLayout`](super::QuantLayout) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Format {
    /// Of an element.
    pub code: Code,
    /// Elements with one scale.
    pub group: Group,
    /// How it is stored.
    pub scale: Scale,
    /// What is added.
    pub zero: Zero,
}

impl Format {
    const fn new(code: Code, group: Group, scale: Scale, zero: Zero) -> Self {
        Self {
            code,
            group,
            scale,
            zero,
        }
    }

    const fn symmetric(code: Code, group: Group, scale: Scale) -> Self {
        Self::new(code, group, scale, Zero::None)
    }

    /// int8 with an f32 scale a row.
    pub const INT8: Self = Self::symmetric(Code::Int(8), Group::Row, Scale::F32);
    /// int8 with an f32 scale for the whole.
    pub const INT8_TENSOR: Self = Self::symmetric(Code::Int(8), Group::Tensor, Scale::F32);
    /// int8 in groups of 128, f16 scales.
    pub const INT8_GROUP: Self = Self::symmetric(Code::Int(8), Group::Along(128), Scale::F16);
    /// int8 with a scale and a zero point a row.
    pub const UINT8: Self = Self::new(Code::Int(8), Group::Row, Scale::F32, Zero::Point);
    /// int4 in groups of 64, f16 scales.
    pub const INT4: Self = Self::symmetric(Code::Int(4), Group::Along(64), Scale::F16);
    /// int4 in groups of 64, f16 scales and zero points.
    pub const UINT4: Self = Self::new(Code::Int(4), Group::Along(64), Scale::F16, Zero::Point);
    /// NF4 in groups of 64, scales quantised again.
    pub const NF4: Self = Self::symmetric(Code::Nf4, Group::Along(64), Scale::ByteF32(256));
    /// FP4 (E2M1) in groups of 64, scales quantised again.
    pub const FP4: Self = Self::symmetric(Code::E2M1, Group::Along(64), Scale::ByteF32(256));
    /// FP8 E4M3 with an f32 scale a row.
    pub const E4M3: Self = Self::symmetric(Code::E4M3, Group::Row, Scale::F32);
    /// FP8 E4M3 with an f32 scale for the whole.
    pub const E4M3_TENSOR: Self = Self::symmetric(Code::E4M3, Group::Tensor, Scale::F32);
    /// FP8 E4M3 with an f32 scale for blocks of 128 x 128.
    pub const E4M3_BLOCK: Self = Self::symmetric(Code::E4M3, Group::Block(128, 128), Scale::F32);
    /// FP8 E5M2 with an f32 scale a row.
    pub const E5M2: Self = Self::symmetric(Code::E5M2, Group::Row, Scale::F32);
    /// OCP MXFP4.
    pub const MXFP4: Self = Self::symmetric(Code::E2M1, Group::Along(32), Scale::E8M0);
    /// OCP MXFP8 of E4M3.
    pub const MXFP8: Self = Self::symmetric(Code::E4M3, Group::Along(32), Scale::E8M0);
    /// Block floating point: int8 times a power of two for each 32 (arXiv 2403.20137).
    pub const BFP8: Self = Self::symmetric(Code::Int(8), Group::Along(32), Scale::E8M0);
    /// GGUF's Q8_0.
    pub const Q8_0: Self = Self::symmetric(Code::Int(8), Group::Along(32), Scale::F16);
    /// GGUF's Q4_0.
    pub const Q4_0: Self = Self::symmetric(Code::Int(4), Group::Along(32), Scale::F16);
    /// GGUF's Q4_1.
    pub const Q4_1: Self = Self::new(Code::Int(4), Group::Along(32), Scale::F16, Zero::Min);
    /// GGUF's Q5_0.
    pub const Q5_0: Self = Self::symmetric(Code::Int(5), Group::Along(32), Scale::F16);
    /// GGUF's Q5_1.
    pub const Q5_1: Self = Self::new(Code::Int(5), Group::Along(32), Scale::F16, Zero::Min);
    /// GGUF's Q2_K.
    pub const Q2_K: Self = Self::new(
        Code::Int(2),
        Group::Along(16),
        Scale::ByteF16(16),
        Zero::NegatedMin,
    );
    /// GGUF's Q3_K.
    pub const Q3_K: Self = Self::symmetric(Code::Int(3), Group::Along(16), Scale::ByteF16(16));
    /// GGUF's Q4_K.
    pub const Q4_K: Self = Self::new(
        Code::Int(4),
        Group::Along(32),
        Scale::ByteF16(8),
        Zero::NegatedMin,
    );
    /// GGUF's Q5_K.
    pub const Q5_K: Self = Self::new(
        Code::Int(5),
        Group::Along(32),
        Scale::ByteF16(8),
        Zero::NegatedMin,
    );
    /// GGUF's Q6_K.
    pub const Q6_K: Self = Self::symmetric(Code::Int(6), Group::Along(16), Scale::ByteF16(16));

    /// The formats that have a name.
    pub const NAMED: [(&'static str, Self); 25] = [
        ("int8", Self::INT8),
        ("int8-tensor", Self::INT8_TENSOR),
        ("int8-g128", Self::INT8_GROUP),
        ("uint8", Self::UINT8),
        ("int4", Self::INT4),
        ("uint4", Self::UINT4),
        ("nf4", Self::NF4),
        ("fp4", Self::FP4),
        ("e4m3", Self::E4M3),
        ("e4m3-tensor", Self::E4M3_TENSOR),
        ("e4m3-128x128", Self::E4M3_BLOCK),
        ("e5m2", Self::E5M2),
        ("mxfp4", Self::MXFP4),
        ("mxfp8", Self::MXFP8),
        ("bfp8", Self::BFP8),
        ("q8_0", Self::Q8_0),
        ("q4_0", Self::Q4_0),
        ("q4_1", Self::Q4_1),
        ("q5_0", Self::Q5_0),
        ("q5_1", Self::Q5_1),
        ("q2_k", Self::Q2_K),
        ("q3_k", Self::Q3_K),
        ("q4_k", Self::Q4_K),
        ("q5_k", Self::Q5_K),
        ("q6_k", Self::Q6_K),
    ];

    /// Its name, if it has one.
    pub fn name(self) -> Option<&'static str> {
        let found = Self::NAMED.iter().find(|(_, format)| *format == self);
        found.map(|(name, _)| *name)
    }

    /// Errors if its parts do not go together: code widths that there are, groups of a power of two of at least 16 elements
    /// along rows (of 32 unless scales are bytes), zero points and minima for integers, exponents and bytes without the
    /// former.
    pub fn check(self) -> Result<()> {
        let along = |n: u32, least: u32| n.is_power_of_two() && (least..=1 << 16).contains(&n);
        let code = match self.code {
            Code::Int(bits) => matches!(bits, 2..=6 | 8),
            _ => true,
        };
        let byte = matches!(self.scale, Scale::ByteF32(_) | Scale::ByteF16(_));
        let group = match self.group {
            Group::Tensor | Group::Row => !byte,
            Group::Along(n) => along(n, if byte { 16 } else { 32 }),
            Group::Block(rows, cols) => along(cols, 32) && rows > 0 && !byte,
        };
        let scale = match self.scale {
            Scale::ByteF32(groups) | Scale::ByteF16(groups) => along(groups, 1) && groups <= 256,
            Scale::F32 | Scale::F16 | Scale::E8M0 => true,
        };
        let integer = matches!(self.code, Code::Int(_));
        let zero = match self.zero {
            Zero::None => true,
            Zero::Point | Zero::Min => integer && !byte && self.scale != Scale::E8M0,
            Zero::NegatedMin => integer && byte,
        };
        if code && group && scale && zero {
            return Ok(());
        }
        Err(Error::argument(
            "format",
            format!("{self:?}"),
            "integers of 2 to 6 or 8 bits; groups of a power of two of 32 or more elements (16 with byte scales); zero \
             points with f32 or f16 scales of integers",
        ))
    }

    /// Rows and columns of a group in a matrix of this size.
    pub(crate) fn group_size(self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        match self.group {
            Group::Tensor => [rows, cols],
            Group::Row => [1, cols],
            Group::Along(n) => [1, n as usize],
            Group::Block(r, c) => [r as usize, c as usize],
        }
    }
}

/// A name, or the parts as in `int4/along64/f16/point`.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = self.name() {
            return f.write_str(name);
        }
        write!(f, "{}/", self.code.name())?;
        match self.group {
            Group::Tensor => f.write_str("tensor")?,
            Group::Row => f.write_str("row")?,
            Group::Along(n) => write!(f, "along{n}")?,
            Group::Block(r, c) => write!(f, "{r}x{c}")?,
        }
        match self.scale {
            Scale::F32 => f.write_str("/f32")?,
            Scale::F16 => f.write_str("/f16")?,
            Scale::E8M0 => f.write_str("/e8m0")?,
            Scale::ByteF32(n) => write!(f, "/byte{n}-f32")?,
            Scale::ByteF16(n) => write!(f, "/byte{n}-f16")?,
        }
        f.write_str(match self.zero {
            Zero::None => "",
            Zero::Point => "/point",
            Zero::Min => "/min",
            Zero::NegatedMin => "/negated-min",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::NAMED.iter().find(|(name, _)| *name == text);
        if let Some(&(_, format)) = named {
            return Ok(format);
        }
        let wrong = || {
            let names: Vec<&str> = Self::NAMED.iter().map(|(name, _)| *name).collect();
            let allowed = format!(
                "{}, or code/group/scale[/zero] as in int4/along128/f16/point",
                names.join(", ")
            );
            Error::argument("format", text, allowed)
        };
        let parts: Vec<&str> = text.split('/').collect();
        let &[code, group, scale, ..] = &parts[..] else {
            return Err(wrong());
        };
        let format = parse(code, group, scale, &parts[3..]).ok_or_else(wrong)?;
        format.check()?;
        Ok(format)
    }
}

fn parse(code: &str, group: &str, scale: &str, zero: &[&str]) -> Option<Format> {
    let code = match code {
        "e4m3" => Code::E4M3,
        "e5m2" => Code::E5M2,
        "e2m1" => Code::E2M1,
        "nf4" => Code::Nf4,
        int => Code::Int(int.strip_prefix("int")?.parse().ok()?),
    };
    let group = match group {
        "tensor" => Group::Tensor,
        "row" => Group::Row,
        other => match other.strip_prefix("along") {
            Some(n) => Group::Along(n.parse().ok()?),
            None => {
                let (rows, cols) = other.split_once('x')?;
                Group::Block(rows.parse().ok()?, cols.parse().ok()?)
            }
        },
    };
    let scale = match scale {
        "f32" => Scale::F32,
        "f16" => Scale::F16,
        "e8m0" => Scale::E8M0,
        other => {
            let (groups, outer) = other.strip_prefix("byte")?.split_once('-')?;
            let groups = groups.parse().ok()?;
            match outer {
                "f32" => Scale::ByteF32(groups),
                "f16" => Scale::ByteF16(groups),
                _ => return None,
            }
        }
    };
    let zero = match zero {
        [] => Zero::None,
        ["point"] => Zero::Point,
        ["min"] => Zero::Min,
        ["negated-min"] => Zero::NegatedMin,
        _ => return None,
    };
    Some(Format::new(code, group, scale, zero))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_valid_and_read_as_they_print() {
        for (name, format) in Format::NAMED {
            format.check().unwrap();
            assert_eq!(format.to_string(), name);
            assert_eq!(name.parse::<Format>().unwrap(), format);
        }
        for text in [
            "int4/along128/f16/point",
            "int8/64x64/f32",
            "nf4/along32/byte64-f32",
            "int6/along32/f16/min",
        ] {
            assert_eq!(text.parse::<Format>().unwrap().to_string(), text);
        }
        for text in [
            "int7/row/f32",
            "int4/along48/f16",
            "nf4/along64/f16/point",
            "int4",
            "int4/along64",
            "e4m3/row/e8m0/min",
            "int4/along16/f16",
            "int4/row/byte8-f32",
            "q9",
        ] {
            let parsed = text.parse::<Format>();
            assert_eq!(parsed.is_ok(), text == "int4", "{text}");
        }
    }
}
