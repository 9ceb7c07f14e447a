//! Long convolutions: by definition, and by the textbook's transforms.

use super::Real;
use super::fft::{Complex, cis, radix2_stored, times};
use crate::kernels::fftconv::Boundary;

/// y\[t\] = sum over s of k[t - s] u\[s\], term by term.
pub fn convolve<R: Real>(boundary: Boundary, u: &[R], k: &[R]) -> Vec<R> {
    let n = u.len();
    (0..n)
        .map(|t| {
            let mut sum = R::zero();
            for (j, &tap) in k.iter().enumerate() {
                sum = match boundary {
                    Boundary::Causal if j > t => sum,
                    Boundary::Causal => sum + tap * u[t - j],
                    Boundary::Circular => sum + tap * u[(t + n - j % n) % n],
                };
            }
            sum
        })
        .collect()
}

/// The same by transforms of radix 2, of twice the length where it is causal.
pub fn by_fft<R: Real>(boundary: Boundary, u: &[R], k: &[R]) -> Vec<R> {
    let points = match boundary {
        Boundary::Causal => (u.len() + k.len()).next_power_of_two(),
        Boundary::Circular => u.len(),
    };
    by_fft_of(points, [u, &[]], k)
}

/// The same by transforms of `points` points, with a second sequence in the imaginary part; of the first alone.
pub fn by_fft_of<R: Real>(points: usize, u: [&[R]; 2], k: &[R]) -> Vec<R> {
    by_fft_stored(points, u, k, |x| x)
}

/// The same with every number between input and result kept as `store` has it.
pub fn by_fft_stored<R: Real>(
    points: usize,
    u: [&[R]; 2],
    k: &[R],
    store: impl Fn(R) -> R,
) -> Vec<R> {
    let transform = |x: [&[R]; 2]| {
        let mut padded = vec![[R::zero(); 2]; points];
        for (part, x) in x.into_iter().enumerate() {
            for (p, &x) in padded.iter_mut().zip(x) {
                p[part] = x;
            }
        }
        radix2_stored(&padded, -1, &store)
    };
    let product: Vec<Complex<R>> = (transform(u).iter().zip(transform([k, &[]])))
        .map(|(&a, b)| times(a, b))
        .collect();
    let scale = R::of(1.0 / points as f64);
    radix2_stored(&product, 1, &store)[..u[0].len()]
        .iter()
        .map(|y| y[0] * scale)
        .collect()
}

/// The causal convolution whose filter is zero at the frequencies (k - 1/4) / points that `keep` does not have, points being at least
/// the sequence's length: the real part of the product modulo x^points - i.
pub fn by_quarters<R: Real>(
    points: usize,
    u: &[R],
    k: &[R],
    keep: impl Fn(usize) -> bool,
    store: impl Fn(R) -> R,
) -> Vec<R> {
    let turned = |n: usize| cis::<R>(0.25 * n as f64 / points as f64).map(&store);
    let transform = |x: &[R]| {
        let value = |n: usize| x.get(n).copied().unwrap_or(R::zero());
        let twisted: Vec<Complex<R>> = (0..points)
            .map(|n| turned(n).map(|t| t * value(n)))
            .collect();
        radix2_stored(&twisted, -1, &store)
    };
    let product: Vec<Complex<R>> = (transform(u).iter().zip(transform(k)).enumerate())
        .map(|(i, (&a, b))| if keep(i) { times(a, b) } else { [R::zero(); 2] })
        .collect();
    let scale = R::of(1.0 / points as f64);
    let back = radix2_stored(&product, 1, &store);
    (0..u.len())
        .map(|n| {
            let [cos, sin] = turned(n);
            (back[n][0] * cos + back[n][1] * sin) * scale
        })
        .collect()
}

/// w * (conv(u * v, k) + d u v) of one row, with the convolution by `conv`.
pub fn gated<R: Real>(
    conv: impl Fn(&[R], &[R]) -> Vec<R>,
    u: &[R],
    gates: [Option<&[R]>; 2],
    k: &[R],
    d: Option<R>,
) -> Vec<R> {
    let gate = |x: &[R], gate: Option<&[R]>| match gate {
        Some(g) => x.iter().zip(g).map(|(&x, &g)| x * g).collect(),
        None => x.to_vec(),
    };
    let s: Vec<R> = gate(u, gates[0]);
    let mut y = conv(&s, k);
    if let Some(d) = d {
        y.iter_mut().zip(&s).for_each(|(y, &s)| *y = *y + d * s);
    }
    gate(&y, gates[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impulse_gives_the_filter_and_a_delay_shifts() {
        let u = [1.0, 0.0, 0.0, 0.0];
        let k = [3.0, 5.0];
        for boundary in [Boundary::Causal, Boundary::Circular] {
            assert_eq!(convolve(boundary, &u, &k), [3.0, 5.0, 0.0, 0.0]);
        }
        let u = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(
            convolve(Boundary::Causal, &u, &[0.0, 1.0]),
            [0.0, 1.0, 2.0, 3.0]
        );
        assert_eq!(
            convolve(Boundary::Circular, &u, &[0.0, 1.0]),
            [4.0, 1.0, 2.0, 3.0]
        );
    }

    #[test]
    fn the_convolution_theorem_holds() {
        let u: Vec<f64> = (0..32).map(|i| (f64::from(i) * 0.7).sin()).collect();
        let k: Vec<f64> = (0..19).map(|i| (f64::from(i) * 0.3).cos()).collect();
        for boundary in [Boundary::Causal, Boundary::Circular] {
            for (a, b) in convolve(boundary, &u, &k)
                .iter()
                .zip(by_fft(boundary, &u, &k))
            {
                assert!((a - b).abs() < 1e-12);
            }
        }
        let causal = convolve(Boundary::Causal, &u, &k);
        let quarters = by_quarters(32, &u, &k, |_| true, |x| x);
        for (a, b) in causal.iter().zip(&quarters) {
            assert!((a - b).abs() < 1e-12);
        }
        // Patterns that exclude each other add up.
        let even = by_quarters(32, &u, &k, |i| i % 2 == 0, |x| x);
        let odd = by_quarters(32, &u, &k, |i| i % 2 == 1, |x| x);
        for ((a, b), c) in even.iter().zip(&odd).zip(&quarters) {
            assert!((a + b - c).abs() < 1e-12);
        }
    }
}
