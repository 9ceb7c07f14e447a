<#
Cooperative matrices of 16 x 16 x 16, f16 into f32, loaded from workgroup memory 16 bytes at a time: for devices whose
`Capabilities::matrix_tier` says so, and for recipes whose constant LOADS is "wide" (src/spirv.rs finishes the work: the
elements of A and B are called f32 here and become f16 there).

A shader begins with `enable wgpu_cooperative_matrix;` and keeps its tiles in one array,

  var<workgroup> tile: array<vec4<f32>, …>;     16 bytes an element: eight f16 of a tile, or four f32 of a result

  ${ cooperative.load("a0", "A", "tile", at, stride, "rows") }   let a0 = 16 x 16 from vector `at` on, `stride` vectors from row to row;
                                                   "columns": the memory's rows are the matrix's columns
  ${ cooperative.sum("c0") }                       var c0: an accumulator, zero
  ${ cooperative.add("c0", "a0", "b0") }           c0 += a0 b0
  ${ cooperative.store("c0", "tile", at, stride) } the f32 of an accumulator, four a vector, row by row

Measured on an H100 (driver 580.159), 8192^3 with a tile of 128 x 128 x 32, TFLOP/s by what the load points at: f16 114, vec4<f16> 187,
16 bytes 279. An alignment operand changes nothing. Rows of a tile are an odd number of vectors long, or the banks
conflict: padding of 0 / 16 / 32 bytes 165 / 279 / 217. A multiprocessor has 48 KiB of workgroup memory for all of its
workgroups. Each matrix is a variable of its own, never indexed.
#>
#macro load(to, role, memory, at, stride, order)
<# naga panics on an index that is an expression: it is bound first. #>
let at_${to} = ${at};
let ${to} = ${"coopLoadT" if order == "rows" else "coopLoad"}<coop_mat16x16<f32, ${role}>>(&${memory}[at_${to}], ${stride}u);
#endmacro

#macro sum(name)
var ${name}: coop_mat16x16<f32, C>;
#endmacro

#macro add(sum, a, b)
${sum} = coopMultiplyAdd(${a}, ${b}, ${sum});
#endmacro

#macro store(sum, memory, at, stride)
{
    let at_store = ${at};
    coopStoreT(${sum}, &${memory}[at_store], ${stride}u);
}
#endmacro
