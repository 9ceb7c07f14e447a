//! SentencePiece's score-merging BPE with byte fallback: the tokenizer of llama2.c files and of GGUF files
//! whose `tokenizer.ggml.model` is `llama`.
//!
//! Text is split into characters; then, again and again, the adjacent pair whose concatenation is the piece
//! of highest score is merged, the leftmost of equals first; characters left without a piece become byte
//! tokens. Own code rather than the `tokenizers` crate, because that crate's BPE ranks *merges*: a
//! score model has no merge list, one would have to be enumerated (every split of every piece), and among
//! pieces of equal score (llama2.c's run.c and SentencePiece take the leftmost in the text) the rank decides
//! there instead. Also, this keeps exact what run.c decodes:
//!
//! - run.c prepends a space to a non-empty prompt ("dummy prefix"), and when it decodes it strips one leading
//!   space from the piece that follows BOS. Here the start of a sequence counts as following BOS, so `decode`
//!   gives the same text with and without it.
//! - A piece spelled `<0xHH>` is the byte `HH`.
//! - run.c stops at BOS/EOS before printing them; here special tokens decode to nothing.

use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text, reached by merging.
    Text,
    /// A byte that has no character's piece.
    Byte(u8),
    /// BOS, EOS, unknown and the like: decodes to nothing.
    Control,
    /// Text taken whole wherever it stands.
    UserDefined,
}

impl Kind {
    /// [`Kind::Byte`] if the piece is spelled `<0xHH>`, else [`Kind::Text`].
    pub fn of_spelling(piece: &[u8]) -> Self {
        let digits = piece
            .strip_prefix(b"<0x")
            .and_then(|p| p.strip_suffix(b">"));
        match digits {
            Some(&[high, low]) => {
                let digit = |c: u8| char::from(c).to_digit(16);
                let byte = digit(high)
                    .zip(digit(low))
                    .and_then(|(h, l)| u8::try_from(h * 16 + l).ok());
                byte.map_or(Self::Text, Self::Byte)
            }
            _ => Self::Text,
        }
    }
}

/// One entry of the vocabulary.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// With spaces as spaces.
    pub text: Box<str>,
    pub score: f32,
    pub kind: Kind,
}

/// Whether control tokens spelled in a text stand for themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpecialsInText {
    /// They are recognised (GGUF, as in Hugging Face).
    Recognised,
    /// They are text like any other (run.c).
    Text,
}

/// Whether text begins with a space of its own making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpacePrefix {
    /// SentencePiece's `add_dummy_prefix`.
    Add,
    /// Text as given.
    None,
}

/// The tokenizer.
#[derive(Debug)]
pub(super) struct Spm {
    pieces: Vec<Piece>,
    ids: FxHashMap<Box<str>, u32>,
    bytes: [Option<u32>; 256],
    /// Specials recognised in text, by first byte, longest first.
    specials: FxHashMap<u8, Vec<u32>>,
    bos: Option<u32>,
    unknown: u32,
    prefix: SpacePrefix,
}

impl Spm {
    /// From the vocabulary, whose positions are the ids (the first of equal spellings counts). `Err` says
    /// what is wrong with it.
    pub fn new(
        pieces: Vec<Piece>,
        bos: Option<u32>,
        unknown: u32,
        prefix: SpacePrefix,
        in_text: SpecialsInText,
    ) -> Result<Self, String> {
        let mut ids = FxHashMap::default();
        let mut bytes = [None; 256];
        let mut specials: FxHashMap<u8, Vec<u32>> = FxHashMap::default();
        if unknown as usize >= pieces.len() {
            return Err(format!(
                "unknown token {unknown} is outside the vocabulary of {}",
                pieces.len()
            ));
        }
        for (id, piece) in (0u32..).zip(&pieces) {
            if !piece.score.is_finite() {
                return Err(format!("token {id} has the score {}", piece.score));
            }
            let special = match piece.kind {
                Kind::Text => false,
                Kind::Byte(byte) => {
                    bytes[usize::from(byte)].get_or_insert(id);
                    continue;
                }
                Kind::Control => in_text == SpecialsInText::Recognised,
                Kind::UserDefined => true,
            };
            match piece.text.as_bytes().first() {
                Some(&first) if special => specials.entry(first).or_default().push(id),
                Some(_) if piece.kind == Kind::Text => {
                    ids.entry(piece.text.clone()).or_insert(id);
                }
                _ => {}
            }
        }
        for bucket in specials.values_mut() {
            bucket.sort_by_key(|&id| std::cmp::Reverse(pieces[id as usize].text.len()));
        }
        Ok(Self {
            pieces,
            ids,
            bytes,
            specials,
            bos,
            unknown,
            prefix,
        })
    }

    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The ids of a text, without BOS.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            if let Some(id) = self.special_at(&text[at..]) {
                self.encode_text(&text[start..at], &mut out);
                out.push(id);
                at += self.pieces[id as usize].text.len();
                start = at;
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        self.encode_text(&text[start..], &mut out);
        out
    }

    fn special_at(&self, text: &str) -> Option<u32> {
        let bucket = self.specials.get(text.as_bytes().first()?)?;
        bucket
            .iter()
            .copied()
            .find(|&id| text.starts_with(&*self.pieces[id as usize].text))
    }

    fn encode_text(&self, text: &str, out: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let prefixed = match self.prefix {
            SpacePrefix::Add => format!(" {text}"),
            SpacePrefix::None => text.to_owned(),
        };
        let mut merging = Merging::new(self, &prefixed);
        merging.run();
        let mut next = Some(0);
        while let Some(symbol) = next.and_then(|i| merging.symbols.get(i)) {
            let piece = &prefixed[symbol.start..symbol.end];
            match self.ids.get(piece) {
                Some(&id) => out.push(id),
                None => out.extend(
                    piece
                        .bytes()
                        .map(|b| self.bytes[usize::from(b)].unwrap_or(self.unknown)),
                ),
            }
            next = symbol.next;
        }
    }

    /// The bytes that a token adds after `previous` (`None` at the start of the sequence); `None` for an id
    /// outside the vocabulary.
    pub fn bytes(&self, previous: Option<u32>, id: u32) -> Option<&[u8]> {
        let piece = self.pieces.get(id as usize)?;
        Some(match &piece.kind {
            Kind::Control => &[],
            Kind::Byte(byte) => std::slice::from_ref(byte),
            Kind::Text | Kind::UserDefined => {
                let bytes = piece.text.as_bytes();
                let first = previous.is_none() || previous == self.bos;
                // What was prepended when encoding goes again.
                let strip = first && self.prefix == SpacePrefix::Add;
                bytes.strip_prefix(b" ").filter(|_| strip).unwrap_or(bytes)
            }
        })
    }
}

/// A run of the text that is one token so far; in a doubly linked list.
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// A pair that could merge. It is stale when either side has merged otherwise since, which its `end` shows.
#[derive(PartialEq)]
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    end: usize,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Adding zero makes -0.0 and 0.0 equal, as they are to run.c's `>`.
        (self.score + 0.0)
            .total_cmp(&(other.score + 0.0))
            .then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct Merging<'a> {
    spm: &'a Spm,
    text: &'a str,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

impl<'a> Merging<'a> {
    fn new(spm: &'a Spm, text: &'a str) -> Self {
        let count = text.chars().count();
        let symbols = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                end: start + c.len_utf8(),
                previous: i.checked_sub(1),
                next: Some(i + 1).filter(|&n| n < count),
            });
        let mut merging = Self {
            spm,
            text,
            symbols: symbols.collect(),
            queue: BinaryHeap::new(),
        };
        for i in 1..merging.symbols.len() {
            merging.propose(i - 1, i);
        }
        merging
    }

    fn propose(&mut self, left: usize, right: usize) {
        let end = self.symbols[right].end;
        if let Some(&id) = self.spm.ids.get(&self.text[self.symbols[left].start..end]) {
            let score = self.spm.pieces[id as usize].score;
            self.queue.push(Candidate {
                score,
                left,
                right,
                end,
            });
        }
    }

    fn run(&mut self) {
        while let Some(Candidate {
            left, right, end, ..
        }) = self.queue.pop()
        {
            if self.symbols[left].next != Some(right) || self.symbols[right].end != end {
                continue;
            }
            let next = self.symbols[right].next;
            self.symbols[left].end = end;
            self.symbols[left].next = next;
            // A symbol merged away must match no candidate any more.
            self.symbols[right].next = None;
            self.symbols[right].end = usize::MAX;
            if let Some(next) = next {
                self.symbols[next].previous = Some(left);
                self.propose(left, next);
            }
            if let Some(previous) = self.symbols[left].previous {
                self.propose(previous, left);
            }
        }
    }
}
