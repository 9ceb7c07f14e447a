// y = exp(x) of four numbers: what a device makes of NaN, which WGSL leaves to it (kernels-tests/src/probes.rs).
#import "lib/tensor.wgsl" as t

struct Params {
    x_offset: u32,
    y_offset: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", "f32", 4) }
${ t.output(2, "y", "f32", 4) }

@compute @workgroup_size(1)
fn main() {
    store_some_y(p.y_offset, 4u, exp(load_some_x(p.x_offset, 4u)));
}
