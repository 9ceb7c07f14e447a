//! Choosing the next token from its logits.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// How the next token is chosen. Filters apply in the order of Hugging Face's: repetition penalty, temperature,
/// top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: f32,
    seed: u64,
}

impl Sampling {
    /// The most probable token; the lowest id among equals.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }

    /// Draws from softmax(logits / temperature); zero is greedy. Finite and not negative.
    pub fn temperature(temperature: f32) -> Self {
        Self {
            temperature,
            ..Self::greedy()
        }
    }

    /// Only the `k` most probable tokens; at least 1.
    pub fn top_k(mut self, k: usize) -> Self {
        self.top_k = Some(k);
        self
    }

    /// Only the smallest set of most probable tokens whose probabilities sum to `p` (nucleus sampling, arXiv
    /// 1904.09751); in (0, 1].
    pub fn top_p(mut self, p: f32) -> Self {
        self.top_p = Some(p);
        self
    }

    /// Only tokens at least `p` times as probable as the most probable one (arXiv 2407.01082); in [0, 1].
    pub fn min_p(mut self, p: f32) -> Self {
        self.min_p = Some(p);
        self
    }

    /// Divides positive and multiplies negative logits of tokens that occurred (arXiv 1909.05858); over 0, 1 is
    /// none.
    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// The seed: the same seed, logits and options give the same tokens.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks every parameter, naming the first that is out of range.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: f32, ok: bool, allowed: &str| {
            if ok {
                Ok(())
            } else {
                Err(Error::argument(name, value, allowed))
            }
        };
        let t = self.temperature;
        within(
            "temperature",
            t,
            t.is_finite() && t >= 0.0,
            "finite, at least 0",
        )?;
        let r = self.repetition_penalty;
        within(
            "repetition_penalty",
            r,
            r.is_finite() && r > 0.0,
            "finite, over 0",
        )?;
        if let Some(p) = self.top_p {
            within("top_p", p, p > 0.0 && p <= 1.0, "over 0, at most 1")?;
        }
        if let Some(p) = self.min_p {
            within("min_p", p, (0.0..=1.0).contains(&p), "0 to 1")?;
        }
        if self.top_k == Some(0) {
            return Err(Error::argument("top_k", 0, "at least 1"));
        }
        Ok(())
    }

    /// What the choice needs to see.
    pub(crate) fn needs(&self) -> Needs {
        if self.repetition_penalty != 1.0 {
            Needs::AllLogits
        } else if self.temperature == 0.0 || self.top_k == Some(1) {
            Needs::ArgMax
        } else {
            match self.top_k {
                Some(k) if k <= MAX_DEVICE_TOP_K => Needs::TopK(k),
                _ => Needs::AllLogits,
            }
        }
    }
}

/// Larger top-k are cheaper on the host.
const MAX_DEVICE_TOP_K: usize = 256;

/// What has to come back from the GPU to choose a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// One id.
    ArgMax,
    /// The k largest logits and their ids.
    TopK(usize),
    /// The whole row.
    AllLogits,
}

/// A [`Sampling`] with its random generator.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler; errors if a parameter is out of range.
    pub fn new(sampling: &Sampling) -> Result<Self> {
        sampling.check()?;
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self {
            sampling: sampling.clone(),
            random,
        })
    }

    pub(crate) fn needs(&self) -> Needs {
        self.sampling.needs()
    }

    /// The next token from the logits of all tokens; `history` is what the repetition penalty looks at.
    ///
    /// Tokens with NaN logits are never chosen; errors if no logit is a number.
    pub fn choose(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        let mut candidates: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
        let penalty = self.sampling.repetition_penalty;
        if penalty != 1.0 {
            let mut seen = vec![false; logits.len()];
            for &id in history {
                if let Some(slot) = seen.get_mut(id as usize) {
                    *slot = true;
                }
            }
            for (_, logit) in candidates.iter_mut().filter(|(id, _)| seen[*id as usize]) {
                *logit = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
            }
        }
        candidates.retain(|(_, logit)| !logit.is_nan());
        // Ties in order of the ids, as arg-max breaks them.
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        self.choose_sorted(&candidates)
    }

    /// The next token from candidates in falling order of their logits.
    pub(crate) fn choose_sorted(&mut self, sorted: &[(u32, f32)]) -> Result<u32> {
        let Some(&(best, top)) = sorted.first() else {
            return Err(Error::argument(
                "logits",
                "not a number anywhere",
                "at least one number",
            ));
        };
        let s = &self.sampling;
        if s.temperature == 0.0 || !top.is_finite() {
            return Ok(best);
        }
        let kept = &sorted[..s.top_k.unwrap_or(sorted.len()).min(sorted.len())];
        let temperature = f64::from(s.temperature);
        let weight = |logit: f32| ((f64::from(logit) - f64::from(top)) / temperature).exp();
        let mut weights: Vec<f64> = kept.iter().map(|&(_, logit)| weight(logit)).collect();
        if let Some(p) = s.top_p {
            let total: f64 = weights.iter().sum();
            let mut before = 0.0;
            let nucleus = weights.iter().take_while(|&&w| {
                let inside = before < f64::from(p) * total;
                before += w;
                inside
            });
            let count = nucleus.count().max(1);
            weights.truncate(count);
        }
        if let Some(p) = s.min_p {
            // The most probable token's weight is 1.
            weights.retain(|&w| w >= f64::from(p));
        }
        let mut left = self.random.random::<f64>() * weights.iter().sum::<f64>();
        for (&(id, _), w) in kept.iter().zip(&weights) {
            left -= w;
            if left < 0.0 {
                return Ok(id);
            }
        }
        // Rounding: the last of those kept.
        Ok(weights
            .len()
            .checked_sub(1)
            .map_or(best, |last| kept[last].0))
    }
}

#[cfg(test)]
mod tests {
    use std::f32::consts::{LN_2, LN_10};

    use super::*;

    fn frequencies(sampling: &Sampling, logits: &[f32], history: &[u32]) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.choose(logits, history).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    /// Logits of the probabilities 0.5, 0.25, 0.15, 0.1 in another order.
    const LOGITS: [f32; 4] = [-1.897_12, -LN_2, -LN_10, -1.386_294];

    fn close(found: &[f64], expected: &[f64]) {
        // Four standard deviations of a binomial with 20000 draws are under 0.0142.
        let near = |(f, e): (&f64, &f64)| (f - e).abs() < 0.0142;
        assert!(
            found.iter().zip(expected).all(near),
            "{found:?} for {expected:?}"
        );
    }

    #[test]
    fn draws_follow_the_distribution_and_its_filters() {
        let t1 = || Sampling::temperature(1.0).seed(7);
        close(&frequencies(&t1(), &LOGITS, &[]), &[0.15, 0.5, 0.1, 0.25]);
        close(
            &frequencies(&t1().top_k(2), &LOGITS, &[]),
            &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0],
        );
        close(
            &frequencies(&t1().top_p(0.8), &LOGITS, &[]),
            &[0.15 / 0.9, 0.5 / 0.9, 0.0, 0.25 / 0.9],
        );
        close(
            &frequencies(&t1().min_p(0.4), &LOGITS, &[]),
            &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0],
        );
        // exp(-0.693 * 2) = 0.25 for the token seen.
        let penalised = frequencies(&t1().repetition_penalty(2.0), &LOGITS, &[1, 1]);
        close(&penalised, &[0.2, 1.0 / 3.0, 0.4 / 3.0, 1.0 / 3.0]);
    }

    #[test]
    fn greedy_takes_the_largest_and_the_first_of_equals() {
        let mut greedy = Sampler::new(&Sampling::greedy()).unwrap();
        assert_eq!(greedy.choose(&[1.0, 3.0, 3.0, f32::NAN], &[]).unwrap(), 1);
        assert!(greedy.choose(&[f32::NAN; 3], &[]).is_err());
        let sampling = Sampling::temperature(2.0).seed(3);
        let (mut a, mut b) = (
            Sampler::new(&sampling).unwrap(),
            Sampler::new(&sampling).unwrap(),
        );
        for _ in 0..100 {
            assert_eq!(
                a.choose(&LOGITS, &[]).unwrap(),
                b.choose(&LOGITS, &[]).unwrap()
            );
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let name = |s: Sampling| s.check().unwrap_err().to_string();
        assert!(name(Sampling::temperature(f32::NAN)).starts_with("temperature: NaN"));
        assert!(name(Sampling::temperature(-1.0)).starts_with("temperature"));
        assert!(name(Sampling::greedy().top_k(0)).starts_with("top_k"));
        assert!(name(Sampling::greedy().top_p(1.5)).starts_with("top_p"));
        assert!(name(Sampling::greedy().min_p(-0.5)).starts_with("min_p"));
        assert!(name(Sampling::greedy().repetition_penalty(0.0)).starts_with("repetition_penalty"));
    }
}
