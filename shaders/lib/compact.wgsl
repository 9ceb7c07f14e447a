<#
Places in a list: how many of something the invocations before an invocation have, and how many all have.

  ${ compact.scratch(REDUCE, WG) }                     once a kernel, which has reduce.builtins and reduce.begin
  let lane = ${ compact.lane(REDUCE, "index") };        from the local_invocation_index: invocations are in this order
  ${ compact.ranks(REDUCE, WG, "count", "rank", "all") }  declares `var rank` and `let all`; by every invocation of the workgroup

subgroup: a prefix sum of a subgroup, then the subgroups' sums through workgroup memory. workgroup: doubling steps there
(Hillis and Steele). What was in workgroup memory before is free to be overwritten after it.
#>
#macro scratch(tier, wg)
#if tier == "subgroup"
var<workgroup> ranks_scratch: array<u32, ${wg // 4}>;
#else
var<workgroup> ranks_scratch: array<u32, ${wg}>;
#endif
#endmacro

#macro lane(tier, index)
#if tier == "subgroup"
reduce_subgroup * reduce_size + reduce_lane
#else
${index}
#endif
#endmacro

#macro ranks(tier, wg, count, rank, all)
#if tier == "subgroup"
let own_count = ${count};
var ${rank} = subgroupExclusiveAdd(own_count);
let subgroup_count = subgroupAdd(own_count);
workgroupBarrier();
if reduce_lane == 0u { ranks_scratch[reduce_subgroup] = subgroup_count; }
workgroupBarrier();
var total_count = 0u;
for (var s = 0u; s < reduce_subgroups; s += 1u) {
    let of_subgroup = ranks_scratch[s];
    if s < reduce_subgroup { ${rank} += of_subgroup; }
    total_count += of_subgroup;
}
let ${all} = total_count;
#else
let own_count = ${count};
workgroupBarrier();
ranks_scratch[lane] = own_count;
workgroupBarrier();
for (var step = 1u; step < ${wg}u; step <<= 1u) {
    var before = 0u;
    if lane >= step { before = ranks_scratch[lane - step]; }
    workgroupBarrier();
    ranks_scratch[lane] += before;
    workgroupBarrier();
}
var ${rank} = ranks_scratch[lane] - own_count;
let ${all} = ranks_scratch[${wg - 1}];
#endif
#endmacro
