//! Where the bytes of a model come from, and the bounds-checked reader over them.

use std::borrow::Cow;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The bytes of one file, mapped or in memory, under the name that errors give it.
pub(super) struct Blob {
    pub path: PathBuf,
    data: Data,
}

enum Data {
    Memory(Cow<'static, [u8]>),
    #[cfg(not(target_arch = "wasm32"))]
    Mapped(memmap2::Mmap),
}

impl Blob {
    pub fn memory(name: impl Into<PathBuf>, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self {
            path: name.into(),
            data: Data::Memory(bytes.into()),
        }
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub fn map(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if length == 0 {
            return Ok(Self::memory(path, &[][..]));
        }
        // SAFETY: the map is read-only and private to this value. Nothing can stop another process from
        // truncating the file underneath, which every program that maps model files accepts;
        // `Weights::open` says so to the caller.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self {
            path: path.to_owned(),
            data: Data::Mapped(map),
        })
    }

    /// An [`Error::Format`] about this file.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::format(&self.path, message)
    }

    /// A reader from the start.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            path: &self.path,
            bytes: self,
            at: 0,
        }
    }
}

impl Deref for Blob {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.data {
            Data::Memory(bytes) => bytes,
            #[cfg(not(target_arch = "wasm32"))]
            Data::Mapped(map) => map,
        }
    }
}

/// The files of a model folder, on disk or in memory.
pub(super) enum Folder {
    #[cfg(not(target_arch = "wasm32"))]
    Disk(PathBuf),
    Memory(Vec<Blob>),
}

impl Folder {
    /// What errors about the folder as a whole name.
    pub fn path(&self) -> &Path {
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Self::Disk(path) => path,
            Self::Memory(_) => Path::new("(memory)"),
        }
    }

    /// The file of this name, if there is one. A file is taken once.
    pub fn take(&mut self, name: &str) -> Result<Option<Blob>> {
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Self::Disk(folder) => {
                let path = folder.join(name);
                if path.is_file() {
                    Blob::map(&path).map(Some)
                } else {
                    Ok(None)
                }
            }
            Self::Memory(blobs) => {
                let found = blobs.iter().position(|blob| blob.path == Path::new(name));
                Ok(found.map(|i| blobs.swap_remove(i)))
            }
        }
    }
}

/// Reads little-endian numbers and strings in order. Every read is checked against the bytes that remain,
/// so a length in a file can never make us allocate or read more than the file holds.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn position(&self) -> usize {
        self.at
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An [`Error::Format`] at the present position.
    pub fn error(&self, message: impl std::fmt::Display) -> Error {
        Error::format(self.path, format!("at byte {}: {message}", self.at))
    }

    pub fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8]> {
        let end = usize::try_from(length)
            .ok()
            .and_then(|n| self.at.checked_add(n));
        match end.and_then(|end| Some((end, self.bytes.get(self.at..end)?))) {
            Some((end, taken)) => {
                self.at = end;
                Ok(taken)
            }
            None => Err(self.error(format_args!(
                "{what} needs {length} bytes, {} remain",
                self.remaining()
            ))),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn i32(&mut self, what: &str) -> Result<i32> {
        self.array(what).map(i32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub fn f32(&mut self, what: &str) -> Result<f32> {
        self.array(what).map(f32::from_le_bytes)
    }

    pub fn str(&mut self, length: u64, what: &str) -> Result<&'a str> {
        let start = self.clone();
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes)
            .map_err(|e| start.error(format_args!("{what} is not UTF-8: {e}")))
    }
}
