//! The greatest element, and the k greatest.

use std::cmp::Ordering;

use super::Real;

/// Greater first, NaN before every number: the order of [`crate::kernels::select`].
fn order<R: Real>(a: R, b: R) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
        (x, y) => y.cmp(&x),
    }
}

/// The places of the `k` greatest elements, greatest first, ties by place.
pub fn top_k<R: Real>(row: &[R], k: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..row.len()).collect();
    // Stable: equal elements stay in the order of their places.
    places.sort_by(|&a, &b| order(row[a], row[b]));
    places.truncate(k);
    places
}

/// The place of the greatest element, the lowest of equal ones.
pub fn argmax<R: Real>(row: &[R]) -> usize {
    (1..row.len()).fold(0, |best, i| match order(row[i], row[best]) {
        Ordering::Less => i,
        Ordering::Equal | Ordering::Greater => best,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_zeros_and_nans_have_their_places() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        assert_eq!(top_k(&[1.0, 3.0, 2.0, 3.0, -inf], 5), [1, 3, 2, 0, 4]);
        assert_eq!(top_k(&[-0.0, 0.0, -0.0, 1.0], 3), [3, 0, 1]);
        assert_eq!(top_k(&[inf, nan, 5.0, -nan], 4), [1, 3, 0, 2]);
        for row in [
            &[2.0, 7.0, 7.0][..],
            &[nan, nan],
            &[-inf, -inf],
            &[0.0, -1.0],
        ] {
            assert_eq!(argmax(row), top_k(row, 1)[0]);
        }
    }
}
