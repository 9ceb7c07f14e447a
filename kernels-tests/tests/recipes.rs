//! What the planners choose for typical problems on devices of three kinds, as snapshots: a change of a planner
//! shows up in review. Needs no GPU. `INSTA_UPDATE=always cargo test --workspace --test recipes` rewrites them.

use flashwave::DType::{F16, F32, U32};
use flashwave::capabilities::{CooperativeShape, DeviceClass, SubgroupSizes};
use flashwave::kernels::attention::{Attention, AttentionLayouts, Mask};
use flashwave::kernels::elementwise::{Activation, Binary, BinaryOp, Unary};
use flashwave::kernels::gemm::{Gemm, GemmArgs};
use flashwave::kernels::linear::{GatedLinear, GatedLinearArgs, Linear, LinearArgs};
use flashwave::kernels::norm::{Norm, NormArgs, Residual};
use flashwave::kernels::rope::{FusedQkv, FusedQkvArgs, Positions, Rope, RopeLayout, RopeOut};
use flashwave::kernels::select::{ArgMax, TopK};
use flashwave::kernels::softmax::{Softmax, SoftmaxKind};
use flashwave::kernels::{embedding, random};
use flashwave::{Capabilities, DType, Launch, Layout, Result};

/// One line a dispatch: the problem, the recipe, the grid.
struct Report {
    text: String,
}

impl Report {
    fn add(&mut self, problem: &str, launches: impl IntoIterator<Item = Launch>) {
        for launch in launches {
            let [x, y, z] = launch.grid;
            self.text += &format!("{problem}: {} [{x} {y} {z}]\n", launch.recipe);
        }
    }
}

fn layout(dtype: DType, shape: &[usize]) -> Result<Layout> {
    Layout::contiguous(dtype, shape)
}

/// The kernels of a Llama of 7 billion parameters in f16: one token, and a prompt of 512.
fn model(report: &mut Report, caps: &Capabilities, tokens: usize) -> Result<()> {
    let (heads, dim, context) = (32, 128, 1024);
    let (width, hidden, vocab) = (heads * dim, 11008, 32000);
    let mut add = |what: &str, launches: Vec<Launch>| {
        report.add(&format!("{what}, {tokens} tokens"), launches);
    };

    let x = layout(F32, &[tokens, width])?;
    let table = layout(F16, &[vocab, width])?;
    let ids = layout(U32, &[tokens])?;
    add("embedding", vec![embedding::plan(caps, &table, &ids, &x)?]);
    let weight = layout(F32, &[width])?;
    let norm = NormArgs {
        x: &x,
        residual: Residual::None,
        weight: Some(&weight),
        bias: None,
        y: &x,
    };
    add("norm rms", vec![Norm::rms(1e-5).plan(caps, &norm)?]);

    let qkv_weight = layout(F16, &[3 * width, width])?;
    let qkv = layout(F32, &[tokens, 3 * width])?;
    let linear = Linear {
        activation: Activation::None,
    };
    let args = LinearArgs::new(&x, &qkv_weight, &qkv);
    add("linear qkv", linear.plan(caps, &args)?.launches().collect());
    let rope = Rope {
        dims: dim,
        layout: RopeLayout::HalfSplit,
        positions: context,
    };
    let fused = FusedQkv {
        heads,
        kv_heads: heads,
        start: 0,
    };
    let q = layout(F32, &[tokens, heads, dim])?;
    let cache = layout(F16, &[heads, context, dim])?;
    let args = FusedQkvArgs {
        qkv: &qkv,
        q_out: RopeOut::Into(&q),
        k_cache: &cache,
        v_cache: &cache,
    };
    add("rope fused", vec![fused.plan(caps, rope, &args)?]);
    let each = rope.plan(caps, &q, Positions::From(0), RopeOut::InPlace)?;
    add("rope", vec![each]);

    let q = layout(F32, &[1, heads, tokens, dim])?;
    let k = layout(F16, &[1, heads, context, dim])?;
    let layouts = AttentionLayouts::new(&q, &k, &k, &q);
    let attention = Attention::new(Mask::Causal).plan(caps, layouts)?;
    add("attention", attention.launches().cloned().collect());

    let gate_up = layout(F16, &[2 * hidden, width])?;
    let gated = layout(F32, &[tokens, hidden])?;
    let swiglu = GatedLinear {
        activation: Activation::Silu,
    };
    let args = GatedLinearArgs {
        x: &x,
        weight: &gate_up,
        norm: None,
        out: &gated,
    };
    add(
        "linear gated",
        swiglu.plan(caps, &args)?.launches().collect(),
    );
    let down = layout(F16, &[width, hidden])?;
    let args = LinearArgs::new(&gated, &down, &x);
    add(
        "linear down",
        linear.plan(caps, &args)?.launches().collect(),
    );
    Ok(())
}

/// The other families, at the sizes of the benches.
fn others(report: &mut Report, caps: &Capabilities) -> Result<()> {
    for dtype in [F32, F16] {
        let x = layout(dtype, &[1 << 20])?;
        let mut add = |what: &str, launch| report.add(&format!("{what} {dtype}, 1M"), [launch]);
        add("gelu", Unary(Activation::GeluErf).plan(caps, &x, &x)?);
        add("add", Binary(BinaryOp::Add).plan(caps, &x, &x, &x)?);
        let square = layout(dtype, &[1024, 1024])?;
        let args = GemmArgs::new(&square, &square, &square);
        report.add(
            &format!("gemm {dtype}, 1024^3"),
            [Gemm::default().plan(caps, &args)?],
        );
    }
    let uniform = random::Uniform {
        seed: 0,
        scale: 1.0,
    };
    report.add(
        "uniform f32, 1M",
        [uniform.plan(caps, &layout(F32, &[1 << 20])?)?],
    );
    for (rows, cols) in [(1, 32000), (4096, 64)] {
        let x = layout(F32, &[rows, cols])?;
        let softmax = Softmax {
            kind: SoftmaxKind::Softmax,
            scale: 1.0,
        };
        report.add(
            &format!("softmax f32, {rows} x {cols}"),
            [softmax.plan(caps, &x, None, &x)?],
        );
    }
    let logits = layout(F32, &[1, 32000])?;
    let index = layout(U32, &[1])?;
    let best = ArgMax::default().plan(caps, &logits, &index, None)?;
    report.add("arg-max, 32000", [best.scan].into_iter().chain(best.merge));
    let (values, indices) = (layout(F32, &[1, 50])?, layout(U32, &[1, 50])?);
    let top = TopK::default().plan(caps, &logits, &values, &indices)?;
    report.add("top-k 50, 32000", top.steps);
    Ok(())
}

fn report(caps: &Capabilities) -> Result<String> {
    let mut report = Report {
        text: String::new(),
    };
    for tokens in [1, 512] {
        model(&mut report, caps, tokens)?;
    }
    others(&mut report, caps)?;
    Ok(report.text)
}

#[test]
fn a_browser() {
    let caps = Capabilities::webgpu_default();
    insta::assert_snapshot!(report(&caps).expect("plans"));
}

#[test]
fn an_integrated_card() {
    let caps = Capabilities {
        class: DeviceClass::Integrated,
        subgroups: Some(SubgroupSizes { min: 8, max: 32 }),
        immediate_bytes: 256,
        ..Capabilities::webgpu_default()
    };
    insta::assert_snapshot!(report(&caps).expect("plans"));
}

#[test]
fn a_large_card() {
    let caps = Capabilities {
        class: DeviceClass::Discrete,
        subgroups: Some(SubgroupSizes { min: 32, max: 32 }),
        shader_f16: true,
        spirv: true,
        cooperative: vec![CooperativeShape::F16],
        immediate_bytes: 256,
        invocations: 1024,
        workgroup_bytes: 48 << 10,
        binding_bytes: 2 << 30,
        buffer_bytes: 4 << 30,
        ..Capabilities::webgpu_default()
    };
    insta::assert_snapshot!(report(&caps).expect("plans"));
}
