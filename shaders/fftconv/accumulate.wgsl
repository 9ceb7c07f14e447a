// dk[c, j] (+)= x[c, j] for j below `taps`, zero beyond x's `length`, and dd[c] (+)= x[c, 0]: the gradient of a filter is the sum
// over batch rows of correlations x, f32. FIRST 1 begins the sum. One invocation a tap.
#import "lib/tensor.wgsl" as t

struct Params {
    elements: u32,
    taps: u32,
    length: u32,
    k_offset: u32,
    k_channel: u32,
    d_offset: u32,
    d_channel: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "x", "f32") }
#if DK == 1
${ t.words(2, "dk", "f32", "read_write") }
#endif
#if DD == 1
${ t.words(3, "dd", "f32", "read_write") }
#endif

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (workgroup.y * grid.x + workgroup.x) * 256u + lane;
    if i >= p.elements { return; }
    let channel = i / p.taps;
    let j = i % p.taps;
    var value = 0.0;
    if j < p.length { value = x[channel * p.length + j]; }
    #set sum = "=" if FIRST else "+="
    #if DK == 1
    dk[p.k_offset + channel * p.k_channel + j] ${sum} value;
    #endif
    #if DD == 1
    if j == 0u { dd[p.d_offset + channel * p.d_channel] ${sum} value; }
    #endif
}
