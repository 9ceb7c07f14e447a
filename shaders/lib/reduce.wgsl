<#
Reductions over a workgroup: `workgroup_sum(v, lane)` and `workgroup_max(v, lane)` give every invocation the
result. Same signature in every tier; WG (the workgroup's size) is a power of two. With TEAM, a smaller power of
two, every run of TEAM invocations has its own result; `lane` is then `reduce.lane`, which numbers invocations by
subgroups (WGSL does not promise that neighbours by local_invocation_index are neighbours in one).

  #import "lib/reduce.wgsl" as reduce
  ${ reduce.scratch(REDUCE, WG) }                       once a kernel
  ${ reduce.function("sum", REDUCE, WG) }               defines workgroup_sum; "max" likewise
  ${ reduce.function("sum", REDUCE, WG, TEAM) }         the same over teams
  let lane = ${ reduce.lane(REDUCE, "index", WG, TEAM) };  from the local_invocation_index, after `begin`
  ${ reduce.begin(REDUCE) }                             the first statement of main
  ${ reduce.arguments(REDUCE) }                         among main's arguments: declares subgroup built-ins

Every invocation of the workgroup has to call it (barriers inside), with `lane` its local_invocation_index where
there are no teams.
subgroup: a subgroup operation, then one value a subgroup through workgroup memory, read by all; subgroups of any
size from 4 to 128, none larger than a team. shuffle: for teams within a subgroup, no barrier; no subgroup may be
smaller than a team nor larger than WG. workgroup: a tree through workgroup memory.

Many sums at once, with as few barriers as one (`sums_scratch` instead of `scratch`):
  ${ reduce.sums_scratch(REDUCE, WG, COUNT) }           once a kernel
  ${ reduce.sums_put(REDUCE, WG, i, "value") }          for each i below COUNT, by every invocation
  ${ reduce.sums_finish(REDUCE, WG, COUNT) }            then lane i, for i below COUNT at most WG, holds `total`
and a workgroupBarrier() before the next round of puts.
#>
#macro scratch(tier, wg)
#if tier != "shuffle"
var<workgroup> reduce_scratch: array<f32, ${wg}>;
#endif
${builtins(tier)}
#endmacro

#macro builtins(tier)
#if tier != "workgroup"
var<private> reduce_subgroup: u32;
var<private> reduce_subgroups: u32;
var<private> reduce_size: u32;
var<private> reduce_lane: u32;
#endif
#endmacro

#macro arguments(tier)
#if tier != "workgroup"
    @builtin(subgroup_id) reduce_subgroup_arg: u32,
    @builtin(num_subgroups) reduce_subgroups_arg: u32,
    @builtin(subgroup_size) reduce_size_arg: u32,
    @builtin(subgroup_invocation_id) reduce_lane_arg: u32,
#endif
#endmacro

<# First statement of main. #>
#macro begin(tier)
#if tier != "workgroup"
    reduce_subgroup = reduce_subgroup_arg;
    reduce_subgroups = reduce_subgroups_arg;
    reduce_size = reduce_size_arg;
    reduce_lane = reduce_lane_arg;
#endif
#endmacro

#macro lane(tier, index, wg, team)
#if tier == "workgroup" or team == wg
${index}
#else
reduce_subgroup * reduce_size + reduce_lane
#endif
#endmacro

#macro function(name, tier, wg, team=0)
#if tier == "shuffle"
fn workgroup_${name}(v: f32, lane: u32) -> f32 {
    var total = v;
    ${shuffles(name, team)}
    return total;
}
#elif tier == "subgroup"
fn workgroup_${name}(v: f32, lane: u32) -> f32 {
    let own = ${"subgroupAdd" if name == "sum" else "subgroupMax"}(v);
    workgroupBarrier();
    if reduce_lane == 0u { reduce_scratch[reduce_subgroup] = own; }
    workgroupBarrier();
    #if team and team < wg
    let count = ${team}u / reduce_size;
    let first = reduce_subgroup / count * count;
    #else
    let count = reduce_subgroups;
    let first = 0u;
    #endif
    var total = reduce_scratch[first];
    for (var s = first + 1u; s < first + count; s += 1u) {
        total = ${combine(name, "total", "reduce_scratch[s]")};
    }
    return total;
}
#else
fn workgroup_${name}(v: f32, lane: u32) -> f32 {
    workgroupBarrier();
    reduce_scratch[lane] = v;
    workgroupBarrier();
    let member = lane & ${(team or wg) - 1}u;
    for (var half = ${(team or wg) // 2}u; half > 0u; half >>= 1u) {
        if member < half {
            reduce_scratch[lane] = ${combine(name, "reduce_scratch[lane]", "reduce_scratch[lane + half]")};
        }
        workgroupBarrier();
    }
    return reduce_scratch[lane - member];
}
#endif
#endmacro

#macro sums_scratch(tier, wg, count)
${builtins(tier)}
#if tier == "subgroup"
var<workgroup> sums_scratch: array<f32, ${count * (wg // 4)}>;
#else
var<workgroup> sums_scratch: array<f32, ${count * wg}>;
#endif
#endmacro

#macro sums_put(tier, wg, i, value)
#if tier == "subgroup"
{
    let own = subgroupAdd(${value});
    if reduce_lane == 0u { sums_scratch[${i * (wg // 4)}u + reduce_subgroup] = own; }
}
#else
sums_scratch[${i * wg}u + lane] = ${value};
#endif
#endmacro

#macro sums_finish(tier, wg, count)
workgroupBarrier();
var total = 0.0;
#if tier == "subgroup"
if lane < ${count}u {
    for (var s = 0u; s < reduce_subgroups; s += 1u) { total += sums_scratch[lane * ${wg // 4}u + s]; }
}
#else
for (var half = ${wg // 2}u; half > 0u; half >>= 1u) {
    if lane < half {
        #for i in range(count)
        sums_scratch[${i * wg}u + lane] += sums_scratch[${i * wg}u + lane + half];
        #endfor
    }
    workgroupBarrier();
}
if lane < ${count}u { total = sums_scratch[lane * ${wg}u]; }
#endif
#endmacro

<# `total` over `width` adjacent invocations of a subgroup. #>
#macro shuffles(name, width)
#for step in [1, 2, 4, 8, 16, 32, 64]
#if step < width
total = ${combine(name, "total", "subgroupShuffleXor(total, " ~ step ~ "u)")};
#endif
#endfor
#endmacro

#macro combine(name, a, b)
#if name == "sum"
${a} + ${b}
#else
max(${a}, ${b})
#endif
#endmacro

<#
Sums over groups of `width` (a power of two) adjacent invocations: `group_sum(v, lane)`, every invocation of a
group gets its sum. Every invocation of the workgroup has to call it.

  ${ reduce.group_arguments(REDUCE) }                   among main's arguments
  let lane = ${ reduce.group_lane(REDUCE) };            the invocation's number: use this one everywhere
  ${ reduce.group_sum(REDUCE, WG, WIDTH) }

subgroup: shuffles; no subgroup may be smaller than a group, and WG is a multiple of every subgroup size. WGSL does
not promise that neighbours by local_invocation_index are neighbours in a subgroup, so `lane` is counted by
subgroups. workgroup: through workgroup memory.
#>
#macro group_arguments(tier)
#if tier == "subgroup"
    @builtin(subgroup_id) group_subgroup: u32,
    @builtin(subgroup_size) group_subgroup_size: u32,
    @builtin(subgroup_invocation_id) group_invocation: u32,
#else
    @builtin(local_invocation_index) group_invocation: u32,
#endif
#endmacro

#macro group_lane(tier)
#if tier == "subgroup"
group_subgroup * group_subgroup_size + group_invocation
#else
group_invocation
#endif
#endmacro

#macro group_sum(tier, wg, width)
#if tier == "subgroup"
fn group_sum(v: vec4<f32>, lane: u32) -> vec4<f32> {
    var total = v;
    ${shuffles("sum", width)}
    return total;
}
#else
var<workgroup> group_scratch: array<vec4<f32>, ${wg}>;
fn group_sum(v: vec4<f32>, lane: u32) -> vec4<f32> {
    workgroupBarrier();
    group_scratch[lane] = v;
    workgroupBarrier();
    let first = lane & ~${width - 1}u;
    var total = group_scratch[first];
    for (var i = 1u; i < ${width}u; i += 1u) {
        total += group_scratch[first + i];
    }
    return total;
}
#endif
#endmacro

<#
Sums over the invocations whose numbers are the same modulo `width` (powers of two), four values each, in the same order every
time: `column_sum(v, lane)`, every invocation gets that of its column. Every invocation of the workgroup has to call it.

  ${ reduce.column_sum(WG, WIDTH) }
#>
#macro column_sum(wg, width)
var<workgroup> column_scratch: array<vec4<f32>, ${wg}>;
fn column_sum(v: vec4<f32>, lane: u32) -> vec4<f32> {
    workgroupBarrier();
    column_scratch[lane] = v;
    workgroupBarrier();
    for (var half = ${wg // 2}u; half >= ${width}u; half >>= 1u) {
        if lane < half { column_scratch[lane] += column_scratch[lane + half]; }
        workgroupBarrier();
    }
    return column_scratch[lane % ${width}u];
}
#endmacro
