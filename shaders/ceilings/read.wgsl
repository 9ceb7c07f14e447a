// How fast memory is read: y[invocation] = the sum, modulo 2^32, of the words that the invocation has read of x.
//
// x: `chunks` chunks of WG * UNROLL vectors of four words. A workgroup takes every num_workgroups-th chunk, each
// load of a subgroup being one contiguous run; UNROLL loads are in flight before the first is needed. Sums of
// integers are exact in any order, so that a test can hold y against the host's sum.
#import "lib/tensor.wgsl" as t

struct Params {
    chunks: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "x", "vec4<u32>") }
${ t.words(2, "y", "u32", "read_write") }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let own = workgroup.y * grid.x + workgroup.x;
    var sum = vec4<u32>();
    for (var chunk = own; chunk < p.chunks; chunk += grid.x * grid.y) {
        let first = chunk * ${WG * UNROLL}u + lane;
        #for u in range(UNROLL)
        let v${u} = x[first + ${u * WG}u];
        #endfor
        #for u in range(UNROLL)
        sum += v${u};
        #endfor
    }
    y[own * ${WG}u + lane] = sum.x + sum.y + sum.z + sum.w;
}
