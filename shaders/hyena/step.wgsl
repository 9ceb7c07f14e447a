// One token of the Hyena operator of order 2 (arXiv 2302.10866): the short convolution of its projections, both gates,
// and the part of the long convolution that is not in `carried` yet.
//
//   (x0, x1, v)[c] = sum_j weights[., j] projection[t - (SHORT - 1) + j] + bias
//   z[c, t] = x1 v
//   out[c] = x0 (carried[c, t] + sum_{lag = 0 .. block} taps[c, lag] z[c, t - lag])
//
// projection: [3 channels], of x0, then x1, then v; out: [channels]. weights: [3 channels, SHORT + 1], the oldest tap first,
// then the bias. state: [SHORT - 1, 3 channels], the projections before this one, oldest first; moved on by one here.
// z, carried and taps: [channels, ..], adjacent along time. `block` earlier tokens belong to the present block of the relaxed
// convolution (kernels/hyena.rs); what lies before them is in `carried`.
//
// LANES neighbouring invocations share a channel: they split the lags, so that reads are runs of LANES elements, and
// the first of them does the rest. Sums over the lanes through workgroup memory.
#import "lib/tensor.wgsl" as t

struct Params {
    channels: u32,
    position: u32,
    block: u32,
    projection_offset: u32,
    z_stride: u32,
    carried_stride: u32,
    taps_stride: u32,
    out_offset: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "projection", "f32") }
${ t.words(2, "weights", "f32") }
${ t.words(3, "state", "f32", "read_write") }
${ t.words(4, "z", "f32", "read_write") }
${ t.words(5, "carried", "f32") }
${ t.words(6, "taps", "f32") }
${ t.words(7, "out", "f32", "read_write") }

var<workgroup> sums: array<f32, ${WG}>;

// The short convolution at this token, row `r` of the projection.
fn short_filter(r: u32) -> f32 {
    let present = projection[p.projection_offset + r];
    let row = r * ${SHORT + 1}u;
    var sum = weights[row + ${SHORT - 1}u] * present;
    var next = present;
    #for j in range(SHORT - 2, -1, -1)
    let past${j} = state[${j}u * 3u * p.channels + r];
    sum += weights[row + ${j}u] * past${j};
    state[${j}u * 3u * p.channels + r] = next;
    next = past${j};
    #endfor
    return sum + weights[row + ${SHORT}u];
}

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let lane = index % ${LANES}u;
    let c = workgroup.x * ${WG // LANES}u + index / ${LANES}u;
    var sum = 0.0;
    var gate = 0.0;
    if c < p.channels {
        let taps_row = c * p.taps_stride;
        let z_row = c * p.z_stride + p.position;
        for (var lag = lane + 1u; lag <= p.block; lag += ${LANES}u) {
            sum += taps[taps_row + lag] * z[z_row - lag];
        }
        if lane == 0u {
            gate = short_filter(c);
            let value = short_filter(p.channels + c) * short_filter(2u * p.channels + c);
            z[z_row] = value;
            sum += taps[taps_row] * value + carried[c * p.carried_stride + p.position];
        }
    }
    sums[index] = sum;
    #set half = namespace(width=LANES // 2)
    #for _ in range(8)
    #if half.width > 0
    workgroupBarrier();
    if lane < ${half.width}u { sums[index] += sums[index + ${half.width}u]; }
    #set half.width = half.width // 2
    #endif
    #endfor
    if lane == 0u && c < p.channels { out[p.out_offset + c] = gate * sums[index]; }
}
