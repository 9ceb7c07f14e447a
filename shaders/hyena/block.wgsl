// A block of a convolution, directly: y[c, r] = or += sum_s taps[c, lag + r - s] x[c, s], a Toeplitz product a channel.
//
// x: [channels, inputs], y: [channels, outputs], taps: [channels, count], rows of adjacent elements; a lag outside
// 0 .. count contributes nothing. What a relaxed convolution (van der Hoeven 2002; arXiv 2410.12982 for filters known
// beforehand) pushes from a block of inputs into the outputs after it, where the block is too short for an FFT to pay.
//
// A workgroup makes 4 WG outputs of a channel, an invocation four neighbours. CHUNK inputs at a time, and the lags they
// meet, wait in workgroup memory; four inputs by four outputs need two groups of four taps: 16 products for 3 reads.
#import "lib/tensor.wgsl" as t

struct Params {
    inputs: u32,
    outputs: u32,
    lag: u32,
    count: u32,
    x_offset: u32,
    x_stride: u32,
    taps_offset: u32,
    taps_stride: u32,
    y_offset: u32,
    y_stride: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "x", "f32") }
${ t.words(2, "taps", "f32") }
${ t.words(3, "y", "f32", "read_write") }

var<workgroup> inputs: array<vec4<f32>, ${CHUNK // 4}>;
var<workgroup> window: array<vec4<f32>, ${WG + CHUNK // 4}>;

fn input(c: u32, i: u32) -> f32 {
    if i >= p.inputs { return 0.0; }
    return x[p.x_offset + c * p.x_stride + i];
}

fn tap(c: u32, lag: i32) -> f32 {
    if lag < 0 || lag >= i32(p.count) { return 0.0; }
    return taps[p.taps_offset + c * p.taps_stride + u32(lag)];
}

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = workgroup.x * ${4 * WG}u;
    let c = workgroup.y;
    var sum = vec4<f32>();
    // Inputs further on have negative lags for every output of this workgroup.
    let end = min(p.inputs, p.lag + first + ${4 * WG}u);
    for (var s = 0u; s < end; s += ${CHUNK}u) {
        for (var g = lane; g < ${CHUNK // 4}u; g += ${WG}u) {
            let i = s + 4u * g;
            inputs[g] = vec4<f32>(input(c, i), input(c, i + 1u), input(c, i + 2u), input(c, i + 3u));
        }
        // Element k of the window is the tap between input 0 of the chunk and output k - CHUNK of the workgroup.
        for (var g = lane; g < ${WG + CHUNK // 4}u; g += ${WG}u) {
            let lag = i32(p.lag + first + 4u * g) - i32(s + ${CHUNK}u);
            window[g] = vec4<f32>(tap(c, lag), tap(c, lag + 1), tap(c, lag + 2), tap(c, lag + 3));
        }
        workgroupBarrier();
        for (var g = 0u; g < ${CHUNK // 4}u; g += 1u) {
            let u = inputs[g];
            let high = window[${CHUNK // 4}u - g + lane];
            let low = window[${CHUNK // 4}u - g + lane - 1u];
            sum += u.x * high;
            sum += u.y * vec4<f32>(low.w, high.xyz);
            sum += u.z * vec4<f32>(low.zw, high.xy);
            sum += u.w * vec4<f32>(low.yzw, high.x);
        }
        workgroupBarrier();
    }
    let at = p.y_offset + c * p.y_stride + first + 4u * lane;
    for (var e = 0u; e < 4u; e += 1u) {
        if first + 4u * lane + e < p.outputs {
            #if OUT == "add"
            y[at + e] += sum[e];
            #else
            y[at + e] = sum[e];
            #endif
        }
    }
}
