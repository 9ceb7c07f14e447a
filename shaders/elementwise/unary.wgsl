// y = F(a), element by element: an activation, or the identity, which casts.
//
// a, y: rows of `cols` adjacent elements, `stride` apart from `offset` on; without gaps all is one row.
// A row is cut into groups of four elements, of eight where the result has a 16-bit type and rows are aligned so. One
// invocation handles UNROLL groups, a workgroup's groups lying side by side so that every access of a subgroup is one
// contiguous run.
//
// Tried on an H200, shares of read bandwidth: groups of four for f16 results, GELU by erf 75% (of eight: 92%); groups of
// eight for a cast of f16 to f32, 59% (of four: 92%).
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation

struct Params {
    groups: u32,
    groups_per_row: u32,
    cols: u32,
    a_offset: u32,
    a_stride: u32,
    b_offset: u32,
    b_stride: u32,
    y_offset: u32,
    y_stride: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "a", A, VEC) }
${ t.output(2, "y", Y, VEC) }
${ activation.functions(F) }

<# Elements of a group. #>
#set GROUP = 8 if VEC == 8 else 4

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (workgroup.y * grid.x + workgroup.x) * ${WG * UNROLL}u + lane;
    #for u in range(UNROLL)
    {
        let group = first + ${u * WG}u;
        if group < p.groups {
            let row = group / p.groups_per_row;
            let col = (group % p.groups_per_row) * ${GROUP}u;
            #if VEC == 8
            let a = load8_a(p.a_offset + row * p.a_stride + col);
            store8_y(p.y_offset + row * p.y_stride + col, activate4(a.low), activate4(a.high));
            #else
            let n = min(p.cols - col, 4u);
            let a = load_some_a(p.a_offset + row * p.a_stride + col, n);
            store_some_y(p.y_offset + row * p.y_stride + col, n, activate4(a));
            #endif
        }
    }
    #endfor
}
