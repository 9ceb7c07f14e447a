// Which columns of x have an element of magnitude `threshold` or more: found[strip, k / 4] has a bit for each of four columns, over
// a strip of `strip` rows. NaN is none of them.
//
// An invocation goes down a strip's rows with four columns. x: rows of adjacent elements, their length a multiple of four.
// gemm8/outliers_list.wgsl puts the strips together: no atomics, the same result every time.
#import "lib/tensor.wgsl" as t

struct Params {
    rows: u32,
    cols: u32,
    x_offset: u32,
    x_stride: u32,
    strip: u32,
    threshold: f32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X, VEC) }
${ t.words(2, "found", "u32", "read_write") }

@compute @workgroup_size(${WG})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = workgroup.x * ${WG}u + lane;
    if g * 4u >= p.cols { return; }
    let first = workgroup.y * p.strip;
    var most = vec4<f32>();
    for (var row = first; row < min(first + p.strip, p.rows); row += 1u) {
        most = max(most, abs(load_some_x(p.x_offset + row * p.x_stride + g * 4u, 4u)));
    }
    let bits = vec4<u32>(most >= vec4<f32>(p.threshold)) << vec4<u32>(0u, 1u, 2u, 3u);
    found[workgroup.y * (p.cols / 4u) + g] = bits.x | bits.y | bits.z | bits.w;
}
