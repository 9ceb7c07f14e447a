//! Tensors in and out of safetensors files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use flashwave::Tensor;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::entry::{Entry, Need, dtype_name, stored_dtype};

/// A tensor of a file.
pub struct Stored {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Its elements, little-endian.
    pub bytes: Vec<u8>,
}

/// The inputs of a kernel from a file: all that are required, none that it does not know, each of a type it takes.
pub fn read(entry: &Entry, path: &Path) -> Result<BTreeMap<String, Stored>> {
    let named = || path.display().to_string();
    let data = std::fs::read(path).with_context(named)?;
    let file = SafeTensors::deserialize(&data).with_context(named)?;
    let mut inputs = BTreeMap::new();
    for (name, view) in file.tensors() {
        let Some(input) = entry.inputs.iter().find(|i| i.name == name) else {
            let names: Vec<&str> = entry.inputs.iter().map(|i| i.name).collect();
            bail!("input {name}: unknown; allowed: {}", names.join(", "));
        };
        if !input.dtypes.contains(&view.dtype()) {
            let allowed: Vec<String> = input.dtypes.iter().map(|&d| dtype_name(d)).collect();
            let was = dtype_name(view.dtype());
            bail!("input {name}: {was}; allowed: {}", allowed.join(", "));
        }
        let stored = Stored {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
        inputs.insert(name, stored);
    }
    for input in entry.inputs {
        if input.need == Need::Required && !inputs.contains_key(input.name) {
            bail!(
                "input {}: missing in {}; {}",
                input.name,
                path.display(),
                input.shape
            );
        }
    }
    Ok(inputs)
}

/// Writes the outputs, waiting for the device.
pub fn write(path: &Path, outputs: &[(&'static str, Tensor)]) -> Result<()> {
    let mut data = Vec::new();
    for (name, tensor) in outputs {
        let bytes = pollster::block_on(tensor.to_bytes_async())
            .with_context(|| format!("output {name}"))?;
        data.push((*name, tensor, bytes));
    }
    let views = data
        .iter()
        .map(|(name, tensor, bytes)| {
            let dtype = stored_dtype(tensor.dtype());
            Ok((
                *name,
                TensorView::new(dtype, tensor.shape().to_vec(), bytes)?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, None)?;
    std::fs::write(path, bytes).with_context(|| path.display().to_string())
}
