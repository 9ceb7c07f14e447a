// How fast packed products of int8 run: CHAINS independent chains, each v = v + dot4(v's bytes, m's bytes), UNROLL
// times in each of `steps` rounds; y[invocation] = the sum, modulo 2^32, of what they end at.
//
// y: one i32 an invocation. The vector multiplied is the chain's own last value: a constant one would let a
// compiler compute the product once. Integers wrap, so that a test can hold y against the host's.
#import "lib/tensor.wgsl" as t

struct Params {
    steps: u32,
    m: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "y", "i32", "read_write") }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let m = p.m ^ lane;
    #for c in range(CHAINS)
    var v${c} = i32(lane * ${CHAINS}u + ${c}u);
    #endfor
    for (var step = 0u; step < p.steps; step += 1u) {
        #for u in range(UNROLL)
        #for c in range(CHAINS)
        v${c} += dot4I8Packed(bitcast<u32>(v${c}), m);
        #endfor
        #endfor
    }
    var sum = 0;
    #for c in range(CHAINS)
    sum += v${c};
    #endfor
    y[(workgroup.y * grid.x + workgroup.x) * ${WG}u + lane] = sum;
}
