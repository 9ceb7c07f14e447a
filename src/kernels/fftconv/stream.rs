//! Convolutions of sequences without an end, chunk after chunk: overlap-save.

use super::operands::{Direction, Framing, Operands};
use super::{ConvArgs, FftConv, Filter, FilterPlan};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::elementwise::{Activation, Binary, BinaryOp, Unary};
use crate::layout::Layout;
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Windows of a chunk at most: longer ones are done in parts.
const WINDOWS: usize = 4;

/// A causal convolution of a sequence that arrives in chunks. Its memory is that of the spectrum and of a few times the filter's length for
/// each row, however long the sequence gets.
#[derive(Clone, Debug)]
pub struct ConvStream {
    filter: Filter,
    /// [batch, channels, reach + most] f32 each: the past, the chunk. One has the present past, the other takes the next.
    inputs: [Tensor; 2],
    reach: usize,
}

impl ConvStream {
    /// A stream of `batch` sequences, which begin with zeros before them, for the filter `k` [channels, taps] and the skip term `d`
    /// \[channels\].
    pub fn new(k: &Tensor, d: Option<&Tensor>, batch: usize) -> Result<Self> {
        let (ctx, caps) = (k.context(), k.context().capabilities());
        if batch == 0 {
            return Err(Error::argument("batch", batch, "at least 1"));
        }
        let rows = k.layout().as_rows("k")?;
        let (tuning, reach) = FilterPlan::window(caps, rows.cols)?;
        let most = WINDOWS * (2 * tuning.points() - reach);
        let plan = FilterPlan::new(
            caps,
            FftConv::causal(),
            k.layout(),
            reach + most,
            Some(tuning),
        )?;
        let filter = Filter::allocate(ctx, plan)?;
        ctx.record(|pass| filter.update(pass, k, d))?;
        let shape = [batch, rows.rows, reach + most];
        let zeros = vec![0.0; shape.iter().product()];
        let inputs = [0, 1].map(|_| Tensor::from_slice(ctx, &zeros, shape));
        let [a, b] = inputs;
        Ok(Self {
            filter,
            inputs: [a?, b?],
            reach,
        })
    }

    /// Records the convolution of the next chunk: tensors [batch, channels, any length], gates as in [`ConvArgs`].
    pub fn push(&mut self, pass: &mut Pass<'_>, args: &ConvArgs<&Tensor>) -> Result<()> {
        let total = self.inputs[0].shape()[2];
        let (reach, most) = (self.reach, total - self.reach);
        let [batch, channels] = [self.inputs[0].shape()[0], self.inputs[0].shape()[1]];
        let length = match *args.u.shape() {
            [b, c, length] if [b, c] == [batch, channels] => length,
            ref shape => {
                let allowed = format!("[{batch}, {channels}, length]");
                return Err(Error::argument("u", format!("{shape:?}"), allowed));
            }
        };
        for from in (0..length).step_by(most) {
            let here = from..length.min(from + most);
            let part = |t: &Tensor| t.narrow(2, here.clone());
            let optional = |t: Option<&Tensor>| t.map(part).transpose();
            let (u, y) = (part(args.u)?, part(args.y)?);
            let (v, w) = (optional(args.gate_in)?, optional(args.gate_out)?);
            let chunk = here.len();
            let [now, next] = &self.inputs;
            let taken = now.narrow(2, reach..reach + chunk)?;
            match &v {
                Some(v) => Binary(BinaryOp::Mul).run(pass, &u, v, &taken)?,
                None => Unary(Activation::None).run(pass, &u, &taken)?,
            }
            let args = ConvArgs {
                u: &now.narrow(2, 0..reach + chunk)?,
                gate_in: None,
                gate_out: w.as_ref(),
                y: &y,
            };
            self.filter.run_after(pass, &args, reach)?;
            if reach > 0 {
                let past = now.narrow(2, chunk..chunk + reach)?;
                Unary(Activation::None).run(pass, &past, &next.narrow(2, 0..reach)?)?;
            }
            self.inputs.swap(0, 1);
        }
        Ok(())
    }

    /// Bytes of the spectrum and of what is kept of the past.
    pub fn bytes(&self) -> u64 {
        self.filter.bytes() + self.inputs.iter().map(|t| t.layout().bytes()).sum::<u64>()
    }
}

impl Filter {
    /// Records the convolution of `args.u`, whose first `reach` elements are the past of `args.y`'s first.
    fn run_after(&self, pass: &mut Pass<'_>, args: &ConvArgs<&Tensor>, reach: usize) -> Result<()> {
        let (caps, plan) = (pass.capabilities(), self.plan());
        let layouts = args.layouts();
        let operands = plan.operands_after(&layouts, reach)?;
        let steps = plan.steps_of(caps, operands, Direction::Forward)?;
        let like = Layout::contiguous(DType::F32, args.y.shape())?;
        let scratch = plan.scratch(caps, &ConvArgs::new(&like, &like))?;
        self.record(pass, &steps, args, None, scratch)
    }
}

impl FilterPlan {
    fn operands_after(&self, args: &ConvArgs<&Layout>, reach: usize) -> Result<Operands> {
        let like = ConvArgs { u: args.y, ..*args };
        let (framing, points) = (self.framing(), self.tuning().points());
        let operands = Operands::new(&like, self.channels(), framing, Direction::Forward, points)?;
        debug_assert!(matches!(framing, Framing::Window { .. }));
        operands.after(args.u, reach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::Capabilities;

    #[test]
    fn windows_are_longer_than_the_filter() {
        let caps = Capabilities::webgpu_default();
        for taps in [1, 2, 3, 100, 1024, 4096, 20_000] {
            let (tuning, reach) = FilterPlan::window(&caps, taps).expect("a window");
            assert!(reach + 1 >= taps && tuning.points() >= taps && tuning.points() >= 8);
        }
    }
}
