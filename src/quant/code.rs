//! What the codes of quantised elements mean before they are scaled.

use super::minifloat::{MiniFloat, Overflow};

/// NormalFloat of 4 bits (QLoRA, arXiv 2305.14314, appendix E): quantiles of a normal distribution.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The kind of an element's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// Integers of 2, 3, 4, 5, 6 or 8 bits, from -2^(bits - 1) on. The code is the integer plus 2^(bits - 1), but for
    /// 8 bits, where it is two's complement (as packed dot products take it).
    Int(u8),
    /// OCP FP8 E4M3.
    E4M3,
    /// OCP FP8 E5M2.
    E5M2,
    /// OCP MX FP4, E2M1.
    E2M1,
    /// [`NF4`].
    Nf4,
}

impl Code {
    /// Bits of a code.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Int(bits) => bits as u32,
            Self::E4M3 | Self::E5M2 => 8,
            Self::E2M1 | Self::Nf4 => 4,
        }
    }

    /// Low bits of a code, in the first plane: 2, 4 or 8.
    pub const fn low_bits(self) -> u32 {
        match self.bits() {
            8 => 8,
            4..8 => 4,
            _ => 2,
        }
    }

    /// The rest of its bits, in the second plane: 0, 1 or 2.
    pub const fn high_bits(self) -> u32 {
        self.bits() - self.low_bits()
    }

    /// The name in recipes and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int(2) => "int2",
            Self::Int(3) => "int3",
            Self::Int(4) => "int4",
            Self::Int(5) => "int5",
            Self::Int(6) => "int6",
            Self::Int(_) => "int8",
            Self::E4M3 => "e4m3",
            Self::E5M2 => "e5m2",
            Self::E2M1 => "e2m1",
            Self::Nf4 => "nf4",
        }
    }

    /// The floating-point type, if it is one.
    pub const fn float(self) -> Option<MiniFloat> {
        match self {
            Self::E4M3 => Some(MiniFloat::E4M3),
            Self::E5M2 => Some(MiniFloat::E5M2),
            Self::E2M1 => Some(MiniFloat::E2M1),
            Self::Int(_) | Self::Nf4 => None,
        }
    }

    /// What a code means: an f32 number, exactly.
    pub fn level(self, code: u32) -> f32 {
        match self {
            Self::Int(8) => f32::from(code as u8 as i8),
            Self::Int(bits) => code as f32 - f32::from(1u16 << (bits - 1)),
            Self::Nf4 => NF4[code as usize & 15],
            Self::E4M3 => MiniFloat::E4M3.decode(code),
            Self::E5M2 => MiniFloat::E5M2.decode(code),
            Self::E2M1 => MiniFloat::E2M1.decode(code),
        }
    }

    /// The code of level zero.
    pub const fn zero(self) -> u32 {
        match self {
            Self::Int(8) | Self::E4M3 | Self::E5M2 | Self::E2M1 => 0,
            Self::Int(bits) => 1 << (bits - 1),
            Self::Nf4 => 7,
        }
    }

    /// The largest level that symmetric quantisation uses: integers are as many below zero as above.
    pub fn largest(self) -> f32 {
        match self {
            Self::Int(bits) => f32::from((1u16 << (bits - 1)) - 1),
            Self::Nf4 => 1.0,
            Self::E4M3 => 448.0,
            Self::E5M2 => 57344.0,
            Self::E2M1 => 6.0,
        }
    }

    /// The least and the largest integer, of integers.
    pub const fn integers(self) -> Option<(i32, i32)> {
        match self {
            Self::Int(bits) => Some((-(1 << (bits - 1)), (1 << (bits - 1)) - 1)),
            _ => None,
        }
    }

    /// The code of an integer (clamped), of integers.
    pub(crate) fn of_integer(self, value: i32) -> u32 {
        match self {
            Self::Int(8) => value.clamp(-128, 127) as i8 as u8 as u32,
            Self::Int(bits) => {
                let half = 1 << (bits - 1);
                (value.clamp(-half, half - 1) + half) as u32
            }
            _ => 0,
        }
    }

    /// The code whose level is nearest to `x / scale`, found by exact comparisons: `scale` has at most 11 significant
    /// bits (12 for integers), is positive and at least 2^-100. Ties go to the even integer or code; of NF4 to the lower
    /// level, its thresholds being the midpoints rounded to 12 bits.
    pub(crate) fn nearest(self, x: f32, scale: f32) -> u32 {
        match self {
            Self::Int(_) => {
                let most = self.largest() as i32;
                self.of_integer(nearest_integer(x, scale, self.largest()).clamp(-most, most))
            }
            Self::Nf4 => NF4_THRESHOLDS.iter().filter(|&&t| x > t * scale).count() as u32,
            _ => {
                let float = self.float().unwrap_or(MiniFloat::E4M3);
                let sign = if x < 0.0 { 1 << (float.bits() - 1) } else { 0 };
                let magnitude = x.abs();
                let close = magnitude * (1.0 / scale);
                let code = float
                    .encode(close, Overflow::Saturate)
                    .min(float.largest_code());
                let middle = |c: u32| f32::midpoint(float.decode(c), float.decode(c + 1)) * scale;
                let odd = code & 1 == 1;
                let up = code < float.largest_code()
                    && (magnitude > middle(code) || odd && magnitude == middle(code));
                let down = code > 0
                    && (magnitude < middle(code - 1) || odd && magnitude == middle(code - 1));
                let code = code + u32::from(up) - u32::from(down);
                if code == 0 { 0 } else { sign | code }
            }
        }
    }
}

/// The integer nearest to x / scale, ties to even, within +-most: candidates by an approximate quotient, decided by
/// products that are exact.
pub(crate) fn nearest_integer(x: f32, scale: f32, most: f32) -> i32 {
    let code = (x * (1.0 / scale)).round_ties_even().clamp(-most, most);
    let odd = code as i32 & 1 == 1;
    let (above, below) = ((code + 0.5) * scale, (code - 0.5) * scale);
    let up = x > above || odd && x == above;
    let down = x < below || odd && x == below;
    (code as i32 + i32::from(up) - i32::from(down)).clamp(-most as i32, most as i32)
}

/// Midpoints of [`NF4`], rounded to 12 significant bits: products with scales of 11 or 12 bits are exact.
pub(crate) const NF4_THRESHOLDS: [f32; 15] = thresholds();

const fn thresholds() -> [f32; 15] {
    let mut found = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        let middle = (NF4[i] + NF4[i + 1]) * 0.5;
        found[i] = f32::from_bits((middle.to_bits() + 0x800) & 0xffff_f000);
        i += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Code; 10] = [
        Code::Int(2),
        Code::Int(3),
        Code::Int(4),
        Code::Int(5),
        Code::Int(6),
        Code::Int(8),
        Code::E4M3,
        Code::E5M2,
        Code::E2M1,
        Code::Nf4,
    ];

    #[test]
    fn every_level_is_its_own_nearest() {
        for code in ALL {
            let most = code.largest();
            for c in 0..1 << code.bits() {
                let level = code.level(c);
                if !level.is_finite() || level.abs() > most {
                    continue;
                }
                for scale in [1.0, 0.125, 3.5, 1.0 + 1.0 / 1024.0] {
                    let back = code.nearest(level * scale, scale);
                    assert_eq!(code.level(back), level, "{code:?} {c} {scale}");
                }
            }
            assert_eq!(code.level(code.zero()), 0.0);
            assert_eq!(code.nearest(0.0, 1.0), code.zero());
        }
    }

    #[test]
    fn no_other_level_is_nearer() {
        let scale = 1.0 + 3.0 / 1024.0;
        for code in ALL {
            let levels: Vec<f32> = (0..1 << code.bits()).map(|c| code.level(c)).collect();
            let most = code.largest();
            for i in -400..=400 {
                let x = most * scale * (i as f32) / 390.0;
                let got = f64::from(code.level(code.nearest(x, scale)));
                let distance = |l: f64| (f64::from(x) / f64::from(scale) - l).abs();
                let best = levels
                    .iter()
                    .filter(|l| l.is_finite() && l.abs() <= most)
                    .map(|&l| distance(l.into()))
                    .fold(f64::MAX, f64::min);
                // NF4's thresholds are rounded.
                assert!(distance(got) <= best + 2e-4, "{code:?} {x} {got}");
            }
        }
    }

    #[test]
    fn ties_of_integers_go_to_even() {
        for (x, expected) in [
            (0.5, 0),
            (1.5, 2),
            (2.5, 2),
            (-0.5, 0),
            (-1.5, -2),
            (-2.5, -2),
        ] {
            assert_eq!(nearest_integer(x, 1.0, 127.0), expected);
        }
        assert_eq!(nearest_integer(1e30, 1.0, 127.0), 127);
    }
}
