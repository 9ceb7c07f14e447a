//! Rotary position embedding.

use super::Real;
use crate::kernels::rope::RopeLayout;

/// A head's channels, the leading pairs rotated by the angles with these cosines and sines.
pub fn rotate<R: Real>(layout: RopeLayout, head: &[R], cosines: &[R], sines: &[R]) -> Vec<R> {
    let mut out = head.to_vec();
    for (i, (&c, &s)) in cosines.iter().zip(sines).enumerate() {
        let (a, b) = match layout {
            RopeLayout::HalfSplit => (i, i + cosines.len()),
            RopeLayout::Interleaved => (2 * i, 2 * i + 1),
        };
        out[a] = head[a] * c - head[b] * s;
        out[b] = head[b] * c + head[a] * s;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(seed: f64) -> Vec<f64> {
        (0..10).map(|i| (f64::from(i) * 1.3 + seed).sin()).collect()
    }

    fn turned(layout: RopeLayout, head: &[f64], position: f64) -> Vec<f64> {
        let angles = [1.0, 0.3, 0.01, 0.7].map(|f| f * position);
        rotate(layout, head, &angles.map(f64::cos), &angles.map(f64::sin))
    }

    #[test]
    fn products_depend_on_the_distance_alone() {
        for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
            let dot = |m, n| -> f64 {
                let (q, k) = (turned(layout, &head(0.2), m), turned(layout, &head(1.9), n));
                q.iter().zip(&k).map(|(q, k)| q * k).sum()
            };
            assert!((dot(3.0, 11.0) - dot(20.0, 28.0)).abs() < 1e-13);
            assert!((dot(3.0, 11.0) - dot(20.0, 29.0)).abs() > 1e-3);
            assert_eq!(turned(layout, &head(0.2), 0.0), head(0.2));
            assert_eq!(turned(layout, &head(0.2), 5.0)[8..], head(0.2)[8..]);
        }
    }

    #[test]
    fn layouts_are_permutations_of_each_other() {
        let order = [0, 4, 1, 5, 2, 6, 3, 7, 8, 9];
        let interleave = |v: &[f64]| -> Vec<f64> { order.iter().map(|&i| v[i]).collect() };
        let split = turned(RopeLayout::HalfSplit, &head(0.4), 7.0);
        let woven = turned(RopeLayout::Interleaved, &interleave(&head(0.4)), 7.0);
        assert_eq!(interleave(&split), woven);
    }
}
