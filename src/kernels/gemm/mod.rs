//! Matrix products: batched, operands transposed or not, with bias, activation, gating and residual fused.
//!
//! Bound by arithmetic where the matrices are large; [`gemv`](super::gemv) is the kernel for few rows, which
//! are bound by memory. [`linear`](super::linear) chooses between them.

use arrayvec::ArrayVec;
use bytemuck::{Pod, Zeroable};

mod cooperative;
mod fma;

pub use cooperative::CooperativeTiling;
pub use fma::{FmaTiling, Prefetch};

use super::ceilings::Probe;
use super::elementwise::Activation;
use crate::capabilities::{Capabilities, MatrixTier};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Layout, Matrices};
use crate::recipe::{Constant, Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;
use crate::tuned::{Question, Work, rounded};

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transpose {
    /// As it is multiplied: A as [m, k], B as [k, n].
    No,
    /// Transposed: A as [k, m], B as [n, k] (the weights of a linear layer in Hugging Face's files).
    Yes,
}

/// What is added to a result after its activation.
#[derive(Debug, PartialEq, Eq)]
pub enum Residual<'a, T> {
    /// Nothing.
    None,
    /// What the output tensor holds: out += result.
    InOut,
    /// Another tensor of the output's shape, not in the output's memory.
    From(&'a T),
}

// Derived, they would ask the same of T.
impl<T> Clone for Residual<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Residual<'_, T> {}

impl<'a, T> Residual<'a, T> {
    /// With the tensor replaced by what `f` makes of it.
    pub(in crate::kernels) fn map<U>(&self, f: impl FnOnce(&'a T) -> &'a U) -> Residual<'a, U> {
        match *self {
            Self::None => Residual::None,
            Self::InOut => Residual::InOut,
            Self::From(t) => Residual::From(f(t)),
        }
    }
}

impl Residual<'_, Layout> {
    /// The recipe's constant: where it comes from, or its element type.
    pub(in crate::kernels) fn constant(&self) -> Constant {
        match self {
            Self::None => "none".into(),
            Self::InOut => "inout".into(),
            Self::From(layout) => layout.dtype().into(),
        }
    }
}

/// Whether a product's columns are halves of a gated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gating {
    /// Every row of the weights makes a column of the output.
    None,
    /// The weights hold n gate rows, then n up rows; the output has n columns, F(gate) * up: with SiLU this is
    /// SwiGLU (arXiv 2002.05202).
    GateUp,
}

impl Gating {
    pub(in crate::kernels) const fn constant(self) -> u32 {
        matches!(self, Self::GateUp) as u32
    }

    /// Rows of the weights for a column of the output.
    pub(crate) const fn factor(self) -> usize {
        match self {
            Self::None => 1,
            Self::GateUp => 2,
        }
    }
}

/// How the work is cut, and by what it is done: one row of a tuning table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GemmTuning {
    /// By f32 multiply-adds: any types, any strides.
    Fma(FmaTiling),
    /// By cooperative matrices: A and B of f16, their rows multiples of eight elements.
    Cooperative(CooperativeTiling),
}

impl GemmTuning {
    /// Rows and columns of the output for a workgroup (of a gated product, rows of B).
    const fn tile(&self) -> [usize; 2] {
        let (m, n) = match self {
            Self::Fma(t) => (t.tile_m, t.tile_n),
            Self::Cooperative(t) => (t.tile_m, t.tile_n),
        };
        [m as usize, n as usize]
    }

    /// Steps along k between barriers.
    const fn tile_k(&self) -> usize {
        match self {
            Self::Fma(t) => t.tile_k as usize,
            Self::Cooperative(t) => t.tile_k as usize,
        }
    }
}

/// `out[.., m, n] = F(alpha * A[.., m, k] B[.., k, n] + bias[n]) + residual[.., m, n]`.
///
/// Operands, bias, residual and output may be of different element types (f32, f16, bf16); sums are f32.
/// Leading dimensions are batches: as many as the output has, or one for all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    /// How A lies in memory.
    pub a: Transpose,
    /// How B lies in memory.
    pub b: Transpose,
    /// Scales the product; finite.
    pub alpha: f32,
    /// F.
    pub activation: Activation,
    /// With [`Gating::GateUp`], B is transposed, there is no bias, and out = F(gate) * up + residual.
    pub gating: Gating,
}

impl Default for Gemm {
    fn default() -> Self {
        Self {
            a: Transpose::No,
            b: Transpose::No,
            alpha: 1.0,
            activation: Activation::None,
            gating: Gating::None,
        }
    }
}

/// The tensors of a [`Gemm`], or their layouts.
#[derive(Debug)]
pub struct GemmArgs<'a, T> {
    /// [.., m, k], or [.., k, m] transposed.
    pub a: &'a T,
    /// [.., k, n], or [.., n, k] transposed; gated [.., 2n, k].
    pub b: &'a T,
    /// \[n\].
    pub bias: Option<&'a T>,
    /// [.., m, n].
    pub residual: Residual<'a, T>,
    /// [.., m, n].
    pub out: &'a T,
}

impl<'a, T> GemmArgs<'a, T> {
    /// out = A B, with neither bias nor residual.
    pub fn new(a: &'a T, b: &'a T, out: &'a T) -> Self {
        Self {
            a,
            b,
            bias: None,
            residual: Residual::None,
            out,
        }
    }
}

impl<'a> GemmArgs<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> GemmArgs<'a, Layout> {
        GemmArgs {
            a: self.a.layout(),
            b: self.b.layout(),
            bias: self.bias.map(Tensor::layout),
            residual: self.residual.map(Tensor::layout),
            out: self.out.layout(),
        }
    }

    /// Records the planned dispatch over these tensors.
    fn launch(&self, pass: &mut Pass<'_>, launch: &Launch) -> Result<()> {
        let mut tensors: ArrayVec<&Tensor, 5> = [self.a, self.b, self.out].into_iter().collect();
        tensors.extend(self.bias);
        if let Residual::From(residual) = self.residual {
            tensors.push(residual);
        }
        pass.launch(launch, &tensors)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    m: u32,
    n: u32,
    k: u32,
    tiles_m: u32,
    tiles_n: u32,
    a_offset: u32,
    a_stride: u32,
    a_batch: u32,
    b_offset: u32,
    b_stride: u32,
    b_batch: u32,
    out_offset: u32,
    out_stride: u32,
    out_batch: u32,
    residual_offset: u32,
    residual_stride: u32,
    residual_batch: u32,
    bias_offset: u32,
    alpha: f32,
}

/// Workgroups that a GPU is taken to run at a time: a large card's number of multiprocessors. An adapter does
/// not tell its own.
pub(in crate::kernels) const UNITS: usize = 128;

/// A problem that has been checked.
struct Checked {
    a: Matrices,
    b: Matrices,
    out: Matrices,
    residual: Option<Matrices>,
    k: usize,
}

impl Gemm {
    /// What a sweep should try on this device for operands of these types: every tiling that fits.
    pub fn candidates(&self, caps: &Capabilities, operands: [DType; 2]) -> Vec<GemmTuning> {
        let mut found: Vec<GemmTuning> = fma::candidates(caps, self.gating)
            .map(GemmTuning::Fma)
            .collect();
        if caps.matrix_tier() == MatrixTier::Cooperative && operands == [DType::F16; 2] {
            let tilings = cooperative::candidates(caps, self);
            found.extend(tilings.map(GemmTuning::Cooperative));
        }
        found
    }

    /// Plans the dispatch, choosing the tiling.
    pub fn plan(&self, caps: &Capabilities, args: &GemmArgs<'_, Layout>) -> Result<Launch> {
        let problem = self.check(args)?;
        let n = problem.out.cols * self.gating.factor();
        let class = || {
            self.majors(Recipe::new("gemm/gemm"), args)
                .with("A", args.a.dtype())
                .with("B", args.b.dtype())
                .with("GATED", self.gating.constant())
                .with("BATCH", rounded(problem.out.batch))
                .with("M", rounded(problem.out.rows))
                .with("N", rounded(n))
                .with("K", rounded(problem.k))
        };
        let question = Question {
            default: self.choose(caps, args, &problem),
            candidates: &|| self.candidates(caps, [args.a.dtype(), args.b.dtype()]),
            admits: &|t| self.admit(caps, args, &problem, t).is_ok(),
            work: &|t| {
                let [tile_m, tile_n] = t.tile();
                let m = problem.out.rows.next_multiple_of(tile_m) * problem.out.batch;
                Work {
                    bytes: 0.0,
                    operations: 2.0 * (m * n.next_multiple_of(tile_n) * problem.k) as f64,
                    by: match t {
                        GemmTuning::Fma(_) => Probe::F32,
                        GemmTuning::Cooperative(_) => Probe::Cooperative,
                    },
                }
            },
        };
        let picked = caps.tuned.pick(class, &question);
        let launch = self.launch(caps, args, &problem, &picked.tuning)?;
        Ok(launch.of_class(picked.class))
    }

    /// Plans the dispatch with a given tiling.
    pub fn plan_with(
        &self,
        caps: &Capabilities,
        args: &GemmArgs<'_, Layout>,
        tuning: &GemmTuning,
    ) -> Result<Launch> {
        let problem = self.check(args)?;
        self.admit(caps, args, &problem, tuning)?;
        self.launch(caps, args, &problem, tuning)
    }

    /// Errors unless the tuning suits the device and the problem.
    fn admit(
        &self,
        caps: &Capabilities,
        args: &GemmArgs<'_, Layout>,
        problem: &Checked,
        tuning: &GemmTuning,
    ) -> Result<()> {
        match tuning {
            GemmTuning::Fma(tiling) => tiling.check(caps, self.gating),
            GemmTuning::Cooperative(tiling) => {
                cooperative::admit(caps, args, problem)?;
                tiling.check(caps, self)
            }
        }
    }

    /// With the constants that every kernel has.
    fn majors(&self, recipe: Recipe, args: &GemmArgs<'_, Layout>) -> Recipe {
        recipe
            .with("OUT", args.out.dtype())
            .with("A_MAJOR", if self.a == Transpose::No { "k" } else { "m" })
            .with("B_MAJOR", if self.b == Transpose::Yes { "k" } else { "n" })
    }

    /// Records the product.
    pub fn run(&self, pass: &mut Pass<'_>, args: &GemmArgs<'_, Tensor>) -> Result<()> {
        let launch = self.plan(pass.capabilities(), &args.layouts())?;
        args.launch(pass, &launch)
    }

    /// Records the product with a given tiling.
    pub fn run_with(
        &self,
        pass: &mut Pass<'_>,
        args: &GemmArgs<'_, Tensor>,
        tuning: &GemmTuning,
    ) -> Result<()> {
        let launch = self.plan_with(pass.capabilities(), &args.layouts(), tuning)?;
        args.launch(pass, &launch)
    }

    /// A B as a new tensor of A's element type.
    pub fn forward(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (m, n) = (a.layout().as_matrices("a")?, b.layout().as_matrices("b")?);
        let leading = if m.batch >= n.batch {
            a.shape()
        } else {
            b.shape()
        };
        let mut shape = leading.to_vec();
        let rank = shape.len();
        shape[rank - 2] = match self.a {
            Transpose::No => m.rows,
            Transpose::Yes => m.cols,
        };
        shape[rank - 1] = match self.b {
            Transpose::No => n.cols,
            Transpose::Yes => n.rows,
        } / self.gating.factor();
        let out = Tensor::empty(a.context(), a.dtype(), shape)?;
        a.context()
            .record(|pass| self.run(pass, &GemmArgs::new(a, b, &out)))?;
        Ok(out)
    }

    fn check(&self, args: &GemmArgs<'_, Layout>) -> Result<Checked> {
        if !self.alpha.is_finite() {
            return Err(Error::argument("alpha", self.alpha, "a finite number"));
        }
        if self.gating == Gating::GateUp && (self.b == Transpose::No || args.bias.is_some()) {
            return Err(Error::argument(
                "gating",
                format!(
                    "{:?}, b transposed: {:?}, bias: {:?}",
                    self.gating, self.b, args.bias
                ),
                "B transposed and no bias",
            ));
        }
        let tensors = [("a", args.a), ("b", args.b), ("out", args.out)];
        for (name, layout) in tensors {
            layout.require_float(name)?;
        }
        let a = args.a.as_matrices("a")?;
        let b = args.b.as_matrices("b")?;
        let out = args.out.as_matrices("out")?;
        let (m, k) = match self.a {
            Transpose::No => (a.rows, a.cols),
            Transpose::Yes => (a.cols, a.rows),
        };
        if out.rows != m {
            let allowed = format!("{m} rows, as many as A of {:?} has", args.a);
            return Err(Error::argument("out", format!("{:?}", args.out), allowed));
        }
        let n = out.cols * self.gating.factor();
        let expected = match self.b {
            Transpose::No => (k, n),
            Transpose::Yes => (n, k),
        };
        if (b.rows, b.cols) != expected {
            return Err(Error::argument(
                "b",
                format!("{:?}", args.b),
                format!(
                    "matrices of {} x {}, from A of {:?} and out of {:?}",
                    expected.0, expected.1, args.a, args.out
                ),
            ));
        }
        for (name, batch) in [("a", a.batch), ("b", b.batch)] {
            require_batch(name, batch, out.batch)?;
        }
        // A kernel rounds sizes up to tiles of 1024 at most.
        if m.max(n).max(k) > u32::MAX as usize - 2048 {
            let was = format!("{m} x {n} x {k}");
            return Err(Error::argument("sizes", was, "below 2^32 - 2048"));
        }
        if let Some(bias) = args.bias {
            require_bias(bias, out.cols)?;
        }
        let residual = match args.residual {
            Residual::From(layout) => {
                layout.require_float("residual")?;
                let residual = layout.as_matrices("residual")?;
                if (residual.rows, residual.cols) != (out.rows, out.cols) {
                    return Err(Error::argument(
                        "residual",
                        format!("{layout:?}"),
                        format!("the shape of out, {:?}", args.out.shape()),
                    ));
                }
                require_batch("residual", residual.batch, out.batch)?;
                Some(residual)
            }
            Residual::None | Residual::InOut => None,
        };
        Ok(Checked {
            a,
            b,
            out,
            residual,
            k,
        })
    }

    /// The tiling that is expected to take the shortest time, of the fastest kernel that admits the problem.
    fn choose(
        &self,
        caps: &Capabilities,
        args: &GemmArgs<'_, Layout>,
        problem: &Checked,
    ) -> GemmTuning {
        let cooperative = cooperative::admit(caps, args, problem)
            .ok()
            .and_then(|()| cooperative::choose(caps, self, problem));
        match cooperative {
            Some(tiling) => GemmTuning::Cooperative(tiling),
            None => GemmTuning::Fma(fma::choose(caps, self.gating, problem)),
        }
    }

    fn launch(
        &self,
        caps: &Capabilities,
        args: &GemmArgs<'_, Layout>,
        problem: &Checked,
        tuning: &GemmTuning,
    ) -> Result<Launch> {
        let Checked {
            a,
            b,
            out,
            residual,
            k,
        } = problem;
        let n = out.cols * self.gating.factor();
        let [tile_m, tile_n] = tuning.tile();
        let (tiles_m, tiles_n) = (out.rows.div_ceil(tile_m), n.div_ceil(tile_n));
        let edges = if !k.is_multiple_of(tuning.tile_k()) {
            "all"
        } else if !out.rows.is_multiple_of(tile_m) || !n.is_multiple_of(tile_n) {
            "outer"
        } else {
            "none"
        };
        let vec = |wide: bool| if wide { 4u32 } else { 1 };
        let out_wide = out.multiple_of(4)
            && residual.is_none_or(|r| r.multiple_of(4))
            && args.bias.is_none_or(|b| b.offset().is_multiple_of(4));
        // Batches of one are for all.
        let step = |m: &Matrices| {
            if m.batch == 1 {
                0
            } else {
                m.batch_stride as u32
            }
        };
        let params = Params {
            m: out.rows as u32,
            n: out.cols as u32,
            k: *k as u32,
            tiles_m: tiles_m as u32,
            tiles_n: tiles_n as u32,
            a_offset: a.offset as u32,
            a_stride: a.stride as u32,
            a_batch: step(a),
            b_offset: b.offset as u32,
            b_stride: b.stride as u32,
            b_batch: step(b),
            out_offset: out.offset as u32,
            out_stride: out.stride as u32,
            out_batch: step(out),
            residual_offset: residual.map_or(0, |r| r.offset as u32),
            residual_stride: residual.map_or(0, |r| r.stride as u32),
            residual_batch: residual.as_ref().map_or(0, step),
            bias_offset: args.bias.map_or(0, |b| b.offset() as u32),
            alpha: self.alpha,
        };
        let majors = |recipe: Recipe| self.majors(recipe, args);
        let recipe = match tuning {
            GemmTuning::Fma(_) => majors(
                Recipe::new("gemm/gemm")
                    .with("A", args.a.dtype())
                    .with("B", args.b.dtype()),
            )
            .with("A_VEC", vec(a.multiple_of(4)))
            .with("B_VEC", vec(b.multiple_of(4))),
            GemmTuning::Cooperative(_) => {
                majors(Recipe::new("gemm/cooperative").with("LOADS", "wide"))
            }
        };
        let recipe = recipe
            .with("OUT_VEC", vec(out_wide))
            .with("BIAS", args.bias.map(Layout::dtype))
            .with("RESIDUAL", args.residual.constant())
            .with("F", self.activation.name())
            .with("GATED", self.gating.constant())
            .with("EDGES", edges);
        let recipe = match tuning {
            GemmTuning::Fma(tiling) => tiling.constants(recipe),
            GemmTuning::Cooperative(tiling) => tiling.constants(recipe),
        };
        let [x, y, _] = linear_grid(caps, tiles_m * tiles_n);
        Launch::new(caps, recipe, [x, y, out.batch], &params)
    }
}

/// Errors unless there are as many matrices as the output has, or one for all.
fn require_batch(name: &str, batch: usize, out: usize) -> Result<()> {
    if batch == 1 || batch == out {
        return Ok(());
    }
    let allowed = format!("{out}, as many as out has, or 1");
    Err(Error::argument(
        name,
        format!("a batch of {batch}"),
        allowed,
    ))
}

/// Errors unless `bias` is n adjacent numbers.
pub(in crate::kernels) fn require_bias(bias: &Layout, n: usize) -> Result<()> {
    bias.require_float("bias")?;
    bias.require_shape("bias", &[n])?;
    bias.as_rows("bias").map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::{CooperativeShape, DeviceClass, SubgroupSizes};

    fn layout(shape: &[usize]) -> Layout {
        Layout::contiguous(DType::F32, shape).unwrap()
    }

    fn tile(caps: &Capabilities, m: usize, n: usize, k: usize) -> String {
        let (a, b, out) = (layout(&[m, k]), layout(&[k, n]), layout(&[m, n]));
        let args = GemmArgs::new(&a, &b, &out);
        let launch = Gemm::default().plan(caps, &args).unwrap();
        let constant = |name| {
            let found = launch.recipe.constants().iter().find(|(n, _)| *n == name);
            found.unwrap().1.to_string()
        };
        format!(
            "{}x{} {}",
            constant("BM"),
            constant("BN"),
            constant("EDGES")
        )
    }

    #[test]
    fn tiles_shrink_with_the_output_so_that_a_card_stays_busy() {
        let caps = Capabilities::webgpu_default();
        assert_eq!(tile(&caps, 4096, 4096, 4096), "64x64 none");
        assert_eq!(tile(&caps, 4097, 4096, 4096), "64x64 outer");
        assert_eq!(tile(&caps, 4096, 4096, 4095), "64x64 all");
        assert_eq!(tile(&caps, 16, 8192, 4096), "16x64 none");
        let software = Capabilities {
            class: DeviceClass::Software,
            ..Capabilities::webgpu_default()
        };
        assert_eq!(tile(&software, 4096, 4096, 4096), "64x64 none");
    }

    fn tensor_cores() -> Capabilities {
        Capabilities {
            class: DeviceClass::Discrete,
            shader_f16: true,
            spirv: true,
            subgroups: Some(SubgroupSizes { min: 32, max: 32 }),
            cooperative: vec![CooperativeShape::F16],
            invocations: 1024,
            workgroup_bytes: 48 << 10,
            ..Capabilities::webgpu_default()
        }
    }

    #[test]
    fn matrix_units_take_f16_whose_rows_are_whole_vectors() {
        let shader = |caps: &Capabilities, dtype, [m, n, k]: [usize; 3]| {
            let of = |shape: [usize; 2]| Layout::contiguous(dtype, shape).unwrap();
            let (a, b, out) = (of([m, k]), of([k, n]), of([m, n]));
            let launch = Gemm::default().plan(caps, &GemmArgs::new(&a, &b, &out));
            launch.unwrap().recipe.shader()
        };
        let caps = tensor_cores();
        let (fma, matrix) = ("gemm/gemm", "gemm/cooperative");
        assert_eq!(shader(&caps, DType::F16, [8192, 8192, 8192]), matrix);
        assert_eq!(shader(&caps, DType::F16, [100, 72, 40]), matrix);
        assert_eq!(shader(&caps, DType::F16, [100, 72, 44]), fma);
        assert_eq!(shader(&caps, DType::F16, [100, 70, 40]), fma);
        assert_eq!(shader(&caps, DType::F32, [8192, 8192, 8192]), fma);
        assert_eq!(shader(&caps, DType::BF16, [8192, 8192, 8192]), fma);
        let without = Capabilities {
            spirv: false,
            ..tensor_cores()
        };
        assert_eq!(shader(&without, DType::F16, [8192, 8192, 8192]), fma);
        let wide = Capabilities {
            subgroups: Some(SubgroupSizes { min: 32, max: 64 }),
            ..tensor_cores()
        };
        assert_eq!(shader(&wide, DType::F16, [8192, 8192, 8192]), fma);
    }

    #[test]
    fn matrix_units_get_the_tiling_that_suits_the_output() {
        let caps = tensor_cores();
        let tile = |b: Transpose, [m, n, k]: [usize; 3]| {
            let of = |shape: [usize; 2]| Layout::contiguous(DType::F16, shape).unwrap();
            let right = match b {
                Transpose::No => [k, n],
                Transpose::Yes => [n, k],
            };
            let (a, right, out) = (of([m, k]), of(right), of([m, n]));
            let gemm = Gemm {
                b,
                ..Gemm::default()
            };
            let launch = gemm.plan(&caps, &GemmArgs::new(&a, &right, &out)).unwrap();
            ["BM", "BN", "BK"].map(|name| launch.recipe.constant(name).unwrap().to_string())
        };
        let (no, yes) = (Transpose::No, Transpose::Yes);
        assert_eq!(tile(no, [8192, 8192, 8192]), ["128", "128", "32"]);
        assert_eq!(tile(yes, [8192, 8192, 8192]), ["128", "160", "32"]);
        // One workgroup for a multiprocessor: whole lines of 128 bytes.
        assert_eq!(tile(no, [4096, 512, 14336]), ["128", "128", "64"]);
        assert_eq!(tile(no, [512, 512, 4096]), ["64", "64", "64"]);
    }

    #[test]
    fn one_matrix_serves_a_batch() {
        let caps = Capabilities::webgpu_default();
        let (a, b, out) = (layout(&[3, 8, 4]), layout(&[4, 6]), layout(&[3, 8, 6]));
        let launch = Gemm::default().plan(&caps, &GemmArgs::new(&a, &b, &out));
        assert_eq!(launch.unwrap().grid[2], 3);
    }
}
