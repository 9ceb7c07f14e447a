// First pass of a convolution too long for a workgroup: the transforms over the columns of its points, N1 rows of N2
// (Bailey's four steps, J. Supercomputing 4, 1990; a Monarch decomposition of order 2, or more with the radices within).
//
// u, v: [batch, channels, length], read as lib/conv.wgsl has it; N points a transform. scratch: [transforms of this
// dispatch][N1][N2] complex numbers; row r has the frequency whose digits are r's in reverse. The twiddles between the
// two transforms are in the tables of rows.wgsl: no pass multiplies by them.
//
// A workgroup transforms C adjacent columns, lanes side by side along a row.
//
// Tried on an H100 (2026-11-25; the three passes together, f32, 768 channels): 32768 points, batch 16, rows of 2048 and 1024 points of
// columns a workgroup 6.7 ms, 2048 points 7.0, 4096 points 7.5; rows of 4096 7.3 at best, with four steps in the rows' kernel 9.0.
// 1048576 points, batch 1: rows of 4096 22.4 ms, of 2048 22.2, of 1024 23.5 and more. On an H200 (2026-11-26) columns with real and imaginary
// parts one after the other, in half the workgroup memory: 1048576 points 13.1 ms, both at once 16.4; read one by one as 16, 16 11.9, which
// would store halves by atomics.
#import "lib/tensor.wgsl" as t
#import "lib/complex.wgsl" as complex
#import "lib/fft.wgsl" as fft
#import "lib/conv.wgsl" as conv
#set plan = {"points": N, "steps": fft_steps([R1, R2, R3, R4, R5]), "each": E, "vec": VEC, "planes": PLANES, "pad": PAD,
             "columns": COLUMNS, "spread": SPREAD, "inverse_at": INVERSE, "swaps": [0, S2, S3, S4, 0]}
#set FIRST = plan.steps[0]
#set LAST = plan.steps | last
#set ROWS = N // COLUMNS
#set POINTS = ROWS * SPREAD
#set BOTH = BOUNDARY != "causal"

struct Params {
    ${ conv.params() }
    first_channel: u32,
    first: u32,
    transforms: u32,
    workgroups: u32,
    skip_offset: u32,
    skip_channel: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ complex.functions() }
${ t.input(1, "u", U, VEC) }
#if GATE_IN != "none"
${ t.input(2, "v", GATE_IN, VEC) }
#endif
${ t.words(3, "twiddles", "vec2<f32>") }
${ t.words(5, "scratch", "vec2<f32>", "read_write") }
#if SKIP != "none"
${ t.input(6, "skip", SKIP) }
#endif
${ fft.memory(plan, 1) }
${ conv.load(BOUNDARY, GATE_IN, VEC, RAGGED, POINTS) }

@compute @workgroup_size(${N // E})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = workgroup.y * grid.x + workgroup.x;
    if id >= p.workgroups { return; }
    let column = id % ${SPREAD // COLUMNS}u * ${COLUMNS}u;
    let transform = id / ${SPREAD // COLUMNS}u;
    let channel = p.first_channel + transform / p.transforms;
    let q = p.first + transform % p.transforms;
    let start = lane * ${VEC}u;
    let side = 0u;
    ${ fft.registers(plan) }
    #for j in range(0, E // FIRST.radix, VEC)
    #for digit in range(FIRST.radix)
    {
        let place = start + ${fft.point(plan, j * FIRST.radix + digit)}u;
        let n = place / ${COLUMNS}u * ${SPREAD}u + column + place % ${COLUMNS}u;
        let re = load_re(q, channel, n);
        #if BOTH
        let im = load_im(q, channel, n);
        #endif
        #for i in range(VEC)
        #set part = "[" ~ i ~ "]" if VEC > 1 else ""
        x${(j + i) * FIRST.radix + digit} = vec2<f32>(re${part}, ${"im" ~ part if BOTH else "0.0"});
        #endfor
    }
    #endfor
    #endfor
    #if SKIP != "none"
    if column + lane == 0u { x0.x += load_skip(p.skip_offset + channel * p.skip_channel); }
    #endif
    ${ fft.forward(plan, PHASE, not BOTH) }
    let out = transform * ${POINTS}u + column;
    #for j in range(E)
    {
        let place = ${fft.place(plan, j)};
        let row = place / ${COLUMNS}u;
        scratch[out + row * ${SPREAD}u + place % ${COLUMNS}u] = x${j};
    }
    #endfor
}
