//! A tensor as it lies in a file, and its conversion on the way to the GPU.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::DType;
use crate::error::{Error, Result};

/// How a tensor's elements are stored in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// GGML's blocks of 32: an f16 scale, then 32 signed bytes; 34 bytes.
    Q8_0,
    /// GGML's blocks of 32: an f16 scale, then 16 bytes whose low nibbles are elements 0 to 15 and whose
    /// high nibbles elements 16 to 31, each less 8; 18 bytes.
    Q4_0,
}

impl Stored {
    /// Elements and bytes of the smallest unit: rows are whole numbers of units.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
        }
    }

    /// Bytes of a tensor of this shape, or what is wrong with the shape.
    pub(super) fn bytes(self, shape: &[usize]) -> Result<usize, String> {
        let (elements, bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(elements) {
            return Err(format!(
                "rows of {row} elements are not whole {self:?} blocks of {elements}"
            ));
        }
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        count
            .and_then(|n| (n / elements).checked_mul(bytes))
            .ok_or_else(|| format!("shape {shape:?} has more elements than memory has addresses"))
    }

    /// Decodes whole blocks.
    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Self::F16 => {
                // In runs, so that `half` can use the processor's conversion instructions.
                let mut run = [f16::ZERO; 64];
                for (o, b) in out.chunks_mut(64).zip(bytes.chunks(128)) {
                    for (r, b) in run.iter_mut().zip(b.as_chunks().0) {
                        *r = f16::from_le_bytes(*b);
                    }
                    run[..o.len()].convert_to_f32_slice(o);
                }
            }
            Self::BF16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *o = bf16::from_le_bytes(*b).to_f32();
                }
            }
            Self::Q8_0 => {
                for (o, block) in out
                    .as_chunks_mut::<32>()
                    .0
                    .iter_mut()
                    .zip(bytes.as_chunks::<34>().0)
                {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    for (o, &q) in o.iter_mut().zip(&block[2..]) {
                        *o = scale * f32::from(q.cast_signed());
                    }
                }
            }
            Self::Q4_0 => {
                for (o, block) in out
                    .as_chunks_mut::<32>()
                    .0
                    .iter_mut()
                    .zip(bytes.as_chunks::<18>().0)
                {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    let (low, high) = o.split_at_mut(16);
                    for ((l, h), &q) in low.iter_mut().zip(high).zip(&block[2..]) {
                        *l = scale * (f32::from(q & 15) - 8.0);
                        *h = scale * (f32::from(q >> 4) - 8.0);
                    }
                }
            }
        }
    }
}

/// Elements converted at a time: 1 MiB of f32, and a whole number of every format's blocks.
const CHUNK: usize = 1 << 18;

/// One tensor of a model file: its shape and its bytes as stored, not yet decoded.
#[derive(Clone, Debug)]
pub struct StoredTensor<'a> {
    /// Its Hugging Face name.
    pub name: &'a str,
    /// How its elements are stored.
    pub stored: Stored,
    /// Row-major, `[out, in]` for projections, as Hugging Face has it.
    pub shape: Vec<usize>,
    pub(super) bytes: &'a [u8],
}

impl StoredTensor<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        let (elements, bytes) = self.stored.block();
        self.bytes.len() / bytes * elements
    }

    /// Streams the elements in row-major order as little-endian `dtype` (F32, F16 or BF16; rounded to
    /// nearest, ties to even) to `sink(byte_offset, bytes)`, at most 1 MiB at a time. The tensor is never
    /// held whole; where it is stored as `dtype` already, the slices are those of the file.
    ///
    /// # Errors
    /// [`Error::Argument`] for another `dtype`, and for a finite element that `dtype` would round to
    /// infinity; whatever `sink` returns.
    pub fn convert(
        &self,
        dtype: DType,
        sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        if !dtype.is_float() {
            return Err(Error::argument("dtype", dtype, "f32, f16 or bf16"));
        }
        if matches!(
            (self.stored, dtype),
            (Stored::F32, DType::F32) | (Stored::F16, DType::F16) | (Stored::BF16, DType::BF16)
        ) {
            let chunk = CHUNK * dtype.size();
            return self
                .bytes
                .chunks(chunk)
                .enumerate()
                .try_for_each(|(i, bytes)| sink((i * chunk) as u64, bytes));
        }
        let (elements, bytes) = self.stored.block();
        let mut floats = vec![0.0; self.elements().min(CHUNK)];
        let mut out = vec![0; floats.len() * dtype.size()];
        for (i, source) in self.bytes.chunks(CHUNK / elements * bytes).enumerate() {
            let count = source.len() / bytes * elements;
            let (floats, out) = (&mut floats[..count], &mut out[..count * dtype.size()]);
            self.stored.decode(source, floats);
            if let Some(at) = encode(floats, dtype, out) {
                return Err(Error::argument(
                    format!("tensor {}", self.name),
                    format!("element {} is {}", i * CHUNK + at, floats[at]),
                    format!("what {dtype} can represent; load the model as f32 or bf16"),
                ));
            }
            sink((i * CHUNK * dtype.size()) as u64, out)?;
        }
        Ok(())
    }

    /// All elements as f32: for tests and references; models go through [`convert`](Self::convert).
    ///
    /// # Errors
    /// None today; the signature leaves room for formats that can fail.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.elements()];
        self.stored.decode(self.bytes, &mut out);
        Ok(out)
    }
}

/// Encodes as little-endian `dtype`; the index of a finite element that became infinite, if any did.
fn encode(floats: &[f32], dtype: DType, out: &mut [u8]) -> Option<usize> {
    match dtype {
        DType::F16 => {
            let mut run = [f16::ZERO; 64];
            for (f, o) in floats.chunks(64).zip(out.chunks_mut(128)) {
                run[..f.len()].convert_from_f32_slice(f);
                for (r, o) in run.iter().zip(o.as_chunks_mut().0) {
                    *o = r.to_le_bytes();
                }
            }
            // 65520 is half way between the largest f16 and the next power of two, which is even.
            floats
                .iter()
                .position(|f| f.is_finite() && f.abs() >= 65520.0)
        }
        DType::BF16 => {
            for (f, o) in floats.iter().zip(out.as_chunks_mut().0) {
                *o = bf16::from_f32(*f).to_le_bytes();
            }
            floats
                .iter()
                .position(|f| f.is_finite() && bf16::from_f32(*f).is_infinite())
        }
        _ => {
            for (f, o) in floats.iter().zip(out.as_chunks_mut().0) {
                *o = f.to_le_bytes();
            }
            None
        }
    }
}
