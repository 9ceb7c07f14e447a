//! Elementwise kernels: activations, casts, sums, products and gated products.
//!
//! They move each byte once and do next to nothing with it, so that they run at the speed of memory; inside
//! models the same functions are fused into the kernels before or after.

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Layout, Rows};
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x.
    None,
    /// max(x, 0).
    Relu,
    /// max(x, 0)^2 (arXiv 2109.08668).
    ReluSquared,
    /// x / (1 + exp(-x)), also called swish (arXiv 1702.03118).
    Silu,
    /// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the approximation of GPT-2 (arXiv 1606.08415).
    GeluTanh,
    /// x/2 (1 + erf(x / sqrt 2)) (arXiv 1606.08415).
    GeluErf,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Relu,
        Self::ReluSquared,
        Self::Silu,
        Self::GeluTanh,
        Self::GeluErf,
    ];

    /// The name in recipes and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Relu => "relu",
            Self::ReluSquared => "relu_squared",
            Self::Silu => "silu",
            Self::GeluTanh => "gelu_tanh",
            Self::GeluErf => "gelu_erf",
        }
    }
}

/// A function of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    /// a + b.
    Add,
    /// a * b.
    Mul,
    /// f(a) * b: with SiLU this is SwiGLU, with GELU GeGLU (arXiv 2002.05202).
    Gated(Activation),
}

impl BinaryOp {
    const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Mul => "mul",
            Self::Gated(_) => "gated",
        }
    }

    const fn activation(self) -> Activation {
        match self {
            Self::Gated(f) => f,
            Self::Add | Self::Mul => Activation::None,
        }
    }
}

/// How the work is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// Invocations of a workgroup.
    pub workgroup: u32,
    /// Groups of four elements an invocation handles.
    pub unroll: u32,
}

impl Default for Tuning {
    /// Enough invocations to hide latency, within every device's limit.
    fn default() -> Self {
        Self {
            workgroup: 256,
            unroll: 4,
        }
    }
}

impl Tuning {
    /// What a sweep tries on a device.
    pub fn candidates(caps: &Capabilities) -> Vec<Self> {
        let workgroups = [64, 128, 256, 512, 1024].into_iter();
        workgroups
            .filter(|&w| w <= caps.invocations)
            .flat_map(|workgroup| [1, 2, 4, 8].map(|unroll| Self { workgroup, unroll }))
            .collect()
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    groups: u32,
    groups_per_row: u32,
    cols: u32,
    a_offset: u32,
    a_stride: u32,
    b_offset: u32,
    b_stride: u32,
    y_offset: u32,
    y_stride: u32,
}

/// y = f(x) for tensors of one shape; the element types may differ, so that [`Activation::None`] is a cast.
///
/// Rows (the last dimension) must be of adjacent elements and evenly spaced; f32, f16, bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unary(pub Activation);

impl Unary {
    /// Plans the dispatch.
    pub fn plan(self, caps: &Capabilities, x: &Layout, y: &Layout) -> Result<Launch> {
        self.plan_with(caps, Tuning::default(), x, y)
    }

    /// Plans the dispatch with a tuning of the caller's.
    pub fn plan_with(
        self,
        caps: &Capabilities,
        tuning: Tuning,
        x: &Layout,
        y: &Layout,
    ) -> Result<Launch> {
        launch(
            caps,
            tuning,
            "elementwise/unary",
            BinaryOp::Gated(self.0),
            [("x", x), ("x", x), ("y", y)],
        )
    }

    /// Records y = f(x).
    pub fn run(self, pass: &mut Pass<'_>, x: &Tensor, y: &Tensor) -> Result<()> {
        let launch = self.plan(pass.capabilities(), x.layout(), y.layout())?;
        pass.launch(&launch, &[x, y])
    }

    /// f(x) as a new tensor of x's type.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        self.forward_as(x, x.dtype())
    }

    /// f(x) as a new tensor of type `dtype`.
    pub fn forward_as(self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let y = Tensor::empty(x.context(), dtype, x.shape())?;
        x.context().record(|pass| self.run(pass, x, &y))?;
        Ok(y)
    }
}

/// x in another element type: f32, f16 or bf16, rounded to nearest.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    Unary(Activation::None).forward_as(x, dtype)
}

/// y = op(a, b) for tensors of one shape; element types may differ. Layouts as for [`Unary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binary(pub BinaryOp);

impl Binary {
    /// Plans the dispatch.
    pub fn plan(self, caps: &Capabilities, a: &Layout, b: &Layout, y: &Layout) -> Result<Launch> {
        self.plan_with(caps, Tuning::default(), a, b, y)
    }

    /// Plans the dispatch with a tuning of the caller's.
    pub fn plan_with(
        self,
        caps: &Capabilities,
        tuning: Tuning,
        a: &Layout,
        b: &Layout,
        y: &Layout,
    ) -> Result<Launch> {
        launch(
            caps,
            tuning,
            "elementwise/binary",
            self.0,
            [("a", a), ("b", b), ("y", y)],
        )
    }

    /// Records y = op(a, b).
    pub fn run(self, pass: &mut Pass<'_>, a: &Tensor, b: &Tensor, y: &Tensor) -> Result<()> {
        let launch = self.plan(pass.capabilities(), a.layout(), b.layout(), y.layout())?;
        pass.launch(&launch, &[a, b, y])
    }

    /// op(a, b) as a new tensor of a's type.
    pub fn forward(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let y = Tensor::empty(a.context(), a.dtype(), a.shape())?;
        a.context().record(|pass| self.run(pass, a, b, &y))?;
        Ok(y)
    }
}

fn launch(
    caps: &Capabilities,
    tuning: Tuning,
    shader: &'static str,
    op: BinaryOp,
    operands: [(&str, &Layout); 3],
) -> Result<Launch> {
    let shape = operands[2].1.shape();
    for (name, layout) in operands {
        layout.require_float(name)?;
        if layout.shape() != shape {
            return Err(Error::argument(
                name,
                format!("{layout:?}"),
                format!("the shape of y, {shape:?}"),
            ));
        }
    }
    let Tuning { workgroup, unroll } = tuning;
    if workgroup == 0 || workgroup > caps.invocations || !(1..=64).contains(&unroll) {
        let allowed = format!(
            "a workgroup of up to {}, unroll of 1 to 64",
            caps.invocations
        );
        return Err(Error::argument("tuning", format!("{tuning:?}"), allowed));
    }
    let dense = operands.iter().all(|(_, l)| l.is_contiguous());
    let rows = |(name, layout): (&str, &Layout)| -> Result<Rows> {
        let rows = layout.as_rows(name)?;
        // Without gaps all is one row, and only the end can be ragged.
        Ok(if dense {
            Rows {
                rows: 1,
                cols: layout.len(),
                stride: 0,
                offset: rows.offset,
            }
        } else {
            rows
        })
    };
    let [a, b, y] = [rows(operands[0])?, rows(operands[1])?, rows(operands[2])?];
    // The widest access that all rows are aligned to, as the result is stored: 16 bytes are eight 16-bit elements. (A cast
    // of f16 to f32 by eight stores 32 bytes an invocation: 59% of read bandwidth on an H200, by four 91%.)
    let aligned = |n: usize| [a, b, y].iter().all(|r| r.multiple_of(n));
    let half = operands[2].1.dtype().size() == 2;
    let vec = match () {
        () if half && aligned(8) => 8,
        () if aligned(4) => 4,
        () => 1,
    };
    let groups_per_row = y.cols.div_ceil(vec.max(4));
    let groups = y.rows * groups_per_row;
    let params = Params {
        groups: groups as u32,
        groups_per_row: groups_per_row as u32,
        cols: y.cols as u32,
        a_offset: a.offset as u32,
        a_stride: a.stride as u32,
        b_offset: b.offset as u32,
        b_stride: b.stride as u32,
        y_offset: y.offset as u32,
        y_stride: y.stride as u32,
    };
    let mut recipe = Recipe::new(shader).with("A", operands[0].1.dtype());
    if shader == "elementwise/binary" {
        recipe = recipe
            .with("B", operands[1].1.dtype())
            .with("OP", op.name());
    }
    let recipe = recipe
        .with("Y", operands[2].1.dtype())
        .with("F", op.activation().name())
        .with("VEC", vec as u32)
        .with("WG", workgroup)
        .with("UNROLL", unroll);
    let grid = linear_grid(caps, groups.div_ceil((workgroup * unroll) as usize));
    Launch::new(caps, recipe, grid, &params)
}
