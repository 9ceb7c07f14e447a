// Gradients of a short convolution's weight and bias: dweight[c, j] = sum over b and t of dy[b, c, t] x[b, c, t - j], dbias[c] = sum of dy.
//
// x, dy: [batch, channels, length] at any strides; dweight: [channels, K] (DWEIGHT), dbias: [channels] (DBIAS), f32.
// A workgroup for each channel; every invocation has each 64th element.
#import "lib/tensor.wgsl" as t
#import "lib/reduce.wgsl" as reduce
#import "lib/shortconv.wgsl" as shortconv

struct Params {
    ${ shortconv.gradient_params() }
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X) }
${ t.input(2, "dy", DY) }
#if DWEIGHT
${ t.words(3, "dweight", "f32", "read_write") }
#endif
#if DBIAS
${ t.words(4, "dbias", "f32", "read_write") }
#endif
${ reduce.sums_scratch("workgroup", 64, K + 1) }

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let c = workgroup.y * grid.x + workgroup.x;
    if c >= p.channels { return; }
    #for j in range(K + 1)
    var sum${j} = 0.0;
    #endfor
    for (var b = 0u; b < p.batch; b++) {
        let x_from = p.x_offset + b * p.x_batch + c * p.x_channel;
        let dy_from = p.dy_offset + b * p.dy_batch + c * p.dy_channel;
        for (var time = lane; time < p.length; time += 64u) {
            let g = load_dy(dy_from + time * p.dy_time);
            #for j in range(K)
            if time >= ${j}u { sum${j} = fma(g, load_x(x_from + (time - ${j}u) * p.x_time), sum${j}); }
            #endfor
            sum${K} += g;
        }
    }
    #for j in range(K + 1)
    ${ reduce.sums_put("workgroup", 64, j, "sum" ~ j) }
    #endfor
    ${ reduce.sums_finish("workgroup", 64, K + 1) }
    #if DWEIGHT
    if lane < ${K}u { dweight[p.dweight_offset + c * ${K}u + lane] = total; }
    #endif
    #if DBIAS
    if lane == ${K}u { dbias[p.dbias_offset + c] = total; }
    #endif
}
