<#
  ${ shortconv.gradient_params() }   fields of Params of both kernels of a short convolution's gradients, as
                                     src/kernels/shortconv/backward.rs has them
#>
#macro gradient_params()
batch: u32,
channels: u32,
length: u32,
x_offset: u32,
x_batch: u32,
x_channel: u32,
x_time: u32,
dy_offset: u32,
dy_batch: u32,
dy_channel: u32,
dy_time: u32,
weight_offset: u32,
weight_channel: u32,
dweight_offset: u32,
dbias_offset: u32,
#endmacro
