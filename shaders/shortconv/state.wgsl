// The state of a short convolution after a sequence: state[b, c, j] becomes input number length - (K - 1) + j of those in
// state and x, one after the other. Layouts: shortconv.wgsl. One invocation a channel and batch row.
#import "lib/tensor.wgsl" as t

struct Params {
    batch: u32,
    channels: u32,
    length: u32,
    x_offset: u32,
    x_batch: u32,
    x_channel: u32,
    x_time: u32,
    state_offset: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X) }
${ t.words(2, "state", "f32", "read_write") }

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (workgroup.y * grid.x + workgroup.x) * 64u + lane;
    if i >= p.batch * p.channels { return; }
    let source = p.x_offset + i / p.channels * p.x_batch + i % p.channels * p.x_channel;
    let at = p.state_offset + i * ${K - 1}u;
    // From the oldest on: none is read after it was written.
    for (var j = 0u; j < ${K - 1}u; j++) {
        let place = p.length + j;
        if place < ${K - 1}u {
            state[at + j] = state[at + place];
        } else {
            state[at + j] = load_x(source + (place - ${K - 1}u) * p.x_time);
        }
    }
}
