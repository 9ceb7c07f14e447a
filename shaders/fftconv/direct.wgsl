// First of two passes of a convolution too long for a workgroup: the frequencies FOLD k + kappa, one kappa a workgroup, convolved. The
// second is columns_inverse.wgsl.
//
// u, v: [batch, channels, length], read as lib/conv.wgsl has it; FOLD N points a transform. Those frequencies are a transform of N points: of
// the sums over n0 of u[n0 N + n] times a root of unity, which are made as points are read. So the pass of columns_forward.wgsl is saved and
// its result never stored; u is read FOLD times, by neighbouring workgroups, and from memory once. spectrum: as in rows.wgsl. twiddles: as
// there, then the roots, [kappa][n0]. scratch: [channels of this dispatch][transforms][FOLD][N complex].
//
// A workgroup of N / E invocations takes one kappa of one channel and loops over `rounds` transforms: the filter's row is read once.
// TRANSPOSE 1 correlates.
//
// By bytes 24 an element (f32, ungated) in place of 40. Timed on an H200 (2026-11-26; 32768 points, batch 16, 768 channels): rows of 4096 points
// as 16, 16, 16 4.6 ms (3.4 here, 1.2 in the second pass), of 2048 5.4, of 8192 as 8, 32, 32 6.9; three passes 4.75. So the planner takes it
// for whole f32 sequences of up to eight rows of 4096.
#import "lib/tensor.wgsl" as t
#import "lib/complex.wgsl" as complex
#import "lib/fft.wgsl" as fft
#import "lib/conv.wgsl" as conv
#set plan = {"points": N, "steps": fft_steps([R1, R2, R3, R4, R5]), "each": E, "vec": VEC, "planes": PLANES, "pad": PAD,
             "columns": 1, "spread": 1, "inverse_at": INVERSE, "swaps": [0, S2, S3, S4, 0]}
#set LANES = N // E
#set FIRST = plan.steps[0]
#set BOTH = BOUNDARY != "causal"

struct Params {
    ${ conv.params() }
    first_channel: u32,
    spectrum_channel: u32,
    first: u32,
    transforms: u32,
    rounds: u32,
    groups: u32,
    workgroups: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ complex.functions() }
${ t.input(1, "u", U, VEC) }
#if GATE_IN != "none"
${ t.input(2, "v", GATE_IN, VEC) }
#endif
${ t.words(3, "twiddles", "vec2<f32>") }
${ t.words(4, "spectrum", "vec4<f32>") }
${ t.words(5, "scratch", "vec2<f32>", "read_write") }
${ fft.memory(plan, 1) }
${ conv.load(BOUNDARY, GATE_IN, VEC, RAGGED, N * FOLD) }

@compute @workgroup_size(${LANES})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = workgroup.y * grid.x + workgroup.x;
    if id >= p.workgroups { return; }
    let kappa = id % ${FOLD}u;
    let group = id / ${FOLD}u % p.groups;
    let row = id / ${FOLD}u / p.groups;
    let channel = p.first_channel + row;
    let table_row = kappa * ${FORWARD}u;
    let filter_at = ((p.spectrum_channel + row) * ${FOLD}u + kappa) * ${N // 2}u + lane;
    let start = lane * ${VEC}u;
    let side = 0u;
    #for i in range(1, FOLD)
    let root${i} = twiddles[${ROOTS + i}u + kappa * ${FOLD}u];
    #endfor
    ${ fft.registers(plan) }
    for (var round = 0u; round < p.rounds; round++) {
        let q = group * p.rounds + round;
        #for j in range(0, E // FIRST.radix, VEC)
        #for digit in range(FIRST.radix)
        {
            let n = start + ${fft.point(plan, j * FIRST.radix + digit)}u;
            #for i in range(FOLD)
            let re${i} = load_re(p.first + q, channel, n + ${i * N}u);
            #if BOTH
            let im${i} = load_im(p.first + q, channel, n + ${i * N}u);
            #endif
            #endfor
            #for l in range(VEC)
            #set part = "[" ~ l ~ "]" if VEC > 1 else ""
            #set x = "x" ~ ((j + l) * FIRST.radix + digit)
            ${x} = vec2<f32>(re0${part}, ${"im0" ~ part if BOTH else "0.0"});
            #for i in range(1, FOLD)
            #if BOTH
            ${x} = plus_times(${x}, root${i}, vec2<f32>(re${i}${part}, im${i}${part}));
            #else
            ${x} = fma(root${i}, vec2<f32>(re${i}${part}), ${x});
            #endif
            #endfor
            #endfor
        }
        #endfor
        #endfor
        ${ fft.forward(plan, "table", 0) }
        #for r in range(E // 2)
        {
            let k = spectrum[filter_at + ${r * LANES}u];
            x${2 * r} = times(x${2 * r}, ${"conjugate(k.xy)" if TRANSPOSE else "k.xy"});
            x${2 * r + 1} = times(x${2 * r + 1}, ${"conjugate(k.zw)" if TRANSPOSE else "k.zw"});
        }
        #endfor
        ${ fft.inverse(plan) }
        if q < p.transforms {
            let at = ((row * p.transforms + q) * ${FOLD}u + kappa) * ${N}u + start;
            #for j in range(E)
            scratch[at + ${fft.point(plan, j)}u] = ${fft.register(plan, j)};
            #endfor
        }
    }
}
