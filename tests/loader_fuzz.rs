//! Mutated and random model files: no panic, and no allocation that the file's size does not back.

mod models;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use flashwave::DType;
use flashwave::loader::{Tokenizer, Weights};
use models::Files;
use proptest::prelude::*;
use proptest::sample::{Index, select};

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, noting each thread's largest request.
struct Noting;

fn note(size: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// What one allocation may take for files of so many bytes: conversion buffers and the regular expressions
/// of tokenizers are constants, the index and the vocabulary multiples.
fn allowed(bytes: usize) -> usize {
    (2 << 20) + 32 * bytes
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Truncate(Index),
    Splice {
        from: Index,
        to: Index,
        length: usize,
    },
    Int32(Index, u32),
    Int64(Index, u64),
    /// The nth run of digits of a text.
    Number(Index, &'static str),
    Noise(Vec<u8>),
}

impl Mutation {
    /// `reach` is how much of the front is touched: headers deserve more hits than weights.
    fn apply(&self, bytes: &mut Vec<u8>, reach: usize) {
        let reach = reach.min(bytes.len());
        if reach == 0 {
            return;
        }
        let overwrite = |bytes: &mut Vec<u8>, at: usize, new: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(new) {
                *to = *from;
            }
        };
        match self {
            Self::Flip(at, mask) => bytes[at.index(reach)] ^= mask,
            Self::Truncate(at) => bytes.truncate(at.index(reach)),
            Self::Splice { from, to, length } => {
                let from = from.index(reach);
                let piece = bytes[from..(from + length).min(bytes.len())].to_vec();
                let to = to.index(reach);
                bytes.splice(to..to, piece);
            }
            Self::Int32(at, value) => overwrite(bytes, at.index(reach), &value.to_le_bytes()),
            Self::Int64(at, value) => overwrite(bytes, at.index(reach), &value.to_le_bytes()),
            Self::Number(at, new) => {
                let starts: Vec<_> = (0..reach)
                    .filter(|&i| {
                        bytes[i].is_ascii_digit() && (i == 0 || !bytes[i - 1].is_ascii_digit())
                    })
                    .collect();
                if let Some(&start) = starts.get(at.index(starts.len().max(1))) {
                    let digits = bytes[start..]
                        .iter()
                        .take_while(|b| b.is_ascii_digit())
                        .count();
                    bytes.splice(start..start + digits, new.bytes());
                }
            }
            Self::Noise(noise) => overwrite(bytes, 0, noise),
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    let small = select(vec![
        0u32,
        1,
        2,
        3,
        8,
        9,
        31,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0xffff_fff0,
    ]);
    let large = select(vec![
        0u64,
        1,
        1 << 31,
        1 << 32,
        1 << 61,
        1 << 62,
        1 << 63,
        u64::MAX,
        u64::MAX - 31,
    ]);
    let numbers = select(vec![
        "0",
        "-1",
        "1e999",
        "18446744073709551615",
        "2305843009213693951",
        "4294967296",
        "2147483647",
        "null",
        "[]",
        "0.5",
        "7",
        "\"x\"",
        "{}",
    ]);
    prop_oneof![
        2 => (at(), any::<u8>()).prop_map(|(at, mask)| Mutation::Flip(at, mask)),
        1 => at().prop_map(Mutation::Truncate),
        1 => (at(), at(), 1usize..64).prop_map(|(from, to, length)| Mutation::Splice { from, to, length }),
        3 => (at(), small).prop_map(|(at, value)| Mutation::Int32(at, value)),
        3 => (at(), large).prop_map(|(at, value)| Mutation::Int64(at, value)),
        3 => (at(), numbers).prop_map(|(at, new)| Mutation::Number(at, new)),
        1 => prop::collection::vec(any::<u8>(), 0..256).prop_map(Mutation::Noise),
    ]
}

/// Uses all that an open model offers.
fn use_all(weights: &Weights) {
    for name in weights.names() {
        let tensor = weights.tensor(name).expect("a listed tensor");
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let mut bytes = 0;
            let converted = tensor.convert(dtype, &mut |offset, chunk| {
                assert_eq!(offset, bytes);
                bytes += chunk.len() as u64;
                Ok(())
            });
            assert!(converted.is_err() || bytes == (tensor.elements() * dtype.size()) as u64);
        }
        tensor.to_f32().expect("decodes");
    }
    assert!(weights.tensor("nonsense").is_err());
    if let Some(tokenizer) = weights.tokenizer() {
        use_tokenizer(tokenizer);
    }
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    let ids = tokenizer.encode("ab abab\n€ c<s> 日本").unwrap_or_default();
    let _ = tokenizer.decode(&ids);
    let mut stream = tokenizer.stream();
    for id in ids.into_iter().chain(0..20).chain([u32::MAX]) {
        let _ = stream.push(id);
    }
    let _ = stream.finish();
}

/// Opens the files and uses the model; checks the largest allocation on the way.
fn exercise(files: Files) -> Result<(), TestCaseError> {
    let total = files.iter().map(|(_, bytes)| bytes.len()).sum();
    LARGEST.set(0);
    match Weights::from_bytes(files) {
        Ok(weights) => use_all(&weights),
        Err(error) => prop_assert!(!error.to_string().is_empty()),
    }
    let largest = LARGEST.get();
    prop_assert!(
        largest <= allowed(total),
        "one allocation of {largest} bytes for files of {total}"
    );
    Ok(())
}

fn mutated(mut files: Files, which: Index, mutations: &[Mutation], whole: bool) -> Files {
    let file = which.index(files.len());
    let reach = if whole { usize::MAX } else { 2048 };
    for mutation in mutations {
        mutation.apply(&mut files[file].1, reach);
    }
    files
}

fn seeds() -> Vec<Vec<Files>> {
    let gguf = |bytes| vec![("model.gguf".to_owned(), bytes)];
    vec![
        vec![
            models::hugging_face(models::CONFIG, 1),
            models::hugging_face(models::CONFIG, 2),
        ],
        vec![
            gguf(models::gguf_scores(1).build()),
            gguf(models::gguf_scores(2).build()),
            gguf(models::gguf_scores(3).build()),
            gguf(models::gguf_merges(3, "llama-bpe").build()),
        ],
        vec![models::llama2c(1), models::llama2c(-1)],
    ]
}

#[test]
fn seeds_are_valid() {
    for files in seeds().into_iter().flatten() {
        let names: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
        let weights =
            Weights::from_bytes(files.clone()).unwrap_or_else(|e| panic!("{names:?}: {e}"));
        assert!(weights.tokenizer().is_some());
        exercise(files).unwrap();
    }
}

/// Cases of each test: 4000, or more if the environment's PROPTEST_CASES says so.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.max(4000),
        failure_persistence: None,
        ..default
    }
}

fn fuzz(format: usize) {
    let seeds = seeds().swap_remove(format);
    let plan = (
        any::<Index>(),
        any::<Index>(),
        prop::collection::vec(mutation(), 1..4),
        any::<bool>(),
    );
    proptest!(config(), |((seed, which, mutations, whole) in plan)| {
        exercise(mutated(seeds[seed.index(seeds.len())].clone(), which, &mutations, whole))?;
    });
}

#[test]
fn hugging_face_folders() {
    fuzz(0);
}

#[test]
fn gguf_files() {
    fuzz(1);
}

#[test]
fn llama2c_checkpoints() {
    fuzz(2);
}

#[test]
fn random_bytes() {
    let magic = select(vec![&b""[..], b"GGUF\x01\0\0\0", b"GGUF\x03\0\0\0", b"{"]);
    proptest!(config(), |(magic in magic, noise in prop::collection::vec(any::<u8>(), 0..512))| {
        let bytes = [magic, &noise].concat();
        exercise(vec![("model".to_owned(), bytes.clone())])?;
        exercise(vec![
            ("config.json".to_owned(), models::CONFIG.as_bytes().to_vec()),
            ("model.safetensors".to_owned(), bytes.clone()),
        ])?;
        let mut files = models::llama2c(1);
        files[1].1 = bytes;
        exercise(files)?;
    });
}
