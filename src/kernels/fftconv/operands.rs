//! The tensors of a convolution, and what kernels are told about them.

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};
use crate::layout::{Layout, Matrices};
use crate::recipe::{Constant, Recipe};
use crate::tensor::Tensor;

/// The operands of a convolution: tensors to run it, layouts to plan it. All are [batch, channels, length] or
/// [channels, length] with adjacent elements along the last dimension, each f32, f16 or bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvArgs<T> {
    /// What is convolved.
    pub u: T,
    /// Multiplies u.
    pub gate_in: Option<T>,
    /// Multiplies the result.
    pub gate_out: Option<T>,
    /// The result. Values beyond the range of f16 become infinite.
    pub y: T,
}

impl<T> ConvArgs<T> {
    /// Without gates.
    pub fn new(u: T, y: T) -> Self {
        Self {
            u,
            gate_in: None,
            gate_out: None,
            y,
        }
    }

    /// With `gate` multiplying u.
    pub fn gate_in(self, gate: T) -> Self {
        Self {
            gate_in: Some(gate),
            ..self
        }
    }

    /// With `gate` multiplying the result.
    pub fn gate_out(self, gate: T) -> Self {
        Self {
            gate_out: Some(gate),
            ..self
        }
    }
}

impl<'a> ConvArgs<&'a Tensor> {
    pub(super) fn layouts(&self) -> ConvArgs<&'a Layout> {
        ConvArgs {
            u: self.u.layout(),
            gate_in: self.gate_in.map(Tensor::layout),
            gate_out: self.gate_out.map(Tensor::layout),
            y: self.y.layout(),
        }
    }
}

/// How sequences become transforms: `BOUNDARY` of lib/conv.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Framing {
    /// One batch row a transform, zeros before it.
    Causal,
    /// Two batch rows a transform, going round.
    Circular,
    /// Windows of twice the points, `reach` (at least taps - 1) of them from before.
    Window { reach: usize },
    /// The same with the sequence going round.
    Round { reach: usize },
}

impl Framing {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Causal => "causal",
            Self::Circular => "circular",
            Self::Window { .. } => "window",
            Self::Round { .. } => "round",
        }
    }

    /// The phase of the transform's frequencies, in words and in quarters, to be subtracted.
    pub(super) const fn phase(self) -> (&'static str, u32) {
        match self {
            Self::Circular => ("none", 0),
            Self::Causal | Self::Window { .. } | Self::Round { .. } => ("quarter", 1),
        }
    }
}

/// Where a tensor's rows are.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct Place {
    pub(super) offset: u32,
    pub(super) batch: u32,
    pub(super) channel: u32,
}

impl Place {
    fn of(matrices: Option<Matrices>) -> Self {
        matrices.map_or_else(Self::default, |m| Self {
            offset: m.offset as u32,
            batch: m.batch_stride as u32,
            channel: m.stride as u32,
        })
    }
}

/// Mirrors the parameters of lib/conv.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Sequences {
    /// Elements of u and its gate, which may have a past that y has not.
    inputs: u32,
    length: u32,
    batch: u32,
    hop: u32,
    chunks: u32,
    before: u32,
    after: u32,
    u: Place,
    v: Place,
    w: Place,
    y: Place,
}

/// Which of a window's elements come out right: of a convolution the last, of a correlation the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    /// Convolution with the filter.
    Forward,
    /// Correlation with it: the transposed operator.
    Transposed,
}

/// Checked operands.
pub(super) struct Operands {
    pub(super) params: Sequences,
    /// Transforms of a channel.
    pub(super) transforms: usize,
    /// Widest access in elements.
    pub(super) vec: u32,
    /// Points may lie beyond the sequence.
    pub(super) ragged: bool,
    types: [Constant; 4],
}

impl Operands {
    /// Checks the operands of a convolution of `channels` channels with transforms of `points` points.
    pub(super) fn new(
        args: &ConvArgs<&Layout>,
        channels: usize,
        framing: Framing,
        direction: Direction,
        points: usize,
    ) -> Result<Self> {
        let shape = args.u.shape();
        let matrices = |name: &str, layout: &Layout| -> Result<Matrices> {
            layout.require_float(name)?;
            layout.require_shape(name, shape)?;
            let found = layout.as_matrices(name)?;
            if found.rows != channels {
                return Err(Error::argument(
                    name,
                    format!("{} channels", found.rows),
                    format!("{channels}, the filter's"),
                ));
            }
            Ok(found)
        };
        let u = matrices("u", args.u)?;
        let v = args.gate_in.map(|g| matrices("gate_in", g)).transpose()?;
        let w = args.gate_out.map(|g| matrices("gate_out", g)).transpose()?;
        let y = matrices("y", args.y)?;
        let all = [Some(u), v, w, Some(y)];
        let aligned = |n: usize| all.iter().flatten().all(|m| m.multiple_of(n));
        let (batch, length) = (u.batch, u.cols);
        let (hop, chunks, reach) = match framing {
            Framing::Window { reach } | Framing::Round { reach } => {
                let hop = 2 * points - reach;
                (hop, length.div_ceil(hop), reach)
            }
            _ => (0, 1, 0),
        };
        let reach = match direction {
            Direction::Forward => reach as u32,
            Direction::Transposed => 0,
        };
        let params = Sequences {
            inputs: length as u32,
            length: length as u32,
            batch: batch as u32,
            hop: hop as u32,
            chunks: chunks as u32,
            before: reach,
            after: reach,
            u: Place::of(Some(u)),
            v: Place::of(v),
            w: Place::of(w),
            y: Place::of(Some(y)),
        };
        let dtype = |l: Option<&Layout>| l.map(Layout::dtype).into();
        Ok(Self {
            params,
            transforms: match framing {
                Framing::Causal => batch,
                Framing::Circular => batch.div_ceil(2),
                Framing::Window { .. } | Framing::Round { .. } => batch * chunks,
            },
            vec: [4, 2].into_iter().find(|&n| aligned(n)).unwrap_or(1) as u32,
            ragged: length < points || !matches!(framing, Framing::Causal | Framing::Circular),
            types: [Some(args.u), args.gate_in, args.gate_out, Some(args.y)].map(dtype),
        })
    }

    /// The same with `u` for an input, which has the elements that windows read before their first result, `reach` of them.
    pub(super) fn after(mut self, u: &Layout, reach: usize) -> Result<Self> {
        let found = u.as_matrices("u")?;
        self.params.u = Place::of(Some(found));
        self.params.inputs = found.cols as u32;
        self.params.before = 0;
        self.params.after = reach as u32;
        let aligned = [4, 2].into_iter().find(|&n| found.multiple_of(n));
        self.vec = self.vec.min(aligned.unwrap_or(1) as u32);
        self.types[0] = u.dtype().into();
        Ok(self)
    }

    /// The constants of what is read.
    pub(super) fn inputs(&self, recipe: Recipe) -> Recipe {
        recipe
            .with("U", self.types[0])
            .with("GATE_IN", self.types[1])
    }

    /// The constants of what is written.
    pub(super) fn outputs(&self, recipe: Recipe) -> Recipe {
        recipe
            .with("GATE_OUT", self.types[2])
            .with("Y", self.types[3])
    }
}
