//! The gradients of grouped-query attention, pair by pair.

use super::Real;
use super::attention::{Place, Problem};

/// What the forward pass left and the gradient of its output, all in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a, R> {
    /// Queries [batch, heads, q_len, head_dim].
    pub q: &'a [R],
    /// Keys [batch, kv_heads, kv_len, head_dim].
    pub k: &'a [R],
    /// Values [batch, kv_heads, kv_len, v_dim].
    pub v: &'a [R],
    /// The output [batch, heads, q_len, v_dim].
    pub out: &'a [R],
    /// Logarithms of the rows' sums [batch, heads, q_len].
    pub lse: &'a [R],
    /// The gradient of the output.
    pub dout: &'a [R],
}

/// The gradients, of the shapes of q, k and v.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients<R> {
    /// With respect to the queries.
    pub dq: Vec<R>,
    /// With respect to the keys.
    pub dk: Vec<R>,
    /// With respect to the values.
    pub dv: Vec<R>,
}

/// With the weights p = exp(s - lse) of the forward pass and delta = sum(dout * out) of a row: dv = sum p dout, ds =
/// p (dout v' - delta) (times 1 - tanh^2 of a softcap), dq = sum scale ds k, dk = sum scale ds q. A function of what was saved: an output or
/// logarithm that was rounded counts as it is. `bias` as in the forward pass.
pub fn attention_backward<R: Real>(
    problem: &Problem<'_>,
    saved: &Saved<'_, R>,
    bias: impl Fn(Place) -> Option<R>,
) -> Gradients<R> {
    attention_backward_with(problem, saved, bias, |weight| weight)
}

/// As [`attention_backward`], with p and ds (without the scale) as `stored` makes them: naive arithmetic whose products
/// take operands of 16 bits.
pub fn attention_backward_with<R: Real>(
    problem: &Problem<'_>,
    saved: &Saved<'_, R>,
    bias: impl Fn(Place) -> Option<R>,
    stored: impl Fn(R) -> R,
) -> Gradients<R> {
    let &Problem {
        heads,
        kv_heads,
        q_len,
        kv_len,
        head_dim,
        v_dim,
        ..
    } = problem;
    let scale = R::of(problem.scale.into());
    let band = problem.mask.band();
    let mut gradients = Gradients {
        dq: vec![R::zero(); saved.q.len()],
        dk: vec![R::zero(); saved.k.len()],
        dv: vec![R::zero(); saved.v.len()],
    };
    for row in 0..problem.batch * heads * q_len {
        let [b, h, i] = [row / q_len / heads, row / q_len % heads, row % q_len];
        let (keys, position) = problem.sequence(i);
        let first = keys.start as i64;
        let q = &saved.q[row * head_dim..][..head_dim];
        let dout = &saved.dout[row * v_dim..][..v_dim];
        let delta = dot(dout, &saved.out[row * v_dim..][..v_dim]);
        for j in keys.filter(|&j| band.sees(position - first, j as i64 - first)) {
            let Some(bias) = bias([b, h, i, j]) else {
                continue;
            };
            let key = (b * kv_heads + h / (heads / kv_heads)) * kv_len + j;
            let k = &saved.k[key * head_dim..][..head_dim];
            let v = &saved.v[key * v_dim..][..v_dim];
            let product = dot(q, k);
            let score = problem.score(product, h, position - j as i64);
            let p = (score + bias - saved.lse[row]).exp();
            let ds = p * (dot(dout, v) - delta) * bend(problem, product);
            let (p, ds) = (stored(p), stored(ds) * scale);
            add(&mut gradients.dq[row * head_dim..], ds, k);
            add(&mut gradients.dk[key * head_dim..], ds, q);
            add(&mut gradients.dv[key * v_dim..], p, dout);
        }
    }
    gradients
}

/// The derivative of the softcap.
fn bend<R: Real>(problem: &Problem<'_>, product: R) -> R {
    let Some(cap) = problem.modifiers.softcap else {
        return R::one();
    };
    let tanh = (product * R::of(problem.scale.into()) / R::of(cap.into())).tanh();
    R::one() - tanh * tanh
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

fn add<R: Real>(to: &mut [R], factor: R, values: &[R]) {
    for (total, &x) in to.iter_mut().zip(values) {
        *total = *total + factor * x;
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::{Modifiers, attention};
    use super::*;
    use crate::kernels::attention::{Mask, Packing};

    fn problem([q_len, kv_len]: [usize; 2], mask: Mask) -> Problem<'static> {
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

    /// q, k, v and the gradient of the output.
    struct Inputs([Vec<f64>; 4]);

    impl Inputs {
        fn new(p: &Problem<'_>) -> Self {
            let (rows, keys) = (p.batch * p.heads * p.q_len, p.batch * p.kv_heads * p.kv_len);
            let sizes = [
                rows * p.head_dim,
                keys * p.head_dim,
                keys * p.v_dim,
                rows * p.v_dim,
            ];
            let ramp = |(n, step): (usize, f64)| -> Vec<f64> {
                (0..n).map(|i| (i as f64 * step).sin() * 2.0).collect()
            };
            let mut steps = [0.9, 1.7, 2.3, 3.1].into_iter();
            Self(sizes.map(|n| ramp((n, steps.next().unwrap_or(1.0)))))
        }

        fn gradients(
            &self,
            p: &Problem<'_>,
            bias: impl Fn(Place) -> Option<f64>,
        ) -> Gradients<f64> {
            let [q, k, v, dout] = self.0.each_ref().map(Vec::as_slice);
            let (out, lse) = attention(p, q, k, v, &bias);
            let (out, lse) = (&out[..], &lse[..]);
            let saved = Saved {
                q,
                k,
                v,
                out,
                lse,
                dout,
            };
            attention_backward(p, &saved, bias)
        }

        /// sum(dout * out) with `step` added to one element of q, k or v.
        fn loss(
            &self,
            p: &Problem<'_>,
            (of, at, step): (usize, usize, f64),
            bias: impl Fn(Place) -> Option<f64>,
        ) -> f64 {
            let mut moved = self.0.clone();
            moved[of][at] += step;
            let [q, k, v, dout] = &moved;
            dot(dout, &attention(p, q, k, v, bias).0)
        }
    }

    /// Central differences of order four: their own error is of the order of step^4 = 1e-12, and of 1e-16 / step.
    fn compare_with_differences(p: &Problem<'_>, bias: impl Fn(Place) -> Option<f64> + Copy) {
        let inputs = Inputs::new(p);
        let Gradients { dq, dk, dv } = inputs.gradients(p, bias);
        for (of, gradient) in [dq, dk, dv].iter().enumerate() {
            for (at, &exact) in gradient.iter().enumerate() {
                let step = 1e-3;
                let loss = |n: f64| inputs.loss(p, (of, at, n * step), bias);
                let near = loss(1.0) - loss(-1.0);
                let difference = (8.0 * near - loss(2.0) + loss(-2.0)) / (12.0 * step);
                assert!(
                    (difference - exact).abs() < 1e-9,
                    "{p:?} {of} {at}: {difference} {exact}"
                );
            }
        }
    }

    fn hides([b, h, i, j]: Place) -> Option<f64> {
        let hidden = (b + h + 2 * i + 3 * j).is_multiple_of(7);
        (!hidden).then_some((i * 5 + j) as f64 * 0.1)
    }

    fn masks() -> [Mask; 5] {
        let window = |left, right, sinks| Mask::Window { left, right, sinks };
        [
            Mask::Full,
            Mask::Causal,
            window(2, 0, 0),
            window(1, 1, 2),
            Mask::Prefix(3),
        ]
    }

    #[test]
    fn gradients_are_the_limits_of_differences() {
        for mask in masks() {
            for lengths in [[4, 4], [2, 6], [6, 2]] {
                compare_with_differences(&problem(lengths, mask), hides);
            }
        }
    }

    #[test]
    fn so_they_are_with_everything_that_bends_scores() {
        let packing = Packing::new(&[0, 2, 5], &[0, 3, 5]).expect("sound");
        for mask in masks() {
            let p = Problem {
                modifiers: Modifiers {
                    documents: Some(&packing),
                    softcap: Some(1.5),
                    slopes: Some(&[0.5, 0.25, 0.125, 0.0625]),
                    sink_logits: Some(&[0.3, -1.0, 2.0, f32::NEG_INFINITY]),
                },
                ..problem([5, 5], mask)
            };
            compare_with_differences(&p, |_| Some(0.0));
        }
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    /// The sum over each head's rows of `width` values.
    fn sums(values: &[f64], rows: usize, width: usize) -> Vec<f64> {
        let sum = |head: &[f64], c| head.iter().skip(c).step_by(width).sum();
        values
            .chunks(rows * width)
            .flat_map(|head| (0..width).map(move |c| sum(head, c)))
            .collect()
    }

    #[test]
    fn weights_sum_to_one_and_so_do_the_values_gradients() {
        let p = problem([3, 7], Mask::Causal);
        let inputs = Inputs::new(&p);
        let dv = sums(&inputs.gradients(&p, |_| Some(0.0)).dv, p.kv_len, p.v_dim);
        let dout = sums(&inputs.0[3], p.q_len, p.v_dim);
        for (key_head, dv) in dv.chunks(p.v_dim).enumerate() {
            for (c, &sum) in dv.iter().enumerate() {
                let of = |head: usize| dout[head * p.v_dim + c];
                close(sum, of(2 * key_head) + of(2 * key_head + 1));
            }
        }
    }

    #[test]
    fn a_shift_of_all_keys_changes_nothing() {
        // It adds a constant to all scores of a row.
        let p = problem([5, 7], Mask::Prefix(2));
        let dk = Inputs::new(&p).gradients(&p, |_| Some(0.0)).dk;
        sums(&dk, p.kv_len, p.head_dim)
            .into_iter()
            .for_each(|sum| close(sum, 0.0));
    }

    #[test]
    fn with_one_key_queries_do_not_matter() {
        let p = problem([3, 1], Mask::Full);
        let Gradients { dq, dk, .. } = Inputs::new(&p).gradients(&p, |_| Some(0.0));
        dq.into_iter().chain(dk).for_each(|x| close(x, 0.0));
    }

    #[test]
    fn rows_that_see_nothing_have_no_gradient() {
        let p = problem([5, 2], Mask::Causal);
        let inputs = Inputs::new(&p);
        let Gradients { dq, .. } = inputs.gradients(&p, |_| Some(0.0));
        for head in dq.chunks(5 * 3) {
            assert_eq!(head[..9], [0.0; 9]);
            assert_ne!(head[9..], [0.0; 6]);
        }
        let none = inputs.gradients(&p, |_| None);
        assert!(
            [none.dq, none.dk, none.dv]
                .iter()
                .flatten()
                .all(|&x| x == 0.0)
        );
    }
}
