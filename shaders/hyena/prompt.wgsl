// Many tokens of the Hyena operator (arXiv 2302.10866) up to its long convolution: the short convolutions, and the gate
// before it, from token-major to channel-major.
//
//   (x0, x1, v)[t, c] = sum_j weights[., j] projection[t - (SHORT - 1) + j] + bias
//   gate[c, t] = x0,   z[c, t] = x1 v,   z[c, t] = 0 for t from `tokens` to z_columns
//
// projection: [tokens, 3 channels], x0, then x1, then v in a row. weights and state as in step.wgsl: state holds what lies
// before token 0, and stays. gate, z: [channels, ..], rows gate_stride and z_stride apart.
//
// A workgroup takes TILE x TILE of channels x tokens: it reads runs along the channels, turns the tile in workgroup memory,
// and writes runs along time. Projections are read SHORT times, from the cache after the first.
#import "lib/tensor.wgsl" as t

struct Params {
    channels: u32,
    tokens: u32,
    projection_offset: u32,
    projection_stride: u32,
    gate_offset: u32,
    gate_stride: u32,
    z_offset: u32,
    z_stride: u32,
    z_columns: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "projection", "f32") }
${ t.words(2, "weights", "f32") }
${ t.words(3, "state", "f32") }
${ t.words(4, "gate", "f32", "read_write") }
${ t.words(5, "z", "f32", "read_write") }

var<workgroup> gates: array<f32, ${TILE * (TILE + 1)}>;
var<workgroup> values: array<f32, ${TILE * (TILE + 1)}>;

// Projection r of the token `back` before token t.
fn past(t: u32, back: u32, r: u32) -> f32 {
    if back <= t { return projection[p.projection_offset + (t - back) * p.projection_stride + r]; }
    return state[(${SHORT - 1}u + t - back) * 3u * p.channels + r];
}

fn short_filter(t: u32, r: u32) -> f32 {
    let row = r * ${SHORT + 1}u;
    var sum = 0.0;
    for (var back = 0u; back < ${SHORT}u; back += 1u) {
        sum += weights[row + ${SHORT - 1}u - back] * past(t, back, r);
    }
    return sum + weights[row + ${SHORT}u];
}

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first_token = workgroup.x * ${TILE}u;
    let first_channel = workgroup.y * ${TILE}u;
    let column = index % ${TILE}u;
    for (var row = index / ${TILE}u; row < ${TILE}u; row += ${WG // TILE}u) {
        let t = first_token + row;
        let c = first_channel + column;
        if t < p.tokens && c < p.channels {
            gates[column * ${TILE + 1}u + row] = short_filter(t, c);
            values[column * ${TILE + 1}u + row] = short_filter(t, p.channels + c) * short_filter(t, 2u * p.channels + c);
        }
    }
    workgroupBarrier();
    for (var row = index / ${TILE}u; row < ${TILE}u; row += ${WG // TILE}u) {
        let t = first_token + column;
        let c = first_channel + row;
        if c < p.channels {
            var value = 0.0;
            if t < p.tokens {
                gate[p.gate_offset + c * p.gate_stride + t] = gates[row * ${TILE + 1}u + column];
                value = values[row * ${TILE + 1}u + column];
            }
            if t < p.z_columns { z[p.z_offset + c * p.z_stride + t] = value; }
        }
    }
}
