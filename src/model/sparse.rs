//! The linear layers of a decoder block that leave weights unread.

use std::cell::RefCell;

use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::elementwise::Activation;
use crate::kernels::gemm::{Gating, Gemm, GemmArgs, Residual};
use crate::kernels::linear::{Linear, LinearArgs};
use crate::kernels::mlp::{
    Histogram, Keep, Predicted, Predictor, SparseLinear, SparseLinearArgs, SparseMlp,
    SparseMlpArgs, SparsePlan, StagedMlpArgs,
};
use crate::kernels::norm::{Norm, NormArgs};
use crate::model::LlamaConfig;
use crate::model::offload::HostNeurons;
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Tokens up to which only the weights that some token needs are read. With more, most are needed by some: values are masked,
/// and the products dense.
pub(crate) const FEW: usize = 4;

/// Memory for intermediate results, and what calibration counts.
pub(crate) struct SparseWork {
    normed: Tensor,
    /// What passes: flat, of any width.
    kept: Tensor,
    gates: Tensor,
    ups: Tensor,
    /// Of each layer, each place.
    bins: Option<Vec<Vec<Tensor>>>,
    /// Sums of layers whose neurons are brought in, at most [`FEW`] tokens.
    partial: Option<Tensor>,
    /// What predictors write, for at most [`FEW`] tokens.
    predicted: Option<Predicted>,
}

/// The weights of an MLP by neurons.
pub(crate) struct NeuronWeights<'a> {
    pub norm: &'a Tensor,
    pub gate: &'a Tensor,
    pub pairs: &'a Tensor,
    pub predictor: Option<&'a Predictor>,
}

/// The weights of an MLP whose neurons are brought in.
pub(crate) struct Offloaded<'a> {
    pub host: &'a HostNeurons,
    pub norm: &'a Tensor,
    pub gate: &'a Tensor,
}

impl Offloaded<'_> {
    fn args<'a>(
        &'a self,
        hidden: &'a Tensor,
        activations: &'a Tensor,
        eps: f32,
    ) -> StagedMlpArgs<'a, Tensor> {
        StagedMlpArgs {
            x: hidden,
            gate: self.gate,
            activations,
            pairs: &self.host.pairs,
            places: &self.host.places,
            norm: Some((self.norm, eps)),
            residual: Residual::InOut,
            out: hidden,
        }
    }
}

/// Plans of a chunk: layers have the same layouts, and differ by their thresholds.
#[derive(Default)]
pub(crate) struct SparsePlans {
    products: RefCell<[Option<SparsePlan>; 4]>,
    neurons: RefCell<Option<SparsePlan>>,
}

/// The plan that is kept, or a new one, for a threshold.
fn kept_plan(
    kept: &mut Option<SparsePlan>,
    threshold: f32,
    plan: impl FnOnce() -> Result<SparsePlan>,
) -> Result<SparsePlan> {
    let plan = match kept {
        Some(plan) => plan,
        None => kept.insert(plan()?),
    };
    plan.at_threshold(threshold)
}

impl SparseWork {
    /// For chunks of `rows` tokens.
    pub(crate) fn new(ctx: &Context, c: &LlamaConfig, rows: usize) -> Result<Self> {
        let f32s = |cols: usize| Tensor::empty(ctx, DType::F32, [rows, cols]);
        let widest = c
            .hidden_size
            .max(c.intermediate_size)
            .max(c.heads * c.head_dim);
        Ok(Self {
            normed: f32s(c.hidden_size)?,
            kept: Tensor::empty(ctx, DType::F32, [rows * widest])?,
            gates: f32s(c.intermediate_size)?,
            ups: f32s(c.intermediate_size)?,
            bins: None,
            partial: None,
            predicted: None,
        })
    }

    /// With room for what predictors like this one write.
    pub(crate) fn predicting(mut self, ctx: &Context, like: &Predictor) -> Result<Self> {
        self.predicted = Some(like.memory(ctx, FEW)?);
        Ok(self)
    }

    /// With room for what layers like this one keep while their neurons are brought in.
    pub(crate) fn staged(mut self, ctx: &Context, like: &Offloaded<'_>) -> Result<Self> {
        let hidden = Tensor::empty(ctx, DType::F32, self.normed.shape())?;
        let args = like.args(&hidden, &self.gates, 0.0);
        let op = SparseMlp {
            activation: Activation::Silu,
            threshold: 0.0,
        };
        let len = op.partial_len(ctx.capabilities(), &args.layouts())?;
        self.partial = Some(Tensor::empty(ctx, DType::F32, [len])?);
        Ok(self)
    }

    /// Begins to count magnitudes, at zero.
    pub(crate) fn observe(&mut self, ctx: &Context, c: &LlamaConfig) -> Result<()> {
        let layer = |i: usize| {
            let places = c.layer_sparsity(i).thresholds().len();
            (0..places).map(|_| Histogram::bins(ctx)).collect()
        };
        self.bins = Some((0..c.layers).map(layer).collect::<Result<_>>()?);
        Ok(())
    }

    /// What was counted, of each layer and place; errors name the layer.
    pub(crate) fn histograms(&self) -> Result<Vec<Vec<Histogram>>> {
        let all = self.bins.iter().flatten().enumerate();
        all.map(|(i, places)| {
            let read = places.iter().map(Histogram::read).collect::<Result<_>>();
            read.map_err(|e| match e {
                Error::Argument { name, was, allowed } => Error::Argument {
                    name: format!("{name} of layer {i}"),
                    was,
                    allowed,
                },
                other => other,
            })
        })
        .collect()
    }

    /// The work of one layer for a chunk of `tokens`.
    pub(crate) fn layer<'a>(
        &'a self,
        plans: &'a SparsePlans,
        layer: usize,
        tokens: usize,
        eps: f32,
    ) -> SparseLayer<'a> {
        SparseLayer {
            work: self,
            plans,
            layer,
            tokens,
            eps,
        }
    }
}

/// Records dispatches: into a pass that is under way, or into one of their own.
pub(crate) type Submit<'a> =
    dyn FnMut(&mut dyn FnMut(&mut Pass<'_>) -> Result<()>) -> Result<()> + 'a;

/// One layer of a chunk.
pub(crate) struct SparseLayer<'a> {
    work: &'a SparseWork,
    plans: &'a SparsePlans,
    layer: usize,
    tokens: usize,
    eps: f32,
}

/// A product by inputs.
pub(crate) struct SparseProduct<'a> {
    /// Its place among the layer's thresholds.
    pub place: usize,
    pub threshold: f32,
    pub x: &'a Tensor,
    pub norm: Option<&'a Tensor>,
    /// Input-major.
    pub weight: &'a Tensor,
    /// [`Gating::GateUp`] is SwiGLU.
    pub gating: Gating,
    pub residual: Residual<'a, Tensor>,
    pub out: &'a Tensor,
}

impl<'a> SparseProduct<'a> {
    /// With nothing around it.
    pub(crate) fn new(
        place: usize,
        threshold: f32,
        x: &'a Tensor,
        weight: &'a Tensor,
        out: &'a Tensor,
    ) -> Self {
        Self {
            place,
            threshold,
            x,
            norm: None,
            weight,
            gating: Gating::None,
            residual: Residual::None,
            out,
        }
    }
}

impl SparseLayer<'_> {
    /// Whether only what is needed is read.
    fn reads_few(&self) -> bool {
        self.tokens <= FEW && self.work.bins.is_none()
    }

    fn part(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.rows(0..self.tokens)
    }

    fn kept(&self, width: usize) -> Result<Tensor> {
        let flat = self.work.kept.rows(0..self.tokens * width)?;
        flat.reshape([self.tokens, width])
    }

    /// RMSNorm of `x`, if there is one.
    fn normed(&self, pass: &mut Pass<'_>, x: &Tensor, norm: Option<&Tensor>) -> Result<Tensor> {
        let Some(weight) = norm else {
            return Ok(x.clone());
        };
        let to = self.part(&self.work.normed)?;
        Norm::rms(self.eps).run(pass, NormArgs::new(x, weight, &to))?;
        Ok(to)
    }

    fn count(&self, pass: &mut Pass<'_>, place: usize, f: Activation, a: &Tensor) -> Result<()> {
        match &self.work.bins {
            Some(bins) => Histogram::count(pass, f, a, &bins[self.layer][place]),
            None => Ok(()),
        }
    }

    /// A product of the inputs that pass.
    pub(crate) fn product(&self, pass: &mut Pass<'_>, of: &SparseProduct<'_>) -> Result<()> {
        let activation = match of.gating {
            Gating::None => Activation::None,
            Gating::GateUp => Activation::Silu,
        };
        if self.reads_few() {
            let op = SparseLinear {
                activation,
                gating: of.gating,
                threshold: of.threshold,
            };
            let args = SparseLinearArgs {
                norm: of.norm.map(|w| (w, self.eps)),
                residual: of.residual,
                ..SparseLinearArgs::new(of.x, of.weight, of.out)
            };
            let caps = pass.capabilities();
            let kept = &mut self.plans.products.borrow_mut()[of.place];
            let plan = kept_plan(kept, of.threshold, || op.plan(caps, &args.layouts()))?;
            return args.launch(pass, &plan);
        }
        let x = self.normed(pass, of.x, of.norm)?;
        self.count(pass, of.place, Activation::None, &x)?;
        let kept = self.kept(of.weight.shape()[0])?;
        let keep = Keep {
            activation: Activation::None,
            threshold: of.threshold,
        };
        keep.run(pass, &x, None, &kept)?;
        match of.gating {
            Gating::None => Gemm::default().run(
                pass,
                &GemmArgs {
                    residual: of.residual,
                    ..GemmArgs::new(&kept, of.weight, of.out)
                },
            ),
            Gating::GateUp => {
                let (gates, ups) = (self.part(&self.work.gates)?, self.part(&self.work.ups)?);
                let n = gates.shape()[1];
                for (half, to) in [(0..n, &gates), (n..2 * n, &ups)] {
                    let weight = of.weight.narrow(1, half)?;
                    Gemm::default().run(pass, &GemmArgs::new(&kept, &weight, to))?;
                }
                Keep {
                    activation,
                    threshold: 0.0,
                }
                .run(pass, &gates, Some(&ups), of.out)
            }
        }
    }

    /// hidden += the MLP of the neurons that fire.
    pub(crate) fn neurons(
        &self,
        pass: &mut Pass<'_>,
        threshold: f32,
        of: &NeuronWeights<'_>,
        hidden: &Tensor,
    ) -> Result<()> {
        let activation = Activation::Silu;
        let &NeuronWeights {
            norm, gate, pairs, ..
        } = of;
        if self.reads_few() {
            let norm = Some((norm, self.eps));
            let predicted = of.predictor.and(self.work.predicted.as_ref());
            if let (Some(predictor), Some(to)) = (of.predictor, predicted) {
                predictor.run(pass, hidden, norm, to)?;
            }
            let args = SparseMlpArgs {
                norm,
                listed: predicted.map(|p| &p.listed),
                residual: Residual::InOut,
                ..SparseMlpArgs::new(hidden, gate, pairs, hidden)
            };
            let op = SparseMlp {
                activation,
                threshold,
            };
            let caps = pass.capabilities();
            let kept = &mut self.plans.neurons.borrow_mut();
            let plan = kept_plan(kept, threshold, || op.plan(caps, &args.layouts()))?;
            return args.launch(pass, &plan);
        }
        let k = hidden.shape()[1];
        let (up, down) = (pairs.narrow(1, 0..k)?, pairs.narrow(1, k..2 * k)?);
        let (gates, ups) = (self.part(&self.work.gates)?, self.part(&self.work.ups)?);
        let kept = self.kept(gates.shape()[1])?;
        let x = self.normed(pass, hidden, Some(norm))?;
        let linear = Linear {
            activation: Activation::None,
        };
        linear.run(pass, LinearArgs::new(&x, gate, &gates))?;
        linear.run(pass, LinearArgs::new(&x, &up, &ups))?;
        self.count(pass, 0, activation, &gates)?;
        Keep {
            activation,
            threshold,
        }
        .run(pass, &gates, Some(&ups), &kept)?;
        let args = GemmArgs {
            residual: Residual::InOut,
            ..GemmArgs::new(&kept, &down, hidden)
        };
        Gemm::default().run(pass, &args)
    }

    /// hidden += the MLP of the neurons that fire, brought in: what `submit` is given is recorded and submitted at once.
    pub(crate) fn brought(
        &self,
        threshold: f32,
        of: &Offloaded<'_>,
        hidden: &Tensor,
        submit: &mut Submit<'_>,
    ) -> Result<()> {
        let op = SparseMlp {
            activation: Activation::Silu,
            threshold,
        };
        let activations = self.part(&self.work.gates)?;
        let args = of.args(hidden, &activations, self.eps);
        let Some(partial) = &self.work.partial else {
            return Err(Error::argument(
                "session",
                "resident",
                "one for offloaded layers",
            ));
        };
        submit(&mut |pass| op.run_gates(pass, &args))?;
        of.host.bring(&activations, |neurons| {
            submit(&mut |pass| op.run_rest(pass, &args, neurons.clone(), partial))
        })
    }
}
