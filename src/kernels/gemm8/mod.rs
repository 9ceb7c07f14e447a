//! Products of 8-bit operands: int8 by int8 in exact integers, FP8 by FP8, and f16 by either, with scales of tensors, rows
//! or blocks, zero points, and columns of outliers apart.
//!
//! Codes of a row lie along k in both operands: A as [.., m, k], B as [n, k], as a linear layer has its weights. On matrix
//! units int8 is multiplied as it is and FP8 as f16, which holds its numbers exactly; elsewhere int8 by packed products of
//! four and the rest in f32.

use arrayvec::ArrayVec;

mod outliers;
mod problem;
mod quantize;
mod tuning;

pub use outliers::{LlmInt8, LlmInt8Args, Outliers};
pub use quantize::{Quantize, QuantizeArgs};
pub use tuning::{Gemm8Tuning, MatrixTiling, PackedTiling};

use problem::Problem;

use super::elementwise::Activation;
use super::gemm::Residual;
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::layout::Layout;
use crate::recipe::{Launch, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// References can be copied, whatever they refer to.
macro_rules! copied {
    ($($name:ident),*) => { $(
        impl<T> Clone for $name<'_, T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<'_, T> {}
    )* };
}
copied!(Scales, Operand, Outliers);

/// What codes are multiplied by: f32 numbers.
#[derive(Debug, PartialEq, Eq)]
pub enum Scales<'a, T> {
    /// Nothing: codes are the numbers.
    None,
    /// \[1\]: one for all.
    Tensor(&'a T),
    /// \[rows\]: one for each row.
    Rows(&'a T),
    /// [ceil(operand's rows / rows), ceil(k / steps)]: one for each block.
    Blocks {
        /// The scales.
        scales: &'a T,
        /// Rows of a block.
        rows: usize,
        /// Its columns: a multiple of 32.
        steps: usize,
    },
}

impl<'a, T> Scales<'a, T> {
    fn map<U>(&self, f: impl FnOnce(&'a T) -> &'a U) -> Scales<'a, U> {
        match *self {
            Self::None => Scales::None,
            Self::Tensor(t) => Scales::Tensor(f(t)),
            Self::Rows(t) => Scales::Rows(f(t)),
            Self::Blocks {
                scales,
                rows,
                steps,
            } => Scales::Blocks {
                scales: f(scales),
                rows,
                steps,
            },
        }
    }

    fn tensor(&self) -> Option<&'a T> {
        match *self {
            Self::None => None,
            Self::Tensor(t) | Self::Rows(t) | Self::Blocks { scales: t, .. } => Some(t),
        }
    }
}

/// One side of a product.
#[derive(Debug, PartialEq, Eq)]
pub struct Operand<'a, T> {
    /// Rows of codes along k: int8, FP8 of either kind, or f16.
    pub codes: &'a T,
    /// What they are multiplied by.
    pub scales: Scales<'a, T>,
    /// [rows, 2] of i32, for int8 alone, and for both operands or neither: the code that means zero, and the sum of the
    /// row's codes. A number is scale * (code - zero).
    pub zeros: Option<&'a T>,
}

impl<'a, T> Operand<'a, T> {
    /// Codes with a scale for each row, symmetric.
    pub fn rows(codes: &'a T, scales: &'a T) -> Self {
        Self {
            codes,
            scales: Scales::Rows(scales),
            zeros: None,
        }
    }

    /// Numbers as they are.
    pub fn plain(codes: &'a T) -> Self {
        Self {
            codes,
            scales: Scales::None,
            zeros: None,
        }
    }

    fn map<U>(&self, f: impl Fn(&'a T) -> &'a U) -> Operand<'a, U> {
        Operand {
            codes: f(self.codes),
            scales: self.scales.map(&f),
            zeros: self.zeros.map(&f),
        }
    }
}

/// The tensors of a [`Gemm8`], or their layouts.
#[derive(Debug)]
pub struct Gemm8Args<'a, T> {
    /// [.., m, k].
    pub a: Operand<'a, T>,
    /// [n, k].
    pub b: Operand<'a, T>,
    /// \[n\].
    pub bias: Option<&'a T>,
    /// [.., m, n].
    pub residual: Residual<'a, T>,
    /// Columns of A that are computed apart.
    pub outliers: Option<Outliers<'a, T>>,
    /// [.., m, n]: f32, f16 or bf16, or i32: the sums of int8 codes as they are, without scales, bias, activation
    /// or residual.
    pub out: &'a T,
}

impl<'a, T> Gemm8Args<'a, T> {
    /// out = A B^T alone.
    pub fn new(a: Operand<'a, T>, b: Operand<'a, T>, out: &'a T) -> Self {
        Self {
            a,
            b,
            bias: None,
            residual: Residual::None,
            outliers: None,
            out,
        }
    }
}

impl<'a> Gemm8Args<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> Gemm8Args<'a, Layout> {
        Gemm8Args {
            a: self.a.map(Tensor::layout),
            b: self.b.map(Tensor::layout),
            bias: self.bias.map(Tensor::layout),
            residual: self.residual.map(Tensor::layout),
            outliers: self.outliers.map(|o| o.map(Tensor::layout)),
            out: self.out.layout(),
        }
    }

    /// Records the planned dispatch over these tensors, in the order of the shaders' bindings.
    fn launch(&self, pass: &mut Pass<'_>, launch: &Launch) -> Result<()> {
        let mut tensors: ArrayVec<&Tensor, 12> = ArrayVec::new();
        tensors.extend([self.a.codes, self.b.codes, self.out]);
        tensors.extend(self.bias);
        if let Residual::From(residual) = self.residual {
            tensors.push(residual);
        }
        tensors.extend(
            [self.a.scales.tensor(), self.b.scales.tensor()]
                .into_iter()
                .flatten(),
        );
        tensors.extend([self.a.zeros, self.b.zeros].into_iter().flatten());
        if let Some(o) = &self.outliers {
            tensors.extend([o.columns, o.a, o.b]);
        }
        pass.launch(launch, &tensors)
    }
}

/// `out[m, n] = F(s_b[n] (s_a[m] sum_k (a[m, k] - z_a[m]) (b[n, k] - z_b[n]) + apart[m, n]) + bias[n]) + residual[m, n]`:
/// codes a and b, scales s, zero points z, outliers' columns apart.
///
/// Products of int8 by int8 are exact integers, so k is at most 131071 (2^31 / 2^14), with zero points 33025. Others are
/// summed in f32. Codes of NaN or infinity make their results so; a scale of zero makes its row zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm8 {
    /// F.
    pub activation: Activation,
}

impl Default for Gemm8 {
    fn default() -> Self {
        Self {
            activation: Activation::None,
        }
    }
}

impl Gemm8 {
    /// What a sweep should try on this device: every tiling that fits.
    pub fn candidates(
        &self,
        caps: &Capabilities,
        args: &Gemm8Args<'_, Layout>,
    ) -> Result<Vec<Gemm8Tuning>> {
        let problem = Problem::new(args)?;
        Ok(tuning::candidates(caps, &problem))
    }

    /// Plans the dispatch, choosing the tiling.
    pub fn plan(&self, caps: &Capabilities, args: &Gemm8Args<'_, Layout>) -> Result<Launch> {
        let problem = Problem::new(args)?;
        let tuning = tuning::choose(caps, &problem);
        self.launch(caps, &problem, &tuning)
    }

    /// Plans the dispatch with a given tiling.
    pub fn plan_with(
        &self,
        caps: &Capabilities,
        args: &Gemm8Args<'_, Layout>,
        tuning: &Gemm8Tuning,
    ) -> Result<Launch> {
        let problem = Problem::new(args)?;
        tuning.check(caps, &problem)?;
        self.launch(caps, &problem, tuning)
    }

    fn launch(
        &self,
        caps: &Capabilities,
        problem: &Problem<'_>,
        tuning: &Gemm8Tuning,
    ) -> Result<Launch> {
        let [tile_m, tile_n, _] = tuning.tile();
        let tiles = [problem.m.div_ceil(tile_m), problem.n.div_ceil(tile_n)];
        let recipe = tuning.constants(problem.recipe(tuning, self.activation));
        let [x, y, _] = linear_grid(caps, tiles[0] * tiles[1]);
        Launch::new(caps, recipe, [x, y, 1], &problem.params(tiles))
    }

    /// Records the product.
    pub fn run(&self, pass: &mut Pass<'_>, args: &Gemm8Args<'_, Tensor>) -> Result<()> {
        let launch = self.plan(pass.capabilities(), &args.layouts())?;
        args.launch(pass, &launch)
    }

    /// Records the product with a given tiling.
    pub fn run_with(
        &self,
        pass: &mut Pass<'_>,
        args: &Gemm8Args<'_, Tensor>,
        tuning: &Gemm8Tuning,
    ) -> Result<()> {
        let launch = self.plan_with(pass.capabilities(), &args.layouts(), tuning)?;
        args.launch(pass, &launch)
    }
}

/// Asks the device for a product of int8 that every element, sign and step has a part in.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn multiplies_int8(ctx: &crate::Context) -> Result<bool> {
    use crate::DType;
    const SIZE: usize = 32;
    const STEPS: usize = 128;
    let codes = |by: usize| -> Vec<i8> {
        let of = |i: usize| ((i * by + i / STEPS * 7) % 255) as i32 - 127;
        (0..SIZE * STEPS).map(|i| of(i) as i8).collect()
    };
    let (x, y) = (codes(37), codes(101));
    let a = Tensor::from_slice(ctx, &x, [SIZE, STEPS])?;
    let b = Tensor::from_slice(ctx, &y, [SIZE, STEPS])?;
    let out = Tensor::empty(ctx, DType::I32, [SIZE, SIZE])?;
    let args = Gemm8Args::new(Operand::plain(&a), Operand::plain(&b), &out);
    let tuning = Gemm8Tuning::Matrix(MatrixTiling::new([32, 32, 64], [16, 32]));
    ctx.record(|pass| Gemm8::default().run_with(pass, &args, &tuning))?;
    let product = |i: usize| -> i32 {
        let (row, col) = (i / SIZE * STEPS, i % SIZE * STEPS);
        (0..STEPS)
            .map(|k| i32::from(x[row + k]) * i32::from(y[col + k]))
            .sum()
    };
    let expected: Vec<i32> = (0..SIZE * SIZE).map(product).collect();
    Ok(out.to_vec::<i32>()? == expected)
}
