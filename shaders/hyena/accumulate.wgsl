// y += x, element by element: rows of `cols` adjacent elements, x_stride and y_stride apart. What the FFT of a pushed block
// gives joins what is carried already. One invocation an element: both are as wide as a block, and read and written once.
#import "lib/tensor.wgsl" as t

struct Params {
    cols: u32,
    x_offset: u32,
    x_stride: u32,
    y_offset: u32,
    y_stride: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "x", "f32") }
${ t.words(2, "y", "f32", "read_write") }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let col = workgroup.x * ${WG}u + lane;
    let row = workgroup.y;
    if col < p.cols { y[p.y_offset + row * p.y_stride + col] += x[p.x_offset + row * p.x_stride + col]; }
}
