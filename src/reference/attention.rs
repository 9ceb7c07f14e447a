//! Grouped-query attention, row by row.

use super::Real;
use crate::kernels::attention::Mask;

/// The sizes of one call and what does not come as a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    /// Independent sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Channels of q and k.
    pub head_dim: usize,
    /// Channels of v.
    pub v_dim: usize,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Multiplies the dot products.
    pub scale: f32,
}

/// A place in [batch, heads, q_len, kv_len].
pub type Place = [usize; 4];

/// The output [batch, heads, q_len, v_dim] and the logarithms of the rows' sums [batch, heads, q_len], for q, k and
/// v in row-major order; `bias` gives what is added to a score, or `None` for a hidden key.
pub fn attention<R: Real>(
    problem: &Problem,
    q: &[R],
    k: &[R],
    v: &[R],
    bias: impl Fn(Place) -> Option<R>,
) -> (Vec<R>, Vec<R>) {
    let &Problem {
        heads,
        q_len,
        kv_len,
        head_dim,
        v_dim,
        ..
    } = problem;
    let group = heads / problem.kv_heads;
    let band = problem.mask.band();
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for b in 0..problem.batch {
        for h in 0..heads {
            let kv = (b * problem.kv_heads + h / group) * kv_len;
            for i in 0..q_len {
                let row = &q[((b * heads + h) * q_len + i) * head_dim..][..head_dim];
                let position = (i + kv_len) as i64 - q_len as i64;
                let visible = |j: &usize| band.sees(position, *j as i64);
                let score = |j: usize| -> Option<R> {
                    let key = &k[(kv + j) * head_dim..][..head_dim];
                    let dot: R = row.iter().zip(key).map(|(&a, &b)| a * b).sum();
                    Some(dot * R::of(problem.scale.into()) + bias([b, h, i, j])?)
                };
                let scores: Vec<(usize, R)> = (0..kv_len)
                    .filter(visible)
                    .filter_map(|j| Some((j, score(j)?)))
                    .collect();
                let largest = scores.iter().fold(R::neg_infinity(), |m, s| m.max(s.1));
                let mut values = vec![R::zero(); v_dim];
                if largest == R::neg_infinity() {
                    out.extend(values);
                    lse.push(largest);
                    continue;
                }
                let mut sum = R::zero();
                for &(j, s) in &scores {
                    let weight = (s - largest).exp();
                    sum = sum + weight;
                    for (total, &x) in values.iter_mut().zip(&v[(kv + j) * v_dim..]) {
                        *total = *total + weight * x;
                    }
                }
                out.extend(values.iter().map(|&x| x / sum));
                lse.push(largest + sum.ln());
            }
        }
    }
    (out, lse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(q_len: usize, kv_len: usize, mask: Mask) -> Problem {
        Problem {
            batch: 2,
            heads: 4,
            kv_heads: 2,
            q_len,
            kv_len,
            head_dim: 3,
            v_dim: 2,
            mask,
            scale: 0.7,
        }
    }

    fn ramp(n: usize, step: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * step).sin() * 3.0).collect()
    }

    fn inputs(p: &Problem) -> [Vec<f64>; 3] {
        [
            ramp(p.batch * p.heads * p.q_len * p.head_dim, 0.9),
            ramp(p.batch * p.kv_heads * p.kv_len * p.head_dim, 1.7),
            ramp(p.batch * p.kv_heads * p.kv_len * p.v_dim, 2.3),
        ]
    }

    fn close(a: &[f64], b: &[f64]) {
        assert_eq!(a.len(), b.len());
        for (x, y) in a.iter().zip(b) {
            assert!((x - y).abs() < 1e-12, "{x} {y}");
        }
    }

    #[test]
    fn one_key_returns_its_value() {
        let p = problem(3, 1, Mask::Full);
        let [q, k, v] = inputs(&p);
        let (out, _) = attention(&p, &q, &k, &v, |_| Some(0.0));
        for (row, out) in out.chunks(p.v_dim).enumerate() {
            let head = row / p.q_len / 2;
            close(out, &v[head * p.v_dim..][..p.v_dim]);
        }
    }

    #[test]
    fn weights_sum_to_one() {
        let p = problem(3, 7, Mask::Causal);
        let [q, k, v] = inputs(&p);
        let (out, _) = attention(&p, &q, &k, &vec![1.0; v.len()], |_| Some(0.0));
        close(&out, &vec![1.0; out.len()]);
    }

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let p = problem(3, 7, Mask::Full);
        let [q, k, v] = inputs(&p);
        let turned = |x: &[f64], width: usize| -> Vec<f64> {
            x.chunks(7 * width)
                .flat_map(|head| head.chunks(width).rev().flatten().copied())
                .collect()
        };
        let (out, lse) = attention(&p, &q, &k, &v, |_| Some(0.0));
        let (out2, lse2) = attention(&p, &q, &turned(&k, 3), &turned(&v, 2), |_| Some(0.0));
        close(&out, &out2);
        close(&lse, &lse2);
    }

    #[test]
    fn a_constant_added_to_all_scores_only_moves_the_logarithm() {
        let p = problem(3, 7, Mask::Causal);
        let [q, k, v] = inputs(&p);
        let (out, lse) = attention(&p, &q, &k, &v, |_| Some(0.0));
        let (out2, lse2) = attention(&p, &q, &k, &v, |_| Some(5.0));
        close(&out, &out2);
        close(&lse.iter().map(|x| x + 5.0).collect::<Vec<_>>(), &lse2);
    }

    #[test]
    fn the_last_row_of_causal_is_that_of_full() {
        let (p, full) = (problem(3, 7, Mask::Causal), problem(3, 7, Mask::Full));
        let [q, k, v] = inputs(&p);
        let (out, _) = attention(&p, &q, &k, &v, |_| Some(0.0));
        let (out2, _) = attention(&full, &q, &k, &v, |_| Some(0.0));
        for (a, b) in out.chunks(3 * 2).zip(out2.chunks(3 * 2)) {
            close(&a[4..], &b[4..]);
            assert!((a[0] - b[0]).abs() > 1e-6, "the first sees less");
        }
    }

    #[test]
    fn rows_that_see_nothing_are_zero() {
        let p = problem(5, 2, Mask::Causal);
        let [q, k, v] = inputs(&p);
        let (out, lse) = attention(&p, &q, &k, &v, |_| Some(0.0));
        close(&out[..6], &[0.0; 6]);
        assert_eq!(lse[..3], [f64::NEG_INFINITY; 3]);
        let (out, _) = attention(&p, &q, &k, &v, |_| None);
        close(&out, &vec![0.0; out.len()]);
    }
}
