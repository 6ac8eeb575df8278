//! Reads certificates, keys and authorities from files, within a bound.
//!
//! Blocking: call it where waiting for a disk is allowed.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rustls::RootCertStore;

use super::{
    CertificateFiles,
    pair::{Certificate, PairError, Part, authorities, certified_key},
};

/// How large a file may be, in bytes: a bundle of all public authorities is a fifth of it.
pub const MAX_FILE: usize = 1 << 20;

/// Why a file cannot be used. Displays with its path and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", .path.display())]
pub struct FileError {
    /// The file at fault.
    pub path: PathBuf,
    /// Which of the two it is; an authority is a certificate.
    pub part: Part,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("cannot be read ({0}); put it there and let this process read it, or correct the path")]
    Unreadable(io::Error),
    /// It is a directory, a device or a pipe.
    #[error("is not a regular file; name the PEM file itself")]
    NotAFile,
    /// It is larger than [`MAX_FILE`].
    #[error("has more than {MAX_FILE} bytes, which no certificate or key needs; name another file")]
    TooLarge,
    /// What it holds is wrong.
    #[error(transparent)]
    Content(#[from] PairError),
}

/// Reads a certificate and its key.
///
/// # Errors
/// When a file cannot be read, or what [`certified_key`] refuses.
pub fn read(files: &CertificateFiles) -> Result<Certificate, FileError> {
    let cert = bytes(&files.cert, Part::Cert)?;
    let key = bytes(&files.key, Part::Key)?;
    certified_key(&cert, &key).map_err(|error| {
        let path = match error.part() {
            Part::Cert => &files.cert,
            Part::Key => &files.key,
        };
        FileError { path: path.clone(), part: error.part(), fault: Fault::Content(error) }
    })
}

/// Reads the certificates of authorities to trust.
///
/// # Errors
/// When the file cannot be read, holds no certificate, or one that cannot be used.
pub fn read_ca(path: &Path) -> Result<RootCertStore, FileError> {
    let content = |error| FileError { path: path.to_owned(), part: Part::Cert, fault: Fault::Content(error) };
    authorities(&bytes(path, Part::Cert)?).map_err(content)
}

fn bytes(path: &Path, part: Part) -> Result<Vec<u8>, FileError> {
    let read = || {
        // Asked before it is opened: opening a pipe waits for a writer.
        if !std::fs::metadata(path).map_err(Fault::Unreadable)?.is_file() {
            return Err(Fault::NotAFile);
        }
        let mut content = Vec::new();
        let file = File::open(path).map_err(Fault::Unreadable)?;
        file.take(MAX_FILE as u64 + 1).read_to_end(&mut content).map_err(Fault::Unreadable)?;
        if content.len() > MAX_FILE { Err(Fault::TooLarge) } else { Ok(content) }
    };
    read().map_err(|fault| FileError { path: path.to_owned(), part, fault })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is removed with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sluicegate-tls-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_fault_names_the_file_it_is_in() {
        let scratch = Scratch::new("fault");
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let cert = scratch.put("a.pem", made.cert.pem());
        let key = scratch.put("a.key", made.signing_key.serialize_pem());
        let other = scratch.put("b.key", rcgen::KeyPair::generate().unwrap().serialize_pem());
        let large = scratch.put("large", vec![b'\n'; MAX_FILE + 1]);
        let full = scratch
            .put("full", format!("{}{}", made.cert.pem(), "\n".repeat(MAX_FILE - made.cert.pem().len())));
        let missing = scratch.0.join("missing");
        let read =
            |cert: &Path, key: &Path| super::read(&CertificateFiles { cert: cert.into(), key: key.into() });

        assert_eq!(read(&cert, &key).unwrap().names, ["a.example"]);
        assert!(read(&full, &key).is_ok());
        assert_eq!(read_ca(&cert).unwrap().len(), 1);
        let cases = [
            (read(&missing, &key).unwrap_err(), &missing, Part::Cert, "cannot be read (No such file"),
            (read(&cert, &scratch.0).unwrap_err(), &scratch.0, Part::Key, "is not a regular file"),
            (read(&large, &key).unwrap_err(), &large, Part::Cert, "has more than 1048576 bytes"),
            (
                read(&cert, &other).unwrap_err(),
                &other,
                Part::Key,
                "its key does not belong to the certificate",
            ),
            (read_ca(&key).unwrap_err(), &key, Part::Cert, "holds no certificate"),
        ];
        for (error, path, part, expected) in cases {
            assert_eq!((&error.path, error.part), (path, part), "{error}");
            assert!(error.to_string().starts_with(&format!("{}: {expected}", path.display())), "{error}");
        }
    }
}
