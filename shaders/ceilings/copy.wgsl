// How fast memory is copied: y = x.
//
// x, y: `chunks` chunks of WG * UNROLL vectors of four words, spread over the workgroups as in read.wgsl.
#import "lib/tensor.wgsl" as t

struct Params {
    chunks: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "x", "vec4<u32>") }
${ t.words(2, "y", "vec4<u32>", "read_write") }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let own = workgroup.y * grid.x + workgroup.x;
    for (var chunk = own; chunk < p.chunks; chunk += grid.x * grid.y) {
        let first = chunk * ${WG * UNROLL}u + lane;
        #for u in range(UNROLL)
        let v${u} = x[first + ${u * WG}u];
        #endfor
        #for u in range(UNROLL)
        y[first + ${u * WG}u] = v${u};
        #endfor
    }
}
