//! `bindgen MODULE FOLDER`: the JavaScript of a module that was compiled with wasm-bindgen, and the module as it loads it.

use std::env::args_os;

use anyhow::{Context as _, Result};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let mut arguments = args_os().skip(1);
    let [module, folder] = [(); 2].map(|()| arguments.next());
    let (module, folder) = module.zip(folder).context("usage: bindgen MODULE FOLDER")?;
    let mut bindgen = Bindgen::new();
    bindgen.input_path(module).web(true)?.typescript(false);
    // The JavaScript finds the module beside it.
    bindgen.omit_default_module_path(false);
    bindgen.generate(folder)
}
