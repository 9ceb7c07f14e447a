//! The recurrence of a companion-matrix state space (SpaceTime, arXiv 2303.09489), step by step.

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Layout, Rows};
use crate::recipe::{Launch, Recipe};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Largest order of a state: an invocation holds a place of it.
pub const MAX_ORDER: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    order: u32,
    steps: u32,
    u_offset: u32,
    u_stride: u32,
    y_offset: u32,
    y_stride: u32,
}

/// The tensors of a [`Recurrence`], or their layouts, all f32. See [`Companion`](crate::reference::spacetime::Companion) for
/// the system.
#[derive(Clone, Copy, Debug)]
pub struct RecurrenceArgs<'a, T> {
    /// `[channels, order]`: the companion matrices' last columns.
    pub a: &'a T,
    /// `[channels, order]`: where the input enters.
    pub b: &'a T,
    /// `[channels, order]`: what the output sees.
    pub c: &'a T,
    /// `[channels]`: from the input straight to the output.
    pub d: &'a T,
    /// The inputs: `[channels, steps]`, in closed loop `[channels, 1]`. Rows of adjacent elements.
    pub u: &'a T,
    /// `[channels, order]`, moved on.
    pub state: &'a T,
    /// `[channels, steps]`: the outputs. Rows of adjacent elements.
    pub y: &'a T,
}

/// Where inputs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recurrence {
    /// From u.
    OpenLoop,
    /// The first from u, each of the others from the output before it.
    ClosedLoop,
}

impl Recurrence {
    /// Plans the dispatch.
    pub fn plan(self, caps: &Capabilities, args: &RecurrenceArgs<'_, Layout>) -> Result<Launch> {
        let (&[channels, order], &[_, steps]) = (args.a.shape(), args.y.shape()) else {
            let was = format!("a {:?}, y {:?}", args.a, args.y);
            return Err(Error::argument("tensors", was, "two dimensions each"));
        };
        if order > MAX_ORDER {
            return Err(Error::argument(
                "a",
                format!("order {order}"),
                format!("at most {MAX_ORDER}"),
            ));
        }
        let named = [
            ("a", args.a),
            ("b", args.b),
            ("c", args.c),
            ("state", args.state),
        ];
        let shapes = named.map(|(name, layout)| (name, layout, vec![channels, order]));
        for (name, layout, shape) in shapes.into_iter().chain([("d", args.d, vec![channels])]) {
            layout.require_dtype(name, DType::F32)?;
            layout.require_shape(name, &shape)?;
            layout.require_whole(name)?;
        }
        let rows = |name: &str, layout: &Layout, cols: usize| -> Result<Rows> {
            layout.require_dtype(name, DType::F32)?;
            layout.require_shape(name, &[channels, cols])?;
            layout.as_rows(name)
        };
        let inputs = match self {
            Self::OpenLoop => steps,
            Self::ClosedLoop => 1,
        };
        let (u, y) = (rows("u", args.u, inputs)?, rows("y", args.y, steps)?);
        let params = Params {
            order: order as u32,
            steps: steps as u32,
            u_offset: u.offset as u32,
            u_stride: u.stride as u32,
            y_offset: y.offset as u32,
            y_stride: y.stride as u32,
        };
        let recipe = Recipe::new("spacetime/recurrence")
            .with(
                "INPUT",
                match self {
                    Self::OpenLoop => "given",
                    Self::ClosedLoop => "output",
                },
            )
            .with("WG", order.next_power_of_two() as u32);
        Launch::new(caps, recipe, [channels, 1, 1], &params)
    }

    /// Records it.
    pub fn run(self, pass: &mut Pass<'_>, args: RecurrenceArgs<'_, Tensor>) -> Result<()> {
        let RecurrenceArgs {
            a,
            b,
            c,
            d,
            u,
            state,
            y,
        } = args;
        let layouts = RecurrenceArgs {
            a: a.layout(),
            b: b.layout(),
            c: c.layout(),
            d: d.layout(),
            u: u.layout(),
            state: state.layout(),
            y: y.layout(),
        };
        let launch = self.plan(pass.capabilities(), &layouts)?;
        pass.launch(&launch, &[a, b, c, d, u, state, y])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_arguments_are_named() {
        let caps = Capabilities::webgpu_default();
        let f = |shape: &[usize]| Layout::contiguous(DType::F32, shape).unwrap();
        let (system, d, y) = (f(&[3, 5]), f(&[3]), f(&[3, 7]));
        let with = |a: &Layout, u: &Layout, state: &Layout, y: &Layout| {
            let args = RecurrenceArgs {
                a,
                b: &system,
                c: &system,
                d: &d,
                u,
                state,
                y,
            };
            Recurrence::OpenLoop.plan(&caps, &args)
        };
        assert!(with(&system, &y, &system, &y).is_ok());
        let message = |plan: Result<Launch>| plan.unwrap_err().to_string();
        assert!(message(with(&f(&[3, 257]), &y, &system, &y)).starts_with("a: order 257"));
        assert!(message(with(&system, &f(&[3, 1]), &system, &y)).starts_with("u: shape [3, 1]"));
        assert!(message(with(&system, &y, &f(&[2, 5]), &y)).starts_with("state: shape [2, 5]"));
        assert!(message(with(&f(&[3]), &y, &system, &y)).starts_with("tensors: a"));
    }
}
