//! Reaching the elements of cooperative matrices, which SPIR-V allows and WGSL does not: by the names in the functions of
//! `shaders/lib/fragments.wgsl`.

use std::collections::BTreeMap;

use super::{BOUND, HEADER, encode, instructions, op, opcode};

/// A module of naga's, written with names, in which
///
/// - a local variable called `element_of`, in a function of a pointer to a matrix and a number, is that element of
///   those of the matrix that the invocation holds;
/// - a function whose name begins with `bits_as_` returns its parameter's bits (naga 30 mistypes WGSL's own bitcast to
///   vectors of f16).
///
/// Names are left out. Errors if it is not a module, or if such a function has other parameters.
pub(super) fn reach(words: &[u32]) -> Result<Vec<u32>, String> {
    let all = instructions(words)?;
    let names: BTreeMap<u32, String> = all
        .iter()
        .filter(|i| opcode(i) == op::NAME)
        .map(|i| (i[1], text(&i[2..])))
        .collect();
    let named = |id: u32| names.get(&id).map_or("", String::as_str);
    let mut bound = words[BOUND];
    let mut out = words[..HEADER].to_vec();
    let mut parameters = Vec::new();
    // The type of what the function at hand returns, if it stands for a cast; whether its own code is being skipped.
    let (mut cast, mut skipping) = (None, false);
    for i in all {
        match opcode(i) {
            op::NAME | op::MEMBER_NAME => continue,
            op::FUNCTION => {
                parameters.clear();
                cast = named(i[2]).starts_with("bits_as_").then_some(i[1]);
            }
            op::FUNCTION_PARAMETER => parameters.push(i[2]),
            op::VARIABLE if named(i[2]) == "element_of" => {
                let &[matrix, index, ..] = &parameters[..] else {
                    return Err("element_of: a matrix and a number are the parameters".into());
                };
                out.extend(encode(op::ACCESS_CHAIN, &[i[1], i[2], matrix, index]));
                continue;
            }
            op::LABEL => {
                if let (Some(result), &[bits, ..]) = (cast.take(), &parameters[..]) {
                    out.extend(i);
                    out.extend(encode(op::BITCAST, &[result, bound, bits]));
                    out.extend(encode(op::RETURN_VALUE, &[bound]));
                    bound += 1;
                    skipping = true;
                }
            }
            op::FUNCTION_END => skipping = false,
            _ => {}
        }
        if !skipping {
            out.extend(i);
        }
    }
    out[BOUND] = bound;
    Ok(out)
}

/// A literal string: four bytes a word, ended by a zero.
fn text(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|w| w.to_le_bytes());
    let bytes: Vec<u8> = bytes.take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::ShaderChecks;
    use crate::spirv::compile;

    fn count(words: &[u32], code: u32) -> usize {
        let all = instructions(words).expect("a module");
        all.iter().filter(|i| opcode(i) == code).count()
    }

    #[test]
    fn variables_become_elements_and_casts_casts() {
        let wgsl = "
            enable f16;
            enable wgpu_cooperative_matrix;
            fn element(m: ptr<function, coop_mat16x16<f32, C>>, i: u32) -> f32 { var element_of: f32; return element_of; }
            fn bits_as_halves(w: u32) -> vec2<f16> { return vec2<f16>(); }
            @group(0) @binding(0) var<storage, read_write> x: array<f32>;
            @compute @workgroup_size(32) fn main() {
                var c: coop_mat16x16<f32, C>;
                x[0] = element(&c, 3u) + f32(bits_as_halves(7u).x);
            }";
        let bindings = crate::shader::bindings(wgsl);
        let words = compile(wgsl, &bindings, ShaderChecks::Off).expect("compiles");
        assert_eq!(count(&words, op::NAME), 0);
        assert_eq!(count(&words, op::BITCAST), 1);
        let all = instructions(&words).expect("a module");
        let parameters: Vec<u32> = all
            .iter()
            .filter(|i| opcode(i) == op::FUNCTION_PARAMETER)
            .map(|i| i[2])
            .collect();
        let chain = |i: &&&[u32]| opcode(i) == op::ACCESS_CHAIN && i[3] == parameters[0];
        let found = all.iter().find(chain).expect("an access to the matrix");
        assert_eq!(found[4..], parameters[1..2]);
    }
}
