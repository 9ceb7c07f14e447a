//! Bad input to attention's gradients is an error that names the argument, and what planners promise: no GPU needed.

use flashwave::DType::{self, F16, F32, I8, U32};
use flashwave::kernels::attention::{
    Attention, AttentionBackward, AttentionLayouts, BackwardLayouts, BackwardPlan, BackwardTuning,
    Blocks, Mask,
};
use flashwave::kernels::sparse::{Causality, SparseLayout};
use flashwave::{Capabilities, Error, Layout, Result};

fn layout(dtype: DType, shape: &[usize]) -> Layout {
    Layout::contiguous(dtype, shape).expect("a layout")
}

struct Call {
    q: Layout,
    k: Layout,
    v: Layout,
    out: Layout,
    bias: Option<Layout>,
    mask: Option<Layout>,
    lse: Option<Layout>,
    sparse: Option<SparseLayout>,
    dout: Layout,
    dq: Layout,
    dk: Layout,
    dv: Layout,
}

impl Call {
    /// Eight query heads over two key heads, five queries, seven keys, 16 channels, values of 12.
    fn new() -> Self {
        Self {
            q: layout(F32, &[1, 8, 5, 16]),
            k: layout(F16, &[1, 2, 7, 16]),
            v: layout(F16, &[1, 2, 7, 12]),
            out: layout(F32, &[1, 8, 5, 12]),
            bias: None,
            mask: None,
            lse: Some(layout(F32, &[1, 8, 5])),
            sparse: None,
            dout: layout(F16, &[1, 8, 5, 12]),
            dq: layout(F32, &[1, 8, 5, 16]),
            dk: layout(F32, &[1, 2, 7, 16]),
            dv: layout(F16, &[1, 2, 7, 12]),
        }
    }

    fn plan_by(&self, operator: AttentionBackward, caps: &Capabilities) -> Result<BackwardPlan> {
        let layouts = BackwardLayouts {
            forward: AttentionLayouts {
                bias: self.bias.as_ref(),
                mask: self.mask.as_ref(),
                lse: self.lse.as_ref(),
                sparse: self.sparse.as_ref().map(Blocks::Listed),
                ..AttentionLayouts::new(&self.q, &self.k, &self.v, &self.out)
            },
            dout: &self.dout,
            dq: &self.dq,
            dk: &self.dk,
            dv: &self.dv,
        };
        operator.plan(caps, layouts)
    }

    fn plan(&self, operator: AttentionBackward) -> Result<BackwardPlan> {
        self.plan_by(operator, &Capabilities::webgpu_default())
    }
}

fn causal() -> AttentionBackward {
    AttentionBackward::new(Attention::new(Mask::Causal))
}

/// The argument that a call changed like this is refused for.
fn refused(change: impl FnOnce(&mut Call)) -> String {
    let mut call = Call::new();
    change(&mut call);
    name(call.plan(causal()))
}

fn name(plan: Result<BackwardPlan>) -> String {
    match plan {
        Err(Error::Argument { name, .. }) => name,
        other => panic!("an argument error, not {other:?}"),
    }
}

#[test]
fn what_does_not_fit_is_named() {
    assert!(Call::new().plan(causal()).is_ok());
    // What the forward pass checks.
    assert_eq!(refused(|c| c.q = layout(U32, &[1, 8, 5, 16])), "q");
    assert_eq!(refused(|c| c.k = layout(F16, &[1, 3, 7, 16])), "k");
    assert_eq!(refused(|c| c.v = layout(F16, &[1, 2, 8, 12])), "v");
    assert_eq!(refused(|c| c.out = layout(F32, &[1, 8, 5, 16])), "out");
    assert_eq!(refused(|c| c.lse = Some(layout(F32, &[1, 8, 6]))), "lse");
    assert_eq!(refused(|c| c.bias = Some(layout(F32, &[5, 8]))), "bias");
    // What only gradients need.
    assert_eq!(refused(|c| c.lse = None), "lse");
    assert_eq!(refused(|c| c.dout = layout(F32, &[1, 8, 5, 16])), "dout");
    assert_eq!(refused(|c| c.dout = layout(I8, &[1, 8, 5, 12])), "dout");
    assert_eq!(
        refused(|c| c.dout = layout(F32, &[1, 8, 12, 5]).transpose(2, 3).unwrap()),
        "dout"
    );
    assert_eq!(refused(|c| c.dq = layout(F32, &[1, 8, 7, 16])), "dq");
    assert_eq!(refused(|c| c.dk = layout(F32, &[1, 8, 7, 16])), "dk");
    assert_eq!(refused(|c| c.dk = layout(F32, &[2, 7, 16])), "dk");
    assert_eq!(refused(|c| c.dv = layout(F32, &[1, 2, 7, 16])), "dv");
    let both = |c: &mut Call| {
        c.bias = Some(layout(F32, &[5, 7]));
        c.mask = Some(layout(I8, &[5, 7]));
    };
    assert_eq!(refused(both), "mask");
    let blocks = |heads, queries, causality| {
        let builder = SparseLayout::builder(heads, queries, 7).block(16);
        builder.causality(causality).from_fn(|_, _, _| true).ok()
    };
    for (heads, queries, causality) in [
        (3, 5, Causality::Causal),
        (8, 6, Causality::Causal),
        (8, 9, Causality::Full),
    ] {
        assert_eq!(
            refused(|c| c.sparse = blocks(heads, queries, causality)),
            "sparse"
        );
    }
    let mut call = Call::new();
    call.sparse = blocks(4, 5, Causality::Causal);
    assert!(call.sparse.is_some() && call.plan(causal()).is_ok());
    let wide = |c: &mut Call| {
        c.q = layout(F32, &[1, 8, 5, 320]);
        c.dq = c.q.clone();
        c.k = layout(F32, &[1, 2, 7, 320]);
        c.dk = c.k.clone();
    };
    assert_eq!(refused(wide), "q");
}

#[test]
fn a_device_that_binds_more_takes_more() {
    let mut call = Call::new();
    call.bias = Some(layout(F32, &[5, 7]));
    call.mask = Some(layout(I8, &[5, 7]));
    let caps = Capabilities {
        storage_buffers: 9,
        ..Capabilities::webgpu_default()
    };
    assert!(call.plan_by(causal(), &caps).is_ok());
}

#[test]
fn tunings_over_the_limits_are_refused() {
    let defaults = BackwardTuning::new(&Capabilities::webgpu_default(), 16, 12);
    let by = |change: fn(&mut BackwardTuning)| {
        let mut tuning = defaults;
        change(&mut tuning);
        name(Call::new().plan(causal().tuning(tuning)))
    };
    assert_eq!(by(|t| t.queries.rows = 5), "tuning.queries");
    assert_eq!(by(|t| t.queries.across = 2), "tuning.queries");
    assert_eq!(by(|t| t.queries.along = u32::MAX), "tuning.queries");
    assert_eq!(by(|t| t.keys.staged_rows = 0), "tuning.keys");
    assert_eq!(by(|t| t.keys.depth = 9), "tuning.keys");
    assert_eq!(by(|t| t.keys.across = 128), "tuning.keys");
}

#[test]
fn every_row_and_key_has_a_workgroup_and_lengths_compile_nothing() {
    let mut labels = std::collections::HashSet::new();
    for (q_len, kv_len) in [(1, 1), (5, 7), (64, 64), (65, 1000), (1000, 65)] {
        let mut call = Call::new();
        for (layouts, length) in [
            (
                [&mut call.q, &mut call.out, &mut call.dout, &mut call.dq],
                q_len,
            ),
            (
                [&mut call.k, &mut call.v, &mut call.dk, &mut call.dv],
                kv_len,
            ),
        ] {
            for layout in layouts {
                let mut shape = layout.shape().to_vec();
                shape[2] = length;
                *layout = Layout::contiguous(layout.dtype(), shape).expect("a layout");
            }
        }
        call.lse = Some(layout(F32, &[1, 8, q_len]));
        let plan = call.plan(causal()).expect("a plan");
        let grids: Vec<[u32; 3]> = plan.launches().map(|l| l.grid).collect();
        let tuning = BackwardTuning::new(&Capabilities::webgpu_default(), 16, 12);
        let held = |t: flashwave::kernels::attention::GradientTuning| t.along * t.rows;
        assert_eq!(
            grids[1],
            [(q_len as u32).div_ceil(held(tuning.queries)), 8, 1]
        );
        assert_eq!(
            grids[2],
            [(kv_len as u32).div_ceil(held(tuning.keys)), 2, 1]
        );
        labels.extend(plan.launches().map(|l| l.recipe.to_string()));
    }
    assert_eq!(labels.len(), 3, "{labels:?}");
}

#[test]
fn more_workgroup_memory_means_larger_tiles() {
    let large = Capabilities {
        workgroup_bytes: 48 << 10,
        class: flashwave::capabilities::DeviceClass::Discrete,
        ..Capabilities::webgpu_default()
    };
    let small = BackwardTuning::new(&Capabilities::webgpu_default(), 128, 128);
    let tuned = BackwardTuning::new(&large, 128, 128);
    assert!(tuned.queries.along * tuned.queries.rows >= small.queries.along * small.queries.rows);
    assert!(tuned.keys.along * tuned.keys.rows > small.keys.along * small.keys.rows);
    assert!(Call::new().plan_by(causal(), &large).is_ok());
}
