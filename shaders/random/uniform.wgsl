// y[i] = a random number of its own: uniform in [-scale, scale) for floats, 32 random bits for u32.
//
// y: `len` adjacent elements from `offset` on. One invocation makes four elements, a workgroup's lie side by side.
// Each element is a hash of its index and the seed, so that the numbers do not depend on how the work is spread:
// PCG's output permutation (O'Neill 2014), which Jarzynski and Olano (JCGT 2020) recommend as a hash on GPUs.
// A float takes 24 bits of it: every value is exact in f32.
#import "lib/tensor.wgsl" as t

struct Params {
    len: u32,
    offset: u32,
    seed: u32,
    scale: f32,
}
${ t.params(PARAMS) }
#if Y == "u32"
${ t.words(1, "y", "u32", "read_write") }
#else
${ t.prelude() }
${ t.output(1, "y", Y, VEC) }
#endif

fn hash(x: u32) -> u32 {
    let state = x * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = ((workgroup.y * grid.x + workgroup.x) * ${WG}u + lane) * 4u;
    if i >= p.len { return; }
    let n = min(p.len - i, 4u);
    let seed = hash(p.seed);
    let bits = vec4<u32>(hash(i ^ seed), hash((i + 1u) ^ seed), hash((i + 2u) ^ seed), hash((i + 3u) ^ seed));
    #if Y == "u32"
    for (var e = 0u; e < n; e += 1u) { y[p.offset + i + e] = bits[e]; }
    #else
    let unit = vec4<f32>(bits >> vec4<u32>(8u)) * 1.1920928955078125e-7 - 1.0;
    store_some_y(p.offset + i, n, unit * p.scale);
    #endif
}
