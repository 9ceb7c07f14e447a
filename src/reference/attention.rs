//! Grouped-query attention, row by row.

use super::Real;
use crate::kernels::attention::{Mask, Packing};

/// The sizes of one call and what does not come as a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem<'a> {
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
    /// What else scores go through.
    pub modifiers: Modifiers<'a>,
}

/// What scores go through on demand; the default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Modifiers<'a> {
    /// Packed sequences.
    pub documents: Option<&'a Packing>,
    /// A score s becomes softcap tanh(s / softcap).
    pub softcap: Option<f32>,
    /// Of each head: how much less a score is for each position between query and key (ALiBi).
    pub slopes: Option<&'a [f32]>,
    /// Of each head: the score of a key that every query sees, of value zero.
    pub sink_logits: Option<&'a [f32]>,
}

impl Problem<'_> {
    /// Keys of the sequence that query `i` belongs to, and the key that it stands at.
    pub(super) fn sequence(&self, i: usize) -> (std::ops::Range<usize>, i64) {
        let one = || [0..self.q_len, 0..self.kv_len];
        let [q, k] = match self.modifiers.documents {
            Some(packing) => packing
                .documents()
                .find(|[q, _]| q.contains(&i))
                .unwrap_or_else(one),
            None => one(),
        };
        let position = (i + k.end) as i64 - q.end as i64;
        (k, position)
    }

    /// The score of a dot product in head `h` of a query and a key `distance` before it, before any bias.
    pub(super) fn score<R: Real>(&self, dot: R, h: usize, distance: i64) -> R {
        let mut score = dot * R::of(self.scale.into());
        if let Some(cap) = self.modifiers.softcap {
            let cap = R::of(cap.into());
            score = (score / cap).tanh() * cap;
        }
        match self.modifiers.slopes {
            Some(slopes) => score - R::of(slopes[h].into()) * R::of(distance.abs() as f64),
            None => score,
        }
    }
}

/// A place in [batch, heads, q_len, kv_len].
pub type Place = [usize; 4];

/// The output [batch, heads, q_len, v_dim] and the logarithms of the rows' sums [batch, heads, q_len], for q, k and
/// v in row-major order; `bias` gives what is added to a score, or `None` for a hidden key.
pub fn attention<R: Real>(
    problem: &Problem<'_>,
    q: &[R],
    k: &[R],
    v: &[R],
    bias: impl Fn(Place) -> Option<R>,
) -> (Vec<R>, Vec<R>) {
    attention_with(problem, [q, k, v], bias, None)
}

/// [`attention`] with probabilities that go through `rounded` before they multiply values, as where the softmax is a
/// tensor of a type of its own.
pub fn attention_with<R: Real>(
    problem: &Problem<'_>,
    [q, k, v]: [&[R]; 3],
    bias: impl Fn(Place) -> Option<R>,
    rounded: Option<&dyn Fn(R) -> R>,
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
    let sink_logits = problem.modifiers.sink_logits;
    let sink = |h: usize| sink_logits.map(|s| R::of(s[h].into()));
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for b in 0..problem.batch {
        for h in 0..heads {
            let kv = (b * problem.kv_heads + h / group) * kv_len;
            for i in 0..q_len {
                let row = &q[((b * heads + h) * q_len + i) * head_dim..][..head_dim];
                let (keys, position) = problem.sequence(i);
                // Masks count from the start of the sequence.
                let first = keys.start as i64;
                let visible = |j: &usize| band.sees(position - first, *j as i64 - first);
                let score = |j: usize| -> Option<R> {
                    // First: what is hidden costs nothing.
                    let added = bias([b, h, i, j])?;
                    let key = &k[(kv + j) * head_dim..][..head_dim];
                    let dot: R = row.iter().zip(key).map(|(&a, &b)| a * b).sum();
                    let score = problem.score(dot, h, position - j as i64);
                    Some(score + added)
                };
                let scores: Vec<(usize, R)> = keys
                    .filter(visible)
                    .filter_map(|j| Some((j, score(j)?)))
                    .collect();
                let sink = sink(h).unwrap_or(R::neg_infinity());
                let largest = scores.iter().fold(sink, |m, s| m.max(s.1));
                let mut values = vec![R::zero(); v_dim];
                if largest == R::neg_infinity() {
                    out.extend(values);
                    lse.push(largest);
                    continue;
                }
                let mut sum = (sink - largest).exp();
                for &(_, s) in &scores {
                    sum = sum + (s - largest).exp();
                }
                for &(j, s) in &scores {
                    let weight = (s - largest).exp();
                    let weight = rounded.map_or(weight, |rounded| rounded(weight / sum) * sum);
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

    fn problem(q_len: usize, kv_len: usize, mask: Mask) -> Problem<'static> {
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
            modifiers: Modifiers::default(),
        }
    }

    fn ramp(n: usize, step: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * step).sin() * 3.0).collect()
    }

    fn inputs(p: &Problem<'_>) -> [Vec<f64>; 3] {
        [
            ramp(p.batch * p.heads * p.q_len * p.head_dim, 0.9),
            ramp(p.batch * p.kv_heads * p.kv_len * p.head_dim, 1.7),
            ramp(p.batch * p.kv_heads * p.kv_len * p.v_dim, 2.3),
        ]
    }

    fn close(a: &[f64], b: &[f64]) {
        assert_eq!(a.len(), b.len());
        for (x, y) in a.iter().zip(b) {
            assert!(x == y || (x - y).abs() < 1e-12, "{x} {y}");
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

    /// With modifiers that change nothing, or with them in another form.
    fn same(mask: Mask, modifiers: Modifiers<'_>, bias: impl Fn(Place) -> Option<f64>) {
        let plain = problem(3, 7, mask);
        let p = Problem { modifiers, ..plain };
        let [q, k, v] = inputs(&p);
        let (out, lse) = attention(&p, &q, &k, &v, |_| Some(0.0));
        let (out2, lse2) = attention(&plain, &q, &k, &v, bias);
        close(&out, &out2);
        close(&lse, &lse2);
    }

    #[test]
    fn a_wide_softcap_a_flat_slope_an_impossible_sink_and_one_document_are_nothing() {
        let none = Modifiers::default();
        let one = Packing::new(&[0, 3], &[0, 7]).expect("lengths");
        for modifiers in [
            Modifiers {
                softcap: Some(1e8),
                ..none
            },
            Modifiers {
                slopes: Some(&[0.0; 4]),
                ..none
            },
            Modifiers {
                sink_logits: Some(&[f32::NEG_INFINITY; 4]),
                ..none
            },
            Modifiers {
                documents: Some(&one),
                ..none
            },
        ] {
            same(Mask::Full, modifiers, |_| Some(0.0));
            same(Mask::Causal, modifiers, |_| Some(0.0));
        }
    }

    #[test]
    fn slopes_are_a_bias_by_distance() {
        let slopes = [0.5, 0.25, 0.125, 2.0];
        let modifiers = Modifiers {
            slopes: Some(&slopes),
            ..Modifiers::default()
        };
        same(Mask::Full, modifiers, |[_, h, i, j]| {
            let distance = (i as f64 + 4.0 - j as f64).abs();
            Some(-f64::from(slopes[h]) * distance)
        });
    }

    #[test]
    fn a_narrow_softcap_weighs_all_keys_alike() {
        let modifiers = Modifiers {
            softcap: Some(1e-9),
            ..Modifiers::default()
        };
        let p = Problem {
            modifiers,
            ..problem(3, 7, Mask::Full)
        };
        let [q, k, v] = inputs(&p);
        let (out, lse) = attention(&p, &q, &k, &v, |_| Some(0.0));
        let mean: f64 = (0..7).map(|j| v[j * 2]).sum::<f64>() / 7.0;
        assert!((out[0] - mean).abs() < 1e-8 && (lse[0] - 7f64.ln()).abs() < 1e-8);
    }

    #[test]
    fn a_sink_is_a_key_of_value_zero() {
        let logits = [0.5, -2.0, 3.0, 0.0];
        let p = Problem {
            modifiers: Modifiers {
                sink_logits: Some(&logits),
                ..Modifiers::default()
            },
            ..problem(3, 7, Mask::Full)
        };
        let [q, k, v] = inputs(&p);
        let (out, lse) = attention(&p, &q, &k, &v, |_| Some(0.0));
        // One key more, whose score the bias makes the logit whatever its dot product is.
        let longer = Problem {
            modifiers: Modifiers::default(),
            kv_len: 8,
            ..p
        };
        let grown = |x: &[f64], width: usize| -> Vec<f64> {
            let heads = x.chunks(7 * width);
            heads
                .flat_map(|head| [head, &vec![0.0; width]].concat())
                .collect()
        };
        let bias = |[_, h, _, j]: Place| Some(if j == 7 { logits[h].into() } else { 0.0 });
        let (out2, lse2) = attention(&longer, &q, &grown(&k, 3), &grown(&v, 2), bias);
        close(&out, &out2);
        close(&lse, &lse2);
        // Alone, the sink takes all weight.
        let (out, lse) = attention(&p, &q, &k, &v, |_| None);
        close(&out, &vec![0.0; out.len()]);
        close(&lse[3..6], &[-2.0; 3]);
    }

    #[test]
    fn documents_are_calls_of_their_own() {
        let packing = Packing::new(&[0, 4, 5, 11], &[0, 3, 8, 12]).expect("lengths");
        let window = Mask::Window {
            left: 1,
            right: 0,
            sinks: 1,
        };
        for mask in [Mask::Full, Mask::Causal, window, Mask::Prefix(2)] {
            let slopes = [0.5, 0.0, 1.0, 0.1];
            let modifiers = Modifiers {
                slopes: Some(&slopes),
                ..Modifiers::default()
            };
            let all = Problem {
                batch: 1,
                modifiers,
                ..problem(11, 12, mask)
            };
            let packed = Problem {
                modifiers: Modifiers {
                    documents: Some(&packing),
                    ..modifiers
                },
                ..all
            };
            let [q, k, v] = inputs(&packed);
            let (out, lse) = attention(&packed, &q, &k, &v, |_| Some(0.0));
            for [rows, keys] in packing.documents() {
                let own = Problem {
                    q_len: rows.len(),
                    kv_len: keys.len(),
                    ..all
                };
                let cut = |x: &[f64],
                           length: usize,
                           range: &std::ops::Range<usize>,
                           width: usize|
                 -> Vec<f64> {
                    let heads = x.chunks(length * width);
                    heads
                        .flat_map(|h| h[range.start * width..range.end * width].to_vec())
                        .collect()
                };
                let (own_out, own_lse) = attention(
                    &own,
                    &cut(&q, 11, &rows, 3),
                    &cut(&k, 12, &keys, 3),
                    &cut(&v, 12, &keys, 2),
                    |_| Some(0.0),
                );
                close(&cut(&out, 11, &rows, 2), &own_out);
                close(&cut(&lse, 11, &rows, 1), &own_lse);
            }
        }
    }
}
