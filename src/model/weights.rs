//! Moving weights from a model file to the device.

use std::collections::{BTreeMap, VecDeque};

use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::gemm::Gating;
use crate::loader::{Stored, Weights, finite};
use crate::model::matrix::{Cuts, Matrix};
use crate::quant::{Format, Group, QuantLayout, QuantMatrix, quantize, writable};
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
        match dtype {
            Some(DType::Quant(format)) => format.check().and_then(|()| writable(format))?,
            Some(dtype) if !dtype.is_float() => {
                let allowed = "f32, f16, bf16 or a quantised format";
                return Err(Error::argument("dtype", dtype, allowed));
            }
            _ => {}
        }
        let mut total = 0;
        for name in weights.names() {
            let tensor = weights.tensor(name)?;
            total += bytes(dtype.unwrap_or(natural(tensor.stored)), &tensor.shape);
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

    /// A matrix, or several of equal width one below the other (so that one product serves them all; of a gated one two of
    /// equal size, gate and up). Matrices of the same place in every layer get one type, since kernels are planned once for
    /// all layers: that of the first, or f16 where quantised formats differ between them.
    pub(crate) fn matrix(&mut self, names: &[String], gating: Gating) -> Result<Matrix> {
        let (mut rows, mut cols) = (0, 0);
        for name in names {
            let stored = self.weights.tensor(name)?;
            rows += stored.shape[0];
            cols = stored.shape[1];
        }
        let dtype = match self.dtype {
            Some(dtype) => dtype,
            None => self.natural(names)?,
        };
        let caps = self.ctx.capabilities();
        let cuts = Cuts::new(caps, dtype, [rows, cols], gating).map_err(|e| named(e, names))?;
        match dtype {
            DType::Quant(format) => self.upload_quant(names, format, &cuts),
            _ => self.upload_cut(names, dtype, cols, &cuts),
        }
    }

    /// The type of the matrices of a place.
    fn natural(&mut self, names: &[String]) -> Result<DType> {
        let place = |name: &str| {
            name.chars()
                .filter(|c| !c.is_ascii_digit())
                .collect::<String>()
        };
        let places: Vec<String> = names.iter().map(|n| place(n)).collect();
        if let Some(&known) = places.first().and_then(|p| self.types.get(p)) {
            return Ok(known);
        }
        let mut found = match names.first() {
            Some(name) => Some(natural(self.weights.tensor(name)?.stored)),
            None => None,
        };
        for name in self.weights.names().filter(|n| places.contains(&place(n))) {
            let dtype = natural(self.weights.tensor(name)?.stored);
            let quant = dtype.quant().is_some() || found.is_some_and(|f| f.quant().is_some());
            if quant && found != Some(dtype) {
                found = Some(DType::F16);
                break;
            }
        }
        // One scale for the whole stands for one matrix.
        let several = found
            .and_then(DType::quant)
            .filter(|f| f.group == Group::Tensor);
        let dtype = match several {
            Some(_) if names.len() > 1 => DType::F16,
            _ => found.unwrap_or(DType::F32),
        };
        self.types.extend(places.into_iter().map(|p| (p, dtype)));
        Ok(dtype)
    }

    fn upload_quant(&mut self, names: &[String], format: Format, cuts: &Cuts) -> Result<Matrix> {
        let mut parts = Vec::new();
        let (mut rows, mut cols, mut values) = (0, 0, Vec::new());
        for name in names {
            let stored = self.weights.tensor(name)?;
            (rows, cols) = (rows + stored.shape[0], stored.shape[1]);
            match stored.quant()?.filter(|m| m.layout().format == format) {
                Some(matrix) => parts.push(matrix),
                None => values.extend(finite(name, stored.to_f32()?)?),
            }
        }
        let matrix = if values.is_empty() {
            QuantMatrix::stack(&parts)?
        } else if parts.is_empty() {
            quantize(format, [rows, cols], &values)?
        } else {
            let was = format!("{format} in part");
            return Err(Error::argument(
                format!("tensors {}", names.join(" + ")),
                was,
                "one format",
            ));
        };
        let mut ranges = vec![Vec::new(); cuts.shapes(cols).count()];
        for run in cuts.runs() {
            ranges[run.part].push(run.rows);
        }
        let tensors = match &ranges[..] {
            [_] => vec![Tensor::from_quant(self.ctx, &matrix)?],
            several => {
                let part = |rows: &Vec<_>| Tensor::from_quant(self.ctx, &matrix.pick(rows)?);
                several.iter().map(part).collect::<Result<_>>()?
            }
        };
        for name in names {
            let shape = self.weights.tensor(name)?.shape;
            self.done += bytes(DType::Quant(format), &shape);
            self.in_flight += bytes(DType::Quant(format), &shape) as usize;
            self.tell(name);
        }
        self.bound_staging()?;
        Ok(cuts.matrix(tensors))
    }

    fn tell(&mut self, name: &str) {
        (self.progress)(Progress {
            tensor: name,
            done: self.done,
            total: self.total,
        });
    }

    fn bound_staging(&mut self) -> Result<()> {
        if self.in_flight > IN_FLIGHT {
            self.ctx.flush()?;
            self.in_flight = 0;
        }
        Ok(())
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
        let (dtype, bytes) = self.arranged_bytes(names, arrange)?;
        let tensor = Tensor::from_bytes(self.ctx, dtype, &bytes, shape)?;
        self.ctx.flush()?;
        Ok(tensor)
    }

    /// As [`arranged`](Self::arranged), for the host.
    pub(crate) fn arranged_bytes(
        &mut self,
        names: &[String],
        arrange: impl FnOnce(&[Vec<f32>]) -> Vec<f32>,
    ) -> Result<(DType, Vec<u8>)> {
        let natural = natural(self.weights.tensor(&names[0])?.stored);
        let dtype = self.dtype.unwrap_or(natural);
        let values = names
            .iter()
            .map(|n| self.values(n))
            .collect::<Result<Vec<_>>>()?;
        Ok((dtype, Tensor::encode_f32(dtype, &arrange(&values))?))
    }

    /// A vector, always f32: they are small, and norms want the precision.
    pub(crate) fn vector(&mut self, name: &str) -> Result<Tensor> {
        let len = self.weights.tensor(name)?.elements();
        self.upload(&[name.to_string()], DType::F32, &[len])
    }

    /// The values of a tensor, for the host.
    pub(crate) fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        let stored = self.weights.tensor(name)?;
        self.done += bytes(self.dtype.unwrap_or(natural(stored.stored)), &stored.shape);
        self.tell(name);
        stored.to_f32()
    }

    fn upload(&mut self, names: &[String], dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let target = Tensor::empty(self.ctx, dtype, shape).map_err(|e| named(e, names))?;
        let bytes = target.layout().bytes() as usize;
        self.stream(names, dtype, Regions::new([(target.clone(), 0, bytes)]))?;
        Ok(target)
    }

    /// Matrices one below the other, their rows in parts.
    fn upload_cut(
        &mut self,
        names: &[String],
        dtype: DType,
        cols: usize,
        cuts: &Cuts,
    ) -> Result<Matrix> {
        let parts = cuts.shapes(cols).map(|s| Tensor::empty(self.ctx, dtype, s));
        let parts: Vec<Tensor> = parts.collect::<Result<_>>().map_err(|e| named(e, names))?;
        let row = cols * dtype.size();
        let regions = cuts
            .runs()
            .map(|run| (parts[run.part].clone(), run.row * row, run.rows.len() * row));
        self.stream(names, dtype, Regions::new(regions))?;
        Ok(cuts.matrix(parts))
    }

    /// Tensors as they are stored, one after the other, into memory.
    fn stream(&mut self, names: &[String], dtype: DType, mut to: Regions) -> Result<()> {
        for name in names {
            let stored = self.weights.tensor(name)?;
            stored.convert(dtype, &mut |_, bytes| to.write(bytes))?;
            let bytes = stored.elements() * dtype.size();
            self.done += bytes as u64;
            self.in_flight += bytes;
            self.tell(name);
        }
        self.bound_staging()
    }
}

/// The error of a tensor, named by what is stored.
fn named(error: Error, names: &[String]) -> Error {
    match error {
        Error::Argument { was, allowed, .. } => Error::Argument {
            name: format!("tensor {}", names.join(" + ")),
            was,
            allowed,
        },
        other => other,
    }
}

/// Regions of tensors that bytes go to in their order, gathered until they are whole words.
struct Regions {
    left: VecDeque<Region>,
    pending: Vec<u8>,
}

struct Region {
    tensor: Tensor,
    at: usize,
    bytes: usize,
}

impl Regions {
    /// Tensors, where in them and how many bytes.
    fn new(regions: impl IntoIterator<Item = (Tensor, usize, usize)>) -> Self {
        let region = |(tensor, at, bytes)| Region { tensor, at, bytes };
        Self {
            left: regions.into_iter().map(region).collect(),
            pending: Vec::with_capacity(CHUNK + (1 << 20)),
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some(region) = self.left.front_mut()
            && !bytes.is_empty()
        {
            let taken = bytes.len().min(region.bytes - self.pending.len());
            self.pending.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            let ends = self.pending.len() == region.bytes;
            if !ends && self.pending.len() < CHUNK {
                continue;
            }
            let whole = if ends {
                region.bytes
            } else {
                self.pending.len() & !3
            };
            region
                .tensor
                .write_bytes(region.at, &self.pending[..whole])?;
            (region.at, region.bytes) = (region.at + whole, region.bytes - whole);
            self.pending.drain(..whole);
            if ends {
                self.left.pop_front();
            }
        }
        Ok(())
    }
}

/// The type that a stored tensor has on the device unless another is asked for: quantised ones stay what they are.
fn natural(stored: Stored) -> DType {
    match stored {
        Stored::F32 => DType::F32,
        Stored::BF16 => DType::BF16,
        Stored::F16 => DType::F16,
        Stored::Gguf(block) => DType::Quant(block.format()),
        Stored::Quant(format) => DType::Quant(format),
    }
}

/// Bytes of a tensor on the device: of quantised models, what is no matrix is f32.
fn bytes(dtype: DType, shape: &[usize]) -> u64 {
    let layout = match (dtype, shape) {
        (DType::Quant(format), &[rows, cols]) => QuantLayout::new(format, rows, cols).ok(),
        _ => None,
    };
    let size = if dtype.quant().is_some() {
        4
    } else {
        dtype.size()
    };
    layout.map_or((shape.iter().product::<usize>() * size) as u64, |l| {
        l.bytes()
    })
}
