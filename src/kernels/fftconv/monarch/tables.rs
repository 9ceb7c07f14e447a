//! What the kernel for matrix units multiplies by, as words of two f16 in the order in which invocations hold them.
//!
//! A sequence of N = F * 256 R points, point n = ((n0 * 16 + n1) * 16 + n2) * R + n3, is transformed to the frequencies
//! k - 1/4, k = kappa + F (k1 + 16 k2 + 256 k3). Each of the digits 1, 2 and 3 takes a product with a matrix of 16 rows, with
//! factors between. The digit at a row or column of a matrix is [`digit`] of it, so that neighbours in a word are
//! digits that invocations hold together. Three digits share one symmetric matrix, e^(-2 pi i (k - 1/4) (n - 1/4) / 16) / 4:
//! the phases by which it is not the transform's depend on k or n alone and join the factors; the last of them cancels with the
//! inverse transform's.

use std::f64::consts::TAU;

use half::f16;

/// Invocations of a subgroup.
const LANES: usize = 32;

/// Four words: 16 bytes.
type Words = [u32; 4];

/// A transform's shape: F and R above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) fold: usize,
    pub(super) last: usize,
}

/// The digit at row or column `i` of a matrix.
fn digit(i: usize) -> usize {
    2 * (i % 8) + i / 8
}

fn cis(turns: f64) -> (f64, f64) {
    let (sin, cos) = (turns.rem_euclid(1.0) * TAU).sin_cos();
    (cos, sin)
}

fn word(low: f64, high: f64) -> u32 {
    let bits = |x: f64| u32::from(f16::from_f64(x).to_bits());
    bits(low) | bits(high) << 16
}

/// Row and column of element `i` of an accumulator or a left operand, and column and row of a right operand's.
fn element(lane: usize, i: usize) -> (usize, usize) {
    let (line, quad) = (lane / 4, lane % 4);
    (line + 8 * (i / 4), 2 * quad + i % 2 + 8 * (i / 2 % 2))
}

/// A matrix's real parts, imaginary parts and the negated ones: of a left operand, or of a right one of its transpose.
fn matrix(out: &mut Vec<Words>, parts: usize, at: impl Fn(usize, usize) -> (f64, f64)) {
    for part in 0..parts {
        for lane in 0..LANES {
            let value = |i: usize| {
                let (row, column) = element(lane, i);
                let (re, im) = at(row, column);
                [re, im, -im][part]
            };
            out.push([0, 1, 2, 3].map(|j| word(value(2 * j), value(2 * j + 1))));
        }
    }
}

impl Shape {
    pub(super) const fn points(self) -> usize {
        self.fold * self.inner()
    }

    /// Points of the transform that a workgroup has.
    pub(super) const fn inner(self) -> usize {
        256 * self.last
    }

    /// Subgroups of a workgroup.
    pub(super) const fn subgroups(self) -> usize {
        self.last / 4
    }

    /// The third digit at a row or column, and which of the 16 / R values of k1 it belongs to.
    fn third(self, i: usize) -> (usize, usize) {
        let half = self.last / 2;
        (2 * (i % 8 % half) + i / 8, i % 8 / half)
    }

    /// The frequencies of transform `kappa` are F k + kappa - 1/4: beyond F k, over F.
    fn offset(self, kappa: usize) -> f64 {
        (kappa as f64 - 0.25) / self.fold as f64
    }

    /// The whole table.
    pub(super) fn table(self) -> Vec<Words> {
        let (last, fold) = (self.last, self.fold);
        let mut out = Vec::new();
        let shared = |row: usize, column: usize| {
            let turns = (digit(row) as f64 - 0.25) * (digit(column) as f64 - 0.25) / 16.0;
            let (cos, sin) = cis(-turns);
            (cos / 4.0, sin / 4.0)
        };
        matrix(&mut out, 3, shared);
        matrix(&mut out, 3, |row, column| {
            let ((k3, k), (n3, n)) = (self.third(row), self.third(column));
            if last == 16 {
                return shared(row, column);
            }
            let (cos, sin) = cis(-((k3 * n3) as f64) / last as f64);
            let scale = if k == n {
                (last as f64).sqrt().recip()
            } else {
                0.0
            };
            (cos * scale, sin * scale)
        });
        let between = |row: usize, column: usize| {
            let (k2, (n3, _)) = (digit(row), self.third(column));
            let phase = if last == 16 { n3 as f64 / 64.0 } else { 0.0 };
            cis(-((n3 * k2) as f64 / (16 * last) as f64 + (k2 as f64 - 0.25) / 64.0 + phase))
        };
        matrix(&mut out, 2, between);
        matrix(&mut out, 2, |row, column| between(column, row));
        for kappa in 0..fold {
            for (subgroup, t, h, lane) in each_vector(self.subgroups()) {
                let (line, quad) = (lane / 4, lane % 4);
                let value = |x: usize, pair: usize| {
                    let (n3, k) = self.third(line + 8 * x);
                    let k1 = (4 * subgroup + t + last * k) as f64;
                    let n2 = 4 * quad + 2 * pair + h;
                    let n = (n2 * last + n3) as f64 / self.inner() as f64;
                    let first = match fold {
                        1 => (k1 - 0.25) * (n + 1.0 / 64.0),
                        _ => n * (k1 + self.offset(kappa)),
                    };
                    cis(-(first + n2 as f64 / 64.0))
                };
                let [a, b, c, d] = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(x, p)| value(x, p));
                out.push([
                    word(a.0, b.0),
                    word(a.1, b.1),
                    word(c.0, d.0),
                    word(c.1, d.1),
                ]);
            }
        }
        if fold > 1 {
            for kappa in 0..fold {
                let turned = |n0: usize, k1: usize, n1: usize| {
                    let offset = self.offset(kappa);
                    let turns = digit(n1) as f64 * (digit(k1) as f64 + offset) / 16.0;
                    cis(-(turns + n0 as f64 * offset))
                };
                for n0 in 0..fold {
                    let scale = (4 * fold) as f64;
                    matrix(&mut out, 2, |k1, n1| {
                        let (cos, sin) = turned(n0, k1, n1);
                        (cos / scale, sin / scale)
                    });
                }
                matrix(&mut out, 3, |n1, k1| {
                    let (cos, sin) = turned(0, k1, n1);
                    (cos / 4.0, sin / 4.0)
                });
            }
        }
        out
    }
}

/// Subgroup, tile, half and lane of every vector of factors, in order.
fn each_vector(subgroups: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..subgroups * 8 * LANES).map(|i| {
        (
            i / (8 * LANES),
            i / (2 * LANES) % 4,
            i / LANES % 2,
            i % LANES,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_long_as_the_shader_reads() {
        for (fold, last) in [(1, 4), (1, 16), (2, 16), (8, 16), (2, 4)] {
            let shape = Shape { fold, last };
            let folded = if fold == 1 { 0 } else { fold * (2 * fold + 3) };
            // Six matrices, four tables of factors between the second and the third digit.
            let parts = 10 + fold * shape.subgroups() * 8 + folded;
            assert_eq!(shape.table().len(), parts * LANES);
        }
    }
}
