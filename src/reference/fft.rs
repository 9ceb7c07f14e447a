//! Discrete Fourier transforms: by definition, and by the textbook's radix-2 algorithm.

use super::Real;

/// A complex number (re, im).
pub type Complex<R> = [R; 2];

/// a b.
pub fn times<R: Real>(a: Complex<R>, b: Complex<R>) -> Complex<R> {
    [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]]
}

pub(super) fn cis<R: Real>(turns: f64) -> Complex<R> {
    let (sin, cos) = (turns * std::f64::consts::TAU).sin_cos();
    [R::of(cos), R::of(sin)]
}

/// Sum over n of x\[n\] e^(sign 2 pi i n k / N), term by term: sign -1 forward, 1 inverse, not scaled.
pub fn dft<R: Real>(x: &[Complex<R>], sign: i32) -> Vec<Complex<R>> {
    let n = x.len();
    let roots: Vec<Complex<R>> = (0..n)
        .map(|i| cis(f64::from(sign) * i as f64 / n as f64))
        .collect();
    (0..n)
        .map(|k| {
            let mut sum = [R::zero(); 2];
            for (i, &x) in x.iter().enumerate() {
                let term = times(x, roots[(i as u64 * k as u64 % n as u64) as usize]);
                sum = [sum[0] + term[0], sum[1] + term[1]];
            }
            sum
        })
        .collect()
}

/// The same by Cooley and Tukey's algorithm of radix 2, for powers of two: what stands for naive arithmetic where the sum
/// term by term would take too long.
pub fn radix2<R: Real>(x: &[Complex<R>], sign: i32) -> Vec<Complex<R>> {
    radix2_stored(x, sign, |x| x)
}

/// The same with every number, roots too, kept as `store` has it from level to level.
pub fn radix2_stored<R: Real>(
    x: &[Complex<R>],
    sign: i32,
    store: impl Fn(R) -> R,
) -> Vec<Complex<R>> {
    let n = x.len();
    let stored = |x: Complex<R>| x.map(&store);
    let bits = n.trailing_zeros();
    let mut y: Vec<Complex<R>> = (0..n)
        .map(|i| {
            stored(
                x[if bits == 0 {
                    0
                } else {
                    i.reverse_bits() >> (usize::BITS - bits)
                }],
            )
        })
        .collect();
    let mut half = 1;
    while half < n {
        let roots: Vec<Complex<R>> = (0..half)
            .map(|i| stored(cis(f64::from(sign) * i as f64 / (2 * half) as f64)))
            .collect();
        for block in y.chunks_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            for ((a, b), &root) in low.iter_mut().zip(high).zip(&roots) {
                let t = times(*b, root);
                *b = stored([a[0] - t[0], a[1] - t[1]]);
                *a = stored([a[0] + t[0], a[1] + t[1]]);
            }
        }
        half *= 2;
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize) -> Vec<Complex<f64>> {
        (0..n)
            .map(|i| [(i as f64 * 1.7).sin(), (i as f64 * 0.3).cos()])
            .collect()
    }

    fn close(a: &[Complex<f64>], b: &[Complex<f64>]) {
        for (a, b) in a.iter().zip(b) {
            assert!(
                (a[0] - b[0]).abs() + (a[1] - b[1]).abs() < 1e-9,
                "{a:?} {b:?}"
            );
        }
    }

    #[test]
    fn both_algorithms_agree() {
        for n in [1, 2, 8, 64] {
            close(&dft(&wave(n), -1), &radix2(&wave(n), -1));
        }
    }

    #[test]
    fn the_inverse_inverts_and_energy_stays() {
        let x = wave(12);
        let y = dft(&x, -1);
        let back: Vec<_> = dft(&y, 1)
            .iter()
            .map(|v| [v[0] / 12.0, v[1] / 12.0])
            .collect();
        close(&back, &x);
        let energy = |v: &[Complex<f64>]| v.iter().map(|v| v[0] * v[0] + v[1] * v[1]).sum::<f64>();
        assert!((energy(&y) / 12.0 - energy(&x)).abs() < 1e-9);
    }

    #[test]
    fn a_shifted_impulse_is_a_wave() {
        let mut x = vec![[0.0; 2]; 10];
        x[3] = [1.0, 0.0];
        let expected: Vec<Complex<f64>> =
            (0..10).map(|k| cis(-3.0 * f64::from(k) / 10.0)).collect();
        close(&dft(&x, -1), &expected);
    }
}
