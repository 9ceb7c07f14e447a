//! Decoding one token at a time.

use super::spm::Spm;
use super::tokenizer::{decode, known, outside};
use crate::error::Result;

/// Decodes a sequence as it grows: [`push`](Self::push) gives text once it is whole characters. What all
/// pushes and [`finish`](Self::finish) gave, joined, is what [`Tokenizer::decode`](super::Tokenizer::decode)
/// gives; only for malformed UTF-8 from a `tokenizer.json` the number of U+FFFD may differ, because the
/// library's byte fallback spoils a whole run of bytes, the part that is printed already too.
pub struct TokenStream<'a>(State<'a>);

enum State<'a> {
    Library(Window<'a>),
    Scores {
        spm: &'a Spm,
        previous: Option<u32>,
        pending: Vec<u8>,
    },
}

impl<'a> TokenStream<'a> {
    pub(super) fn library(inner: &'a tokenizers::Tokenizer) -> Self {
        Self(State::Library(Window {
            inner,
            ids: Vec::new(),
            emitted: 0,
            printed: String::new(),
        }))
    }

    pub(super) fn scores(spm: &'a Spm) -> Self {
        Self(State::Scores {
            spm,
            previous: None,
            pending: Vec::new(),
        })
    }

    /// Adds a token; the text it completes, if any.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for an id outside the vocabulary; the stream stays as it
    /// was.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        match &mut self.0 {
            State::Library(window) => window.push(id),
            State::Scores {
                spm,
                previous,
                pending,
            } => {
                let bytes = spm
                    .bytes(*previous, id)
                    .ok_or_else(|| outside(id, spm.len()))?;
                pending.extend_from_slice(bytes);
                *previous = Some(id);
                Ok(Some(complete(pending)).filter(|text| !text.is_empty()))
            }
        }
    }

    /// Ends the sequence; what was held back in wait of the rest of a character, if anything.
    ///
    /// # Errors
    /// None that a successful [`push`](Self::push) did not give already.
    pub fn finish(self) -> Result<Option<String>> {
        let text = match self.0 {
            State::Library(window) => window.text()?.1,
            State::Scores { pending, .. } => String::from_utf8_lossy(&pending).into_owned(),
        };
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}

/// Takes the whole characters off the front of `pending`; bytes that no continuation can make a character
/// become U+FFFD, as with [`String::from_utf8_lossy`].
fn complete(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut kept = 0;
    let mut chunks = pending.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let cut_short =
            std::str::from_utf8(chunk.invalid()).is_err_and(|e| e.error_len().is_none());
        if cut_short && chunks.peek().is_none() {
            kept = chunk.invalid().len();
        } else if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    pending.drain(..pending.len() - kept);
    text
}

/// The tail of a sequence that a library decoder has to see to decode the next token: decoders look at
/// neighbours (runs of byte tokens, the space stripped off the start), so the tail begins with tokens that
/// are printed already.
struct Window<'a> {
    inner: &'a tokenizers::Tokenizer,
    ids: Vec<u32>,
    /// How many of `ids` are printed.
    emitted: usize,
    /// The text of those.
    printed: String,
}

impl Window<'_> {
    /// The text of the whole window, and the part of it that is not printed.
    fn text(&self) -> Result<(String, String)> {
        let whole = decode(self.inner, &self.ids)?;
        let fresh = match whole.strip_prefix(&self.printed) {
            Some(fresh) => fresh.to_owned(),
            // A malformed byte spoilt the decoder's view of the run that it ends.
            None => decode(self.inner, &self.ids[self.emitted..])?,
        };
        Ok((whole, fresh))
    }

    fn push(&mut self, id: u32) -> Result<Option<String>> {
        known(self.inner, id)?;
        self.ids.push(id);
        let (whole, fresh) = match self.text() {
            Ok(text) => text,
            Err(error) => {
                self.ids.pop();
                return Err(error);
            }
        };
        if fresh.is_empty() || fresh.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        // Begin the next window at the tokens just printed, if they read the same at the start of a sequence
        // but for the space stripped there, and leave nothing for the decoder to strip off later ones.
        let tail = decode(self.inner, &self.ids[self.emitted..])?;
        if !tail.is_empty() && (tail == fresh || fresh.strip_prefix(' ') == Some(&tail)) {
            self.ids.drain(..self.emitted);
            self.printed = tail;
        } else {
            self.printed = whole;
        }
        self.emitted = self.ids.len();
        Ok(Some(fresh))
    }
}
