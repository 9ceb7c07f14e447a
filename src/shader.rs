//! Links shader sources: files of `shaders/`, embedded in the crate, instantiated with a recipe's constants.
//!
//! The template syntax is minijinja's, with delimiters that read well beside WGSL: a line that begins with
//! `#` is a statement (`#import`, `#if`, `#for`), `${…}` inserts a value. One mechanism serves element types,
//! tile sizes, reductions and unrolled loops, so that what naga validates in the tests is what runs.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use include_dir::{Dir, include_dir};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};

use crate::capabilities::ParamsTier;
use crate::error::{Error, Result};
use crate::quant;
use crate::radix;
use crate::recipe::{Constant, Recipe};

static SHADERS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/shaders");

/// A `@group(0)` binding of a linked shader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its number.
    pub index: u32,
    /// Its name in the shader.
    pub name: String,
    /// What it is.
    pub access: Access,
}

/// How a shader uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<uniform>`: the parameters.
    Uniform,
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
}

/// The linked WGSL of a recipe.
pub fn link(recipe: &Recipe, params: ParamsTier) -> Result<String> {
    let failed = |e: minijinja::Error| {
        // The whole chain: the outermost says which include, the innermost what went wrong.
        let mut message = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(cause) = source {
            message += &format!(": {cause}");
            source = cause.source();
        }
        Error::Shader {
            shader: recipe.to_string(),
            message,
        }
    };
    let template = environment()
        .get_template(&format!("{}.wgsl", recipe.shader()))
        .map_err(failed)?;
    let mut context: BTreeMap<&'static str, Value> = recipe
        .constants()
        .iter()
        .map(|&(name, value)| {
            let value = match value {
                Constant::Int(i) => Value::from(i),
                Constant::Name(n) => Value::from(n),
            };
            (name, value)
        })
        .collect();
    let tier = match params {
        ParamsTier::Immediate => "immediate",
        ParamsTier::Uniform => "uniform",
    };
    context.insert("PARAMS", Value::from(tier));
    template.render(Value::from(context)).map_err(failed)
}

/// The bindings of a linked shader in the order of their numbers. Every binding of ours stands on a line of
/// its own, `@group(0) @binding(N) var<…> name: …;`; a test holds this reading against naga's.
pub fn bindings(wgsl: &str) -> Vec<Binding> {
    let mut found: Vec<Binding> = wgsl.lines().filter_map(binding).collect();
    found.sort_by_key(|b| b.index);
    found
}

fn binding(line: &str) -> Option<Binding> {
    let rest = line.trim().strip_prefix("@group(0) @binding(")?;
    let (index, rest) = rest.split_once(')')?;
    let (space, rest) = rest.trim().strip_prefix("var<")?.split_once('>')?;
    let (name, _) = rest.split_once(':')?;
    let access = match space {
        "uniform" => Access::Uniform,
        "storage, read" => Access::Read,
        "storage, read_write" => Access::ReadWrite,
        _ => return None,
    };
    Some(Binding {
        index: index.parse().ok()?,
        name: name.trim().into(),
        access,
    })
}

/// Paths of all kernel shaders (those outside `lib/`), as [`Recipe::new`] takes them.
pub fn kernels() -> Vec<String> {
    let mut found = Vec::new();
    for folder in SHADERS.dirs().filter(|d| d.path().as_os_str() != "lib") {
        found.extend(folder.files().map(|f| {
            f.path()
                .with_extension("")
                .to_string_lossy()
                .replace('\\', "/")
        }));
    }
    found.sort();
    found
}

/// NF4's levels and thresholds ([`crate::quant`]), and what templates of transforms compute with: logarithms, digits,
/// twiddle factors ([`crate::radix`]).
fn add_functions(env: &mut Environment<'static>) {
    let power = |n: u32| match n.is_power_of_two() {
        true => Ok(n.ilog2()),
        false => Err(minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("{n} is no power of two"),
        )),
    };
    let literals = |numbers: &[f32]| -> Vec<String> {
        let literal = |x: &f32| format!("{x:?}");
        numbers.iter().map(literal).collect()
    };
    env.add_function("nf4_thresholds", move || literals(&quant::NF4_THRESHOLDS));
    env.add_function("nf4_levels", move || literals(&quant::NF4));
    env.add_function("ilog2", power);
    env.add_function("bit_reverse", move |i: u32, n: u32| {
        Ok::<_, minijinja::Error>(match power(n)? {
            0 => 0,
            bits => i.reverse_bits() >> (32 - bits),
        })
    });
    env.add_function("turn", |numerator: i64, denominator: i64| {
        let (cos, sin) = radix::turn(numerator, denominator);
        format!("vec2<f32>({:?}, {:?})", cos as f32, sin as f32)
    });
    env.add_function("cos_turn", |n: i64, d: i64| {
        format!("{:?}", radix::turn(n, d).0 as f32)
    });
    env.add_function("sin_turn", |n: i64, d: i64| {
        format!("{:?}", radix::turn(n, d).1 as f32)
    });
    env.add_function("fft_radices", |radices: Vec<u32>| {
        let used: Vec<u32> = radices.into_iter().filter(|&r| r > 1).collect();
        if used.is_empty() { vec![1] } else { used }
    });
    env.add_function("fft_stored", |r: usize| {
        let kept = radix::stored(r).map(|(level, k)| vec![level, k]);
        kept.collect::<Vec<_>>()
    });
    env.add_function("fft_steps", |radices: Vec<usize>| {
        let used: Vec<usize> = radices.into_iter().filter(|&r| r > 1).collect();
        let step = |s: &radix::Step| {
            context! {
                radix => s.radix, stride => s.stride, high => s.high,
                forward => s.forward, inverse => s.inverse,
            }
        };
        radix::steps(&used).iter().map(step).collect::<Vec<_>>()
    });
}

fn environment() -> &'static Environment<'static> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        add_functions(&mut env);
        let syntax = SyntaxConfig::builder()
            .block_delimiters("<%", "%>")
            .variable_delimiters("${", "}")
            .comment_delimiters("<#", "#>")
            .line_statement_prefix("#")
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        // The delimiters are constants: this cannot fail.
        if let Ok(syntax) = syntax {
            env.set_syntax(syntax);
        }
        for folder in SHADERS.dirs() {
            for file in folder.files() {
                let name = file.path().to_string_lossy().replace('\\', "/");
                if let Some(text) = file.contents_utf8()
                    && let Err(error) = env.add_template_owned(name, text.to_string())
                {
                    log::error!("shader template: {error}");
                }
            }
        }
        env
    })
}
