// A dispatch that does nothing: what recording, submitting and running one costs.
//
// y: a word that is written if `write` is not zero, so that the kernel has the bindings, and consecutive
// dispatches the dependency, that kernels of a model have.
#import "lib/tensor.wgsl" as t

struct Params {
    write: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "y", "u32", "read_write") }

@compute @workgroup_size(1)
fn main() {
    if p.write != 0u { y[0] = p.write; }
}
