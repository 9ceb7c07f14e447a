// How fast cooperative matrices multiply with operands in registers: each subgroup adds the products of TILES_A
// tiles with TILES_B tiles, 16 x 16 f16 into f32, UNROLL times in each of `steps` rounds.
//
// x: TILES_A tiles, then TILES_B tiles, each 16 rows of 16. y: for each subgroup (SUBGROUPS to a workgroup) the sum
// of its TILES_A * TILES_B accumulators, 16 x 16. Accumulators are variables of their own: indexed ones land in
// memory (measured: 36 instead of 206 TFLOP/s in a GEMM).
enable f16;
enable wgpu_cooperative_matrix;
#import "lib/tensor.wgsl" as t

struct Params {
    steps: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "x", "f16") }
${ t.words(2, "y", "f32", "read_write") }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
) {
    // naga 30 panics on an index expression inside a coopLoad: each is bound first.
    #for i in range(TILES_A)
    let at_a${i} = ${i * 256}u;
    let a${i} = coopLoadT<coop_mat16x16<f16, A>>(&x[at_a${i}], 16u);
    #endfor
    #for j in range(TILES_B)
    let at_b${j} = ${(TILES_A + j) * 256}u;
    let b${j} = coopLoadT<coop_mat16x16<f16, B>>(&x[at_b${j}], 16u);
    #endfor
    #for i in range(TILES_A)
    #for j in range(TILES_B)
    var c${i}_${j}: coop_mat16x16<f32, C>;
    #endfor
    #endfor
    for (var step = 0u; step < p.steps; step += 1u) {
        #for u in range(UNROLL)
        #for i in range(TILES_A)
        #for j in range(TILES_B)
        c${i}_${j} = coopMultiplyAdd(a${i}, b${j}, c${i}_${j});
        #endfor
        #endfor
        #endfor
    }
    var sum: coop_mat16x16<f32, C>;
    #for i in range(TILES_A)
    #for j in range(TILES_B)
    sum = sum + c${i}_${j};
    #endfor
    #endfor
    let at = ((workgroup.y * grid.x + workgroup.x) * ${SUBGROUPS}u + subgroup) * 256u;
    coopStoreT(sum, &y[at], 16u);
}
