//! A tensor as it lies in a file, and its conversion on the way to the GPU.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quant::{Format, GgufBlock, QuantLayout, QuantMatrix};

/// How a tensor's elements are stored in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// GGUF's blocks.
    Gguf(GgufBlock),
    /// Words of a quantised matrix, as [`QuantLayout`] has them.
    Quant(Format),
}

impl Stored {
    /// Elements and bytes of the smallest unit: rows are whole numbers of units. Quantised matrices have none.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Gguf(block) => block.size(),
            Self::Quant(_) => (1, 0),
        }
    }

    /// Bytes of a tensor of this shape, or what is wrong with the shape.
    pub(super) fn bytes(self, shape: &[usize]) -> Result<usize, String> {
        if let Self::Quant(format) = self {
            let &[rows, cols] = shape else {
                return Err(format!(
                    "shape {shape:?} of a quantised matrix; allowed: two dimensions"
                ));
            };
            let layout = QuantLayout::new(format, rows, cols).map_err(|e| e.to_string())?;
            return Ok(layout.bytes() as usize);
        }
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

    /// Decodes numbers.
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
            Self::Gguf(_) | Self::Quant(_) => {}
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
        self.shape.iter().product()
    }

    /// The matrix of a quantised tensor as it is stored: nothing is rounded. `None` for others.
    ///
    /// # Errors
    /// [`Error::Argument`] for shapes that are no matrix's.
    pub fn quant(&self) -> Result<Option<QuantMatrix>> {
        let (&[rows, cols], Stored::Gguf(_) | Stored::Quant(_)) = (&self.shape[..], self.stored)
        else {
            return match self.stored {
                Stored::Gguf(block) => {
                    let cols = self.shape.last().copied().unwrap_or(1);
                    block
                        .read([self.elements() / cols, cols], self.bytes)
                        .map(Some)
                }
                _ => Ok(None),
            };
        };
        match self.stored {
            Stored::Gguf(block) => block.read([rows, cols], self.bytes).map(Some),
            Stored::Quant(format) => {
                let words = bytemuck::pod_collect_to_vec(self.bytes);
                let layout = QuantLayout::new(format, rows, cols)?;
                QuantMatrix::from_words(layout, words).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Its bytes as stored.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
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
        if let Some(matrix) = self.quant()? {
            return convert_numbers(self.name, &matrix.decode_f32(), dtype, sink);
        }
        let (elements, bytes) = self.stored.block();
        let mut floats = vec![0.0; self.elements().min(CHUNK)];
        let mut out = vec![0; floats.len() * dtype.size()];
        for (i, source) in self.bytes.chunks(CHUNK / elements * bytes).enumerate() {
            let count = source.len() / bytes * elements;
            let (floats, out) = (&mut floats[..count], &mut out[..count * dtype.size()]);
            self.stored.decode(source, floats);
            if let Some(at) = encode(floats, dtype, out) {
                return Err(unrepresentable(
                    self.name,
                    i * CHUNK + at,
                    floats[at],
                    dtype,
                ));
            }
            sink((i * CHUNK * dtype.size()) as u64, out)?;
        }
        Ok(())
    }

    /// All elements as f32: for tests and references; models go through [`convert`](Self::convert).
    ///
    /// # Errors
    /// [`Error::Argument`] for quantised tensors of shapes that are no matrix's.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        if let Some(matrix) = self.quant()? {
            return Ok(matrix.decode_f32());
        }
        let mut out = vec![0.0; self.elements()];
        self.stored.decode(self.bytes, &mut out);
        Ok(out)
    }
}

/// Errors if a number is not finite: it would spoil the scale of its group.
pub(crate) fn finite(name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(at) => Err(Error::argument(
            format!("tensor {name}"),
            format!("element {at} is {}", values[at]),
            "finite numbers, to be quantised",
        )),
    }
}

fn convert_numbers(
    name: &str,
    numbers: &[f32],
    dtype: DType,
    sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut out = vec![0; numbers.len().min(CHUNK) * dtype.size()];
    for (i, floats) in numbers.chunks(CHUNK).enumerate() {
        let out = &mut out[..floats.len() * dtype.size()];
        if let Some(at) = encode(floats, dtype, out) {
            return Err(unrepresentable(name, i * CHUNK + at, floats[at], dtype));
        }
        sink((i * CHUNK * dtype.size()) as u64, out)?;
    }
    Ok(())
}

fn unrepresentable(name: &str, at: usize, value: f32, dtype: DType) -> Error {
    Error::argument(
        format!("tensor {name}"),
        format!("element {at} is {value}"),
        format!("what {dtype} can represent; load the model as f32 or bf16"),
    )
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
