//! Generating token by token.

use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::select;
use crate::model::llama::Session;
use crate::model::sampling::{Needs, Sampler, Sampling};
use crate::tensor::Tensor;

/// Tokens of a continuation, one a call of `next`. Ends at the model's end-of-text token (which it still gives)
/// or when the cache is full; after an error it is at its end.
pub struct Generation<'a> {
    session: Held<'a>,
    sampler: Sampler,
    /// Tokens to run before the next choice: the prompt, then the token chosen last.
    pending: Vec<u32>,
    history: Vec<u32>,
    stop: Stop,
    ended: bool,
    choice: Choice,
}

enum Held<'a> {
    Owned(Box<Session>),
    Borrowed(&'a mut Session),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    AtEndOfText,
    WhenFull,
}

/// What comes back from the device.
enum Choice {
    ArgMax(Tensor),
    TopK { values: Tensor, indices: Tensor },
    AllLogits,
}

impl Session {
    /// Continues the text with `prompt` and what follows it.
    ///
    /// Errors if a parameter of `sampling` or a token of `prompt` is out of range, or if the prompt does not fit
    /// in the cache.
    pub fn generate(&mut self, prompt: &[u32], sampling: &Sampling) -> Result<Generation<'_>> {
        Generation::new(Held::Borrowed(self), prompt, sampling)
    }
}

impl<'a> Generation<'a> {
    pub(crate) fn owning(session: Session, prompt: &[u32], sampling: &Sampling) -> Result<Self> {
        Self::new(Held::Owned(Box::new(session)), prompt, sampling)
    }

    fn new(held: Held<'a>, prompt: &[u32], sampling: &Sampling) -> Result<Self> {
        let sampler = Sampler::new(sampling)?;
        let session = match &held {
            Held::Owned(session) => session,
            Held::Borrowed(session) => &**session,
        };
        session.check(prompt)?;
        let (ctx, vocab) = (
            session.model().context(),
            session.model().config().vocab_size,
        );
        let choice = match sampler.needs() {
            Needs::ArgMax => Choice::ArgMax(Tensor::empty(ctx, DType::U32, [1])?),
            Needs::TopK(k) => {
                let k = k.min(vocab);
                let values = Tensor::empty(ctx, DType::F32, [1, k])?;
                Choice::TopK {
                    values,
                    indices: Tensor::empty(ctx, DType::U32, [1, k])?,
                }
            }
            Needs::AllLogits => Choice::AllLogits,
        };
        let history = prompt.to_vec();
        let pending = prompt.to_vec();
        Ok(Self {
            session: held,
            sampler,
            pending,
            history,
            stop: Stop::AtEndOfText,
            ended: false,
            choice,
        })
    }

    /// Goes on after the end-of-text token, until the cache is full.
    pub fn ignore_eos(mut self) -> Self {
        self.stop = Stop::WhenFull;
        self
    }

    fn step(&mut self) -> Result<u32> {
        let session = match &mut self.session {
            Held::Owned(session) => session,
            Held::Borrowed(session) => &mut **session,
        };
        let token = match &self.choice {
            Choice::ArgMax(index) => {
                session.feed_then(&self.pending, |pass, logits| {
                    select::argmax(pass, logits, index)
                })?;
                index.to_vec::<u32>()?[0]
            }
            Choice::TopK { values, indices } => {
                session.feed_then(&self.pending, |pass, logits| {
                    let _ = (pass, logits, values, indices);
                    Ok(())
                })?;
                let pairs: Vec<(u32, f32)> = indices
                    .to_vec::<u32>()?
                    .into_iter()
                    .zip(values.to_vec::<f32>()?)
                    .collect();
                self.sampler.choose_sorted(&pairs)?
            }
            Choice::AllLogits => {
                let logits = session.feed(&self.pending)?.to_vec::<f32>()?;
                self.sampler.choose(&logits, &self.history)?
            }
        };
        self.history.push(token);
        self.pending.clear();
        self.pending.push(token);
        let at_end = session.model().config().eos_token_ids.contains(&token);
        let full = session.cache().len() == session.cache().capacity();
        self.ended = full || (at_end && self.stop == Stop::AtEndOfText);
        Ok(token)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let token = self.step();
        self.ended |= token.is_err();
        Some(token)
    }
}
