//! Reading manifest files, as `-f` names them.

use std::{
    fs,
    io::{Read, stdin},
    path::{Path, PathBuf},
};

use anyhow::Context;
use config::manifest;
use xds_server::api::types::File;

use crate::exit::Invalid;

/// All files of one command together: above it, something else was meant.
const MAX_BYTES: u64 = 16 << 20;

/// Reads each file, each `*.yaml`, `*.yml` and `*.json` of a directory (by name, not its
/// subdirectories), and standard input for `-`.
pub(crate) fn load(paths: &[PathBuf]) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    let mut left = MAX_BYTES;
    for path in paths {
        for path in expand(path)? {
            let file = read(&path, left)?;
            left -= file.text.len() as u64;
            files.push(file);
        }
    }
    Ok(files)
}

/// Parses the files as the server will, so that what is wrong in one of them is said before
/// anything is started or sent.
pub(crate) fn check(files: &[File]) -> anyhow::Result<()> {
    let errors: Vec<String> = files
        .iter()
        .filter_map(|file| manifest::parse(&file.name, &file.text).err())
        .flatten()
        .map(|error| error.to_string())
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(Invalid(errors.join("\n  ")).into()) }
}

fn expand(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let is_manifest = |path: &PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str());
        matches!(extension, Some("yaml" | "yml" | "json")) && path.is_file()
    };
    let entries = fs::read_dir(path).with_context(|| path.display().to_string())?;
    let mut found: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_manifest).collect();
    found.sort();
    if found.is_empty() {
        let why = format!("{}: holds no *.yaml, *.yml or *.json file", path.display());
        return Err(Invalid(why).into());
    }
    Ok(found)
}

fn read(path: &Path, limit: u64) -> anyhow::Result<File> {
    let (name, source): (String, Box<dyn Read>) = if path == Path::new("-") {
        ("stdin".to_owned(), Box::new(stdin()))
    } else {
        let name = path.display().to_string();
        let file = fs::File::open(path).map_err(|e| Invalid(format!("{name}: {e}")))?;
        (name, Box::new(file))
    };
    let mut bytes = Vec::new();
    source.take(limit + 1).read_to_end(&mut bytes).with_context(|| name.clone())?;
    if bytes.len() as u64 > limit {
        let why = format!("{name}: more than {} MiB of manifests; apply them in parts", MAX_BYTES >> 20);
        return Err(Invalid(why).into());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(File { name, text }),
        Err(_) => Err(Invalid(format!("{name}: is not UTF-8 text")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let error = load(&["/nowhere/shop.yaml".into()]).unwrap_err();
        assert!(error.is::<Invalid>() && error.to_string().contains("/nowhere/shop.yaml"), "{error}");
    }

    #[test]
    fn a_fault_is_said_with_file_line_and_field() {
        let text = "kind: Service\nname: a\nversions: {v1: {}}\nsplit:\n  weights: {v1: -1}\n".to_owned();
        let error = check(&[File { name: "a.yaml".to_owned(), text }]).unwrap_err().to_string();
        assert!(error.contains("a.yaml:5: split.weights.v1"), "{error}");
    }
}
