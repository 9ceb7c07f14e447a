//! GGUF, versions 1 to 3, little-endian: a header of key/value metadata, tensor descriptions, then aligned
//! tensor data. Read by an own parser: it hands out borrowed strings and unread arrays, so what it allocates
//! is bounded by what the file holds, and a wrong byte is reported with its position. (gguf-rs 0.1.8 and
//! candle's reader allocate strings by the length that the header claims, and replace what is not UTF-8.)
//!
//! This file is the container; what a Llama puts into it is `gguf_llama.rs`.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::Entry;
use super::source::{Blob, Reader};
use super::tensor::Stored;
use crate::error::Result;
use crate::quant::GgufBlock;

/// First bytes of every GGUF file.
pub(super) const MAGIC: &[u8] = b"GGUF";

/// A metadata value; arrays are walked, and read when asked for.
enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Str(&'a str),
    Array {
        kind: u32,
        count: u64,
        items: Cursor<'a>,
    },
}

/// The reader and the version, on which the width of lengths depends.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    pub reader: Reader<'a>,
    version: u32,
}

impl<'a> Cursor<'a> {
    /// A length or count: 32 bits in version 1, 64 since.
    fn length(&mut self, what: &str) -> Result<u64> {
        if self.version == 1 {
            self.reader.u32(what).map(u64::from)
        } else {
            self.reader.u64(what)
        }
    }

    pub fn str(&mut self, what: &str) -> Result<&'a str> {
        let length = self.length(what)?;
        self.reader.str(length, what)
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value<'a>> {
        let start = self.reader.clone();
        let mut take = |n| self.reader.take(n, "a metadata value");
        let signed = |b: &[u8]| {
            // Sign-extended from the top byte.
            let fill = if b.last().is_some_and(|&b| b >= 0x80) {
                0xff
            } else {
                0
            };
            i64::from_le_bytes(std::array::from_fn(|i| b.get(i).copied().unwrap_or(fill)))
        };
        let unsigned =
            |b: &[u8]| u64::from_le_bytes(std::array::from_fn(|i| b.get(i).copied().unwrap_or(0)));
        Ok(match kind {
            0 => Value::Unsigned(unsigned(take(1)?)),
            1 => Value::Signed(signed(take(1)?)),
            2 => Value::Unsigned(unsigned(take(2)?)),
            3 => Value::Signed(signed(take(2)?)),
            4 => Value::Unsigned(unsigned(take(4)?)),
            5 => Value::Signed(signed(take(4)?)),
            6 => Value::Float(self.reader.f32("a metadata value")?.into()),
            7 => match take(1)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                other => {
                    return Err(
                        start.error(format_args!("a boolean is {other:?}; allowed: 0 or 1"))
                    );
                }
            },
            8 => Value::Str(self.str("a metadata string")?),
            9 => self.array(depth)?,
            10 => Value::Unsigned(unsigned(take(8)?)),
            11 => Value::Signed(signed(take(8)?)),
            12 => Value::Float(f64::from_bits(unsigned(take(8)?))),
            _ => return Err(start.error(format_args!("metadata type {kind}; allowed: 0 to 12"))),
        })
    }

    fn array(&mut self, depth: u32) -> Result<Value<'a>> {
        if depth == 4 {
            return Err(self.reader.error("arrays nested more than 4 deep"));
        }
        let kind = self.reader.u32("an array's element type")?;
        let count = self.length("an array's length")?;
        let items = self.clone();
        let width = match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        };
        match width {
            Some(width) => {
                self.reader.take(count.saturating_mul(width), "an array")?;
            }
            // Every element takes bytes of the file, so the end of the file ends a lying count.
            None => {
                for _ in 0..count {
                    self.value(kind, depth + 1)?;
                }
            }
        }
        Ok(Value::Array { kind, count, items })
    }
}

/// The metadata of a file.
pub(super) struct Meta<'a> {
    pub blob: &'a Blob,
    values: BTreeMap<&'a str, Value<'a>>,
}

/// Reads the header: metadata, and where each tensor lies, under the name that `rename` gives it.
pub(super) fn parse(
    blob: &Blob,
    rename: fn(&str) -> String,
) -> Result<(Meta<'_>, BTreeMap<String, Entry>)> {
    let mut cursor = Cursor {
        reader: blob.reader(),
        version: 0,
    };
    if cursor.reader.take(4, "the magic number")? != MAGIC {
        return Err(blob.error("does not begin with 'GGUF'"));
    }
    cursor.version = cursor.reader.u32("the version")?;
    if !matches!(cursor.version, 1..=3) {
        return Err(blob.error(format!(
            "GGUF version {:#x}; allowed: 1 to 3, little-endian",
            cursor.version
        )));
    }
    let tensor_count = cursor.length("the number of tensors")?;
    let value_count = cursor.length("the number of metadata values")?;
    let mut values = BTreeMap::new();
    for _ in 0..value_count {
        let start = cursor.reader.clone();
        let key = cursor.str("a metadata key")?;
        let kind = cursor.reader.u32("a metadata type")?;
        if values.insert(key, cursor.value(kind, 0)?).is_some() {
            return Err(start.error(format_args!("the key {key} comes twice")));
        }
    }
    let meta = Meta { blob, values };

    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let start = cursor.reader.clone();
        let (name, entry) = tensor(&mut cursor)?;
        if tensors.insert(rename(name), entry).is_some() {
            return Err(start.error(format_args!("the tensor {name} comes twice")));
        }
    }
    let alignment = meta.unsigned("general.alignment")?.unwrap_or(32);
    if !alignment.is_power_of_two() {
        return Err(blob.error(format!(
            "general.alignment is {alignment}; allowed: powers of two"
        )));
    }
    let end = cursor.reader.position() as u64;
    let data = end
        .checked_next_multiple_of(alignment)
        .and_then(|at| usize::try_from(at).ok());
    place(blob, &mut tensors, data, alignment)?;
    Ok((meta, tensors))
}

/// One tensor's description; its range is still relative to the data section.
fn tensor<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a str, Entry)> {
    let name = cursor.str("a tensor's name")?;
    let start = cursor.reader.clone();
    let fail = |message: &dyn Display| start.error(format_args!("tensor {name}: {message}"));
    let rank = cursor.reader.u32("a tensor's rank")?;
    if !(1..=4).contains(&rank) {
        return Err(fail(&format_args!("{rank} dimensions; allowed: 1 to 4")));
    }
    // GGUF writes the fastest dimension first.
    let mut shape = Vec::with_capacity(4);
    for _ in 0..rank {
        let dim = cursor.length("a tensor's dimension")?;
        let dim = usize::try_from(dim).ok().filter(|&dim| dim > 0);
        shape.insert(
            0,
            dim.ok_or_else(|| fail(&"a dimension that is zero or over the address space"))?,
        );
    }
    let stored = match cursor.reader.u32("a tensor's type")? {
        0 => Stored::F32,
        1 => Stored::F16,
        30 => Stored::BF16,
        number => {
            let block = GgufBlock::ALL.iter().find(|b| b.ggml_type() == number);
            let Some(&block) = block else {
                let message = format_args!(
                    "ggml type {number}; allowed: 0 (F32), 1 (F16), 2 (Q4_0), 3 (Q4_1), 6 (Q5_0), 7 (Q5_1), \
                     8 (Q8_0), 10 to 14 (Q2_K to Q6_K), 30 (BF16)"
                );
                return Err(fail(&message));
            };
            Stored::Gguf(block)
        }
    };
    let offset = cursor.reader.u64("a tensor's offset")?;
    let size = stored.bytes(&shape).map_err(|message| fail(&message))?;
    let range = usize::try_from(offset)
        .ok()
        .and_then(|from| Some(from..from.checked_add(size)?));
    let range =
        range.ok_or_else(|| fail(&format_args!("{size} bytes at offset {offset} overflow")))?;
    Ok((
        name,
        Entry {
            stored,
            shape,
            file: 0,
            range,
        },
    ))
}

/// Turns offsets into ranges of the file, which must be aligned, inside it and apart.
fn place(
    blob: &Blob,
    tensors: &mut BTreeMap<String, Entry>,
    data: Option<usize>,
    alignment: u64,
) -> Result<()> {
    for (name, entry) in tensors.iter_mut() {
        let range = entry.range.clone();
        if !(range.start as u64).is_multiple_of(alignment) {
            return Err(blob.error(format!(
                "tensor {name} is at offset {}, not a multiple of the alignment {alignment}",
                range.start
            )));
        }
        let moved = data
            .and_then(|data| Some(range.start.checked_add(data)?..range.end.checked_add(data)?));
        entry.range = moved.filter(|range| range.end <= blob.len()).ok_or_else(|| {
            blob.error(format!(
                "tensor {name} is at {range:?} of the data section, past the end of the file ({} bytes)",
                blob.len()
            ))
        })?;
    }
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, entry)| entry.range.start);
    for pair in order.windows(2) {
        if let [(before, a), (after, b)] = pair
            && a.range.end > b.range.start
        {
            return Err(blob.error(format!(
                "tensors {before} at bytes {:?} and {after} at {:?} overlap",
                a.range, b.range
            )));
        }
    }
    Ok(())
}

impl<'a> Meta<'a> {
    pub fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        Err(self.blob.error(format!("metadata {key} is not {expected}")))
    }

    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value)),
            Some(Value::Signed(value)) if *value >= 0 => Ok(Some(value.unsigned_abs())),
            Some(_) => self.wrong(key, "a non-negative integer"),
        }
    }

    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let size = self.unsigned(key)?.map(usize::try_from).transpose();
        size.or_else(|_| self.wrong(key, "within the address space"))
    }

    pub fn id(&self, key: &str) -> Result<Option<u32>> {
        self.unsigned(key)?
            .map(u32::try_from)
            .transpose()
            .or_else(|_| self.wrong(key, "a token id"))
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(_) => self.wrong(key, "a floating-point number"),
        }
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => self.wrong(key, "a boolean"),
        }
    }

    pub fn str(&self, key: &str) -> Result<Option<&'a str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Str(value)) => Ok(Some(value)),
            Some(_) => self.wrong(key, "a string"),
        }
    }

    /// An array of one of these element types. Its bytes have been walked, so its count is honest.
    pub fn array<T>(
        &self,
        key: &str,
        kinds: &[u32],
        mut item: impl FnMut(&mut Cursor<'a>) -> Result<T>,
    ) -> Result<Option<Vec<T>>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array { kind, count, items }) if kinds.contains(kind) => {
                let mut items = items.clone();
                (0..*count)
                    .map(|_| item(&mut items))
                    .collect::<Result<Vec<T>>>()
                    .map(Some)
            }
            Some(_) => self.wrong(key, &format!("an array of elements of type {kinds:?}")),
        }
    }

    pub fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.blob.error(format!("metadata {key} is missing")))
    }
}
