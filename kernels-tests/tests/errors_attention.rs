//! Bad input to attention is an error that names the argument, and plans keep their promises: no GPU needed.

use flashwave::DType::{self, F16, F32, I8, U32};
use flashwave::kernels::attention::{
    Attention, AttentionLayouts, AttentionPlan, Mask, Packing, Tuning,
};
use flashwave::{Capabilities, Error, Layout, Result};

fn layout(dtype: DType, shape: &[usize]) -> Layout {
    Layout::contiguous(dtype, shape).expect("a layout")
}

fn kv(kv_heads: usize, kv_len: usize, dim: usize) -> Layout {
    layout(F16, &[1, kv_heads, kv_len, dim])
}

struct Call {
    q: Layout,
    k: Layout,
    v: Layout,
    out: Layout,
    bias: Option<Layout>,
    mask: Option<Layout>,
    documents: Option<Packing>,
    slopes: Option<Layout>,
    sink_logits: Option<Layout>,
    lse: Option<Layout>,
    caps: Capabilities,
}

impl Call {
    /// Eight query heads over two key heads, five queries, seven keys, 16 channels.
    fn new() -> Self {
        Self {
            q: layout(F32, &[1, 8, 5, 16]),
            k: kv(2, 7, 16),
            v: kv(2, 7, 16),
            out: layout(F32, &[1, 8, 5, 16]),
            bias: None,
            mask: None,
            documents: None,
            slopes: None,
            sink_logits: None,
            lse: None,
            caps: Capabilities::webgpu_default(),
        }
    }

    fn plan(&self, operator: Attention) -> Result<AttentionPlan> {
        let Self { q, k, v, out, .. } = self;
        let layouts = AttentionLayouts {
            bias: self.bias.as_ref(),
            mask: self.mask.as_ref(),
            documents: self.documents.as_ref(),
            slopes: self.slopes.as_ref(),
            sink_logits: self.sink_logits.as_ref(),
            lse: self.lse.as_ref(),
            ..AttentionLayouts::new(q, k, v, out)
        };
        operator.plan(&self.caps, layouts)
    }
}

/// The argument that a call changed like this is refused for.
fn refused(change: impl FnOnce(&mut Call)) -> String {
    let mut call = Call::new();
    change(&mut call);
    name(call.plan(Attention::new(Mask::Causal)))
}

fn name(plan: Result<AttentionPlan>) -> String {
    match plan {
        Err(Error::Argument { name, .. }) => name,
        other => panic!("an argument error, not {other:?}"),
    }
}

#[test]
fn what_does_not_fit_is_named() {
    assert!(Call::new().plan(Attention::new(Mask::Full)).is_ok());
    assert_eq!(refused(|c| c.q = layout(U32, &[1, 8, 5, 16])), "q");
    assert_eq!(refused(|c| c.q = layout(F32, &[8, 5, 16])), "q");
    assert_eq!(
        refused(|c| c.q = layout(F32, &[1, 8, 16, 5]).transpose(2, 3).unwrap()),
        "q"
    );
    assert_eq!(refused(|c| c.k = kv(3, 7, 16)), "k");
    assert_eq!(refused(|c| c.k = kv(2, 7, 8)), "k");
    assert_eq!(refused(|c| c.k = layout(F16, &[2, 2, 7, 16])), "k");
    assert_eq!(refused(|c| c.k = layout(I8, &[1, 2, 7, 16])), "k");
    assert_eq!(refused(|c| c.v = kv(2, 8, 16)), "v");
    assert_eq!(refused(|c| c.v = kv(1, 7, 16)), "v");
    assert_eq!(refused(|c| c.out = layout(F32, &[1, 8, 5, 8])), "out");
    assert_eq!(refused(|c| c.out = layout(F32, &[1, 8, 4, 16])), "out");
    assert_eq!(refused(|c| c.lse = Some(layout(F16, &[1, 8, 5]))), "lse");
    assert_eq!(refused(|c| c.lse = Some(layout(F32, &[1, 8, 6]))), "lse");
    assert_eq!(
        refused(|c| c.lse = Some(layout(F32, &[1, 5, 8]).transpose(1, 2).unwrap())),
        "lse"
    );
    assert_eq!(refused(|c| c.bias = Some(layout(F32, &[5, 8]))), "bias");
    assert_eq!(
        refused(|c| c.bias = Some(layout(F32, &[1, 1, 1, 5, 7]))),
        "bias"
    );
    assert_eq!(refused(|c| c.bias = Some(layout(U32, &[5, 7]))), "bias");
    assert_eq!(
        refused(|c| c.bias = Some(layout(F32, &[7, 5]).transpose(0, 1).unwrap())),
        "bias"
    );
    assert_eq!(refused(|c| c.mask = Some(layout(F32, &[5, 7]))), "mask");
    assert_eq!(refused(|c| c.mask = Some(layout(I8, &[4, 5, 7]))), "mask");
    let wide = |c: &mut Call| {
        c.q = layout(F32, &[1, 8, 5, 577]);
        c.k = kv(2, 7, 577);
    };
    assert_eq!(refused(wide), "q");
    assert_eq!(refused(|c| c.v = kv(2, 7, 513)), "v");
    for (queries, keys) in [(&[0, 5], &[0, 8]), (&[0, 6], &[0, 7])] {
        let packing = Packing::new(queries, keys).expect("lengths");
        assert_eq!(refused(|c| c.documents = Some(packing)), "documents");
    }
    for bad in [layout(F16, &[8]), layout(F32, &[2]), layout(F32, &[1, 8])] {
        assert_eq!(refused(|c| c.slopes = Some(bad.clone())), "slopes");
        assert_eq!(refused(|c| c.sink_logits = Some(bad)), "sink_logits");
    }
    let spread = layout(F32, &[8, 2]).narrow(1, 0..1).unwrap();
    let spread = spread.transpose(0, 1).unwrap();
    assert_eq!(refused(|c| c.slopes = Some(spread)), "slopes");
    // More heads than a dispatch has workgroups.
    let many = |c: &mut Call| {
        c.q = layout(F32, &[1, 70_000, 20, 1]);
        c.out = c.q.clone();
        c.k = layout(F32, &[1, 1, 7, 1]);
        c.v = c.k.clone();
    };
    assert_eq!(refused(many), "grid");
}

#[test]
fn what_broadcasts_is_admitted() {
    for shape in [
        &[7][..],
        &[1],
        &[5, 1],
        &[8, 1, 7],
        &[1, 1, 5, 7],
        &[1, 8, 5, 7],
        &[],
    ] {
        let mut call = Call::new();
        call.bias = Some(layout(F16, shape));
        call.mask = Some(layout(I8, shape));
        assert!(call.plan(Attention::new(Mask::Full)).is_ok(), "{shape:?}");
    }
}

#[test]
fn scales_are_finite() {
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let plan = Call::new().plan(Attention::new(Mask::Full).scale(scale));
        assert_eq!(name(plan), "scale");
    }
    assert!(
        Call::new()
            .plan(Attention::new(Mask::Full).scale(-0.5))
            .is_ok()
    );
}

#[test]
fn softcaps_are_positive_and_finite() {
    for softcap in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e31, 1e-39] {
        let plan = Call::new().plan(Attention::new(Mask::Full).softcap(softcap));
        assert_eq!(name(plan), "softcap", "{softcap}");
    }
    for softcap in [1e-30, 50.0, 1e30] {
        let plan = Call::new().plan(Attention::new(Mask::Full).softcap(softcap));
        assert!(plan.is_ok(), "{softcap}");
    }
}

#[test]
fn more_tensors_than_a_device_binds_are_refused_by_name() {
    let mut call = Call::new();
    let causal = Attention::new(Mask::Causal);
    let shader = |call: &Call| {
        let plan = call.plan(causal).expect("a plan");
        plan.launches().next().expect("a launch").recipe.shader()
    };
    call.bias = Some(layout(F32, &[5, 7]));
    call.mask = Some(layout(I8, &[5, 7]));
    call.documents = Some(Packing::new(&[0, 2, 5], &[0, 3, 7]).expect("lengths"));
    assert_eq!(shader(&call), "attention/decode");
    // The decode kernel has its splits to bind: with eight tensors the prefill kernel has to serve few queries.
    call.slopes = Some(layout(F32, &[8]));
    assert_eq!(shader(&call), "attention/prefill");
    call.lse = Some(layout(F32, &[1, 8, 5]));
    let error = call.plan(causal).expect_err("too many").to_string();
    assert_eq!(
        error,
        "lse: the 9th tensor of q, k, v, out, bias, mask, documents, slopes, lse; allowed: at most 8 tensors in one \
         call on this device"
    );
    call.sink_logits = Some(layout(F32, &[8]));
    call.caps.storage_buffers = 16;
    assert_eq!(shader(&call), "attention/decode");
}

#[test]
fn tunings_over_the_limits_are_refused() {
    let caps = Capabilities::webgpu_default();
    let defaults = Tuning::new(&caps, 16, 16);
    let decode = |change: fn(&mut Tuning)| {
        let mut tuning = defaults;
        change(&mut tuning);
        name(Call::new().plan(Attention::new(Mask::Full).tuning(tuning)))
    };
    assert_eq!(decode(|t| t.decode.workgroup = 96), "tuning.decode");
    assert_eq!(decode(|t| t.decode.workgroup = 512), "tuning.decode");
    assert_eq!(decode(|t| t.decode.lanes = 64), "tuning.decode");
    assert_eq!(decode(|t| t.decode.rows = 0), "tuning.decode");
    assert_eq!(decode(|t| t.decode.workgroups = 0), "tuning.decode");
    for change in [
        |t: &mut Tuning| t.prefill.rows = 5,
        |t: &mut Tuning| t.prefill.key_threads = 64,
        |t: &mut Tuning| t.prefill.query_threads = u32::MAX,
        |t: &mut Tuning| t.prefill.value_keys = 0,
        |t: &mut Tuning| t.prefill.depth = 9,
    ] {
        let mut tuning = defaults;
        tuning.decode_queries = 0;
        change(&mut tuning);
        let plan = Call::new().plan(Attention::new(Mask::Full).tuning(tuning));
        assert_eq!(name(plan), "tuning.prefill");
    }
}

#[test]
fn a_growing_cache_compiles_nothing_and_its_splits_cover_it() {
    for caps in [
        Capabilities::webgpu_default(),
        Capabilities {
            subgroups: Some(flashwave::capabilities::SubgroupSizes { min: 32, max: 32 }),
            workgroup_bytes: 48 << 10,
            ..Capabilities::webgpu_default()
        },
    ] {
        let mut labels = std::collections::HashSet::new();
        for kv_len in (1..600).chain([4096, 16384, 100_000]) {
            let q = layout(F32, &[1, 32, 1, 128]);
            let k = kv(8, kv_len, 128);
            let layouts = AttentionLayouts::new(&q, &k, &k, &q);
            let plan = Attention::new(Mask::Causal)
                .plan(&caps, layouts)
                .expect("a plan");
            labels.extend(plan.launches().map(|l| l.recipe.to_string()));
            let main = plan.launches().next().expect("a launch");
            let splits = main.grid[0] as usize;
            assert!(
                splits <= kv_len.div_ceil(64),
                "no split without keys worth it"
            );
            assert_eq!(plan.launches().count(), if splits > 1 { 2 } else { 1 });
        }
        assert_eq!(labels.len(), 2, "decode and combine: {labels:?}");
    }
}
