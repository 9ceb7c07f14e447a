//! Calling the program, and its files.

use std::path::PathBuf;
use std::process::{Command, Output};

use flashwave::DType;
use half::{bf16, f16};
use kernels_tests::tolerance::{Ulps, check};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Runs the program with these arguments.
pub fn flashwave(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flashwave"))
        // The user's own cache of pipelines is neither read nor written.
        .env("FLASHWAVE_CACHE", "")
        .args(arguments)
        .output()
        .expect("the program starts")
}

/// Runs it, expects success, and returns standard output.
pub fn succeed(arguments: &[&str]) -> String {
    let done = flashwave(arguments);
    let text = String::from_utf8(done.stdout).expect("UTF-8");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{arguments:?}\n{text}\n{errors}");
    text
}

/// Runs it, expects exit status 1 without a panic, and returns standard error.
pub fn fail(arguments: &[&str]) -> String {
    let done = flashwave(arguments);
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{arguments:?}\n{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    errors
}

/// A folder for the files of one test.
pub fn folder(test: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&folder).expect("a folder for the test's files");
    folder
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Of floating-point numbers, rounded to `dtype`.
    pub fn float(name: &str, dtype: DType, shape: &[usize], values: &[f32]) -> Self {
        let (dtype, bytes) = match dtype {
            DType::F32 => (Dtype::F32, bytemuck::cast_slice(values).to_vec()),
            DType::F16 => {
                let words: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
                (Dtype::F16, bytemuck::cast_slice(&words).to_vec())
            }
            _ => {
                let words: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
                (Dtype::BF16, bytemuck::cast_slice(&words).to_vec())
            }
        };
        Self {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            bytes,
        }
    }

    /// Its elements, of whichever floating-point type.
    pub fn values(&self) -> Vec<f32> {
        let pairs = || self.bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self.dtype {
            Dtype::F32 => bytemuck::pod_collect_to_vec(&self.bytes),
            Dtype::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => panic!("{} is {other:?}", self.name),
        }
    }
}

/// Writes a file.
pub fn save(path: &std::path::Path, tensors: &[Tensor]) {
    let views = tensors.iter().map(|t| {
        let view = TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("a valid tensor");
        (t.name.clone(), view)
    });
    let data = safetensors::serialize(views, None).expect("serialises");
    std::fs::write(path, data).expect("the file is written");
}

/// Runs a kernel on these tensors and returns its outputs.
pub fn run(test: &str, kernel: &str, sets: &[&str], inputs: &[Tensor]) -> Vec<Tensor> {
    let folder = folder(test);
    let (input, output) = (
        folder.join("in.safetensors"),
        folder.join("out.safetensors"),
    );
    save(&input, inputs);
    let (input, output) = (input.to_string_lossy(), output.to_string_lossy());
    let mut arguments = vec!["run", kernel, "--input", &input, "--output", &output];
    arguments.extend(sets.iter().flat_map(|s| ["--set", s]));
    succeed(&arguments);
    let data = std::fs::read(&*output).expect("the output file");
    let file = SafeTensors::deserialize(&data).expect("a safetensors file");
    let tensors = file.tensors().into_iter();
    tensors
        .map(|(name, view)| Tensor {
            name,
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        })
        .collect()
}

/// What WGSL grants exp, division and logarithm; the matrix has a tighter sum for each kernel.
const SLACK: Ulps = Ulps(90.0);

/// Expects the output of this name, type and shape to be as near to `exact` as the rule of the matrix says.
pub fn compare(
    outputs: &[Tensor],
    name: &str,
    dtype: DType,
    shape: &[usize],
    exact: &[f64],
    naive: &[f32],
) {
    let out = outputs.iter().find(|t| t.name == name);
    let out = out.unwrap_or_else(|| panic!("no output {name} among {}", outputs.len()));
    let stored = format!("{:?}", out.dtype).to_lowercase();
    assert_eq!(
        (stored.as_str(), &out.shape[..]),
        (dtype.name(), shape),
        "{name}"
    );
    if let Err(failure) = check(&out.values(), exact, naive, SLACK) {
        panic!("{name}: {failure}");
    }
}

/// Integers of 32 or 64 bits.
pub fn integers<T: bytemuck::Pod>(
    name: &str,
    dtype: Dtype,
    shape: &[usize],
    values: &[T],
) -> Tensor {
    Tensor {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        bytes: bytemuck::cast_slice(values).to_vec(),
    }
}
