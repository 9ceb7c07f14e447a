//! Which neurons may fire, before their gates are computed.

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::elementwise::Activation;
use crate::kernels::linear::{Linear, LinearArgs};
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Scores of a layer's neurons by two matrices of low rank, `up (down x)`: those above the threshold may fire (PowerInfer, arXiv
/// 2312.12456). What it lists is [`SparseMlpArgs::listed`](super::SparseMlpArgs::listed): gates of other neurons are not read.
#[derive(Clone, Debug)]
pub struct Predictor {
    down: Tensor,
    up: Tensor,
    threshold: f32,
}

/// What a [`Predictor`] writes.
#[derive(Clone, Debug)]
pub struct Predicted {
    inner: Tensor,
    scores: Tensor,
    /// [1 + n], u32: how many neurons, then which, ascending.
    pub listed: Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    n: u32,
    rows: u32,
    threshold: f32,
}

impl Predictor {
    /// Of `down` [r, k] and `up` [n, r]; f32, f16, bf16 or quantised.
    pub fn new(down: Tensor, up: Tensor, threshold: f32) -> Result<Self> {
        if threshold.is_nan() {
            return Err(Error::argument("threshold", threshold, "a number"));
        }
        match (down.shape(), up.shape()) {
            (&[rank, _], &[_, inner]) if rank == inner => Ok(Self {
                down,
                up,
                threshold,
            }),
            (down, up) => Err(Error::argument(
                "predictor",
                format!("matrices of {down:?} and {up:?}"),
                "[r, k] and [n, r]",
            )),
        }
    }

    /// Inputs and neurons.
    pub fn size(&self) -> [usize; 2] {
        [self.down.shape()[1], self.up.shape()[0]]
    }

    /// Memory for what it writes for up to `rows` rows.
    pub fn memory(&self, ctx: &Context, rows: usize) -> Result<Predicted> {
        let (rank, n) = (self.down.shape()[0], self.up.shape()[0]);
        Ok(Predicted {
            inner: Tensor::empty(ctx, DType::F32, [rows, rank])?,
            scores: Tensor::empty(ctx, DType::F32, [rows, n])?,
            listed: Tensor::empty(ctx, DType::U32, [1 + n])?,
        })
    }

    /// Plans the list of `scores` [rows, n].
    pub fn plan_list(caps: &Capabilities, scores: &Layout, threshold: f32) -> Result<Launch> {
        scores.require_dtype("scores", DType::F32)?;
        scores.require_whole("scores")?;
        let rows = scores.as_rows("scores")?;
        let params = Params {
            n: rows.cols as u32,
            rows: rows.rows as u32,
            threshold,
        };
        let recipe = Recipe::new("mlp/list").with("WG", caps.invocations.min(1024));
        Launch::new(caps, recipe, [1, 1, 1], &params)
    }

    /// Records the list of the neurons that may fire for some row of `x`, [m, k], normalised on the way by `norm`.
    pub fn run(
        &self,
        pass: &mut Pass<'_>,
        x: &Tensor,
        norm: Option<(&Tensor, f32)>,
        to: &Predicted,
    ) -> Result<()> {
        let rows = x.layout().as_rows("x")?.rows;
        let linear = Linear {
            activation: Activation::None,
        };
        let (inner, scores) = (to.inner.rows(0..rows)?, to.scores.rows(0..rows)?);
        let first = LinearArgs {
            norm,
            ..LinearArgs::new(x, &self.down, &inner)
        };
        linear.run(pass, first)?;
        linear.run(pass, LinearArgs::new(&inner, &self.up, &scores))?;
        let list = Self::plan_list(pass.capabilities(), scores.layout(), self.threshold)?;
        pass.launch(&list, &[&scores, &to.listed])
    }
}
