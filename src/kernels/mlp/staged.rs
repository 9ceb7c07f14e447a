//! The gated MLP in two steps, between which the host brings in the neurons that fire.

use std::ops::Range;

use super::neurons::Stage;
use super::{SparseMlp, SparseMlpArgs, SparsePlan};
use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::gemm::Residual;
use crate::layout::Layout;
use crate::recipe::Launch;
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// The tensors of a [`SparseMlp`] of which only some neurons are on the device, or their layouts: LLM in a flash (arXiv
/// 2312.11514), PowerInfer-2 (arXiv 2406.06282). Results are those of the whole, to the bit, in however many pieces.
#[derive(Debug)]
pub struct StagedMlpArgs<'a, T> {
    /// [.., k]: m rows, at most 16, evenly spaced.
    pub x: &'a T,
    /// [n, k].
    pub gate: &'a T,
    /// [m, n], f32: activations of the gates, 0 where a neuron does not fire. Written by the first step.
    pub activations: &'a T,
    /// [slots, 2k]: the neurons that are on the device, up row and down column each.
    pub pairs: &'a T,
    /// \[n\], u32: the slot of each neuron. Of those that fire it has to be right.
    pub places: &'a T,
    /// RMSNorm of x on its way in: its weight \[k\] and epsilon.
    pub norm: Option<(&'a T, f32)>,
    /// [.., k].
    pub residual: Residual<'a, T>,
    /// [.., k].
    pub out: &'a T,
}

impl<'a> StagedMlpArgs<'a, Tensor> {
    /// Their layouts, to plan with.
    pub fn layouts(&self) -> StagedMlpArgs<'a, Layout> {
        StagedMlpArgs {
            x: self.x.layout(),
            gate: self.gate.layout(),
            activations: self.activations.layout(),
            pairs: self.pairs.layout(),
            places: self.places.layout(),
            norm: self.norm.map(|(weight, eps)| (weight.layout(), eps)),
            residual: self.residual.map(Tensor::layout),
            out: self.out.layout(),
        }
    }
}

impl<'a> StagedMlpArgs<'a, Layout> {
    fn checked(&self) -> Result<SparseMlpArgs<'a, Layout>> {
        let (rows, n) = (self.x.as_rows("x")?.rows, self.gate.as_rows("gate")?.rows);
        self.activations.require_dtype("activations", DType::F32)?;
        self.activations.require_shape("activations", &[rows, n])?;
        self.activations.require_whole("activations")?;
        self.places.require_dtype("places", DType::U32)?;
        self.places.require_shape("places", &[n])?;
        self.places.require_whole("places")?;
        Ok(SparseMlpArgs {
            norm: self.norm,
            residual: self.residual,
            ..SparseMlpArgs::new(self.x, self.gate, self.pairs, self.out)
        })
    }
}

impl SparseMlp {
    /// Plans the first step: the gates.
    pub fn plan_gates(
        &self,
        caps: &Capabilities,
        args: &StagedMlpArgs<'_, Layout>,
    ) -> Result<Launch> {
        let stage = Stage {
            name: "gates",
            neurons: 0..args.gate.shape()[0],
        };
        Ok(self.plan_stage(caps, &args.checked()?, &stage)?.product)
    }

    /// Plans the second step for `neurons` of it; ranges follow each other from 0 on.
    pub fn plan_rest(
        &self,
        caps: &Capabilities,
        args: &StagedMlpArgs<'_, Layout>,
        neurons: Range<usize>,
    ) -> Result<SparsePlan> {
        let all = args.gate.shape()[0];
        if neurons.is_empty() || neurons.end > all {
            let was = format!("{neurons:?}");
            return Err(Error::argument(
                "neurons",
                was,
                format!("a range of 0..{all}"),
            ));
        }
        let stage = Stage {
            name: "rest",
            neurons,
        };
        self.plan_stage(caps, &args.checked()?, &stage)
    }

    /// Records the first step.
    pub fn run_gates(&self, pass: &mut Pass<'_>, args: &StagedMlpArgs<'_, Tensor>) -> Result<()> {
        let launch = self.plan_gates(pass.capabilities(), &args.layouts())?;
        let mut tensors = vec![args.x, args.gate, args.activations];
        tensors.extend(args.norm.map(|(weight, _)| weight));
        pass.launch(&launch, &tensors)
    }

    /// Records the second step for `neurons` of it, the last of which writes the result. `partial` keeps the sums between:
    /// f32, of [`partial_len`](Self::partial_len) elements.
    pub fn run_rest(
        &self,
        pass: &mut Pass<'_>,
        args: &StagedMlpArgs<'_, Tensor>,
        neurons: Range<usize>,
        partial: &Tensor,
    ) -> Result<()> {
        let last = neurons.end == args.gate.shape()[0];
        let plan = self.plan_rest(pass.capabilities(), &args.layouts(), neurons)?;
        partial.layout().require_dtype("partial", DType::F32)?;
        if partial.len() < plan.partial {
            let was = format!("{} elements", partial.len());
            return Err(Error::argument("partial", was, format!("{}", plan.partial)));
        }
        let mut tensors = vec![args.x, args.activations, args.pairs, partial];
        tensors.extend(args.norm.map(|(weight, _)| weight));
        tensors.push(args.places);
        pass.launch(&plan.product, &tensors)?;
        match (&plan.sum, args.residual) {
            (Some(sum), Residual::From(residual)) if last => {
                pass.launch(sum, &[partial, args.out, residual])
            }
            (Some(sum), Residual::None | Residual::InOut) if last => {
                pass.launch(sum, &[partial, args.out])
            }
            _ => Ok(()),
        }
    }

    /// Elements that [`run_rest`](Self::run_rest) keeps between its pieces.
    pub fn partial_len(
        &self,
        caps: &Capabilities,
        args: &StagedMlpArgs<'_, Layout>,
    ) -> Result<usize> {
        Ok(self.plan_rest(caps, args, 0..args.gate.shape()[0])?.partial)
    }
}
