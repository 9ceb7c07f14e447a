//! How keys and values are stored: formats, and where the parts of a cache lie.

use std::fmt;
use std::str::FromStr;

use crate::dtype::DType;
use crate::error::{Error, Result};

/// The format of cached keys or values. All of a row's channels (one token, one head) are coded alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// f32.
    F32,
    /// f16.
    F16,
    /// bf16.
    BF16,
    /// 8-bit integers, -127 to 127, times an f32 scale for each row.
    Int8,
    /// OCP FP8 E4M3, without a scale: numbers beyond 448 become 448, NaN does too.
    F8E4M3,
    /// OCP FP8 E5M2, without a scale: numbers beyond 57344 become 57344, NaN does too.
    F8E5M2,
    /// Block floating point: 8-bit integers, -127 to 127, times a power of two for each block of so many channels
    /// (Accurate block quantization, arXiv 2403.20137): a multiple of 16, at most 128.
    Block8(u32),
}

/// What multiplies a row's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scaling {
    None,
    /// An f32 for the row.
    Row,
    /// An exponent byte (E8M0: 2^(byte - 127)) for each block of channels.
    Block(u32),
}

impl KvFormat {
    /// The formats, with blocks of 32 channels.
    pub const ALL: [Self; 7] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Int8,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::Block8(32),
    ];

    /// The name of its kind, as `flashwave run` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Block8(_) => "block8",
            other => other.code().name(),
        }
    }

    /// The format of floating-point type.
    pub fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32),
            DType::F16 => Ok(Self::F16),
            DType::BF16 => Ok(Self::BF16),
            other => Err(Error::argument("format", other, "f32, f16 or bf16")),
        }
    }

    /// The type, if it is one of floating-point numbers as they are.
    pub const fn float(self) -> Option<DType> {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => Some(self.code()),
            _ => None,
        }
    }

    /// The type of its codes.
    pub(crate) const fn code(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::Int8 | Self::Block8(_) => DType::I8,
            Self::F8E4M3 => DType::F8E4M3,
            Self::F8E5M2 => DType::F8E5M2,
        }
    }

    pub(crate) const fn scaling(self) -> Scaling {
        match self {
            Self::Int8 => Scaling::Row,
            Self::Block8(channels) => Scaling::Block(channels),
            _ => Scaling::None,
        }
    }

    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Block8(n) if n == 0 || n > 128 || !n.is_multiple_of(16) => Err(Error::argument(
                "format",
                format!("blocks of {n} channels"),
                "a multiple of 16, at most 128",
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Block8(channels) => write!(f, ":{channels}"),
            _ => Ok(()),
        }
    }
}

/// Reads what `Display` writes; `block8` alone has blocks of 32 channels.
impl FromStr for KvFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = match text.strip_prefix("block8:") {
            Some(channels) => channels.parse().ok().map(Self::Block8),
            None => Self::ALL.into_iter().find(|f| f.name() == text),
        };
        let names = Self::ALL.map(Self::name).join(", ");
        let allowed = format!("{names} or block8:CHANNELS");
        let format = found.ok_or_else(|| Error::argument("format", text, allowed))?;
        format.check()?;
        Ok(format)
    }
}

impl Scaling {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Row => "row",
            Self::Block(_) => "block",
        }
    }

    /// Channels of a block; zero without blocks.
    pub(crate) const fn block(self) -> u32 {
        match self {
            Self::Block(channels) => channels,
            _ => 0,
        }
    }

    /// Words of a row of `dim` channels.
    pub(crate) const fn words(self, dim: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Row => 1,
            Self::Block(channels) => dim.div_ceil(channels as usize).div_ceil(4),
        }
    }
}

/// Where cached keys or values lie, in 32-bit words: first the codes `[pages, heads, page_size, row]`, a row being `dim`
/// codes and zeros up to a multiple of 16 bytes, then the scales `[pages, heads, page_size, words]` (nothing, an f32,
/// or a byte a block in whole words).
///
/// A cache in one piece has a page for each sequence, of its capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvLayout {
    /// How rows are coded.
    pub format: KvFormat,
    /// Pages of the pool.
    pub pages: usize,
    /// Key heads.
    pub heads: usize,
    /// Tokens of a page.
    pub page_size: usize,
    /// Channels of a head.
    pub dim: usize,
}

impl KvLayout {
    /// Errors if a size is zero, a block is none, or there are 2^32 codes or words or more.
    pub fn new(
        format: KvFormat,
        pages: usize,
        heads: usize,
        page_size: usize,
        dim: usize,
    ) -> Result<Self> {
        format.check()?;
        let layout = Self {
            format,
            pages,
            heads,
            page_size,
            dim,
        };
        let shape = [pages, heads, page_size, dim];
        let rows = [pages, heads, page_size]
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d));
        let fits = rows
            .and_then(|n| n.checked_mul(layout.row() + layout.scale_words()))
            .is_some_and(|n| u32::try_from(n).is_ok());
        if shape.contains(&0) || !fits {
            return Err(Error::argument(
                "cache",
                format!("[pages, heads, page_size, dim] = {shape:?}"),
                "sizes from 1 on, fewer than 2^32 elements",
            ));
        }
        Ok(layout)
    }

    /// Codes from row to row.
    pub(crate) fn row(&self) -> usize {
        self.dim.next_multiple_of(16 / self.format.code().size())
    }

    /// Words of a row's scales.
    pub(crate) fn scale_words(&self) -> usize {
        self.format.scaling().words(self.dim)
    }

    /// Rows of all pages.
    pub(crate) fn rows(&self) -> usize {
        self.pages * self.heads * self.page_size
    }

    /// The word that the scales start at.
    pub(crate) fn scales_at(&self) -> usize {
        self.rows() * self.row() * self.format.code().size() / 4
    }

    /// Words in all.
    pub fn words(&self) -> usize {
        self.scales_at() + self.rows() * self.scale_words()
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        4 * self.words() as u64
    }
}
