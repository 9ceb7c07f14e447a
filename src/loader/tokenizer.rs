//! One tokenizer type over three kinds of file.
//!
//! `tokenizer.json` and GGUF's `gpt2` merges run on the `tokenizers` crate; score models (llama2.c, GGUF's
//! `llama`) on the small implementation in `spm.rs`, whose header says why.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::source::Blob;
use super::spm::{Kind, Piece, SpacePrefix, SpecialsInText, Spm};
use super::stream::TokenStream;
use crate::error::{Error, Result};

/// Text to token ids and back.
pub struct Tokenizer(Model);

enum Model {
    Library(Box<tokenizers::Tokenizer>),
    Scores(Box<Spm>),
}

impl Tokenizer {
    /// From a tokenizer's file: JSON is `tokenizer.json`, anything else llama2.c's, which does not say how
    /// many tokens it has.
    pub(super) fn parse(blob: &Blob, vocab_size: usize) -> Result<Self> {
        match blob.iter().find(|byte| !byte.is_ascii_whitespace()) {
            None => Err(blob.error("the file is empty; expected a tokenizer")),
            Some(b'{') => Self::from_json(blob),
            Some(_) => Self::from_llama2c(blob, vocab_size),
        }
    }

    fn from_json(blob: &Blob) -> Result<Self> {
        // The library panics on malformed JSON inside some of its parts (its decoders, in 0.23), so all of it
        // is parsed once before.
        serde_json::from_slice::<serde_json::Value>(blob)
            .map_err(|e| blob.error(format!("not a tokenizer.json: {e}")))?;
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(&**blob))
            .map_err(|e| blob.error(format!("not a tokenizer.json: {e}")))?;
        // Batching is no business of ours, and a padding length is an allocation that a file can name.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| blob.error(e.to_string()))?;
        Ok(Self(Model::Library(Box::new(inner))))
    }

    /// llama2.c's tokenizer.bin: the longest token's length, then for each id its score, its length and its
    /// bytes, with spaces as spaces. Ids 0, 1 and 2 are unknown, BOS and EOS.
    fn from_llama2c(blob: &Blob, vocab_size: usize) -> Result<Self> {
        let mut reader = blob.reader();
        let longest = reader.i32("the longest token's length")?;
        let longest = u32::try_from(longest).map_err(|_| {
            blob.error(format!(
                "at byte 0: the longest token's length is {longest}"
            ))
        })?;
        let mut pieces = Vec::new();
        for id in 0..vocab_size {
            let score = reader.f32("a token's score")?;
            let length = reader.u32("a token's length")?;
            if length > longest {
                return Err(reader.error(format_args!(
                    "token {id} of {vocab_size} has {length} bytes, the header says at most {longest}"
                )));
            }
            let text: Box<str> = reader.str(length.into(), "a token")?.into();
            let kind = if id < 3 {
                Kind::Control
            } else {
                Kind::of_spelling(text.as_bytes())
            };
            pieces.push(Piece { text, score, kind });
        }
        if reader.remaining() > 0 {
            return Err(reader.error(format_args!(
                "{} bytes follow the model's {vocab_size} tokens: the tokenizer of another model",
                reader.remaining()
            )));
        }
        Self::from_scores(pieces, Some(1), 0, SpacePrefix::Add, SpecialsInText::Text)
            .map_err(|message| blob.error(message))
    }

    /// A score model; `Err` says what is wrong with the vocabulary.
    pub(super) fn from_scores(
        pieces: Vec<Piece>,
        bos: Option<u32>,
        unknown: u32,
        prefix: SpacePrefix,
        in_text: SpecialsInText,
    ) -> Result<Self, String> {
        Spm::new(pieces, bos, unknown, prefix, in_text)
            .map(|spm| Self(Model::Scores(Box::new(spm))))
    }

    /// A byte-level BPE with GPT-2's alphabet. `pre` is GGUF's name of the pre-tokenizer.
    pub(super) fn from_merges(
        pieces: &[(&str, Kind)],
        merges: &[&str],
        pre: &str,
    ) -> Result<Self, String> {
        let (patterns, ignore_merges) = pre_tokenizer(pre)?;
        let vocab: Vocab = pieces
            .iter()
            .map(|(piece, _)| (*piece).to_owned())
            .zip(0u32..)
            .collect();
        if vocab.len() != pieces.len() {
            return Err("two tokens are spelled alike".to_owned());
        }
        let merges = merges
            .iter()
            .map(|merge| {
                let pair = merge
                    .split_once(' ')
                    .ok_or_else(|| format!("merge '{merge}' is not two tokens"));
                pair.map(|(left, right)| (left.to_owned(), right.to_owned()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let specials = pieces.iter().filter_map(|(piece, kind)| match kind {
            Kind::Control => Some(AddedToken::from(*piece, true)),
            Kind::UserDefined => Some(AddedToken::from(*piece, false)),
            Kind::Text | Kind::Byte(_) => None,
        });
        guarded(|| {
            let bpe = BPE::builder()
                .vocab_and_merges(vocab, merges)
                .ignore_merges(ignore_merges)
                .build()?;
            let mut inner = tokenizers::Tokenizer::new(bpe);
            let mut steps = Vec::<PreTokenizerWrapper>::new();
            for pattern in patterns {
                let pattern = SplitPattern::Regex((*pattern).to_owned());
                steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
            }
            steps.push(ByteLevel::new(false, true, false).into());
            inner.with_pre_tokenizer(Some(Sequence::new(steps)));
            inner.with_decoder(Some(ByteLevel::default()));
            inner.add_tokens(specials.filter(|token| !token.content.is_empty()))?;
            Ok(Self(Model::Library(Box::new(inner))))
        })
    }

    /// Number of tokens, those added to the base vocabulary among them.
    pub fn vocab_size(&self) -> usize {
        match &self.0 {
            Model::Library(inner) => inner.get_vocab_size(true),
            Model::Scores(spm) => spm.len(),
        }
    }

    /// The ids of `text`, without BOS or EOS. Special tokens spelled in the text are recognised, except with
    /// a llama2.c tokenizer, for which all is text.
    ///
    /// # Errors
    /// [`Error::Argument`] where the tokenizer has no way to express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.0 {
            Model::Library(inner) => guarded(|| inner.encode(text, false))
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|e| {
                    Error::argument("text", e, "text that the model's tokenizer can express")
                }),
            Model::Scores(spm) => Ok(spm.encode(text)),
        }
    }

    /// The text of `ids`; special tokens add nothing, malformed UTF-8 becomes U+FFFD. For score models the
    /// space put before the text when encoding is taken off the sequence's first token (and off any token
    /// after BOS), as llama2.c's run.c does; so to continue a prompt, decode the prompt's ids with the rest.
    ///
    /// # Errors
    /// [`Error::Argument`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.0 {
            Model::Library(inner) => {
                for &id in ids {
                    known(inner, id)?;
                }
                decode(inner, ids)
            }
            Model::Scores(_) => {
                let mut stream = self.stream();
                let mut text = String::new();
                for &id in ids {
                    text.extend(stream.push(id)?);
                }
                text.extend(stream.finish()?);
                Ok(text)
            }
        }
    }

    /// Decodes one id at a time.
    pub fn stream(&self) -> TokenStream<'_> {
        match &self.0 {
            Model::Library(inner) => TokenStream::library(inner),
            Model::Scores(spm) => TokenStream::scores(spm),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.0 {
            Model::Library(_) => "library",
            Model::Scores(_) => "scores",
        };
        f.debug_struct("Tokenizer")
            .field("kind", &kind)
            .field("vocab_size", &self.vocab_size())
            .finish()
    }
}

/// Regular expressions that cut text into words before merging, in order, and whether a word that is itself
/// a token skips merging; by GGUF's `tokenizer.ggml.pre`.
fn pre_tokenizer(pre: &str) -> Result<(&'static [&'static str], bool), String> {
    const GPT2: &str =
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    match pre {
        "gpt-2" | "default" => Ok((&[GPT2], false)),
        "llama3" | "llama-v3" | "llama-bpe" => Ok((&[LLAMA3], true)),
        "smollm" | "starcoder" | "refact" | "command-r" => Ok((&[r"\p{N}", GPT2], false)),
        _ => Err(format!(
            "tokenizer.ggml.pre is '{pre}'; known are gpt-2, llama-bpe, smollm, starcoder, refact, command-r"
        )),
    }
}

/// Runs the tokenizer library, with its errors, and its panics on malformed vocabularies, as text.
fn guarded<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizers library panicked".to_owned()),
    }
}

pub(super) fn outside(id: u32, vocab_size: usize) -> Error {
    Error::argument(
        "token id",
        id,
        format!("ids of the tokenizer's {vocab_size} tokens"),
    )
}

pub(super) fn known(inner: &tokenizers::Tokenizer, id: u32) -> Result<()> {
    let token = inner.id_to_token(id);
    token
        .map(|_| ())
        .ok_or_else(|| outside(id, inner.get_vocab_size(true)))
}

pub(super) fn decode(inner: &tokenizers::Tokenizer, ids: &[u32]) -> Result<String> {
    guarded(|| inner.decode(ids, true))
        .map_err(|e| Error::argument("ids", e, "ids that the tokenizer decodes"))
}
