<#
Products of matrices that lie in tiles of 16-byte vectors, rows along k, by a subgroup of 32: KIND "i8", 16 x 16 x 32 of int8
into i32, or "f16", 16 x 16 x 16 of f16 into f32. A matrix is two vectors of each of 16 rows.

COOP is "units": the device's matrix units, through SPIR-V (src/spirv.rs) for recipes whose constant LOADS is "wide".
coop_mat8x8 stands for int8 there. "emulated": the same by plain arithmetic, slow, to test kernels without matrix units.

  var<workgroup> tile: array<vec4<f32>, …>;                       or a storage buffer, 16 bytes an element
  ${ matrices.functions(COOP, KIND, "tile", "tile") }            once for A's and B's memory
  ${ matrices.load(COOP, KIND, "a0", "A", "tile", at, stride) }  let a0 = 16 rows from vector `at` on, `stride` vectors apart;
                                                            B's rows are its columns
  ${ matrices.sum(COOP, KIND, "c0") }                            var c0: an accumulator, zero
  ${ matrices.add(COOP, KIND, "c0", "a0", "b0", "tile", "tile") }   c0 += a0 b0
  ${ matrices.store(COOP, KIND, "c0", "tile", at, stride) }      the accumulator's elements as bits, four a vector, row by row
  ${ matrices.scaling(COOP) }                                once, for:
  ${ matrices.scale(COOP, "c0", "i0", "s") }                     c0 (f16's) = i0 (i8's) with each row times its scale: s0 and s1 of the rows
  ${ matrices.row(COOP, half) }                              0 and 1 that an invocation has elements of (Capabilities::matrix_elements)
  ${ matrices.barrier(COOP) }                                    between such stores and reading them
#>
#macro matrix(kind)
${"coop_mat8x8" if kind == "i8" else "coop_mat16x16"}
#endmacro

#macro functions(coop, kind, a, b)
#if coop == "emulated"
// Four columns of a row of a product: those of an invocation's place from 4 * `part` on.
fn multiply_${kind}_${a}_${b}(x: vec2<u32>, y: vec2<u32>, place: u32, part: u32) -> vec4<${"i32" if kind == "i8" else "f32"}> {
    var sum = vec4<${"i32" if kind == "i8" else "f32"}>();
    for (var v = 0u; v < 2u; v += 1u) {
        let left = bitcast<vec4<u32>>(${a}[x.x + place / 2u * x.y + v]);
        for (var c = 0u; c < 4u; c += 1u) {
            let right = bitcast<vec4<u32>>(${b}[y.x + (place % 2u * 8u + part * 4u + c) * y.y + v]);
            for (var w = 0u; w < 4u; w += 1u) {
                #if kind == "i8"
                sum[c] += dot4I8Packed(left[w], right[w]);
                #else
                sum[c] += dot(unpack2x16float(left[w]), unpack2x16float(right[w]));
                #endif
            }
        }
    }
    return sum;
}
#endif
#endmacro

#macro load(coop, kind, to, role, memory, at, stride)
let at_${to} = ${at};
let stride_${to} = ${stride};
#if coop == "emulated"
let ${to} = vec2<u32>(at_${to}, stride_${to});
#else
let ${to} = ${"coopLoadT" if role == "A" else "coopLoad"}<${matrix(kind)}<f32, ${role}>>(&${memory}[at_${to}], stride_${to});
#endif
#endmacro

#macro sum(coop, kind, name)
#if coop == "emulated"
var ${name}_0 = vec4<${"i32" if kind == "i8" else "f32"}>();
var ${name}_1 = vec4<${"i32" if kind == "i8" else "f32"}>();
#else
var ${name}: ${matrix(kind)}<f32, C>;
#endif
#endmacro

#macro add(coop, kind, sum, a, b, memory_a, memory_b)
#if coop == "emulated"
${sum}_0 += multiply_${kind}_${memory_a}_${memory_b}(${a}, ${b}, subgroup_lane, 0u);
${sum}_1 += multiply_${kind}_${memory_a}_${memory_b}(${a}, ${b}, subgroup_lane, 1u);
#else
${sum} = coopMultiplyAdd(${a}, ${b}, ${sum});
#endif
#endmacro

#macro store(coop, kind, sum, memory, at, stride)
{
    let at_store = ${at};
    #if coop == "emulated"
    let place = at_store + subgroup_lane / 2u * ${stride}u + subgroup_lane % 2u * 2u;
    ${memory}[place] = bitcast<vec4<f32>>(${sum}_0);
    ${memory}[place + 1u] = bitcast<vec4<f32>>(${sum}_1);
    #else
    coopStoreT(${sum}, &${memory}[at_store], ${stride}u);
    #endif
}
#endmacro

<# lib/fragments.wgsl has the layout, and how SPIR-V reaches elements. #>
#macro scaling(coop)
#if coop != "emulated"
fn element_of_integers(m: ptr<function, coop_mat8x8<f32, C>>, i: u32) -> i32 { var element_of: i32; return element_of; }
fn set_element_of_sums(m: ptr<function, coop_mat16x16<f32, C>>, i: u32, x: f32) { var element_of: f32; element_of = x; }
#endif
#endmacro

#macro row(coop, half)
${"subgroup_lane / 2u" if coop == "emulated" else "subgroup_lane / 4u + " ~ (8 * half) ~ "u"}
#endmacro

#macro scale(coop, to, from, scales)
#if coop == "emulated"
${to}_0 = vec4<f32>(${from}_0) * ${scales}0;
${to}_1 = vec4<f32>(${from}_1) * ${scales}0;
#else
#for i in range(8)
set_element_of_sums(&${to}, ${i}u, f32(element_of_integers(&${from}, ${i}u)) * ${scales}${i // 4});
#endfor
#endif
#endmacro

#macro barrier(coop)
${"workgroupBarrier();" if coop == "emulated" else "subgroupBarrier();"}
#endmacro

#macro arguments(coop)
#if coop != "emulated"
@builtin(subgroup_id) subgroup: u32,
@builtin(subgroup_invocation_id) subgroup_lane: u32,
#endif
#endmacro

#macro begin(coop)
#if coop == "emulated"
let subgroup = lane / 32u;
let subgroup_lane = lane % 32u;
#endif
#endmacro
