//! Gradients of a convolution.

use bytemuck::{Pod, Zeroable};

use super::operands::Direction;
use super::{ConvArgs, FftConv, Filter, FilterPlan};
use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::elementwise::{Binary, BinaryOp};
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Scratch memory of the gated input of one batch row, and of a correlation; slot 0 is between passes.
const SLOTS: [usize; 2] = [1, 2];

/// Operands of the gradients of y = w * (conv(u * v, k) + d u v): what the convolution took, the gradient of y, and the gradients
/// that are wanted. u's shape for all but dk, [channels, taps], and dd, \[channels\], which are f32 and contiguous; dd needs no dk.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// What was convolved, [batch, channels, length] or [channels, length].
    pub u: &'a Tensor,
    /// v, if there was one.
    pub gate_in: Option<&'a Tensor>,
    /// w, if there was one.
    pub gate_out: Option<&'a Tensor>,
    /// The gradient of y.
    pub dy: &'a Tensor,
    /// Gradient of u: v times the correlation of w dy with the filter.
    pub du: Option<&'a Tensor>,
    /// Gradient of v: u times that.
    pub d_gate_in: Option<&'a Tensor>,
    /// Gradient of w: dy times the convolution.
    pub d_gate_out: Option<&'a Tensor>,
    /// Gradient of k: the correlation of w dy with u v, summed over the batch.
    pub dk: Option<&'a Tensor>,
    /// Gradient of d: that at tap 0.
    pub dd: Option<&'a Tensor>,
}

/// Mirrors `Params` of accumulate.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    elements: u32,
    taps: u32,
    length: u32,
    k_offset: u32,
    k_channel: u32,
    d_offset: u32,
    d_channel: u32,
}

/// Plans the sum of one batch row's correlation, [channels, length], into the gradients of k and d.
pub fn accumulate(
    caps: &Capabilities,
    [channels, taps, length]: [usize; 3],
    dk: Option<&Layout>,
    dd: Option<&Layout>,
    first: bool,
) -> Result<Launch> {
    for (name, layout, shape) in [
        ("dk", dk, &[channels, taps][..]),
        ("dd", dd, &[channels][..]),
    ] {
        if let Some(layout) = layout {
            layout.require_dtype(name, DType::F32)?;
            layout.require_shape(name, shape)?;
            if !layout.is_contiguous() {
                return Err(Error::argument(name, format!("{layout:?}"), "contiguous"));
            }
        }
    }
    // Of d alone, the first tap counts.
    let taps = if dk.is_some() { taps } else { 1 };
    let elements = channels * taps;
    let recipe = Recipe::new("fftconv/accumulate")
        .with("DK", u32::from(dk.is_some()))
        .with("DD", u32::from(dd.is_some()))
        .with("FIRST", u32::from(first));
    let params = Params {
        elements: elements as u32,
        taps: taps as u32,
        length: length as u32,
        k_offset: dk.map_or(0, Layout::offset) as u32,
        k_channel: taps as u32,
        d_offset: dd.map_or(0, Layout::offset) as u32,
        d_channel: 1,
    };
    Launch::new(
        caps,
        recipe,
        linear_grid(caps, elements.div_ceil(256)),
        &params,
    )
}

impl Filter {
    /// Records the gradients that are wanted. That of the filter takes the spectrum of u v in the filter's place, one batch row
    /// after the other, and as much memory as a filter of u's length for the time of the pass.
    pub fn backward(&self, pass: &mut Pass<'_>, args: &Backward<'_>) -> Result<()> {
        let shape = args.u.shape();
        for (name, tensor) in [
            ("dy", Some(args.dy)),
            ("du", args.du),
            ("d_gate_in", args.d_gate_in),
            ("d_gate_out", args.d_gate_out),
        ] {
            if let Some(tensor) = tensor {
                tensor.layout().require_shape(name, shape)?;
            }
        }
        for (name, gradient, gate) in [
            ("d_gate_in", args.d_gate_in, args.gate_in),
            ("d_gate_out", args.d_gate_out, args.gate_out),
        ] {
            if gradient.is_some() && gate.is_none() {
                return Err(Error::argument(
                    name,
                    "wanted",
                    "only with the gate that it is the gradient of",
                ));
            }
        }
        let transposed = |gate_out, y| ConvArgs {
            u: args.dy,
            gate_in: args.gate_out,
            gate_out,
            y,
        };
        if let Some(du) = args.du {
            self.run_in(pass, &transposed(args.gate_in, du), Direction::Transposed)?;
        }
        if let Some(dv) = args.d_gate_in {
            self.run_in(pass, &transposed(Some(args.u), dv), Direction::Transposed)?;
        }
        if let Some(dw) = args.d_gate_out {
            let args = ConvArgs {
                u: args.u,
                gate_in: args.gate_in,
                gate_out: Some(args.dy),
                y: dw,
            };
            self.run_in(pass, &args, Direction::Forward)?;
        }
        if args.dk.is_some() || args.dd.is_some() {
            self.filter_gradient(pass, args)?;
        }
        Ok(())
    }

    fn filter_gradient(&self, pass: &mut Pass<'_>, args: &Backward<'_>) -> Result<()> {
        let shape = args.u.shape();
        let (batch, channels, length) = match *shape {
            [channels, length] => (1, channels, length),
            [batch, channels, length] => (batch, channels, length),
            _ => {
                return Err(Error::argument(
                    "u",
                    format!("{shape:?}"),
                    "[batch, channels, length] or [channels, length]",
                ));
            }
        };
        let row = |t: &Tensor, b: usize| {
            if t.shape().len() == 3 {
                t.narrow(0, b..b + 1)
            } else {
                Ok(t.clone())
            }
        };
        let conv = FftConv::new(self.plan().boundary());
        let caps = pass.capabilities();
        let like = Layout::contiguous(DType::F32, [channels, length])?;
        let plan = FilterPlan::new(caps, conv, &like, length, None)?;
        let spectrum = Self::allocate(pass.context(), plan)?;
        let of_row: &[usize] = if shape.len() == 3 {
            &[1, channels, length]
        } else {
            &[channels, length]
        };
        for b in 0..batch {
            let u = row(args.u, b)?;
            let s = match args.gate_in {
                None => u,
                Some(v) => {
                    let s = pass.scratch(SLOTS[0], DType::F32, of_row)?;
                    Binary(BinaryOp::Mul).run(pass, &u, &row(v, b)?, &s)?;
                    s
                }
            };
            spectrum.update(pass, &s, None)?;
            let correlation = pass.scratch(SLOTS[1], DType::F32, of_row)?;
            let w = args.gate_out.map(|w| row(w, b)).transpose()?;
            let conv = ConvArgs {
                u: &row(args.dy, b)?,
                gate_in: w.as_ref(),
                gate_out: None,
                y: &correlation,
            };
            spectrum.run_in(pass, &conv, Direction::Transposed)?;
            let sizes = [channels, self.taps(), length];
            let launch = accumulate(
                caps,
                sizes,
                args.dk.map(Tensor::layout),
                args.dd.map(Tensor::layout),
                b == 0,
            )?;
            let mut tensors = arrayvec::ArrayVec::<&Tensor, 3>::new();
            tensors.push(&correlation);
            tensors.extend(args.dk.into_iter().chain(args.dd));
            pass.launch(&launch, &tensors)?;
        }
        Ok(())
    }
}
