// How fast multiply-adds run: CHAINS independent chains of vectors of WIDTH, each v = v * m + b, UNROLL times in
// each of `steps` rounds; y[invocation] = the sum of what they end at.
//
// y: one f32 an invocation. A chain's next step waits for its last: CHAINS * WIDTH independent ones hide that.
// The factor differs from lane to lane and the starts from chain to chain, so that nothing is shared or folded.
#if T == "f16"
enable f16;
#endif
#import "lib/tensor.wgsl" as t

struct Params {
    steps: u32,
    m: f32,
    b: f32,
}
${ t.params(PARAMS) }
${ t.words(1, "y", "f32", "read_write") }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let m = vec${WIDTH}<${T}>(${T}(p.m - f32(lane) * 0.000244140625));
    let b = vec${WIDTH}<${T}>(${T}(p.b));
    // Components start apart, or they would be one value computed once.
    #if WIDTH == 4
    let start = vec4<${T}>(${T}(f32(lane & 31u) * 0.0625)) + vec4<${T}>(0.0, 0.25, 0.5, 0.75);
    #else
    let start = vec2<${T}>(${T}(f32(lane & 31u) * 0.0625)) + vec2<${T}>(0.0, 0.25);
    #endif
    #for c in range(CHAINS)
    var v${c} = start + vec${WIDTH}<${T}>(${T}(${c}.0));
    #endfor
    for (var step = 0u; step < p.steps; step += 1u) {
        #for u in range(UNROLL)
        #for c in range(CHAINS)
        v${c} = fma(v${c}, m, b);
        #endfor
        #endfor
    }
    var sum = vec${WIDTH}<f32>();
    #for c in range(CHAINS)
    sum += vec${WIDTH}<f32>(v${c});
    #endfor
    #if WIDTH == 4
    let total = sum.x + sum.y + sum.z + sum.w;
    #else
    let total = sum.x + sum.y;
    #endif
    y[(workgroup.y * grid.x + workgroup.x) * ${WG}u + lane] = total;
}
