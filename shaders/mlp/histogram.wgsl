// Counts magnitudes of f(a) by their leading bits: sign dropped, 8 of the exponent and 5 of the fraction. So a bin is 1/32 of an
// octave, bins are in ascending order, and the last 32 hold infinities and NaN. bins[i] += how many (u32 each).
//
// a: rows of `cols` elements, `stride` apart. A workgroup counts in workgroup memory (LOCAL bins from p.base on; others go
// to memory at once), then adds what it has. Integers, so the result is the same in any order.
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation

struct Params {
    groups: u32,
    groups_per_row: u32,
    cols: u32,
    a_offset: u32,
    a_stride: u32,
    base: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "a", A, VEC) }
${ t.words(2, "bins", "atomic<u32>", "read_write") }
${ activation.functions(F) }
var<workgroup> counts: array<atomic<u32>, ${LOCAL}>;

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var i = lane; i < ${LOCAL}u; i += ${WG}u) { atomicStore(&counts[i], 0u); }
    workgroupBarrier();
    for (var group = workgroup.x * ${WG}u + lane; group < p.groups; group += grid.x * ${WG}u) {
        let row = group / p.groups_per_row;
        let col = (group % p.groups_per_row) * 4u;
        let n = min(p.cols - col, 4u);
        let a = activate4(load_some_a(p.a_offset + row * p.a_stride + col, n));
        let bins_of = (bitcast<vec4<u32>>(a) & vec4<u32>(0x7fffffffu)) >> vec4<u32>(18u);
        for (var c = 0u; c < n; c += 1u) {
            let near = bins_of[c] - p.base;
            if near < ${LOCAL}u {
                atomicAdd(&counts[near], 1u);
            } else {
                atomicAdd(&bins[bins_of[c]], 1u);
            }
        }
    }
    workgroupBarrier();
    for (var i = lane; i < ${LOCAL}u; i += ${WG}u) {
        let count = atomicLoad(&counts[i]);
        if count > 0u { atomicAdd(&bins[p.base + i], count); }
    }
}
