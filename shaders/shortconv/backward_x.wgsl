// Gradient of a short convolution's input: dx[b, c, t] = sum over j < K of weight[c, j] dy[b, c, t + j], zero past the end.
//
// dy, dx: [batch, channels, length] at any strides; weight: [channels, K]. An invocation for each element.
#import "lib/tensor.wgsl" as t
#import "lib/shortconv.wgsl" as shortconv

struct Params {
    ${ shortconv.gradient_params() }
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "dy", DY) }
${ t.input(2, "weight", W) }
${ t.output(3, "dx", DX, 1) }

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (workgroup.y * grid.x + workgroup.x) * 64u + lane;
    if i >= p.batch * p.channels * p.length { return; }
    let time = i % p.length;
    let c = i / p.length % p.channels;
    let b = i / p.length / p.channels;
    let source = p.dy_offset + b * p.dy_batch + c * p.dy_channel;
    var sum = 0.0;
    for (var j = 0u; j < min(${K}u, p.length - time); j++) {
        sum = fma(load_weight(p.weight_offset + c * p.weight_channel + j), load_dy(source + (time + j) * p.dy_time), sum);
    }
    store_dx(p.x_offset + b * p.x_batch + c * p.x_channel + time * p.x_time, sum);
}
