// Middle pass of a convolution too long for a workgroup: every row of columns_forward.wgsl's result is transformed,
// multiplied by the filter's and transformed back, in place.
//
// scratch: [channels of this dispatch][transforms][N1][N complex]; spectrum: [channels][N1 rows][E / 2][N / E] pairs, as in fused.wgsl. Row r
// is transformed to the frequencies k + (f + phase) / N1, f the number whose digits are r's in reverse: its own twiddle
// table, row r of `twiddles`, stands for the twiddles between columns and rows. KIND
//   convolve   scratch becomes the inverse of its product with the spectrum (TRANSPOSE 1: its conjugate)
//   filter     the spectrum becomes scratch (one transform a channel), transformed, times `scale`
//
// A workgroup of N / E invocations takes one row of one channel and loops over `rounds`
// transforms: the filter's row is read once.
#import "lib/tensor.wgsl" as t
#import "lib/complex.wgsl" as complex
#import "lib/fft.wgsl" as fft
#set plan = {"points": N, "steps": fft_steps([R1, R2, R3, R4, R5]), "each": E, "vec": VEC, "planes": PLANES, "pad": PAD,
             "columns": 1, "spread": 1, "inverse_at": INVERSE, "swaps": [0, S2, S3, S4, 0]}
#set LANES = N // E

struct Params {
    first_channel: u32,
    rows: u32,
    transforms: u32,
    rounds: u32,
    groups: u32,
    workgroups: u32,
    scale: f32,
}
${ t.params(PARAMS) }
${ complex.functions() }
#if KIND == "filter"
${ t.words(1, "scratch", "vec2<f32>") }
${ t.words(2, "spectrum", "vec4<f32>", "read_write") }
#else
${ t.words(1, "scratch", "vec2<f32>", "read_write") }
${ t.words(2, "spectrum", "vec4<f32>") }
#endif
${ t.words(3, "twiddles", "vec2<f32>") }
${ fft.memory(plan, 1) }

@compute @workgroup_size(${LANES})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = workgroup.y * grid.x + workgroup.x;
    if id >= p.workgroups { return; }
    let row = id / p.groups % p.rows;
    let channel = id / p.groups / p.rows;
    let table_row = row * ${FORWARD}u;
    let filter_at = ((p.first_channel + channel) * p.rows + row) * ${N // 2}u + lane;
    let start = lane * ${VEC}u;
    let side = 0u;
    ${ fft.registers(plan) }
    for (var round = 0u; round < p.rounds; round++) {
        let q = id % p.groups * p.rounds + round;
        if q < p.transforms {
            let at = ((channel * p.transforms + q) * p.rows + row) * ${N}u + start;
            #for j in range(E)
            x${j} = scratch[at + ${fft.point(plan, j)}u];
            #endfor
        }
        ${ fft.forward(plan, "table", 0) }
        #if KIND == "filter"
        #for r in range(E // 2)
        spectrum[filter_at + ${r * LANES}u] = vec4<f32>(x${2 * r}, x${2 * r + 1}) * p.scale;
        #endfor
        #else
        #for r in range(E // 2)
        {
            let k = spectrum[filter_at + ${r * LANES}u];
            x${2 * r} = times(x${2 * r}, ${"conjugate(k.xy)" if TRANSPOSE else "k.xy"});
            x${2 * r + 1} = times(x${2 * r + 1}, ${"conjugate(k.zw)" if TRANSPOSE else "k.zw"});
        }
        #endfor
        ${ fft.inverse(plan) }
        if q < p.transforms {
            let at = ((channel * p.transforms + q) * p.rows + row) * ${N}u + start;
            #for j in range(E)
            scratch[at + ${fft.point(plan, j)}u] = ${fft.register(plan, j)};
            #endfor
        }
        #endif
    }
}
