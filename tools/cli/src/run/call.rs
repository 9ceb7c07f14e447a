//! One call of a kernel: its inputs and parameters by name, and the outputs it leaves.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, bail};
use flashwave::kernels::attention::Mask;
use flashwave::kernels::sparse::Pattern;
use flashwave::{Context, DType, Tensor};
use safetensors::Dtype;

use super::entry::{Default, Entry, Value, library_dtype};
use super::files::Stored;

/// One call.
pub struct Call<'a> {
    ctx: &'a Context,
    entry: &'static Entry,
    inputs: BTreeMap<String, Stored>,
    sets: BTreeMap<&'static str, Value>,
    outputs: Vec<(&'static str, Tensor)>,
}

/// Parses `NAME=VALUE` arguments against the entry's parameters.
pub fn parse_sets(entry: &Entry, sets: &[String]) -> Result<BTreeMap<&'static str, Value>> {
    let mut parsed = BTreeMap::new();
    for set in sets {
        let Some((name, text)) = set.split_once('=') else {
            bail!("--set: {set}; allowed: NAME=VALUE");
        };
        let Some(param) = entry.params.iter().find(|p| p.name == name) else {
            let names: Vec<&str> = entry.params.iter().map(|p| p.name).collect();
            let allowed = match names.is_empty() {
                true => format!("nothing, {} has no parameters", entry.name),
                false => names.join(", "),
            };
            bail!("--set {name}: unknown; allowed: {allowed}");
        };
        let value = param.parse(text).with_context(|| format!("--set {set}"))?;
        if parsed.insert(param.name, value).is_some() {
            bail!("--set {name}: set twice; allowed: once");
        }
    }
    Ok(parsed)
}

impl<'a> Call<'a> {
    /// A call of `entry`.
    pub fn new(
        ctx: &'a Context,
        entry: &'static Entry,
        inputs: BTreeMap<String, Stored>,
        sets: BTreeMap<&'static str, Value>,
    ) -> Self {
        Self {
            ctx,
            entry,
            inputs,
            sets,
            outputs: Vec::new(),
        }
    }

    /// The context to run on.
    pub fn ctx(&self) -> &'a Context {
        self.ctx
    }

    /// The input of this name, if the file has it, as the file has it.
    pub fn stored(&self, name: &str) -> Option<&Stored> {
        self.inputs.get(name)
    }

    /// The input of this name on the device, if the file has it.
    pub fn optional(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(stored) = self.stored(name) else {
            return Ok(None);
        };
        let dtype = library_dtype(stored.dtype)
            .ok_or_else(|| anyhow!("input {name}: {:?} has no kernel", stored.dtype))?;
        let tensor = Tensor::from_bytes(self.ctx, dtype, &stored.bytes, &stored.shape);
        Ok(Some(tensor.with_context(|| format!("input {name}"))?))
    }

    /// The required input of this name on the device.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.optional(name)?
            .ok_or_else(|| anyhow!("input {name}: missing"))
    }

    /// An input of ids or positions with its shape, if the file has it.
    pub fn ids(&self, name: &str) -> Result<Option<(Vec<u32>, Vec<usize>)>> {
        let Some(stored) = self.stored(name) else {
            return Ok(None);
        };
        let bytes = &stored.bytes;
        let wide: Vec<i64> = match stored.dtype {
            Dtype::I64 => bytemuck::pod_collect_to_vec(bytes),
            Dtype::I32 => bytemuck::pod_collect_to_vec::<u8, i32>(bytes)
                .into_iter()
                .map(i64::from)
                .collect(),
            _ => bytemuck::pod_collect_to_vec::<u8, u32>(bytes)
                .into_iter()
                .map(i64::from)
                .collect(),
        };
        let narrow = wide.iter().enumerate().map(|(place, &id)| {
            u32::try_from(id)
                .map_err(|_| anyhow!("input {name}: {id} at place {place}; allowed: 0 to 2^32 - 1"))
        });
        Ok(Some((narrow.collect::<Result<_>>()?, stored.shape.clone())))
    }

    /// The value of a parameter: as set, or its default; `None` where the kernel derives it.
    fn value(&self, name: &str) -> Result<Option<Value>> {
        if let Some(value) = self.sets.get(name) {
            return Ok(Some(value.clone()));
        }
        let param = self.entry.params.iter().find(|p| p.name == name);
        let param = param.ok_or_else(|| anyhow!("{} has no parameter {name}", self.entry.name))?;
        match param.default {
            Default::Value(text) => Ok(Some(param.parse(text)?)),
            Default::Derived(_) => Ok(None),
        }
    }

    /// A choice; `None` where it is not set and derived.
    pub fn choice(&self, name: &str) -> Result<Option<&'static str>> {
        match self.value(name)? {
            Some(Value::Choice(choice)) => Ok(Some(choice)),
            None => Ok(None),
            Some(other) => bail!("{name}: {other:?} is no choice"),
        }
    }

    /// A mask of attention; `None` where it is not set and derived.
    pub fn mask(&self, name: &str) -> Result<Option<Mask>> {
        match self.value(name)? {
            Some(Value::Mask(mask)) => Ok(Some(mask)),
            None => Ok(None),
            Some(other) => bail!("{name}: {other:?} is no mask"),
        }
    }

    /// A pattern of block-sparse attention; `None` where it is not set and derived.
    pub fn pattern(&self, name: &str) -> Result<Option<Pattern>> {
        match self.value(name)? {
            Some(Value::Pattern(pattern)) => Ok(Some(pattern)),
            None => Ok(None),
            Some(other) => bail!("{name}: {other:?} is no pattern"),
        }
    }

    /// A number; `None` where it is not set and derived.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        match self.value(name)? {
            Some(Value::Number(number)) => Ok(Some(number)),
            None => Ok(None),
            Some(other) => bail!("{name}: {other:?} is no number"),
        }
    }

    /// A whole number; `None` where it is not set and derived.
    pub fn count(&self, name: &str) -> Result<Option<usize>> {
        match self.value(name)? {
            Some(Value::Count(count)) => Ok(Some(count)),
            None => Ok(None),
            Some(other) => bail!("{name}: {other:?} is no count"),
        }
    }

    /// The element type of the output: as set, or `input`'s.
    pub fn dtype(&self, input: &Tensor) -> Result<DType> {
        Ok(match self.choice("dtype")? {
            Some("f32") => DType::F32,
            Some("f16") => DType::F16,
            Some("bf16") => DType::BF16,
            _ => input.dtype(),
        })
    }

    /// Leaves an output.
    pub fn output(&mut self, name: &'static str, tensor: Tensor) -> Result<()> {
        if !self.entry.outputs.iter().any(|o| o.name == name) {
            bail!("{} has no output {name}", self.entry.name);
        }
        self.outputs.push((name, tensor));
        Ok(())
    }

    /// The outputs left.
    pub fn into_outputs(self) -> Vec<(&'static str, Tensor)> {
        self.outputs
    }
}
