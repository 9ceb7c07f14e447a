//! Generating token by token.

use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::select::{self, TopK};
use crate::model::sampling::{Needs, Sampler, Sampling};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// What [`Decode::feed_then`] records after the logits.
pub type Then<'a> = dyn Fn(&mut Pass<'_>, &Tensor) -> Result<()> + 'a;

/// A text under way in a model of any architecture: what generating needs of it.
pub trait Decode {
    /// The context it lives on.
    fn context(&self) -> &Context;

    /// Number of token ids.
    fn vocab_size(&self) -> usize;

    /// Tokens that end a text.
    fn eos_token_ids(&self) -> &[u32];

    /// Tokens so far.
    fn position(&self) -> usize;

    /// Tokens that it has room for in all.
    fn capacity(&self) -> usize;

    /// Runs `tokens` through the model after those before, and gives the last one's logits `[1, vocab]`, on the
    /// device; overwritten by the next call. `then` is recorded in the same submission as the last tokens. Submits
    /// without waiting.
    ///
    /// Errors on no tokens, a token outside the vocabulary, or more tokens than there is room for; the session is
    /// then as before.
    fn feed_then(&mut self, tokens: &[u32], then: &Then<'_>) -> Result<&Tensor>;

    /// Errors if [`feed_then`](Self::feed_then) would refuse `tokens`.
    fn check(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.vocab_size();
        if tokens.is_empty() {
            return Err(Error::argument("tokens", "none", "at least one"));
        }
        let mut numbered = tokens.iter().enumerate();
        if let Some((at, id)) = numbered.find(|(_, id)| **id as usize >= vocab) {
            return Err(Error::argument(
                format!("tokens[{at}]"),
                id,
                format!("0 to {}, the vocabulary", vocab - 1),
            ));
        }
        if self.position() + tokens.len() > self.capacity() {
            return Err(Error::argument(
                "tokens",
                format!("{} more after {}", tokens.len(), self.position()),
                format!("{} in all, the session's capacity", self.capacity()),
            ));
        }
        Ok(())
    }
}

/// Tokens of a continuation, one a call of `next`. Ends at the model's end-of-text token (which it still gives)
/// or when the session is full; after an error it is at its end.
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
    Owned(Box<dyn Decode>),
    Borrowed(&'a mut dyn Decode),
}

impl Held<'_> {
    fn get(&self) -> &dyn Decode {
        match self {
            Self::Owned(session) => &**session,
            Self::Borrowed(session) => &**session,
        }
    }

    fn get_mut(&mut self) -> &mut dyn Decode {
        match self {
            Self::Owned(session) => &mut **session,
            Self::Borrowed(session) => &mut **session,
        }
    }
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

impl<'a> Generation<'a> {
    /// Continues the text of `session` with `prompt` and what follows it.
    ///
    /// Errors if a parameter of `sampling` or a token of `prompt` is out of range, or if there is no room for the
    /// prompt.
    pub fn of(session: &'a mut dyn Decode, prompt: &[u32], sampling: &Sampling) -> Result<Self> {
        Self::new(Held::Borrowed(session), prompt, sampling)
    }

    /// As [`of`](Self::of), in a session of its own.
    pub fn owning(session: Box<dyn Decode>, prompt: &[u32], sampling: &Sampling) -> Result<Self> {
        Self::new(Held::Owned(session), prompt, sampling)
    }

    fn new(held: Held<'a>, prompt: &[u32], sampling: &Sampling) -> Result<Self> {
        let sampler = Sampler::new(sampling)?;
        let session = held.get();
        session.check(prompt)?;
        let (ctx, vocab) = (session.context(), session.vocab_size());
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

    async fn step(&mut self) -> Result<u32> {
        let session = self.session.get_mut();
        let token = match &self.choice {
            Choice::ArgMax(index) => {
                session.feed_then(&self.pending, &|pass, logits| {
                    select::argmax(pass, logits, index)
                })?;
                index.to_vec_async::<u32>().await?[0]
            }
            Choice::TopK { values, indices } => {
                session.feed_then(&self.pending, &|pass, logits| {
                    TopK::default().run(pass, logits, values, indices)
                })?;
                let indices = indices.to_vec_async::<u32>().await?;
                let values = values.to_vec_async::<f32>().await?;
                let pairs: Vec<(u32, f32)> = indices.into_iter().zip(values).collect();
                self.sampler.choose_sorted(&pairs)?
            }
            Choice::AllLogits => {
                let logits = session.feed_then(&self.pending, &|_, _| Ok(()))?;
                let logits = logits.to_vec_async::<f32>().await?;
                self.sampler.choose(&logits, &self.history)?
            }
        };
        self.history.push(token);
        self.pending.clear();
        self.pending.push(token);
        let at_end = session.eos_token_ids().contains(&token);
        let full = session.position() == session.capacity();
        self.ended = full || (at_end && self.stop == Stop::AtEndOfText);
        Ok(token)
    }

    /// The next token, as [`next`](Iterator::next), without blocking.
    pub async fn next_async(&mut self) -> Option<Result<u32>> {
        if self.ended {
            return None;
        }
        let token = self.step().await;
        self.ended |= token.is_err();
        Some(token)
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Iterator for Generation<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Self::Item> {
        pollster::block_on(self.next_async())
    }
}
