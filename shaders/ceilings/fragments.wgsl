// Whether invocations hold the elements of cooperative matrices that lib/fragments.wgsl says: of A, B and an
// accumulator whose elements are their numbers, each invocation of one subgroup writes how many are as expected.
//
// x and y: 0 to 255 in f16 and f32. found: 24 for each of 32 invocations, if all are.
enable f16;
enable wgpu_cooperative_matrix;
#import "lib/tensor.wgsl" as t
#import "lib/fragments.wgsl" as fragments

struct Params {
    unused: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "x", "f16") }
${ t.words(2, "y", "f32") }
${ t.words(3, "found", "u32", "read_write") }
${ fragments.functions(COOP) }
fn element_a(m: ptr<function, MatrixA>, i: u32) -> f16 { var element_of: f16; return element_of; }
fn element_b(m: ptr<function, MatrixB>, i: u32) -> f16 { var element_of: f16; return element_of; }

@compute @workgroup_size(32)
fn main(@builtin(subgroup_invocation_id) place: u32) {
    let first = p.unused * 0u;
    var a: MatrixA;
    a = coopLoadT<coop_mat16x16<f16, A>>(&x[first], 16u);
    var b: MatrixB;
    b = coopLoadT<coop_mat16x16<f16, B>>(&x[first], 16u);
    var c: Accumulator;
    c = coopLoadT<coop_mat16x16<f32, C>>(&y[first], 16u);
    let quad = place % 4u;
    let line = place / 4u;
    var count = 0u;
    #for i in range(8)
    {
        let of_row = (line + ${8 * (i // 4)}u) * 16u + 2u * quad + ${i % 2 + 8 * (i // 2 % 2)}u;
        let of_column = (2u * quad + ${i % 2 + 8 * (i // 2 % 2)}u) * 16u + line + ${8 * (i // 4)}u;
        count += u32(u32(element_a(&a, ${i}u)) == of_row);
        count += u32(u32(element_b(&b, ${i}u)) == of_column);
        count += u32(u32(element(&c, ${i}u)) == of_row);
    }
    #endfor
    found[place] = count;
}
