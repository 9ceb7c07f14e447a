//! The one error type of the crate.

use std::path::PathBuf;

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Every variant names the thing, what it was and what is allowed; after any of them
/// except [`Error::DeviceLost`] the context goes on working.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument (shape, parameter, option) outside what is allowed.
    #[error("{name}: {was}; allowed: {allowed}")]
    Argument {
        /// Name of the argument as the caller knows it.
        name: String,
        /// What it was.
        was: String,
        /// What would have been accepted.
        allowed: String,
    },
    /// No adapter matches the request.
    #[error("no usable GPU adapter: {0}")]
    NoAdapter(String),
    /// The device refused an allocation.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// The device is gone; this context answers every further call with this error. Make a new one.
    #[error("device lost: {0}")]
    DeviceLost(String),
    /// The backend's validation refused a call: a defect of this library, reported with its text.
    #[error("validation error: {0}")]
    Validation(String),
    /// A shader template did not link: a defect of this library.
    #[error("shader {shader}: {message}")]
    Shader {
        /// The recipe.
        shader: String,
        /// What the template engine said.
        message: String,
    },
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model file contradicts itself, its format or its config.
    #[error("{}: {message}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where in the file.
        message: String,
    },
}

impl Error {
    /// An [`Error::Argument`].
    pub fn argument(
        name: impl Into<String>,
        was: impl ToString,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Argument {
            name: name.into(),
            was: was.to_string(),
            allowed: allowed.into(),
        }
    }
    /// An [`Error::Format`].
    pub fn format(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Format {
            path: path.into(),
            message: message.into(),
        }
    }
    /// An [`Error::Io`].
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }
}
