//! Whether files are still what they were. Blocking.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use super::MAX_FILE;

/// Stands for the bytes of some files, or for their not being there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u128);

impl Fingerprint {
    /// Reads the files, each up to [`MAX_FILE`].
    pub fn of(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for path in paths {
            // The length first, so that bytes cannot move from one file to the next unseen.
            match contents(path.as_ref()) {
                Ok(bytes) => {
                    hash.update(&(bytes.len() as u64).to_le_bytes());
                    hash.update(&bytes);
                }
                Err(error) => {
                    hash.update(&u64::MAX.to_le_bytes());
                    hash.update(error.to_string().as_bytes());
                }
            }
        }
        Self(hash.digest128())
    }
}

/// What is in a regular file, up to one byte more than [`MAX_FILE`]: what is too large is refused by
/// who parses it.
///
/// # Errors
/// When it cannot be read or is not a regular file.
pub fn contents(path: &Path) -> io::Result<Vec<u8>> {
    // Asked before it is opened: opening a pipe waits for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(MAX_FILE as u64 + 1).read_to_end(&mut content)?;
    Ok(content)
}
