// What passes a threshold, for many rows: y = f(a) b where the magnitude of f(a) is above the threshold, else 0.
//
// a, b (optional), y: rows of `cols` elements, strides apart. The masked form of neurons.wgsl's selection (a gate, b up)
// and of inputs.wgsl's (a alone, f none), whose products then are dense: prompts meet nearly every neuron anyway.
// An invocation has four columns.
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation

struct Params {
    groups: u32,
    groups_per_row: u32,
    cols: u32,
    a_offset: u32,
    a_stride: u32,
    b_offset: u32,
    b_stride: u32,
    y_offset: u32,
    y_stride: u32,
    // The bits of a float that is not negative.
    threshold: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "a", A, VEC) }
#if B != "none"
${ t.input(2, "b", B, VEC) }
#endif
${ t.output(3, "y", Y, VEC) }
${ activation.functions(F) }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = (workgroup.y * grid.x + workgroup.x) * ${WG}u + lane;
    if group >= p.groups { return; }
    let row = group / p.groups_per_row;
    let col = (group % p.groups_per_row) * 4u;
    let n = min(p.cols - col, 4u);
    let a = activate4(load_some_a(p.a_offset + row * p.a_stride + col, n));
    let above = (bitcast<vec4<u32>>(a) & vec4<u32>(0x7fffffffu)) > vec4<u32>(p.threshold);
    #if B != "none"
    let y = a * load_some_b(p.b_offset + row * p.b_stride + col, n);
    #else
    let y = a;
    #endif
    store_some_y(p.y_offset + row * p.y_stride + col, n, select(vec4<f32>(), y, above));
}
