//! Long convolutions: by definition, and by the textbook's transforms.

use super::Real;
use super::fft::{Complex, radix2, times};
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
    let transform = |x: [&[R]; 2]| {
        let mut padded = vec![[R::zero(); 2]; points];
        for (part, x) in x.into_iter().enumerate() {
            for (p, &x) in padded.iter_mut().zip(x) {
                p[part] = x;
            }
        }
        radix2(&padded, -1)
    };
    let product: Vec<Complex<R>> = (transform(u).iter().zip(transform([k, &[]])))
        .map(|(&a, b)| times(a, b))
        .collect();
    let scale = R::of(1.0 / points as f64);
    radix2(&product, 1)[..u[0].len()]
        .iter()
        .map(|y| y[0] * scale)
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
    }
}
