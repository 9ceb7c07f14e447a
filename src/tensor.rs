//! Tensors: device memory with a shape, an element type and strides.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::buffer::Buffer;
use crate::context::{Context, lock, mapped};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::quant::QuantMatrix;
use crate::recorder::staging;

/// A host type that is a tensor's element.
pub trait Element: Pod {
    /// Its element type.
    const DTYPE: DType;
}

macro_rules! element {
    ($($host:ty => $dtype:ident),*) => { $(impl Element for $host { const DTYPE: DType = DType::$dtype; })* };
}
element!(f32 => F32, f16 => F16, bf16 => BF16, i32 => I32, u32 => U32, i8 => I8);

/// Device memory seen as an array: shape, element type, strides and an offset, all in elements. Clones and
/// views share the memory; it goes back to the context's pool with the last of them.
#[derive(Clone)]
pub struct Tensor {
    ctx: Context,
    buffer: Arc<Buffer>,
    layout: Layout,
}

impl Tensor {
    /// A tensor whose elements are unspecified until written.
    ///
    /// Errors if `shape` has more than [`MAX_RANK`](crate::layout::MAX_RANK) dimensions or a dimension of zero, or if the tensor is
    /// over the device's limit for one binding.
    pub fn empty(ctx: &Context, dtype: DType, shape: impl AsRef<[usize]>) -> Result<Self> {
        let layout = Layout::contiguous(dtype, shape)?;
        let buffer = ctx.inner.pool.allocate(ctx, layout.bytes())?;
        Ok(Self {
            ctx: ctx.clone(),
            buffer,
            layout,
        })
    }

    /// A tensor over existing memory, which must hold the layout.
    pub(crate) fn over(ctx: &Context, buffer: Arc<Buffer>, layout: Layout) -> Self {
        Self {
            ctx: ctx.clone(),
            buffer,
            layout,
        }
    }

    /// A tensor with the elements of `data` in row-major order.
    pub fn from_slice<T: Element>(
        ctx: &Context,
        data: &[T],
        shape: impl AsRef<[usize]>,
    ) -> Result<Self> {
        Self::from_bytes(ctx, T::DTYPE, bytemuck::cast_slice(data), shape)
    }

    /// As [`from_slice`](Self::from_slice), from little-endian bytes.
    pub fn from_bytes(
        ctx: &Context,
        dtype: DType,
        bytes: &[u8],
        shape: impl AsRef<[usize]>,
    ) -> Result<Self> {
        let tensor = Self::empty(ctx, dtype, shape)?;
        let expected = tensor.layout.bytes();
        if bytes.len() as u64 != expected {
            return Err(Error::argument(
                "data",
                format!("{} bytes", bytes.len()),
                format!("{expected} bytes for {dtype} {:?}", tensor.shape()),
            ));
        }
        tensor.write_bytes(0, bytes)?;
        Ok(tensor)
    }

    /// A tensor of `data` rounded to `dtype` (f32, f16 or bf16; to nearest, ties to even).
    pub fn from_f32(
        ctx: &Context,
        dtype: DType,
        data: &[f32],
        shape: impl AsRef<[usize]>,
    ) -> Result<Self> {
        Self::from_bytes(ctx, dtype, &Self::encode_f32(dtype, data)?, shape)
    }

    /// A quantised matrix.
    pub fn from_quant(ctx: &Context, matrix: &QuantMatrix) -> Result<Self> {
        let layout = matrix.layout();
        let dtype = DType::Quant(layout.format);
        let bytes = bytemuck::cast_slice(matrix.words());
        Self::from_bytes(ctx, dtype, bytes, [layout.rows, layout.cols])
    }

    /// The bytes of `data` rounded to `dtype` (f32, f16 or bf16; to nearest, ties to even).
    pub fn encode_f32(dtype: DType, data: &[f32]) -> Result<Vec<u8>> {
        match dtype {
            DType::F32 => Ok(bytemuck::cast_slice(data).to_vec()),
            DType::F16 => Ok(data
                .iter()
                .flat_map(|&x| f16::from_f32(x).to_le_bytes())
                .collect()),
            DType::BF16 => Ok(data
                .iter()
                .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                .collect()),
            other => Err(Error::argument("dtype", other, "f32, f16 or bf16")),
        }
    }

    /// Overwrites a contiguous tensor's memory from byte `at` on.
    pub fn write_bytes(&self, at: usize, bytes: &[u8]) -> Result<()> {
        let total = self.layout.bytes() as usize;
        let start = self.layout.offset() * self.dtype().size() + at;
        if !self.layout.is_contiguous() || at + bytes.len() > total || !start.is_multiple_of(4) {
            return Err(Error::argument(
                "bytes",
                format!("{} bytes at {at}", bytes.len()),
                format!("a contiguous tensor of {total} bytes, from a multiple of 4"),
            ));
        }
        // WebGPU writes whole words: a tail shorter than one goes in a padded word, which only the end of the
        // tensor's own memory can have.
        let whole = bytes.len() & !3;
        self.ctx.scoped(|_| {
            let queue = &self.ctx.inner.queue;
            if whole > 0 {
                queue.write_buffer(&self.buffer.raw, start as u64, &bytes[..whole]);
            }
            if whole < bytes.len() {
                let mut word = [0; 4];
                word[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
                queue.write_buffer(&self.buffer.raw, (start + whole) as u64, &word);
            }
        })
    }

    /// Overwrites a contiguous tensor with `data`.
    pub fn write<T: Element>(&self, data: &[T]) -> Result<()> {
        if T::DTYPE != self.dtype() || data.len() != self.len() {
            return Err(Error::argument(
                "data",
                format!("{} elements of {}", data.len(), T::DTYPE),
                format!("{} of {}", self.len(), self.dtype()),
            ));
        }
        self.write_bytes(0, bytemuck::cast_slice(data))
    }

    /// The context the tensor lives on.
    pub fn context(&self) -> &Context {
        &self.ctx
    }

    pub(crate) fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// Shape, element type, strides and offset.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.layout.dtype()
    }

    /// Sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// Number of elements; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a tensor is never empty")]
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    fn view(&self, layout: Layout) -> Self {
        Self {
            ctx: self.ctx.clone(),
            buffer: self.buffer.clone(),
            layout,
        }
    }

    /// The part with indices `range` along dimension `dim`; shares the memory.
    pub fn narrow(&self, dim: usize, range: Range<usize>) -> Result<Self> {
        Ok(self.view(self.layout.narrow(dim, range)?))
    }

    /// Rows `range` of the outermost dimension; shares the memory.
    pub fn rows(&self, range: Range<usize>) -> Result<Self> {
        self.narrow(0, range)
    }

    /// The tensor with another shape over the same elements; it must be contiguous.
    pub fn reshape(&self, shape: impl AsRef<[usize]>) -> Result<Self> {
        Ok(self.view(self.layout.reshape(shape)?))
    }

    /// Splits the last dimension, `heads * head_dim` wide, in two; shares the memory.
    pub fn split_heads(&self, heads: usize) -> Result<Self> {
        Ok(self.view(self.layout.split_heads(heads)?))
    }

    /// Exchanges two dimensions; shares the memory.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        Ok(self.view(self.layout.transpose(a, b)?))
    }

    /// The elements in row-major order of a contiguous tensor, waiting for the GPU.
    ///
    /// In a browser, where nothing may wait, this and its like work within `flashwave::replay` alone.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.check_element::<T>()?;
        Ok(bytemuck::pod_collect_to_vec(&self.to_bytes()?))
    }

    /// The elements in row-major order of a contiguous tensor.
    pub async fn to_vec_async<T: Element>(&self) -> Result<Vec<T>> {
        self.check_element::<T>()?;
        Ok(bytemuck::pod_collect_to_vec(&self.to_bytes_async().await?))
    }

    fn check_element<T: Element>(&self) -> Result<()> {
        match self.dtype() {
            dtype if dtype == T::DTYPE => Ok(()),
            other => Err(Error::argument(
                "element type",
                T::DTYPE,
                format!("the tensor's, {other}"),
            )),
        }
    }

    /// A quantised matrix, waiting for the GPU.
    pub fn to_quant(&self) -> Result<QuantMatrix> {
        let Some(layout) = self.layout.quant() else {
            return Err(Error::argument("dtype", self.dtype(), "a quantised format"));
        };
        let bytes = self.to_bytes()?;
        QuantMatrix::from_words(layout, bytemuck::pod_collect_to_vec(&bytes))
    }

    /// The elements of a contiguous f32, f16 or bf16 tensor as f32, waiting for the GPU.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        decode_f32(self.dtype(), &self.to_bytes()?)
    }

    /// The elements of a contiguous f32, f16 or bf16 tensor as f32.
    pub async fn to_f32_vec_async(&self) -> Result<Vec<f32>> {
        decode_f32(self.dtype(), &self.to_bytes_async().await?)
    }

    /// The bytes of a contiguous tensor, waiting for the GPU.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        pollster::block_on(self.to_bytes_async())
    }

    /// The bytes of a contiguous tensor, within `flashwave::replay`.
    #[cfg(target_arch = "wasm32")]
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        crate::replay::bytes(self)
    }

    /// The bytes of a contiguous tensor: the one place that waits for the GPU.
    pub async fn to_bytes_async(&self) -> Result<Vec<u8>> {
        if !self.layout.is_contiguous() {
            return Err(Error::argument(
                "tensor",
                format!("{self:?}"),
                "a contiguous one",
            ));
        }
        let size = self.dtype().size();
        let (start, bytes) = (self.layout.offset() * size, self.layout.bytes() as usize);
        // Copies are of whole words: read from the word before to the word after.
        let (from, to) = (start & !3, (start + bytes).next_multiple_of(4));
        let read = staging(&self.ctx, (to - from) as u64)?;
        let (sender, receiver) = futures_channel::oneshot::channel();
        self.ctx.scoped(|device| {
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(
                &self.buffer.raw,
                from as u64,
                &read,
                0,
                (to - from) as u64,
            );
            self.ctx.inner.queue.submit([encoder.finish()]);
            read.slice(..(to - from) as u64)
                .map_async(wgpu::MapMode::Read, move |result| {
                    // The receiver waits below; if it is gone nobody needs the answer.
                    sender.send(result).ok();
                });
        })?;
        mapped(&self.ctx, receiver).await?;
        let data = {
            let view = read.slice(..(to - from) as u64).get_mapped_range();
            let view = view.map_err(|e| Error::DeviceLost(format!("read-back: {e}")))?;
            view[start - from..start - from + bytes].to_vec()
        };
        read.unmap();
        lock(&self.ctx.inner.staging).push(read);
        Ok(data)
    }
}

/// Numbers of `dtype` (f32, f16 or bf16) from their bytes.
fn decode_f32(dtype: DType, bytes: &[u8]) -> Result<Vec<f32>> {
    match dtype {
        DType::F32 => Ok(bytemuck::pod_collect_to_vec(bytes)),
        DType::F16 => {
            let halves = bytemuck::pod_collect_to_vec::<u8, f16>(bytes);
            Ok(halves.into_iter().map(f16::to_f32).collect())
        }
        DType::BF16 => {
            let halves = bytemuck::pod_collect_to_vec::<u8, bf16>(bytes);
            Ok(halves.into_iter().map(bf16::to_f32).collect())
        }
        other => Err(Error::argument("dtype", other, "f32, f16 or bf16")),
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?})", self.layout)
    }
}
