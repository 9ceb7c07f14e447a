//! Weight matrices, in as many tensors as the device's limit for one binding asks for, and products with them.

use std::ops::Range;

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::elementwise::Activation;
use crate::kernels::embedding;
use crate::kernels::gemm::{Gating, Residual};
use crate::kernels::linear::{GatedLinear, GatedLinearArgs, Linear, LinearArgs, LinearPlan};
use crate::quant::{Group, QuantLayout};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Columns of the output that a part has: multiples of this, whole tiles of any kernel.
const STEP: usize = 64;

/// A weight matrix on the device. Each part makes columns of the output of its own: it has their rows, of a gated
/// product their gate rows and then their up rows.
#[derive(Clone)]
pub(crate) struct Matrix {
    /// At least one.
    parts: Vec<Tensor>,
    gating: Gating,
}

/// Rows of a matrix that go to one part, from `row` of it on.
pub(crate) struct Run {
    pub(crate) part: usize,
    pub(crate) row: usize,
    pub(crate) rows: Range<usize>,
}

/// Which columns of the output each part of a matrix makes.
pub(crate) struct Cuts {
    columns: Vec<Range<usize>>,
    gating: Gating,
}

impl Cuts {
    /// As few parts as the device allows of a matrix of `rows` by `cols`. What many rows of x expand a part of a quantised
    /// matrix to has to fit too.
    ///
    /// Errors if the least part does not fit.
    pub(crate) fn new(
        caps: &Capabilities,
        dtype: DType,
        [rows, cols]: [usize; 2],
        gating: Gating,
    ) -> Result<Self> {
        let columns = rows / gating.factor();
        let limit = caps.tensor_bytes();
        let bytes = |columns: usize| -> Result<u64> {
            let rows = columns * gating.factor();
            let expanded = (rows * cols) as u64;
            match dtype {
                DType::Quant(f) => Ok(QuantLayout::new(f, rows, cols)?.bytes().max(4 * expanded)),
                plain => Ok(plain.size() as u64 * expanded),
            }
        };
        // No part ends within a block that shares a scale.
        let block = match dtype.quant().map(|f| f.group) {
            Some(Group::Block(rows, _)) => rows as usize,
            _ => 1,
        };
        let step = STEP * block / common(STEP, block);
        let whole = bytes(columns)?;
        let mut count = whole.div_ceil(limit).max(1) as usize;
        let width = loop {
            let width = match count {
                1 => columns,
                _ => columns.div_ceil(count).next_multiple_of(step),
            };
            if bytes(width)? <= limit {
                break width;
            }
            if width <= step {
                return Err(Error::argument(
                    "matrix",
                    format!("{dtype} [{rows}, {cols}]"),
                    format!("{step} rows within {limit} bytes, this device's limit for a binding"),
                ));
            }
            count += 1;
        };
        let starts = (0..columns).step_by(width.max(1));
        Ok(Self {
            columns: starts.map(|at| at..columns.min(at + width)).collect(),
            gating,
        })
    }

    /// The shape of each part of a matrix of so many columns.
    pub(crate) fn shapes(&self, cols: usize) -> impl Iterator<Item = [usize; 2]> {
        let factor = self.gating.factor();
        self.columns.iter().map(move |c| [c.len() * factor, cols])
    }

    /// Where the matrix's rows go, in their order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> {
        let columns = self.columns.last().map_or(0, |c| c.end);
        (0..self.gating.factor()).flat_map(move |half| {
            let run = move |(part, c): (usize, &Range<usize>)| Run {
                part,
                row: half * c.len(),
                rows: half * columns + c.start..half * columns + c.end,
            };
            self.columns.iter().enumerate().map(run)
        })
    }

    /// The matrix of these parts.
    pub(crate) fn matrix(&self, parts: Vec<Tensor>) -> Matrix {
        Matrix {
            parts,
            gating: self.gating,
        }
    }
}

/// The largest number that divides both.
fn common(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common(b, a % b) }
}

impl Matrix {
    /// One that is whole.
    pub(crate) fn whole(tensor: Tensor) -> Self {
        Self {
            parts: vec![tensor],
            gating: Gating::None,
        }
    }

    /// Itself, for kernels that do not take parts; errors if there are several.
    pub(crate) fn require_whole(self, name: &str) -> Result<Self> {
        match self.parts.len() {
            1 => Ok(self),
            parts => Err(Error::argument(
                name,
                format!("{} bytes in {parts} parts", self.bytes()),
                "what fits this device's limit for one binding",
            )),
        }
    }

    /// The tensor of a matrix that is whole; of others the first part.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.parts[0]
    }

    /// The type of its elements.
    pub(crate) fn dtype(&self) -> DType {
        self.tensor().dtype()
    }

    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.layout().bytes()).sum()
    }

    /// Records `out[i] = self[ids[i]]`; see [`embedding::gather`].
    pub(crate) fn gather(&self, pass: &mut Pass<'_>, ids: &Tensor, out: &Tensor) -> Result<()> {
        embedding::gather_parts(pass, &self.parts, ids, out)
    }
}

/// out = norm(x) W^T, or silu(norm(x) G^T) * (norm(x) U^T) of a gated matrix.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) matrix: &'a Matrix,
    /// RMSNorm of x on its way in, as [`LinearArgs::norm`].
    pub(crate) norm: Option<(&'a Tensor, f32)>,
    pub(crate) sum: Sum,
    pub(crate) out: &'a Tensor,
}

/// What becomes of what the output holds.
#[derive(Clone, Copy)]
pub(crate) enum Sum {
    /// It is overwritten.
    Set,
    /// The product is added to it.
    Add,
}

impl<'a> Product<'a> {
    /// Neither with a norm nor added.
    pub(crate) fn new(x: &'a Tensor, matrix: &'a Matrix, out: &'a Tensor) -> Self {
        Self {
            x,
            matrix,
            norm: None,
            sum: Sum::Set,
            out,
        }
    }

    /// The product of each part.
    fn each(
        &self,
        mut body: impl FnMut(usize, &LinearArgs<'_, Tensor>) -> Result<()>,
    ) -> Result<()> {
        let mut args = |i: usize, weight: &Tensor, out: &Tensor| {
            let args = LinearArgs {
                norm: self.norm,
                residual: match self.sum {
                    Sum::Set => Residual::None,
                    Sum::Add => Residual::InOut,
                },
                ..LinearArgs::new(self.x, weight, out)
            };
            body(i, &args)
        };
        if let [whole] = &self.matrix.parts[..] {
            return args(0, whole, self.out);
        }
        let mut at = 0;
        for (i, part) in self.matrix.parts.iter().enumerate() {
            let columns = part.shape()[0] / self.matrix.gating.factor();
            args(i, part, &self.out.narrow(1, at..at + columns)?)?;
            at += columns;
        }
        Ok(())
    }

    /// Plans it, for all matrices of this layout.
    pub(crate) fn plan(&self, caps: &Capabilities) -> Result<Vec<LinearPlan>> {
        let mut plans = Vec::with_capacity(self.matrix.parts.len());
        self.each(|_, args| {
            let layouts = args.layouts();
            plans.push(match self.matrix.gating {
                Gating::None => {
                    let activation = Activation::None;
                    Linear { activation }.plan(caps, &layouts)?
                }
                Gating::GateUp => {
                    let activation = Activation::Silu;
                    let args = GatedLinearArgs {
                        x: layouts.x,
                        weight: layouts.weight,
                        norm: layouts.norm,
                        out: layouts.out,
                    };
                    GatedLinear { activation }.plan(caps, &args)?
                }
            });
            Ok(())
        })?;
        Ok(plans)
    }

    /// Records what was planned.
    pub(crate) fn launch(&self, pass: &mut Pass<'_>, plans: &[LinearPlan]) -> Result<()> {
        self.each(|i, args| args.launch(pass, &plans[i]))
    }

    /// Plans and records it.
    pub(crate) fn run(&self, pass: &mut Pass<'_>) -> Result<()> {
        let plans = self.plan(pass.capabilities())?;
        self.launch(pass, &plans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;

    fn cuts(limit: u64, dtype: DType, shape: [usize; 2], gating: Gating) -> Result<Cuts> {
        let mut caps = Capabilities::webgpu_default();
        caps.binding_bytes = limit;
        Cuts::new(&caps, dtype, shape, gating)
    }

    #[test]
    fn parts_fit_and_cover() {
        for dtype in [
            DType::F32,
            DType::F16,
            DType::Quant(Format::Q4_0),
            DType::Quant(Format::E4M3_BLOCK),
        ] {
            for (rows, gating) in [(32_000, Gating::None), (22_016, Gating::GateUp)] {
                for limit in [4 << 20, 20 << 20, 128 << 20, 2 << 30] {
                    let cuts = cuts(limit, dtype, [rows, 4096], gating).unwrap();
                    let mut seen = 0;
                    for (shape, columns) in cuts.shapes(4096).zip(&cuts.columns) {
                        assert_eq!(columns.start, seen);
                        assert_eq!(columns.start % 64, 0);
                        seen = columns.end;
                        let bytes = match dtype {
                            DType::Quant(_) => 4 * shape[0] * 4096,
                            plain => plain.size() * shape[0] * 4096,
                        };
                        assert!(bytes as u64 <= limit, "{shape:?} within {limit}");
                    }
                    assert_eq!(seen * gating.factor(), rows);
                    let all: usize = cuts.runs().map(|run| run.rows.len()).sum();
                    assert_eq!(all, rows);
                }
            }
        }
    }

    #[test]
    fn gates_and_ups_of_a_column_go_to_one_part() {
        let cuts = cuts(1 << 20, DType::F32, [1200, 1024], Gating::GateUp).unwrap();
        let runs: Vec<Run> = cuts.runs().collect();
        let half = runs.len() / 2;
        for (gate, up) in runs[..half].iter().zip(&runs[half..]) {
            assert_eq!((gate.part, gate.row), (up.part, 0));
            assert_eq!(up.row, gate.rows.len());
            assert_eq!(up.rows.start, gate.rows.start + 600);
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused_by_name() {
        let message = cuts(1 << 10, DType::F32, [640, 1024], Gating::None).err();
        let message = message.unwrap().to_string();
        assert!(message.starts_with("matrix: f32 [640, 1024]"), "{message}");
    }
}
