// The spectrum of a filter for monarch.wgsl: computed in f32, rounded to f16, in the order in which its invocations hold it.
//
// taps: [channels, taps], adjacent along time, implied zeros to the N = FOLD * 256 R points; SKIP adds skip[channel] to the first tap.
// spectrum: [channels][kappa][subgroup][tile][real or imaginary part][invocation][8] f16, over scales[channel]: a power of
// two that is at least the sum of the taps' magnitudes, so that no frequency's part is over 1. Frequencies: monarch/tables.rs.
//
// A workgroup for each channel and kappa; transform: lib/fft.wgsl, of the sequence folded to 256 R points.
#import "lib/tensor.wgsl" as t
#import "lib/complex.wgsl" as complex
#import "lib/fft.wgsl" as fft
#import "lib/reduce.wgsl" as reduce
#set plan = {"points": N, "steps": fft_steps([R1, R2, R3, R4, R5]), "each": E, "vec": VEC, "planes": PLANES, "pad": PAD,
             "columns": 1, "spread": 1, "inverse_at": INVERSE, "swaps": [0, S2, S3, S4, 0]}
#set LANES = N // E
enable f16;

struct Params {
    taps: u32,
    workgroups: u32,
    taps_offset: u32,
    taps_channel: u32,
    skip_offset: u32,
    skip_channel: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ complex.functions() }
${ t.input(1, "taps", TAPS) }
#if SKIP != "none"
${ t.input(2, "skip", SKIP) }
#endif
${ t.words(3, "twiddles", "vec2<f32>") }
${ t.words(4, "spectrum", "f16", "read_write") }
${ t.words(5, "scales", "f32", "read_write") }
${ fft.memory(plan, 1) }
${ reduce.scratch("workgroup", LANES) }
${ reduce.function("sum", "workgroup", LANES) }

fn tap(channel: u32, n: u32) -> f32 {
    var value = 0.0;
    if n < p.taps { value = load_taps(p.taps_offset + channel * p.taps_channel + n); }
    #if SKIP != "none"
    if n == 0u { value += load_skip(p.skip_offset + channel * p.skip_channel); }
    #endif
    return value;
}

// Where the frequency k1 + 16 k2 + 256 k3 stands.
fn frequency_at(k: u32) -> u32 {
    let k1 = k % 16u;
    let k2 = k / 16u % 16u;
    let k3 = k / 256u;
    let tile = k1 % ${R}u;
    let row = k2 / 2u + k2 % 2u * 8u;
    let column = k3 / 2u + ${R // 2}u * (k1 / ${R}u) + k3 % 2u * 8u;
    let invocation = row % 8u * 4u + column % 8u / 2u;
    return tile * 512u + invocation * 8u + row / 8u * 4u + column / 8u * 2u + column % 2u;
}

@compute @workgroup_size(${LANES})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = workgroup.y * grid.x + workgroup.x;
    if id >= p.workgroups { return; }
    let channel = id / ${FOLD}u;
    let kappa = id % ${FOLD}u;
    let table_row = kappa * ${FORWARD}u;
    let side = 0u;
    var sum = 0.0;
    for (var n = lane; n < max(p.taps, 1u); n += ${LANES}u) { sum += abs(tap(channel, n)); }
    let total = max(workgroup_sum(sum, lane), 0x1p-100f);
    // The next power of two.
    let scale = bitcast<f32>((bitcast<u32>(total) + 0x7fffffu) & 0x7f800000u);
    if kappa == 0u && lane == 0u { scales[channel] = scale; }
    ${ fft.registers(plan) }
    #for j in range(E)
    {
        let n = lane * ${VEC}u + ${fft.point(plan, j)}u;
        #if FOLD == 1
        x${j} = vec2<f32>(tap(channel, n), 0.0);
        #else
        var sum = vec2<f32>();
        for (var fold = 0u; fold < ${FOLD}u; fold++) {
            // Of fold * (kappa - 1/4) / FOLD turns.
            let quarters = fold * (4u * kappa + ${4 * FOLD - 1}u) % ${4 * FOLD}u;
            sum += tap(channel, n + fold * ${N}u) * twiddles[${FOLD * FORWARD}u + quarters];
        }
        x${j} = sum;
        #endif
    }
    #endfor
    ${ fft.forward(plan, "table", 0) }
    let base = id * ${2 * N}u;
    #for j in range(E)
    {
        let place = ${fft.place(plan, j)};
        var k = 0u;
        #for step in plan.steps
        k += place / ${step.stride}u % ${step.radix}u * ${step.high}u;
        #endfor
        let at = base + frequency_at(k);
        spectrum[at] = f16(x${j}.x / scale);
        spectrum[at + 256u] = f16(x${j}.y / scale);
    }
    #endfor
}
