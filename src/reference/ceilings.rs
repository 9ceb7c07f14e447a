//! What the kernels that measure a device compute.

use super::Real;

/// The end of one invocation's chains of v = v * m + b, summed; `round` is the type the chains are kept in.
pub fn fma_chains<R: Real>(
    lane: usize,
    [chains, width, steps]: [usize; 3],
    [m, b]: [f32; 2],
    round: fn(R) -> R,
) -> R {
    // Both are exact in f32, which is where the kernel computes them.
    let m = round(R::of(f64::from(m - lane as f32 / 4096.0)));
    let b = round(R::of(b.into()));
    let start = round(R::of((lane % 32) as f64 / 16.0));
    let starts = (0..chains).flat_map(|chain| (0..width).map(move |w| (chain, w)));
    let ends = starts.map(|(chain, w)| {
        let mut v = round(start + R::of(w as f64 / 4.0) + R::of(chain as f64));
        for _ in 0..steps {
            v = round(v * m + b);
        }
        v
    });
    ends.sum()
}

/// The end of one invocation's chains of v = v + dot4(v, m), summed modulo 2^32.
pub fn dot4_chains(lane: u32, chains: u32, steps: u32, m: u32) -> i32 {
    let m = (m ^ lane).to_le_bytes();
    let mut sum = 0i32;
    for chain in 0..chains {
        let mut v = (lane * chains + chain) as i32;
        for _ in 0..steps {
            let bytes = v.to_le_bytes().into_iter().zip(m);
            let dot: i32 = bytes
                .map(|(a, b)| i32::from(a as i8) * i32::from(b as i8))
                .sum();
            v = v.wrapping_add(dot);
        }
        sum = sum.wrapping_add(v);
    }
    sum
}

/// `rounds` times the sum of all products of `a` tiles with `b` tiles of 16 x 16, which lie in `x` one after another.
pub fn tile_products<R: Real>(x: &[R], [a, b]: [usize; 2], rounds: usize) -> Vec<R> {
    let tile = |i: usize| &x[i * 256..(i + 1) * 256];
    let mut sum = vec![R::zero(); 256];
    for (left, right) in (0..a).flat_map(|i| (0..b).map(move |j| (tile(i), tile(a + j)))) {
        for (at, out) in sum.iter_mut().enumerate() {
            let (row, col) = (at / 16, at % 16);
            let dot: R = (0..16)
                .map(|k| left[row * 16 + k] * right[k * 16 + col])
                .sum();
            *out = *out + dot * R::of(rounds as f64);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_goes_to_its_fixed_point() {
        // v = v/2 + 1 ends at 2, whatever it started from.
        let end: f64 = fma_chains(0, [3, 4, 200], [0.5, 1.0], |x| x);
        assert_eq!(end, 3.0 * 4.0 * 2.0);
    }

    #[test]
    fn a_chain_of_products_grows_by_them() {
        // lane 0, chain 0 stays at 0; chain 1 with m = 1 doubles while it fits in a byte.
        assert_eq!(dot4_chains(0, 2, 6, 1), 64);
    }

    #[test]
    fn tiles_of_the_identity_give_their_number() {
        let one: Vec<f64> = (0..256)
            .map(|at| f64::from(u8::from(at / 16 == at % 16)))
            .collect();
        let x = [one.clone(), one.clone(), one.clone()].concat();
        let expected: Vec<f64> = one.iter().map(|v| v * 2.0 * 5.0).collect();
        assert_eq!(tile_products(&x, [2, 1], 5), expected);
    }
}
