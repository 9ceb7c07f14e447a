//! Transforms of every kind of length, complex and real, both ways, scaled, strided, split over passes.
//!
//! Naive arithmetic is the sum term by term in f32 and, for powers of two, the textbook's radix-2 transform, whichever
//! is farther off; the oracle the sum in f64, above 4096 points RustFFT in f64 (which a test here holds against the sum).

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::fft::{Direction, Fft, Normalization, RealFft};
use flashwave::reference::fft::{dft, radix2};
use flashwave::{Capabilities, Context, DType, Launch, Layout, Tensor};
use rustfft::FftPlanner;
use rustfft::num_complex::Complex;

use crate::inputs::{Random, poisoned, round};
use crate::probes::{INFINITIES, packs_infinities};
use crate::tolerance::{Outcome, Ulps, check, farther};
use crate::{Case, Failure};

/// Lengths up to this one are summed term by term.
const BY_SUM: usize = 4096;
/// Bluestein's algorithm is two transforms of up to four times the length, where naive arithmetic has a sum, and multiplies by three
/// chirps, each up to sqrt(5) halves of an ulp (Brent, Percival and Zimmermann, Math. Comp. 76, 2007).
const CHIRPS: Ulps = Ulps(3.0 * 2.236);

#[derive(Clone, Copy, Debug)]
struct Setup {
    n: usize,
    rows: usize,
    direction: Direction,
    normalization: Normalization,
    types: [DType; 2],
    /// Points of a workgroup at most; 0 for what fits.
    most: usize,
    layout: Place,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Rows,
    /// Along the first dimension of x and y.
    Columns,
    /// From columns to rows.
    Turned,
}

fn scale(normalization: Normalization, n: usize) -> f64 {
    match normalization {
        Normalization::None => 1.0,
        Normalization::ByLength => 1.0 / n as f64,
        Normalization::Orthonormal => 1.0 / (n as f64).sqrt(),
    }
}

/// The transform in f64.
fn exact(x: &[[f64; 2]], sign: i32) -> Vec<[f64; 2]> {
    if x.len() <= BY_SUM {
        return dft(x, sign);
    }
    by_rustfft(x, sign)
}

fn by_rustfft(x: &[[f64; 2]], sign: i32) -> Vec<[f64; 2]> {
    let mut planner = FftPlanner::<f64>::new();
    let fft = if sign < 0 {
        planner.plan_fft_forward(x.len())
    } else {
        planner.plan_fft_inverse(x.len())
    };
    let mut data: Vec<Complex<f64>> = x.iter().map(|v| Complex::new(v[0], v[1])).collect();
    fft.process(&mut data);
    data.into_iter().map(|c| [c.re, c.im]).collect()
}

/// The transforms that naive arithmetic makes, the farther of two where there are two.
fn naive(x: &[[f32; 2]], sign: i32, exact: &[[f64; 2]]) -> Vec<f32> {
    let n = x.len();
    let flat = |v: Vec<[f32; 2]>| v.into_iter().flatten().collect::<Vec<f32>>();
    match (n.is_power_of_two(), n <= BY_SUM) {
        (true, true) => farther(
            &exact.iter().flatten().copied().collect::<Vec<_>>(),
            [flat(radix2(x, sign)), flat(dft(x, sign))],
        ),
        (true, false) => flat(radix2(x, sign)),
        // The textbook has no fast algorithm for these: one row of the length's next power of two stands for it.
        (false, false) => Vec::new(),
        (false, true) => flat(dft(x, sign)),
    }
}

/// Compares rows of complex numbers; x is what was transformed.
#[expect(clippy::too_many_arguments, reason = "a comparison has so many sides")]
fn compare(
    out: &[f32],
    x: &[f32],
    n: usize,
    cols: usize,
    direction: Direction,
    factor: f64,
    dtype: DType,
    slack: Ulps,
) -> Result<Outcome, Failure> {
    let sign = if direction == Direction::Forward {
        -1
    } else {
        1
    };
    let (mut exact_all, mut naive_all) = (Vec::new(), Vec::new());
    for row in x.chunks(2 * n) {
        let pairs: Vec<[f32; 2]> = row.chunks(2).map(|v| [v[0], v[1]]).collect();
        let wide: Vec<[f64; 2]> = pairs.iter().map(|v| v.map(f64::from)).collect();
        let oracle = exact(&wide, sign);
        let by_naive = naive(&pairs, sign, &oracle);
        exact_all.extend(oracle.iter().take(cols).flatten().map(|v| v * factor));
        naive_all.extend(
            by_naive
                .iter()
                .take(2 * cols)
                .map(|v| round(v * factor as f32, dtype)),
        );
    }
    if naive_all.is_empty() {
        // An error in the norm of log2(n) steps of half an ulp each: the growth of transforms by radices.
        let wiggle = f64::from(n as u32).log2() * 2f64.powi(-25);
        naive_all.extend(exact_all.iter().enumerate().map(|(i, &v)| {
            (v + wiggle * if i % 2 == 0 { 1.0 } else { -1.0 } * rms(&exact_all)) as f32
        }));
    }
    check(out, &exact_all, &naive_all, slack)
}

fn rms(v: &[f64]) -> f64 {
    (v.iter().map(|x| x * x).sum::<f64>() / v.len() as f64).sqrt()
}

fn chirped(n: usize) -> bool {
    let mut n = n;
    for p in [2, 3, 5, 7, 11, 13] {
        while n.is_multiple_of(p) {
            n /= p;
        }
    }
    n > 1
}

impl Setup {
    fn new(n: usize) -> Self {
        Self {
            n,
            rows: 3,
            direction: Direction::Forward,
            normalization: Normalization::None,
            types: [F32; 2],
            most: 0,
            layout: Place::Rows,
        }
    }

    fn run(&self, ctx: &Context) -> Result<Outcome, Failure> {
        let Self {
            n,
            rows,
            direction,
            normalization,
            types: [tx, ty],
            most,
            layout,
        } = *self;
        let mut random = Random::new(Case::seed(&format!("{self:?}")));
        let x = random.normals(rows * n * 2, tx);
        let turned = |data: &[f32], rows: usize, cols: usize| -> Vec<f32> {
            (0..cols)
                .flat_map(|c| {
                    (0..rows)
                        .flat_map(move |r| [data[2 * (r * cols + c)], data[2 * (r * cols + c) + 1]])
                })
                .collect()
        };
        let x_in = match layout {
            Place::Rows => Tensor::from_f32(ctx, tx, &x, [rows, n, 2])?,
            _ => Tensor::from_f32(ctx, tx, &turned(&x, rows, n), [n, rows, 2])?.transpose(0, 1)?,
        };
        let y = match layout {
            Place::Columns => poisoned(ctx, ty, [n, rows, 2])?,
            _ => poisoned(ctx, ty, [rows, n, 2])?,
        };
        let y_out = if layout == Place::Columns {
            y.transpose(0, 1)?
        } else {
            y.clone()
        };
        let fft = Fft {
            direction,
            normalization,
            most_points: most,
        };
        ctx.record(|pass| fft.run(pass, &x_in, &y_out))?;
        let mut out = y.to_f32_vec()?;
        if layout == Place::Columns {
            out = turned(&out, n, rows);
        }
        let slack = if chirped(n) { CHIRPS } else { Ulps(0.0) };
        compare(
            &out,
            &x,
            n,
            n,
            direction,
            scale(normalization, n),
            ty,
            slack,
        )
    }
}

/// Real transforms of n points: forward, and the inverse of its frequencies.
fn real(
    ctx: &Context,
    n: usize,
    rows: usize,
    [tx, ty]: [DType; 2],
    margin: usize,
) -> Result<Outcome, Failure> {
    let mut random = Random::new(Case::seed(&format!("real {n} {rows} {tx} {ty} {margin}")));
    let h = n / 2;
    let x = random.normals(rows * (n + margin), tx);
    let whole = Tensor::from_f32(ctx, tx, &x, [rows, n + margin])?;
    let y = poisoned(ctx, ty, [rows, h + 1, 2])?;
    ctx.record(|pass| RealFft::forward().run(pass, &whole.narrow(1, 0..n)?, &y))?;
    let out = y.to_f32_vec()?;
    let points: Vec<f32> = x
        .chunks(n + margin)
        .flat_map(|row| row[..n].iter().flat_map(|&v| [v, 0.0]))
        .collect();
    // Half as many points take one more pair of products and sums.
    let slack = if chirped(n) { CHIRPS } else { Ulps(2.236) };
    let forward = compare(&out, &points, n, h + 1, Direction::Forward, 1.0, ty, slack)?;

    let mut spectrum = random.normals(rows * (h + 1) * 2, ty);
    for row in spectrum.chunks_mut(2 * (h + 1)) {
        row[1] = 0.0;
        if n.is_multiple_of(2) {
            row[2 * h + 1] = 0.0;
        }
    }
    let full: Vec<f32> = spectrum
        .chunks(2 * (h + 1))
        .flat_map(|row| {
            (0..n).flat_map(move |k| {
                if k <= h {
                    [row[2 * k], row[2 * k + 1]]
                } else {
                    [row[2 * (n - k)], -row[2 * (n - k) + 1]]
                }
            })
        })
        .collect();
    let f_in = Tensor::from_f32(ctx, ty, &spectrum, [rows, h + 1, 2])?;
    let back = poisoned(ctx, tx, [rows, n])?;
    ctx.record(|pass| RealFft::inverse().run(pass, &f_in, &back))?;
    let out: Vec<f32> = back
        .to_f32_vec()?
        .into_iter()
        .flat_map(|v| [v, 0.0])
        .collect();
    Ok(forward.and(compare(
        &out,
        &full,
        n,
        n,
        Direction::Inverse,
        1.0 / n as f64,
        tx,
        slack,
    )?))
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut push = |group: &str, setup: Setup| {
        cases.push(Case::new("fft", group, format!("{setup:?}"), move |ctx| {
            setup.run(ctx)
        }));
    };
    let inverse = Direction::Inverse;
    for n in [1, 2, 4, 8, 16, 32, 64, 256, 1024, 2048] {
        push(
            "powers of two",
            Setup {
                rows: 5,
                ..Setup::new(n)
            },
        );
    }
    for n in [3, 5, 7, 11, 13, 12, 60, 125, 1001, 1500] {
        // Over few elements naive arithmetic is lucky.
        push(
            "mixed radices",
            Setup {
                rows: if n < 100 { 20 } else { 3 },
                ..Setup::new(n)
            },
        );
    }
    for n in [17, 19, 97, 101, 251, 1009] {
        push("large primes", Setup::new(n));
    }
    for n in [8, 60, 97, 512] {
        for normalization in [
            Normalization::None,
            Normalization::ByLength,
            Normalization::Orthonormal,
        ] {
            push(
                "inverse",
                Setup {
                    direction: inverse,
                    normalization,
                    ..Setup::new(n)
                },
            );
        }
    }
    for types in [[F16, F16], [BF16, F32], [F32, BF16], [F16, F32]] {
        push(
            "types",
            Setup {
                types,
                normalization: Normalization::Orthonormal,
                ..Setup::new(128)
            },
        );
        push(
            "types",
            Setup {
                types,
                normalization: Normalization::Orthonormal,
                ..Setup::new(35)
            },
        );
    }
    for layout in [Place::Columns, Place::Turned] {
        push(
            "strided",
            Setup {
                layout,
                rows: 9,
                ..Setup::new(64)
            },
        );
        push(
            "strided",
            Setup {
                layout,
                rows: 9,
                ..Setup::new(30)
            },
        );
        push(
            "strided",
            Setup {
                layout,
                rows: 5,
                most: 16,
                ..Setup::new(64)
            },
        );
        push(
            "strided",
            Setup {
                layout,
                ..Setup::new(23)
            },
        );
    }
    // Two passes.
    for (n, most) in [
        (256, 16),
        (512, 64),
        (900, 64),
        (6000, 0),
        (8192, 0),
        (65536, 0),
    ] {
        push(
            "two passes",
            Setup {
                most,
                rows: 2,
                ..Setup::new(n)
            },
        );
        push(
            "two passes",
            Setup {
                most,
                rows: 1,
                direction: inverse,
                ..Setup::new(n)
            },
        );
    }
    for (n, margin) in [
        (2, 0),
        (4, 0),
        (8, 2),
        (64, 0),
        (100, 0),
        (1024, 0),
        (1, 0),
        (9, 0),
        (15, 1),
        (34, 0),
        (64, 1),
        (4096, 0),
    ] {
        for types in [[F32, F32], [F16, F32]] {
            let name = format!("n {n} {types:?} margin {margin}");
            cases.push(Case::new("fft", "real", name, move |ctx| {
                real(ctx, n, 3, types, margin)
            }));
        }
    }
    cases.push(Case::new(
        "fft",
        "beyond f16",
        "overflow becomes infinite",
        |ctx| {
            if !packs_infinities(ctx)? {
                return Ok(Outcome::skipped(INFINITIES));
            }
            let x = Tensor::from_f32(
                ctx,
                F16,
                &[60000.0, 0.0, 60000.0, 0.0, 1.0, 0.0, 1.0, 0.0],
                [1, 4, 2],
            )?;
            let y = Fft::forward().apply(&x)?.to_f32_vec()?;
            match y[0] == f32::INFINITY && y[4].is_finite() {
                true => Ok(Outcome::held(8, 0.0)),
                false => Err(Failure::Wrong(format!("{y:?}, expected infinity first"))),
            }
        },
    ));
    cases
}

/// Every kind of variant.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let mut launches = Vec::new();
    for n in [1, 2, 3, 16, 35, 1024, 1001, 97, 6000, 1 << 16, 1 << 20] {
        for types in [[F32, F32], [F16, BF16]] {
            for fft in [Fft::forward(), Fft::inverse()] {
                let found = (|| {
                    let layout = |dtype| Layout::contiguous(dtype, [2, n, 2]);
                    let mut found = fft.plan(caps, &layout(types[0])?, &layout(types[1])?)?;
                    let (points, frequencies) = (
                        Layout::contiguous(types[0], [2, n])?,
                        Layout::contiguous(types[1], [2, n / 2 + 1, 2])?,
                    );
                    let (forward, inverse) = (RealFft::forward(), RealFft::inverse());
                    found.extend(forward.plan(caps, &points, &frequencies)?);
                    found.extend(inverse.plan(caps, &frequencies, &points)?);
                    Ok::<_, flashwave::Error>(found)
                })();
                launches.extend(found.expect("plans"));
            }
        }
    }
    launches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustfft_agrees_with_the_sum() {
        for n in [12, 64, 97] {
            let x: Vec<[f64; 2]> = (0..n)
                .map(|i| [(i as f64 * 1.3).sin(), (i as f64).cos()])
                .collect();
            for (a, b) in dft(&x, -1).iter().zip(by_rustfft(&x, -1)) {
                assert!((a[0] - b[0]).abs() + (a[1] - b[1]).abs() < 1e-9);
            }
        }
    }
}
