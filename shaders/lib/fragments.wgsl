<#
Products of 16 x 16 matrices of f16 into f32, held by a subgroup of 32: each invocation has eight elements of each
matrix in its registers.

Invocation 4 * line + quad holds these elements, by number:
  an accumulator's  row line + 8 * (i / 4), column 2 * quad + i % 2 + 8 * (i / 2 % 2)
  A's               row and column as an accumulator's
  B's               row 2 * quad + i % 2 + 8 * (i / 2 % 2), column line + 8 * (i / 4)
Elements of A and B come as four words of two.

COOP is "elements": the device's matrix units, through cooperative matrices. WGSL cannot reach their elements;
SPIR-V can, and src/spirv/elements.rs rewrites the functions below by the names in them. The layout is that of
NVIDIA's drivers, and planners take such kernels only where it was found (Capabilities::matrix_elements).
"emulated": the same by plain arithmetic, one subgroup a workgroup; slow, to test kernels without matrix units.

  ${ fragments.functions(COOP) }   types MatrixA, MatrixB, Accumulator; matrix_a(words), matrix_b(words),
                              multiply_add(a, b, c), element(&c, i), set_element(&c, i, x), and over the four
                              invocations of a row largest_of_quad(x), sum_of_quad(x); any_of_subgroup(b),
                              largest_of_subgroup(u32). Also fragments.functions(COOP, positive, halves): a parameter
                              that is not zero, p.q_len if not said; with `halves`, for shaders that enable f16, the
                              casts bits_as_halves(word) and bits_as_word(halves)
  ${ fragments.halves(COOP) }      two halves a word: less_halves(a, x) = a - x of f32, fma_halves(a, b, c)
  ${ fragments.arguments(COOP) }   arguments of main beside `lane`, the invocation's number
  ${ fragments.begin(COOP) }       first in main: the invocation is 4 * line + quad of its workgroup's `subgroup`
#>
#macro functions(coop, positive="p.q_len", halves=false)
#if coop == "elements"
alias MatrixA = coop_mat16x16<f16, A>;
alias MatrixB = coop_mat16x16<f16, B>;
alias Accumulator = coop_mat16x16<f32, C>;

// To the pass over SPIR-V: the variable `element_of` is the element i of *m.
fn element(m: ptr<function, Accumulator>, i: u32) -> f32 { var element_of: f32; return element_of; }
fn set_element(m: ptr<function, Accumulator>, i: u32, x: f32) { var element_of: f32; element_of = x; }
fn set_element_a(m: ptr<function, MatrixA>, i: u32, x: f16) { var element_of: f16; element_of = x; }
fn set_element_b(m: ptr<function, MatrixB>, i: u32, x: f16) { var element_of: f16; element_of = x; }
// And this returns the bits of its parameter.
fn bits_as_halves(w: u32) -> vec2<f16> { return vec2<f16>(); }
fn bits_as_word(h: vec2<f16>) -> u32 { return 0u; }
#for role in ["a", "b"]
fn matrix_${role}(w: vec4<u32>) -> Matrix${role | upper} {
    var m: Matrix${role | upper};
    #for i in range(4)
    let h${i} = bits_as_halves(w[${i}]);
    set_element_${role}(&m, ${2 * i}u, h${i}.x);
    set_element_${role}(&m, ${2 * i + 1}u, h${i}.y);
    #endfor
    return m;
}
#endfor
fn multiply_add(a: MatrixA, b: MatrixB, c: Accumulator) -> Accumulator { return coopMultiplyAdd(a, b, c); }

fn largest_of_quad(x: f32) -> f32 {
    let y = max(x, subgroupShuffleXor(x, 1u));
    return max(y, subgroupShuffleXor(y, 2u));
}
fn sum_of_quad(x: f32) -> f32 {
    let y = x + subgroupShuffleXor(x, 1u);
    return y + subgroupShuffleXor(y, 2u);
}
fn any_of_subgroup(b: bool) -> bool { return subgroupAny(b); }
fn largest_of_subgroup(x: u32) -> u32 { return subgroupMax(x); }
#else
alias MatrixA = vec4<u32>;
alias MatrixB = vec4<u32>;
alias Accumulator = array<f32, 8>;
var<workgroup> emulated: array<vec4<u32>, 64>;
var<private> emulated_lane: u32;
var<workgroup> emulated_answer: u32;

fn element(m: ptr<function, Accumulator>, i: u32) -> f32 { return (*m)[i]; }
fn set_element(m: ptr<function, Accumulator>, i: u32, x: f32) { (*m)[i] = x; }
fn matrix_a(w: vec4<u32>) -> MatrixA { return w; }
fn matrix_b(w: vec4<u32>) -> MatrixB { return w; }
#if halves
fn bits_as_halves(w: u32) -> vec2<f16> { return vec2<f16>(unpack2x16float(w)); }
fn bits_as_word(h: vec2<f16>) -> u32 { return pack2x16float(vec2<f32>(h)); }
#endif
fn multiply_add(a: MatrixA, b: MatrixB, c: Accumulator) -> Accumulator {
    workgroupBarrier();
    emulated[emulated_lane] = a;
    emulated[32u + emulated_lane] = b;
    workgroupBarrier();
    var sum = c;
    // A bound that compilers do not know keeps them from unrolling: there are many products.
    let elements = select(8u, 0u, ${positive} == 0u);
    for (var i = 0u; i < elements; i += 1u) {
        let row = emulated_lane / 4u + i / 4u * 8u;
        let column = emulated_lane % 4u * 2u + i % 2u + i / 2u % 2u * 8u;
        for (var k = 0u; k < 2u * elements; k += 2u) {
            let x = unpack2x16float(emulated[row % 8u * 4u + k % 8u / 2u][row / 8u * 2u + k / 8u]);
            let y = unpack2x16float(emulated[32u + column % 8u * 4u + k % 8u / 2u][k / 8u + column / 8u * 2u]);
            sum[i] = fma(x.x, y.x, fma(x.y, y.y, sum[i]));
        }
    }
    return sum;
}
fn shared_by_quad(x: f32) -> vec4<f32> {
    workgroupBarrier();
    emulated[emulated_lane].x = bitcast<u32>(x);
    workgroupBarrier();
    let first = emulated_lane / 4u * 4u;
    return bitcast<vec4<f32>>(vec4<u32>(
        emulated[first].x, emulated[first + 1u].x, emulated[first + 2u].x, emulated[first + 3u].x));
}
fn largest_of_quad(x: f32) -> f32 {
    let all = shared_by_quad(x);
    return max(max(all.x, all.y), max(all.z, all.w));
}
fn sum_of_quad(x: f32) -> f32 {
    let all = shared_by_quad(x);
    return (all.x + all.y) + (all.z + all.w);
}
fn any_of_subgroup(b: bool) -> bool {
    workgroupBarrier();
    emulated[emulated_lane].x = u32(b);
    workgroupBarrier();
    if emulated_lane == 0u {
        var any = 0u;
        for (var i = 0u; i < 32u; i += 1u) { any |= emulated[i].x; }
        emulated_answer = any;
    }
    // Uniform, as barriers depend on it.
    return workgroupUniformLoad(&emulated_answer) != 0u;
}
fn largest_of_subgroup(x: u32) -> u32 {
    workgroupBarrier();
    emulated[emulated_lane].x = x;
    workgroupBarrier();
    var largest = 0u;
    for (var i = 0u; i < 32u; i += 1u) { largest = max(largest, emulated[i].x); }
    return largest;
}
#endif
#endmacro

#macro halves(coop)
#if coop == "elements"
fn less_halves(a: u32, b: f32) -> u32 { return bits_as_word(bits_as_halves(a) - vec2<f16>(f16(b))); }
fn fma_halves(a: u32, b: u32, c: u32) -> u32 {
    return bits_as_word(fma(bits_as_halves(a), bits_as_halves(b), bits_as_halves(c)));
}
#else
fn less_halves(a: u32, b: f32) -> u32 { return pack2x16float(unpack2x16float(a) - b); }
fn fma_halves(a: u32, b: u32, c: u32) -> u32 {
    return pack2x16float(fma(unpack2x16float(a), unpack2x16float(b), unpack2x16float(c)));
}
#endif
#endmacro

#macro arguments(coop)
#if coop == "elements"
@builtin(subgroup_id) subgroup: u32,
@builtin(subgroup_invocation_id) place: u32,
#endif
#endmacro

#macro begin(coop)
#if coop != "elements"
emulated_lane = lane;
let subgroup = 0u;
let place = lane;
#endif
let quad = place % 4u;
let line = place / 4u;
#endmacro
