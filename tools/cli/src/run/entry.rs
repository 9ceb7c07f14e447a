//! A kernel's entry: its inputs, parameters and outputs as data.

use anyhow::{Result, bail};
use flashwave::DType;
use flashwave::kernels::attention::Mask;
use flashwave::kernels::sparse::Pattern;
use safetensors::Dtype;

use super::call::Call;

/// A kernel that `flashwave run` knows.
pub struct Entry {
    /// What it is called.
    pub name: &'static str,
    /// What it computes, in a line.
    pub about: &'static str,
    /// The tensors it reads.
    pub inputs: &'static [Input],
    /// What `--set` sets.
    pub params: &'static [Param],
    /// The tensors it writes.
    pub outputs: &'static [Output],
    /// Calls the library.
    pub run: fn(&mut Call<'_>) -> Result<()>,
}

/// A tensor that a kernel reads.
pub struct Input {
    /// Its name in the file.
    pub name: &'static str,
    /// The element types it may have.
    pub dtypes: &'static [Dtype],
    /// Its shape, in words or letters.
    pub shape: &'static str,
    /// Whether it has to be there.
    pub need: Need,
}

/// Whether an input has to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It has to.
    Required,
    /// The kernel does without.
    Optional,
}

/// A tensor that a kernel writes.
pub struct Output {
    /// Its name in the file.
    pub name: &'static str,
    /// Its shape and element type, in words or letters.
    pub shape: &'static str,
}

/// A parameter that `--set` sets.
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What it is if not set.
    pub default: Default,
    /// What it means.
    pub about: &'static str,
}

/// The values a parameter takes.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A finite number.
    Number,
    /// A whole number from zero on.
    Count,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Which keys a query of attention sees.
    Mask,
    /// Which blocks of keys a block of queries meets.
    Pattern,
}

/// What a parameter is if not set.
#[derive(Clone, Copy)]
pub enum Default {
    /// This value.
    Value(&'static str),
    /// What the kernel derives, in words.
    Derived(&'static str),
}

/// A parsed value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of [`Kind::Number`].
    Number(f64),
    /// Of [`Kind::Count`].
    Count(usize),
    /// Of [`Kind::Choice`].
    Choice(&'static str),
    /// Of [`Kind::Mask`].
    Mask(Mask),
    /// Of [`Kind::Pattern`].
    Pattern(Pattern),
}

impl Kind {
    /// The values, for people.
    pub fn allowed(self) -> String {
        match self {
            Self::Number => "<number>".into(),
            Self::Count => "<count>".into(),
            Self::Choice(choices) => choices.join("|"),
            Self::Mask => "full|causal|window:left=N,right=N,sinks=N|prefix:N".into(),
            Self::Pattern => {
                "s2:stride=N,window=N|longgen:..|bigbird:..|dilated:..|banded:..|dense".into()
            }
        }
    }
}

impl Default {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Value(text) | Self::Derived(text) => text,
        }
    }
}

impl Param {
    /// Parses a value; the error names the parameter.
    pub fn parse(&self, text: &str) -> Result<Value> {
        let name = self.name;
        match self.kind {
            Kind::Number => match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Value::Number(number)),
                _ => bail!("{name}: {text}; allowed: a finite number"),
            },
            Kind::Count => match text.parse() {
                Ok(count) => Ok(Value::Count(count)),
                Err(_) => bail!("{name}: {text}; allowed: a whole number from 0 on"),
            },
            Kind::Choice(choices) => match choices.iter().find(|c| **c == text) {
                Some(choice) => Ok(Value::Choice(choice)),
                None => bail!("{name}: {text}; allowed: {}", choices.join(", ")),
            },
            Kind::Mask => Ok(Value::Mask(text.parse()?)),
            Kind::Pattern => Ok(Value::Pattern(text.parse()?)),
        }
    }
}

/// f32, f16 and bf16.
pub const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16];

/// The parameter that chooses the output's element type.
pub const DTYPE: Param = Param {
    name: "dtype",
    kind: Kind::Choice(&["f32", "f16", "bf16"]),
    default: Default::Derived("the input's"),
    about: "element type of the output",
};

/// A required input of any floating-point type.
pub const fn float(name: &'static str, shape: &'static str) -> Input {
    Input {
        name,
        dtypes: FLOATS,
        shape,
        need: Need::Required,
    }
}

/// As [`float`], for an input that a kernel does without.
pub const fn optional(name: &'static str, shape: &'static str) -> Input {
    Input {
        need: Need::Optional,
        ..float(name, shape)
    }
}

/// An optional input of f32 alone.
pub const fn optional_f32(name: &'static str, shape: &'static str) -> Input {
    Input {
        dtypes: &[Dtype::F32],
        ..optional(name, shape)
    }
}

/// Types of ids and positions: what kernels take, and what other programs write.
pub const IDS: &[Dtype] = &[Dtype::U32, Dtype::I32, Dtype::I64];

/// A safetensors type as this program names types.
pub fn dtype_name(dtype: Dtype) -> String {
    format!("{dtype:?}").to_lowercase()
}

/// The library's type for elements stored as `dtype`, if it has one.
pub fn library_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        // A mask: a byte each, zero for false.
        Dtype::I8 | Dtype::BOOL => DType::I8,
        Dtype::F8_E4M3 => DType::F8E4M3,
        Dtype::F8_E5M2 => DType::F8E5M2,
        _ => return None,
    })
}

/// How a file stores elements of `dtype`.
pub fn stored_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I32 => Dtype::I32,
        // Quantised matrices are words.
        DType::U32 | DType::Quant(_) => Dtype::U32,
        DType::I8 => Dtype::I8,
        DType::F8E4M3 => Dtype::F8_E4M3,
        DType::F8E5M2 => Dtype::F8_E5M2,
    }
}
