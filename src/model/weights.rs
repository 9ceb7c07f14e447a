//! Moving weights from a model file to the device.

use std::collections::BTreeMap;

use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::loader::{Stored, Weights};
use crate::tensor::Tensor;

/// Bytes gathered before they are handed to the queue.
const CHUNK: usize = 4 << 20;
/// Bytes handed to the queue before waiting for it, so that its staging memory stays bounded and weights are
/// never held twice.
const IN_FLIGHT: usize = 128 << 20;

/// Loads tensors one after the other, telling a listener how far it is.
pub(crate) struct Loader<'a> {
    ctx: &'a Context,
    weights: &'a Weights,
    dtype: Option<DType>,
    progress: &'a mut dyn FnMut(Progress<'_>),
    done: u64,
    total: u64,
    in_flight: usize,
    /// Element types by the first name, without its numbers, of those loaded so far.
    types: BTreeMap<String, DType>,
}

/// How far loading is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor just loaded.
    pub tensor: &'a str,
    /// Bytes on the device.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

impl<'a> Loader<'a> {
    /// Matrices become `dtype`, or stay as they are stored where it is `None`.
    pub(crate) fn new(
        ctx: &'a Context,
        weights: &'a Weights,
        dtype: Option<DType>,
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Result<Self> {
        if let Some(dtype) = dtype.filter(|d| !d.is_float()) {
            return Err(Error::argument("dtype", dtype, "f32, f16 or bf16"));
        }
        let mut total = 0;
        for name in weights.names() {
            let tensor = weights.tensor(name)?;
            let size = dtype.unwrap_or(natural(tensor.stored)).size();
            total += tensor.shape.iter().product::<usize>() as u64 * size as u64;
        }
        Ok(Self {
            ctx,
            weights,
            dtype,
            progress,
            done: 0,
            total,
            in_flight: 0,
            types: BTreeMap::new(),
        })
    }

    /// A matrix, or several of equal width one below the other (so that one product serves them all). Matrices of the same
    /// place in every layer get one type, that of the first: kernels are planned once for all layers.
    pub(crate) fn matrix(&mut self, names: &[String]) -> Result<Tensor> {
        let mut dtype = None;
        let (mut rows, mut cols) = (0, 0);
        for name in names {
            let stored = self.weights.tensor(name)?;
            let place = name.chars().filter(|c| !c.is_ascii_digit()).collect();
            let first = self.types.entry(place).or_insert(natural(stored.stored));
            dtype = dtype.or(Some(self.dtype.unwrap_or(*first)));
            rows += stored.shape[0];
            cols = stored.shape[1];
        }
        self.upload(names, dtype.unwrap_or(DType::F32), &[rows, cols])
    }

    /// Rows of a stored matrix.
    pub(crate) fn rows(&self, name: &str) -> Result<usize> {
        Ok(self.weights.tensor(name)?.shape[0])
    }

    /// A matrix of `shape` that `arrange` makes of the values of others; typed as [`matrix`](Self::matrix) types them.
    pub(crate) fn arranged(
        &mut self,
        names: &[String],
        shape: [usize; 2],
        arrange: impl FnOnce(&[Vec<f32>]) -> Vec<f32>,
    ) -> Result<Tensor> {
        let natural = natural(self.weights.tensor(&names[0])?.stored);
        let dtype = self.dtype.unwrap_or(natural);
        let values = names
            .iter()
            .map(|n| self.values(n))
            .collect::<Result<Vec<_>>>()?;
        let tensor = Tensor::from_f32(self.ctx, dtype, &arrange(&values), shape)?;
        self.ctx.flush()?;
        Ok(tensor)
    }

    /// A vector, always f32: they are small, and norms want the precision.
    pub(crate) fn vector(&mut self, name: &str) -> Result<Tensor> {
        let len = self.weights.tensor(name)?.elements();
        self.upload(&[name.to_string()], DType::F32, &[len])
    }

    /// The values of a tensor, for the host.
    pub(crate) fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        let stored = self.weights.tensor(name)?;
        let size = self.dtype.unwrap_or(natural(stored.stored)).size();
        self.done += (stored.elements() * size) as u64;
        (self.progress)(Progress {
            tensor: name,
            done: self.done,
            total: self.total,
        });
        stored.to_f32()
    }

    fn upload(&mut self, names: &[String], dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let target = Tensor::empty(self.ctx, dtype, shape).map_err(|e| match e {
            Error::Argument { was, allowed, .. } => Error::Argument {
                name: format!("tensor {}", names.join(" + ")),
                was,
                allowed,
            },
            other => other,
        })?;
        // Pieces need not end on a word: gather, and write whole words.
        let (mut pending, mut at) = (Vec::with_capacity(CHUNK + (1 << 20)), 0);
        for name in names {
            let stored = self.weights.tensor(name)?;
            stored.convert(dtype, &mut |_, bytes| {
                pending.extend_from_slice(bytes);
                if pending.len() >= CHUNK {
                    let whole = pending.len() & !3;
                    target.write_bytes(at, &pending[..whole])?;
                    at += whole;
                    pending.drain(..whole);
                }
                Ok(())
            })?;
            let bytes = stored.elements() * dtype.size();
            self.done += bytes as u64;
            self.in_flight += bytes;
            (self.progress)(Progress {
                tensor: name,
                done: self.done,
                total: self.total,
            });
        }
        target.write_bytes(at, &pending)?;
        if self.in_flight > IN_FLIGHT {
            self.ctx.flush()?;
            self.in_flight = 0;
        }
        Ok(target)
    }
}

/// The type that a stored tensor has on the device unless another is asked for.
fn natural(stored: Stored) -> DType {
    match stored {
        Stored::F32 => DType::F32,
        Stored::BF16 => DType::BF16,
        Stored::F16 | Stored::Q8_0 | Stored::Q4_0 => DType::F16,
    }
}
