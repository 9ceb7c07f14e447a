//! Floating-point numbers of eight bits and fewer: the exact converters.

/// What the codes at the edge of the range mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Specials {
    /// All codes are numbers (OCP MX E2M1).
    None,
    /// All exponent and fraction bits set is NaN; no infinities (OCP FP8 E4M3).
    Nan,
    /// Infinities and NaN as in IEEE 754 (OCP FP8 E5M2).
    Ieee,
    /// The code of negative zero is NaN, and there are no infinities (the `fnuz` forms).
    Fnuz,
}

/// What becomes of a number beyond the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The largest number of its sign; infinities too. NaN stays NaN where there is one, and is the largest number elsewhere.
    Saturate,
    /// Infinity, or NaN where there is no infinity; as [`Saturate`](Self::Saturate) where there is neither.
    Ieee,
}

/// A sign, an exponent and a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MiniFloat {
    /// Bits of the exponent.
    pub exponent: u32,
    /// Bits of the fraction.
    pub fraction: u32,
    /// What is subtracted from the exponent.
    pub bias: i32,
    /// What the codes at the edge mean.
    pub specials: Specials,
}

impl MiniFloat {
    /// OCP FP8 E4M3 (arXiv 2209.05433).
    pub const E4M3: Self = Self::new(4, 3, 7, Specials::Nan);
    /// OCP FP8 E5M2.
    pub const E5M2: Self = Self::new(5, 2, 15, Specials::Ieee);
    /// E4M3 with a bias of 8, no negative zero (arXiv 2206.02915).
    pub const E4M3_FNUZ: Self = Self::new(4, 3, 8, Specials::Fnuz);
    /// E5M2 with a bias of 16, no negative zero.
    pub const E5M2_FNUZ: Self = Self::new(5, 2, 16, Specials::Fnuz);
    /// OCP MX E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
    pub const E2M1: Self = Self::new(2, 1, 1, Specials::None);

    /// A type of these bits.
    pub const fn new(exponent: u32, fraction: u32, bias: i32, specials: Specials) -> Self {
        Self {
            exponent,
            fraction,
            bias,
            specials,
        }
    }

    /// Bits in all.
    pub const fn bits(self) -> u32 {
        1 + self.exponent + self.fraction
    }

    /// The code of the largest number.
    pub const fn largest_code(self) -> u32 {
        let all = (1 << (self.exponent + self.fraction)) - 1;
        match self.specials {
            Specials::None | Specials::Fnuz => all,
            Specials::Nan => all - 1,
            Specials::Ieee => all - (1 << self.fraction),
        }
    }

    /// The largest number.
    pub fn largest(self) -> f32 {
        self.decode(self.largest_code())
    }

    const fn sign(self) -> u32 {
        1 << (self.exponent + self.fraction)
    }

    fn nan(self) -> Option<u32> {
        match self.specials {
            Specials::None => None,
            Specials::Nan | Specials::Ieee => Some(self.sign() - 1),
            Specials::Fnuz => Some(self.sign()),
        }
    }

    /// The number that a code means, exactly.
    pub fn decode(self, code: u32) -> f32 {
        let magnitude = code & (self.sign() - 1);
        let negative = code & self.sign() != 0;
        let (exponent, fraction) = (
            (magnitude >> self.fraction) as i32,
            magnitude & ((1 << self.fraction) - 1),
        );
        let value = if self.specials == Specials::Fnuz && magnitude == 0 && negative {
            return f32::NAN;
        } else if magnitude > self.largest_code() {
            match (self.specials, fraction) {
                (Specials::Ieee, 0) => f32::INFINITY,
                _ => f32::NAN,
            }
        } else {
            let ulp = |e: i32| ((e - self.bias - self.fraction as i32) as f32).exp2();
            match exponent {
                0 => fraction as f32 * ulp(1),
                e => (fraction + (1 << self.fraction)) as f32 * ulp(e),
            }
        };
        if negative { -value } else { value }
    }

    /// The code nearest to `x`, ties to the even code.
    pub fn encode(self, x: f32, overflow: Overflow) -> u32 {
        let sign = if x.is_sign_negative() { self.sign() } else { 0 };
        let most = self.largest_code();
        if x.is_nan() {
            return self.nan().map_or(sign | most, |nan| match self.specials {
                Specials::Fnuz => nan,
                _ => sign | nan,
            });
        }
        let magnitude = f64::from(x.abs());
        // The exponent of the unit in the last place: that of the least normal number below it.
        let lowest = 1 - self.bias;
        let exponent = match x.abs().to_bits() >> 23 {
            0 => lowest,
            e => (e as i32 - 127).max(lowest),
        };
        let units = magnitude * f64::from(self.fraction as i32 - exponent).exp2();
        // A carry out of the fraction goes into the exponent by itself.
        let code = if x.is_infinite() {
            f64::MAX
        } else {
            let above = f64::from(exponent - lowest) * f64::from(1u32 << self.fraction);
            units.round_ties_even() + above
        };
        if code > f64::from(most) {
            return match (overflow, self.specials) {
                (Overflow::Ieee, Specials::Ieee) => sign | (most + 1),
                (Overflow::Ieee, Specials::Nan) => sign | (most + 1),
                (Overflow::Ieee, Specials::Fnuz) => self.sign(),
                _ => sign | most,
            };
        }
        match (self.specials, code as u32) {
            (Specials::Fnuz, 0) => 0,
            (_, code) => sign | code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [MiniFloat; 5] = [
        MiniFloat::E4M3,
        MiniFloat::E5M2,
        MiniFloat::E4M3_FNUZ,
        MiniFloat::E5M2_FNUZ,
        MiniFloat::E2M1,
    ];

    #[test]
    fn every_code_comes_back() {
        for format in ALL {
            for code in 0..1 << format.bits() {
                let x = format.decode(code);
                let back = format.encode(x, Overflow::Ieee);
                if x.is_nan() {
                    assert!(format.decode(back).is_nan(), "{format:?} {code:#x}");
                } else {
                    assert_eq!(back, code, "{format:?} {code:#x} {x}");
                }
            }
        }
    }

    #[test]
    fn numbers_between_codes_go_to_the_nearer_and_ties_to_even() {
        for format in ALL {
            for code in 0..format.largest_code() {
                let (low, high) = (format.decode(code), format.decode(code + 1));
                let middle = f32::midpoint(low, high);
                let even = code + (code & 1);
                for (x, expected) in [
                    (middle, even),
                    (middle.next_down(), code),
                    (middle.next_up(), code + 1),
                ] {
                    assert_eq!(
                        format.encode(x, Overflow::Saturate),
                        expected,
                        "{format:?} {x}"
                    );
                    let negative = match (format.specials, expected) {
                        (Specials::Fnuz, 0) => 0,
                        _ => expected | 1 << (format.bits() - 1),
                    };
                    assert_eq!(format.encode(-x, Overflow::Saturate), negative);
                }
            }
        }
    }

    #[test]
    fn edges_are_those_of_the_standards() {
        let largest = ALL.map(MiniFloat::largest);
        assert_eq!(largest, [448.0, 57344.0, 240.0, 57344.0, 6.0]);
        assert_eq!(MiniFloat::E4M3.decode(1), 2f32.powi(-9));
        assert_eq!(MiniFloat::E5M2.decode(1), 2f32.powi(-16));
        assert_eq!(MiniFloat::E4M3_FNUZ.decode(1), 2f32.powi(-10));
        let e4m3 = MiniFloat::E4M3;
        assert_eq!(e4m3.encode(f32::INFINITY, Overflow::Saturate), 0x7e);
        assert_eq!(e4m3.encode(-1e9, Overflow::Ieee), 0xff);
        // Half way to the next number, were there one, is beyond; less is not.
        assert_eq!(e4m3.encode(464.0, Overflow::Ieee), 0x7e);
        assert_eq!(e4m3.encode(464.1, Overflow::Ieee), 0x7f);
        assert_eq!(MiniFloat::E5M2.encode(f32::INFINITY, Overflow::Ieee), 0x7c);
        assert_eq!(MiniFloat::E5M2.encode(1e9, Overflow::Saturate), 0x7b);
        assert!(MiniFloat::E5M2.decode(0x7d).is_nan());
        assert_eq!(MiniFloat::E4M3_FNUZ.encode(1e9, Overflow::Ieee), 0x80);
        assert_eq!(MiniFloat::E2M1.encode(f32::NAN, Overflow::Ieee), 7);
        assert_eq!(e4m3.encode(f32::from_bits(1), Overflow::Saturate), 0);
    }
}
