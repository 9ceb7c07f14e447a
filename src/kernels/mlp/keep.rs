//! What passes a threshold, for products of many rows.

use bytemuck::{Pod, Zeroable};

use super::threshold_bits;
use crate::capabilities::Capabilities;
use crate::error::{Error, Result};
use crate::kernels::elementwise::Activation;
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// `y = F(a) b` where the magnitude of F(a) is above the threshold, 0 elsewhere; b may be left out. What
/// [`SparseMlp`](super::SparseMlp) and [`SparseLinear`](super::SparseLinear) compute with, for prompts.
///
/// Tensors of one shape, f32, f16 or bf16 each; rows of adjacent elements, evenly spaced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keep {
    /// F.
    pub activation: Activation,
    /// What a magnitude has to be above.
    pub threshold: f32,
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
    threshold: u32,
}

const WORKGROUP: usize = 256;

impl Keep {
    /// Plans the dispatch.
    pub fn plan(
        self,
        caps: &Capabilities,
        a: &Layout,
        b: Option<&Layout>,
        y: &Layout,
    ) -> Result<Launch> {
        let rows = |name: &str, layout: &Layout| {
            layout.require_float(name)?;
            if layout.shape() != a.shape() {
                let allowed = format!("the shape of a, {:?}", a.shape());
                return Err(Error::argument(name, format!("{layout:?}"), allowed));
            }
            layout.as_rows(name)
        };
        let (of_a, of_y) = (rows("a", a)?, rows("y", y)?);
        let of_b = b.map(|b| rows("b", b)).transpose()?;
        let all = [Some(of_a), of_b, Some(of_y)];
        let wide = all.iter().flatten().all(|r| r.multiple_of(4));
        let per_row = of_a.cols.div_ceil(4);
        let groups = of_a.rows * per_row;
        let params = Params {
            groups: groups as u32,
            groups_per_row: per_row as u32,
            cols: of_a.cols as u32,
            a_offset: of_a.offset as u32,
            a_stride: of_a.stride as u32,
            b_offset: of_b.map_or(0, |r| r.offset as u32),
            b_stride: of_b.map_or(0, |r| r.stride as u32),
            y_offset: of_y.offset as u32,
            y_stride: of_y.stride as u32,
            threshold: threshold_bits(self.threshold)?,
        };
        let recipe = Recipe::new("mlp/keep")
            .with("A", a.dtype())
            .with("B", b.map(Layout::dtype))
            .with("Y", y.dtype())
            .with("F", self.activation.name())
            .with("VEC", if wide { 4 } else { 1 })
            .with("WG", WORKGROUP as u32);
        Launch::new(
            caps,
            recipe,
            linear_grid(caps, groups.div_ceil(WORKGROUP)),
            &params,
        )
    }

    /// Records it.
    pub fn run(
        self,
        pass: &mut Pass<'_>,
        a: &Tensor,
        b: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<()> {
        let launch = self.plan(
            pass.capabilities(),
            a.layout(),
            b.map(Tensor::layout),
            y.layout(),
        )?;
        match b {
            Some(b) => pass.launch(&launch, &[a, b, y]),
            None => pass.launch(&launch, &[a, y]),
        }
    }
}
