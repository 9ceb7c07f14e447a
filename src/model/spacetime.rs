//! The SpaceTime layer: a state space with a companion matrix in every channel, as a convolution and as a recurrence
//! (arXiv 2303.09489).

use rayon::prelude::*;

use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::hyena::{BlockConv, Output};
use crate::kernels::spacetime::{MAX_ORDER, Recurrence, RecurrenceArgs};
use crate::reference::spacetime::Companion;
use crate::tensor::Tensor;

/// A layer on the device: y = the outputs of `channels` independent systems, see [`Companion`].
///
/// Known inputs go through the filters that the systems are, all at once ([`forward`](Self::forward)); what follows is
/// forecast in closed loop, every output the next input ([`forecast`](Self::forecast)).
pub struct SpaceTime {
    ctx: Context,
    systems: Vec<Companion<f64>>,
    order: usize,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
}

impl SpaceTime {
    /// The layer of these systems, one a channel, on the device in f32.
    ///
    /// Errors if there is none, or if they are not of one order from 1 to 256.
    pub fn new(ctx: &Context, systems: Vec<Companion<f64>>) -> Result<Self> {
        let order = systems.first().map_or(0, |s| s.a.len());
        let fits = |s: &Companion<f64>| [&s.a, &s.b, &s.c].iter().all(|v| v.len() == order);
        if !(1..=MAX_ORDER).contains(&order) || !systems.iter().all(fits) {
            let orders: Vec<_> = systems
                .iter()
                .map(|s| [s.a.len(), s.b.len(), s.c.len()])
                .take(8)
                .collect();
            return Err(Error::argument(
                "systems",
                format!("{} with a, b, c of {orders:?}", systems.len()),
                format!("one or more, of one order, 1 to {MAX_ORDER}"),
            ));
        }
        let put = |of: &dyn Fn(&Companion<f64>) -> &[f64]| {
            let all: Vec<f32> = systems.iter().flat_map(of).map(|&x| x as f32).collect();
            Tensor::from_slice(ctx, &all, [systems.len(), order])
        };
        let d: Vec<f32> = systems.iter().map(|s| s.d as f32).collect();
        Ok(Self {
            ctx: ctx.clone(),
            order,
            a: put(&|s| &s.a)?,
            b: put(&|s| &s.b)?,
            c: put(&|s| &s.c)?,
            d: Tensor::from_slice(ctx, &d, [d.len()])?,
            systems,
        })
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.systems.len()
    }

    /// Places of a channel's state.
    pub fn order(&self) -> usize {
        self.order
    }

    /// A state of zeros, `[channels, order]`.
    pub fn state(&self) -> Result<Tensor> {
        let zeros = vec![0.0f32; self.channels() * self.order];
        Tensor::from_slice(&self.ctx, &zeros, [self.channels(), self.order])
    }

    /// The filters `[channels, length]`, from the systems in f64 on the host, a recurrence of `order` terms a tap.
    pub fn filter(&self, length: usize) -> Result<Tensor> {
        let taps: Vec<f32> = self
            .systems
            .par_iter()
            .flat_map_iter(|s| s.filter(length).into_iter().map(|tap| tap as f32))
            .collect();
        Tensor::from_slice(&self.ctx, &taps, [self.channels(), length])
    }

    /// The outputs of the inputs `u` `[channels, length]` from a state of zeros on: a convolution. `taps` are the
    /// [`filter`](Self::filter) of this length or longer.
    pub fn forward(&self, u: &Tensor, taps: &Tensor) -> Result<Tensor> {
        let y = Tensor::empty(&self.ctx, DType::F32, u.shape())?;
        let conv = BlockConv {
            lag: 0,
            output: Output::Store,
        };
        self.ctx.record(|pass| conv.run(pass, u, taps, &y))?;
        Ok(y)
    }

    /// The outputs of the inputs `u` `[channels, length]` from `state` on, which moves on: the recurrence.
    pub fn step(&self, state: &Tensor, u: &Tensor) -> Result<Tensor> {
        let y = Tensor::empty(&self.ctx, DType::F32, u.shape())?;
        self.run(Recurrence::OpenLoop, state, u, &y)?;
        Ok(y)
    }

    /// `steps` outputs from `state` on, which moves on, the first of the input `u` `[channels, 1]`, each the next
    /// step's input: `[channels, steps]`.
    pub fn forecast(&self, state: &Tensor, u: &Tensor, steps: usize) -> Result<Tensor> {
        let y = Tensor::empty(&self.ctx, DType::F32, [self.channels(), steps])?;
        self.run(Recurrence::ClosedLoop, state, u, &y)?;
        Ok(y)
    }

    fn run(&self, form: Recurrence, state: &Tensor, u: &Tensor, y: &Tensor) -> Result<()> {
        let args = RecurrenceArgs {
            a: &self.a,
            b: &self.b,
            c: &self.c,
            d: &self.d,
            u,
            state,
            y,
        };
        self.ctx.record(|pass| form.run(pass, args))
    }
}
