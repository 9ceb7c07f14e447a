<#
Discrete Fourier transforms of a few points in registers, x0 … x(radix - 1); radix 2, 4, 8, 16 by lib/fft.wgsl, odd ones up to 13
by the sums and differences of mirrored points (Winograd's symmetries without his nesting).

  ${ butterfly.odd(R, sign) }        x0 … in place, in order
#>
#macro odd(radix, sign)
#set half = (radix - 1) // 2
{
    #for j in range(1, half + 1)
    let s${j} = x${j} + x${radix - j};
    let d${j} = x${j} - x${radix - j};
    #endfor
    let first = x0;
    #for j in range(1, half + 1)
    x0 += s${j};
    #endfor
    #for k in range(1, half + 1)
    {
        var a = first;
        var b = vec2<f32>();
        #for j in range(1, half + 1)
        a = fma(vec2<f32>(${cos_turn(j * k, radix)}), s${j}, a);
        b = fma(vec2<f32>(${sin_turn(sign * j * k, radix)}), d${j}, b);
        #endfor
        x${k} = vec2<f32>(a.x - b.y, a.y + b.x);
        x${radix - k} = vec2<f32>(a.x + b.y, a.y - b.x);
    }
    #endfor
}
#endmacro
