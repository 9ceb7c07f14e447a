// A state space with a companion matrix, step by step, a channel a workgroup (SpaceTime, arXiv 2303.09489):
//
//   x[i] = x[i - 1] + a[i] x[last] + b[i] u[k],   y[k] = sum_i c[i] x[i] + d u[k]
//
// u[k] is given (INPUT "given"), or it is y[k - 1] (INPUT "output": closed loop), the first being u[0]. a, b, c, state: [channels,
// order], contiguous; state is moved on by `steps` steps. d: [channels]. u, y: [channels, ..], u_stride and y_stride apart.
//
// An invocation has a place of the state, WG of them the order rounded up to a power of two; the state and the terms of the
// output go through workgroup memory. For the exact recurrent form, whose steps depend on one another; many steps of given
// inputs are a convolution (model::SpaceTime::forward).
#import "lib/tensor.wgsl" as t

struct Params {
    order: u32,
    steps: u32,
    u_offset: u32,
    u_stride: u32,
    y_offset: u32,
    y_stride: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "a", "f32") }
${ t.words(2, "b", "f32") }
${ t.words(3, "c", "f32") }
${ t.words(4, "d", "f32") }
${ t.words(5, "u", "f32") }
${ t.words(6, "state", "f32", "read_write") }
${ t.words(7, "y", "f32", "read_write") }

var<workgroup> places: array<f32, ${WG}>;
var<workgroup> terms: array<f32, ${WG}>;

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let channel = workgroup.x;
    let place = channel * p.order + i;
    var x = 0.0;
    var a_i = 0.0;
    var b_i = 0.0;
    var c_i = 0.0;
    if i < p.order {
        x = state[place];
        a_i = a[place];
        b_i = b[place];
        c_i = c[place];
    }
    let direct = d[channel];
    var value = u[p.u_offset + channel * p.u_stride];
    for (var k = 0u; k < p.steps; k += 1u) {
        #if INPUT == "given"
        value = u[p.u_offset + channel * p.u_stride + k];
        #endif
        places[i] = x;
        workgroupBarrier();
        var before = 0.0;
        if i > 0u { before = places[i - 1u]; }
        if i < p.order { x = before + a_i * places[p.order - 1u] + b_i * value; }
        terms[i] = c_i * x;
        #set sum = namespace(width=WG // 2)
        #for _ in range(8)
        #if sum.width > 0
        workgroupBarrier();
        if i < ${sum.width}u { terms[i] += terms[i + ${sum.width}u]; }
        #set sum.width = sum.width // 2
        #endif
        #endfor
        workgroupBarrier();
        value = terms[0] + direct * value;
        if i == 0u { y[p.y_offset + channel * p.y_stride + k] = value; }
        // terms[0] is written again only after the next step's barrier.
    }
    if i < p.order { state[place] = x; }
}
