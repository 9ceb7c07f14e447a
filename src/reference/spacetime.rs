//! State spaces with a companion matrix, one channel at a time (SpaceTime, arXiv 2303.09489).

use super::Real;

/// x\[k+1\] = A x\[k\] + b u\[k\], y\[k\] = c x\[k+1\] + d u\[k\], where A moves x on by one place and adds a times its
/// last: (A x)\[i\] = x\[i-1\] + a\[i\] x\[last\].
#[derive(Clone, Debug, PartialEq)]
pub struct Companion<R> {
    /// The matrix's last column.
    pub a: Vec<R>,
    /// Where the input enters.
    pub b: Vec<R>,
    /// What the output sees.
    pub c: Vec<R>,
    /// From the input straight to the output.
    pub d: R,
}

impl<R: Real> Companion<R> {
    /// One step: the state moves on, the output comes back.
    pub fn step(&self, x: &mut [R], u: R) -> R {
        self.advance(x, u);
        self.output(x) + self.d * u
    }

    /// The outputs of the inputs `u` from the state `x` on, which moves on.
    pub fn open_loop(&self, x: &mut [R], u: &[R]) -> Vec<R> {
        u.iter().map(|&u| self.step(x, u)).collect()
    }

    /// `steps` outputs, the first of the input `u`, each the next step's input.
    pub fn closed_loop(&self, x: &mut [R], mut u: R, steps: usize) -> Vec<R> {
        let next = |_| {
            u = self.step(x, u);
            u
        };
        (0..steps).map(next).collect()
    }

    /// The filter that the system is from a state of zeros on: c A^k b, and d besides at k = 0. Its first taps by the
    /// state, the others from those before them, which A's characteristic polynomial ties (Cayley and Hamilton):
    /// f\[k + n\] = sum over i of a\[i\] f\[k + i\], without d.
    pub fn filter(&self, length: usize) -> Vec<R> {
        let order = self.a.len();
        let mut x = self.b.clone();
        let mut taps = Vec::with_capacity(length);
        while taps.len() < length.min(order) {
            taps.push(self.output(&x));
            self.advance(&mut x, R::zero());
        }
        while taps.len() < length {
            let before = &taps[taps.len() - order..];
            let tap = before.iter().zip(&self.a);
            taps.push(tap.fold(R::zero(), |sum, (&f, &a)| sum + a * f));
        }
        if let Some(first) = taps.first_mut() {
            *first = *first + self.d;
        }
        taps
    }

    fn advance(&self, x: &mut [R], u: R) {
        let last = x.last().copied().unwrap_or_else(R::zero);
        for i in (0..x.len()).rev() {
            let before = if i == 0 { R::zero() } else { x[i - 1] };
            x[i] = before + self.a[i] * last + self.b[i] * u;
        }
    }

    fn output(&self, x: &[R]) -> R {
        x.iter()
            .zip(&self.c)
            .fold(R::zero(), |sum, (&x, &c)| sum + c * x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system() -> Companion<f64> {
        Companion {
            a: vec![0.3, -0.2, 0.1, 0.4],
            b: vec![1.0, 0.5, 0.0, -0.25],
            c: vec![0.7, -1.0, 0.2, 0.3],
            d: 0.6,
        }
    }

    #[test]
    fn the_recurrence_is_the_convolution_with_its_filter() {
        let s = system();
        let u: Vec<f64> = (0..40).map(|i| f64::from(i * 7 % 11) - 5.0).collect();
        let y = s.open_loop(&mut [0.0; 4], &u);
        let f = s.filter(u.len());
        for (k, y) in y.iter().enumerate() {
            let sum: f64 = (0..=k).map(|i| f[i] * u[k - i]).sum();
            assert!((y - sum).abs() < 1e-12, "{k}: {y} {sum}");
        }
    }

    #[test]
    fn it_is_linear_and_its_state_is_all_it_knows() {
        let s = system();
        let u: Vec<f64> = (0..20).map(|i| (f64::from(i) * 0.9).sin()).collect();
        let whole = s.open_loop(&mut [0.0; 4], &u);
        let mut x = [0.0; 4];
        let mut parts = s.open_loop(&mut x, &u[..9]);
        parts.extend(s.open_loop(&mut x, &u[9..]));
        assert_eq!(whole, parts);
        let twice: Vec<f64> = u.iter().map(|u| 2.0 * u).collect();
        let doubled: Vec<f64> = whole.iter().map(|y| 2.0 * y).collect();
        assert_eq!(s.open_loop(&mut [0.0; 4], &twice), doubled);
    }

    /// b = e_0 and a = 0: the state is the last inputs, c predicts from them. cos(k + 1) = 2 cos 1 cos(k) - cos(k - 1).
    #[test]
    fn a_predictor_in_closed_loop_goes_on_with_a_wave() {
        let s = Companion {
            a: vec![0.0; 2],
            b: vec![1.0, 0.0],
            c: vec![2.0 * 1f64.cos(), -1.0],
            d: 0.0,
        };
        let mut x = [0.0; 2];
        let wave = |k: usize| (k as f64).cos();
        let last = s.open_loop(&mut x, &[wave(0), wave(1), wave(2)]);
        let ahead = s.closed_loop(&mut x, last[2], 50);
        assert!((last[2] - wave(3)).abs() < 1e-12);
        for (i, y) in ahead.iter().enumerate() {
            assert!((y - wave(i + 4)).abs() < 1e-10, "{i}");
        }
    }
}
