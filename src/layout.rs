//! Where a tensor's elements lie: shape, strides and offset, without the memory. Planners read it.

use std::fmt;
use std::ops::Range;

use arrayvec::ArrayVec;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quant::QuantLayout;

/// Most dimensions a tensor can have.
pub const MAX_RANK: usize = 6;

/// Sizes of the dimensions, or distances along them, outermost first.
pub type Dims = ArrayVec<usize, MAX_RANK>;

/// Element type, shape, strides and offset of a tensor, all in elements.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    dtype: DType,
    shape: Dims,
    strides: Dims,
    offset: usize,
}

/// A layout seen as a matrix: `rows` rows of `cols` adjacent elements, `stride` elements from row to row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Number of rows: the product of all dimensions but the last.
    pub rows: usize,
    /// Size of the last dimension.
    pub cols: usize,
    /// Distance between rows.
    pub stride: usize,
    /// Where the first row starts.
    pub offset: usize,
}

impl Rows {
    /// Whether every row starts at, and holds, a multiple of `n` elements.
    pub fn multiple_of(&self, n: usize) -> bool {
        [self.cols, self.offset].iter().all(|v| v.is_multiple_of(n))
            && (self.rows == 1 || self.stride.is_multiple_of(n))
    }

    /// The widest access in elements, of 8, 4 and 1, that every row is made of.
    pub(crate) fn alignment(self) -> u32 {
        match (self.multiple_of(8), self.multiple_of(4)) {
            (true, _) => 8,
            (_, true) => 4,
            _ => 1,
        }
    }
}

/// A layout seen as matrices of one shape: a batch of [`Rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrices {
    /// Number of matrices: the product of all dimensions but the last two.
    pub batch: usize,
    /// Distance between matrices.
    pub batch_stride: usize,
    /// Rows of one matrix.
    pub rows: usize,
    /// Size of the last dimension.
    pub cols: usize,
    /// Distance between rows.
    pub stride: usize,
    /// Where the first matrix starts.
    pub offset: usize,
}

impl Matrices {
    /// Whether every row starts at, and holds, a multiple of `n` elements.
    pub fn multiple_of(&self, n: usize) -> bool {
        [self.cols, self.offset].iter().all(|v| v.is_multiple_of(n))
            && (self.rows == 1 || self.stride.is_multiple_of(n))
            && (self.batch == 1 || self.batch_stride.is_multiple_of(n))
    }
}

impl Layout {
    /// Row-major without gaps. Errors if a dimension is zero, if there are more than [`MAX_RANK`], or 2^32
    /// elements or more. Of quantised formats there are matrices alone.
    pub fn contiguous(dtype: DType, shape: impl AsRef<[usize]>) -> Result<Self> {
        let shape = shape.as_ref();
        if shape.len() > MAX_RANK || shape.contains(&0) {
            return Err(Error::argument(
                "shape",
                format!("{shape:?}"),
                format!("at most {MAX_RANK} dimensions, none of them zero"),
            ));
        }
        let len = shape
            .iter()
            .try_fold(1u32, |n, &d| n.checked_mul(u32::try_from(d).ok()?));
        if len.is_none() {
            return Err(Error::argument(
                "shape",
                format!("{shape:?}"),
                "fewer than 2^32 elements",
            ));
        }
        if let DType::Quant(format) = dtype {
            let &[rows, cols] = shape else {
                let was = format!("{shape:?} of {format}");
                return Err(Error::argument("shape", was, "two dimensions"));
            };
            QuantLayout::new(format, rows, cols)?;
        }
        Ok(Self {
            dtype,
            shape: shape.iter().copied().collect(),
            strides: row_major(shape),
            offset: 0,
        })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Distance in elements between neighbours along each dimension.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Where the first element is in the memory, in elements.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Number of elements; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a tensor is never empty")]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> u64 {
        match self.quant() {
            Some(quant) => quant.bytes(),
            None => self.len() as u64 * self.dtype.size() as u64,
        }
    }

    /// Where the parts of a quantised matrix lie.
    pub fn quant(&self) -> Option<QuantLayout> {
        match (self.dtype, self.shape()) {
            (DType::Quant(format), &[rows, cols]) => Some(QuantLayout { format, rows, cols }),
            _ => None,
        }
    }

    /// Errors for quantised matrices, which have no views.
    fn require_plain(&self) -> Result<()> {
        match self.dtype {
            DType::Quant(_) => Err(Error::argument(
                "view",
                format!("part of {self:?}"),
                "the whole of a quantised matrix",
            )),
            _ => Ok(()),
        }
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        // The stride of a dimension of one element is never used.
        let expected = row_major(&self.shape);
        (0..self.rank()).all(|d| self.shape[d] == 1 || self.strides[d] == expected[d])
    }

    /// The part with indices `range` along dimension `dim`.
    pub fn narrow(&self, dim: usize, range: Range<usize>) -> Result<Self> {
        let Some(&size) = self.shape.get(dim) else {
            return Err(Error::argument(
                "dim",
                dim,
                format!("less than the tensor's rank {}", self.rank()),
            ));
        };
        if range.start >= range.end || range.end > size {
            let allowed = format!("a part of 0..{size}, not empty");
            return Err(Error::argument("range", format!("{range:?}"), allowed));
        }
        if range.len() < size {
            self.require_plain()?;
        }
        let mut part = self.clone();
        part.shape[dim] = range.len();
        part.offset += range.start * self.strides[dim];
        Ok(part)
    }

    /// Another shape over the same elements, which must be contiguous.
    pub fn reshape(&self, shape: impl AsRef<[usize]>) -> Result<Self> {
        let mut reshaped = Self::contiguous(self.dtype, shape)?;
        if reshaped.shape != self.shape {
            self.require_plain()?;
        }
        if !self.is_contiguous() || reshaped.len() != self.len() {
            return Err(Error::argument(
                "shape",
                format!("{:?} of {self:?}", reshaped.shape()),
                format!("{} elements of a contiguous tensor", self.len()),
            ));
        }
        reshaped.offset = self.offset;
        Ok(reshaped)
    }

    /// Splits the last dimension, `heads * head_dim` wide, in two.
    pub fn split_heads(&self, heads: usize) -> Result<Self> {
        let Some(dim) = self
            .rank()
            .checked_sub(1)
            .filter(|_| self.rank() < MAX_RANK)
        else {
            return Err(Error::argument(
                "tensor",
                format!("{self:?}"),
                format!("1 to {} dimensions", MAX_RANK - 1),
            ));
        };
        self.require_plain()?;
        let (last, stride) = (self.shape[dim], self.strides[dim]);
        if heads == 0 || !last.is_multiple_of(heads) {
            return Err(Error::argument(
                "heads",
                heads,
                format!("a divisor of the last dimension, {last}"),
            ));
        }
        let mut split = self.clone();
        split.shape[dim] = heads;
        split.strides[dim] = stride * (last / heads);
        split.shape.push(last / heads);
        split.strides.push(stride);
        Ok(split)
    }

    /// Exchanges two dimensions.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        if a.max(b) >= self.rank() {
            return Err(Error::argument(
                "dim",
                a.max(b),
                format!("less than the tensor's rank {}", self.rank()),
            ));
        }
        self.require_plain()?;
        let mut turned = self.clone();
        turned.shape.swap(a, b);
        turned.strides.swap(a, b);
        Ok(turned)
    }

    /// The layout as a matrix of its last dimension, whose elements must be adjacent, with the leading
    /// dimensions merged, which must be evenly spaced. `name` is what an error calls the tensor.
    pub fn as_rows(&self, name: &str) -> Result<Rows> {
        let allowed = "adjacent elements in the last dimension, evenly spaced rows";
        let unfit = || Error::argument(name, format!("{self:?}"), allowed);
        let Some((&cols, leading)) = self.shape.split_last() else {
            return Ok(Rows {
                rows: 1,
                cols: 1,
                stride: 1,
                offset: self.offset,
            });
        };
        if cols > 1 && self.strides[leading.len()] != 1 {
            return Err(unfit());
        }
        let leading = leading.len();
        let (rows, stride) =
            merge(&self.shape[..leading], &self.strides[..leading], cols).ok_or_else(unfit)?;
        Ok(Rows {
            rows,
            cols,
            stride,
            offset: self.offset,
        })
    }

    /// The layout with its leading dimensions merged into one, as [`as_rows`](Self::as_rows) sees it.
    pub fn flatten_rows(&self, name: &str) -> Result<Self> {
        let rows = self.as_rows(name)?;
        Ok(Self {
            dtype: self.dtype,
            shape: [rows.rows, rows.cols].into_iter().collect(),
            strides: [rows.stride, 1].into_iter().collect(),
            offset: self.offset,
        })
    }

    /// The layout as matrices of its last two dimensions, whose rows must be of adjacent elements, with the
    /// dimensions before them merged, which must be evenly spaced. `name` is what an error calls the tensor.
    pub fn as_matrices(&self, name: &str) -> Result<Matrices> {
        let unfit = || {
            let allowed =
                "two or more dimensions, adjacent elements in the last, evenly spaced matrices";
            Error::argument(name, format!("{self:?}"), allowed)
        };
        let leading = self.rank().checked_sub(2).ok_or_else(unfit)?;
        let (rows, cols) = (self.shape[leading], self.shape[leading + 1]);
        if cols > 1 && self.strides[leading + 1] != 1 {
            return Err(unfit());
        }
        let (batch, batch_stride) =
            merge(&self.shape[..leading], &self.strides[..leading], 0).ok_or_else(unfit)?;
        Ok(Matrices {
            batch,
            batch_stride,
            rows,
            cols,
            stride: if rows == 1 {
                cols
            } else {
                self.strides[leading]
            },
            offset: self.offset,
        })
    }

    /// Errors unless the element type is f32, f16 or bf16.
    pub fn require_float(&self, name: &str) -> Result<()> {
        if self.dtype.is_float() {
            return Ok(());
        }
        Err(Error::argument(name, self.dtype, "f32, f16 or bf16"))
    }

    /// Errors unless the element type is f32, f16, bf16 or a quantised format.
    pub fn require_weights(&self, name: &str) -> Result<()> {
        if self.dtype.is_float() || self.dtype.quant().is_some() {
            return Ok(());
        }
        let allowed = "f32, f16, bf16 or a quantised format";
        Err(Error::argument(name, self.dtype, allowed))
    }

    /// Errors unless the elements lie without gaps from the start of the memory on.
    pub fn require_whole(&self, name: &str) -> Result<()> {
        if self.is_contiguous() && self.offset == 0 {
            return Ok(());
        }
        let was = format!("{self:?} from {}", self.offset);
        Err(Error::argument(name, was, "contiguous, from 0 on"))
    }

    /// Errors unless the element type is `dtype`.
    pub fn require_dtype(&self, name: &str, dtype: DType) -> Result<()> {
        if self.dtype == dtype {
            return Ok(());
        }
        Err(Error::argument(name, self.dtype, dtype.name()))
    }

    /// Errors unless the shape is `shape`.
    pub fn require_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        if self.shape() == shape {
            return Ok(());
        }
        Err(Error::argument(
            name,
            format!("shape {:?}", self.shape()),
            format!("{shape:?}"),
        ))
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape.as_slice())?;
        if !self.is_contiguous() {
            write!(f, " strides {:?}", self.strides.as_slice())?;
        }
        Ok(())
    }
}

/// Dimensions seen as one: its size and stride (`single` where there is but one element), if evenly spaced.
fn merge(shape: &[usize], strides: &[usize], single: usize) -> Option<(usize, usize)> {
    let (mut count, mut stride) = (1, single);
    // From the innermost outwards.
    for (&size, &step) in shape.iter().zip(strides).rev() {
        if size == 1 {
            continue;
        }
        if count == 1 {
            stride = step;
        } else if step != count * stride {
            return None;
        }
        count *= size;
    }
    Some((count, stride))
}

fn row_major(shape: &[usize]) -> Dims {
    let mut strides: Dims = shape.iter().map(|_| 1).collect();
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(shape: &[usize]) -> Layout {
        Layout::contiguous(DType::F32, shape).unwrap()
    }

    #[test]
    fn rows_merge_leading_dimensions_where_they_are_even() {
        let x = layout(&[2, 3, 8]);
        assert_eq!(
            x.as_rows("x").unwrap(),
            Rows {
                rows: 6,
                cols: 8,
                stride: 8,
                offset: 0
            }
        );
        let part = x.narrow(2, 2..6).unwrap();
        assert_eq!(
            part.as_rows("x").unwrap(),
            Rows {
                rows: 6,
                cols: 4,
                stride: 8,
                offset: 2
            }
        );
        let gap = x.narrow(1, 0..2).unwrap();
        assert!(
            gap.as_rows("x")
                .unwrap_err()
                .to_string()
                .starts_with("x: f32 [2, 2, 8] strides")
        );
        assert!(x.transpose(1, 2).unwrap().as_rows("x").is_err());
    }

    #[test]
    fn views_keep_their_place() {
        let qkv = layout(&[5, 96]);
        let k = qkv.narrow(1, 64..80).unwrap().split_heads(2).unwrap();
        assert_eq!(
            (k.shape(), k.strides(), k.offset()),
            (&[5, 2, 8][..], &[96, 8, 1][..], 64)
        );
        assert!(!k.is_contiguous() && qkv.rows(2).is_contiguous());
        assert!(
            qkv.split_heads(7).is_err()
                && qkv.narrow(1, 3..3).is_err()
                && qkv.narrow(2, 0..1).is_err()
        );
    }

    #[test]
    fn shapes_out_of_bounds_are_refused() {
        for shape in [&[0][..], &[1; 7], &[65536, 65536], &[usize::MAX, 2]] {
            assert!(Layout::contiguous(DType::F16, shape).is_err(), "{shape:?}");
        }
    }

    impl Layout {
        fn rows(&self, n: usize) -> Self {
            self.narrow(0, 0..n).unwrap()
        }
    }
}
