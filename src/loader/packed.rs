//! Four-bit matrices as GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978) leave them in a Hugging Face folder, taken over
//! without rounding.
//!
//! For a matrix `[out, in]` there are `qweight`, `qzeros` and `scales` `[in / group, out]`, eight codes of four bits to a word:
//! GPTQ's `qweight` `[in / 8, out]` packs along the inputs, AWQ's `[in, out / 8]` along the outputs; `qzeros`
//! `[in / group, out / 8]` in both. A weight is `(code - zero) * scale`; GPTQ's first version stores `zero - 1`. AWQ's words
//! have their codes in the order 0, 2, 4, 6, 1, 3, 5, 7.

use std::collections::BTreeMap;
use std::ops::Range;

use half::f16;
use serde::Deserialize;

use super::Entry;
use super::source::Blob;
use super::tensor::Stored;
use crate::error::Result;
use crate::quant::{Code, Format, Group, QuantLayout, QuantMatrix, Scale, Zero};

/// `quantization_config` of `config.json`.
#[derive(Deserialize)]
pub(super) struct QuantizationConfig {
    quant_method: Option<String>,
    bits: Option<u32>,
    group_size: Option<i64>,
    checkpoint_format: Option<String>,
    version: Option<String>,
}

/// How words hold codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// And what is added to stored zero points.
    Gptq(u32),
    Awq,
}

/// How a folder's matrices are packed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    method: Method,
    group: Group,
}

/// A tensor of 32-bit words.
pub(super) struct Words {
    pub shape: Vec<usize>,
    pub file: usize,
    pub range: Range<usize>,
}

impl QuantizationConfig {
    /// `Err` names what is not read.
    pub fn read(self) -> Result<Packing, String> {
        let name = self.quant_method.as_deref().unwrap_or("gptq");
        let version = self.version.as_deref().unwrap_or("gemm");
        let checkpoint = self.checkpoint_format.as_deref().unwrap_or("gptq");
        let method = match (name, version, checkpoint) {
            ("gptq", _, "gptq") => Method::Gptq(1),
            ("gptq", _, "gptq_v2") => Method::Gptq(0),
            ("awq", v, _) if v.eq_ignore_ascii_case("gemm") => Method::Awq,
            _ => {
                return Err(format!(
                    "quantization_config has quant_method {name}, version {version}, checkpoint_format {checkpoint}; \
                     allowed: gptq of the formats gptq and gptq_v2, awq of the version gemm"
                ));
            }
        };
        if self.bits != Some(4) {
            return Err(format!(
                "quantization_config has {:?} bits; allowed: 4",
                self.bits
            ));
        }
        let group = match self.group_size.unwrap_or(-1) {
            -1 => Group::Row,
            n => match u32::try_from(n) {
                Ok(n) if n.is_power_of_two() && n >= 32 => Group::Along(n),
                _ => {
                    return Err(format!(
                        "quantization_config has group_size {n}; allowed: -1, or a power of two from 32 on"
                    ));
                }
            },
        };
        Ok(Packing { method, group })
    }
}

/// The column of the output at each place of AWQ's words.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Packing {
    /// Takes the matrices out of `words` and their scales out of `tensors`, and puts them into `tensors` as quantised ones, in
    /// a file of memory that is added to `files`.
    pub fn unpack(
        self,
        files: &mut Vec<Blob>,
        tensors: &mut BTreeMap<String, Entry>,
        mut words: BTreeMap<String, Words>,
    ) -> Result<()> {
        let names: Vec<String> = words
            .keys()
            .filter_map(|name| name.strip_suffix(".qweight").map(str::to_owned))
            .collect();
        let (file, mut bytes) = (files.len(), Vec::new());
        for name in names {
            let missing = |files: &[Blob], what: &str| {
                files[0].error(format!("tensor {name}.{what} is missing beside qweight"))
            };
            let codes = &words[&format!("{name}.qweight")];
            let Some(zeros) = words.get(&format!("{name}.qzeros")) else {
                return Err(missing(files, "qzeros"));
            };
            let Some(scales) = tensors.remove(&format!("{name}.scales")) else {
                return Err(missing(files, "scales"));
            };
            let order = words.get(&format!("{name}.g_idx"));
            let blob = &files[codes.file];
            let matrix = self
                .matrix(files, [codes, zeros], &scales, order)
                .map_err(|message| blob.error(format!("tensor {name}.qweight: {message}")))?;
            let start = bytes.len();
            bytes.extend_from_slice(bytemuck::cast_slice(matrix.words()));
            let layout = matrix.layout();
            let entry = Entry {
                stored: Stored::Quant(layout.format),
                shape: vec![layout.rows, layout.cols],
                file,
                range: start..bytes.len(),
            };
            tensors.insert(format!("{name}.weight"), entry);
            for part in ["qweight", "qzeros", "g_idx"] {
                words.remove(&format!("{name}.{part}"));
            }
        }
        if let Some((name, left)) = words.first_key_value() {
            return Err(files[left.file].error(format!("tensor {name} has no qweight beside it")));
        }
        files.push(Blob::memory("(unpacked)", bytes));
        Ok(())
    }

    fn matrix(
        self,
        files: &[Blob],
        [codes, zeros]: [&Words; 2],
        scales: &Entry,
        order: Option<&Words>,
    ) -> Result<QuantMatrix, String> {
        let &[down, across] = &codes.shape[..] else {
            return Err(format!("shape {:?}; allowed: two dimensions", codes.shape));
        };
        let too_large = || format!("shape {:?} is too large", codes.shape);
        let [rows, cols] = match self.method {
            Method::Gptq(_) => [Some(across), down.checked_mul(8)],
            Method::Awq => [across.checked_mul(8), Some(down)],
        };
        let (rows, cols) = rows.zip(cols).ok_or_else(too_large)?;
        let format = Format {
            code: Code::Int(4),
            group: self.group,
            scale: Scale::F16,
            zero: Zero::Point,
        };
        let layout = QuantLayout::new(format, rows, cols).map_err(|e| e.to_string())?;
        let groups = layout.groups_per_row();
        if !rows.is_multiple_of(8)
            || zeros.shape != [groups, rows / 8]
            || scales.shape != [groups, rows]
            || scales.stored != Stored::F16
        {
            return Err(format!(
                "{rows} outputs of {cols} inputs, qzeros {:?}, scales {:?} of {:?}; allowed: outputs by eight, qzeros \
                 [{groups}, {}], scales [{groups}, {rows}] of F16",
                zeros.shape,
                scales.shape,
                scales.stored,
                rows / 8
            ));
        }
        let word = |of: &Words, i: usize| {
            let at = of.range.start + 4 * i;
            let bytes = files[of.file].get(at..at + 4);
            bytes
                .and_then(|b| b.try_into().ok())
                .map_or(0, u32::from_le_bytes)
        };
        let size = match self.group {
            Group::Along(n) => n as usize,
            _ => cols,
        };
        if let Some(order) = order {
            let count = order.shape.iter().product::<usize>();
            if count != cols || (0..cols).any(|k| word(order, k) as usize != k / size) {
                return Err(
                    "g_idx orders the inputs anew; allowed: groups of adjacent inputs".to_owned(),
                );
            }
        }
        let mut packed = QuantMatrix::zeroed(layout).words().to_vec();
        for row in 0..rows {
            for k in (0..cols).step_by(8) {
                let of = match self.method {
                    Method::Gptq(_) => word(codes, k / 8 * across + row),
                    Method::Awq => {
                        let each = (0..8.min(cols - k)).map(|i| {
                            nibble(word(codes, (k + i) * across + row / 8), row, &AWQ_ORDER)
                                << (4 * i)
                        });
                        // Past the end: level zero.
                        each.sum::<u32>()
                            | 0x8888_8888u32
                                .checked_shl(4 * (cols - k) as u32)
                                .unwrap_or(0)
                    }
                };
                packed[row * layout.low_row() + k / 8] = of;
            }
        }
        let mut matrix = QuantMatrix::from_words(layout, packed).map_err(|e| e.to_string())?;
        let scale_bytes = &files[scales.file][scales.range.clone()];
        let (more, places) = match self.method {
            Method::Gptq(more) => (more, [0, 1, 2, 3, 4, 5, 6, 7]),
            Method::Awq => (0, AWQ_ORDER),
        };
        for row in 0..rows {
            for g in 0..groups {
                let at = 2 * (g * rows + row);
                let scale = u16::from_le_bytes([scale_bytes[at], scale_bytes[at + 1]]);
                let zero = nibble(word(zeros, g * (rows / 8) + row / 8), row, &places) + more;
                let zero = f16::from_f32(zero as f32 - 8.0);
                matrix.set_number(row * groups + g, 0, scale.into());
                matrix.set_number(row * groups + g, 1, zero.to_bits().into());
            }
        }
        Ok(matrix)
    }
}

/// The code of output `row` in a word of eight outputs, which are at these places of the word.
fn nibble(word: u32, row: usize, order: &[usize; 8]) -> u32 {
    let place = order.iter().position(|&o| o == row % 8).unwrap_or(0);
    (word >> (4 * place)) & 15
}
