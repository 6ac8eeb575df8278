//! Manifests: YAML or JSON documents that describe services, gateways and routes.
//!
//! - [`node`]: text to a tree in which every value knows its line.
//! - `fields`: reading a tree against what is allowed, keeping the path for errors.
//! - `document`: the three kinds of document.
//!
//! JSON is read as the YAML it is (YAML 1.2 §1.3). Every error names the source, the line and the
//! path of the field, what was wrong and what is allowed. Nothing is guessed: unknown fields,
//! duplicate keys and values of another type are refused.

mod document;
mod fields;
mod node;

use std::{collections::HashMap, fmt};

pub use document::{Document, DocumentRef};

/// A document and where it stands, so that later checks can still point at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// What was read.
    pub document: Document,
    /// The file, or what stands for it.
    pub source: String,
    /// The line it starts on, from 1.
    pub line: u32,
    /// The line of each field, by its path.
    lines: HashMap<String, u32>,
}

impl Located {
    /// An error about the field at `path` of this document.
    pub fn error(&self, path: impl Into<String>, message: impl Into<String>) -> ManifestError {
        let path = path.into();
        // A field that was left out is where its parent is.
        let mut known = path.as_str();
        let line = loop {
            if let Some(line) = self.lines.get(known) {
                break *line;
            }
            match known.rfind(['.', '[']) {
                Some(end) => known = &known[..end],
                None => break self.line,
            }
        };
        ManifestError { file: self.source.clone(), line, path, message: message.into() }
    }
}

/// Why a manifest was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub struct ManifestError {
    /// The file, or what stands for it.
    pub file: String,
    /// The line, from 1; 0 when the text has none (an empty manifest).
    pub line: u32,
    /// The field, for example `split.weights.v3`; empty for the document itself.
    pub path: String,
    /// What was wrong, and what is allowed.
    pub message: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Reads every document of `text`; `source` names it in errors.
///
/// # Errors
/// All that is wrong, in the order of the text; never empty. A text without a document is an error:
/// applying nothing is hardly what was meant.
pub fn parse(source: &str, text: &str) -> Result<Vec<Located>, Vec<ManifestError>> {
    let error = |line, message: String| {
        vec![ManifestError { file: source.to_owned(), line, path: String::new(), message }]
    };
    let nodes = node::parse(text).map_err(|(line, message)| error(line, message))?;
    if nodes.is_empty() {
        return Err(error(0, "holds no document; a document starts with `kind: Service`".to_owned()));
    }
    let mut documents: Vec<Located> = Vec::with_capacity(nodes.len());
    let mut first_lines = HashMap::new();
    let mut errors = Vec::new();
    for node in &nodes {
        let mut cx = fields::Context::new(source);
        let document = document::read(node, &mut cx);
        errors.append(&mut cx.errors);
        let Some(document) = document else { continue };
        let lines = node.lines();
        let located = Located { document, source: source.to_owned(), line: node.line, lines };
        let reference = located.document.reference();
        if let Some(first) = first_lines.insert(reference.clone(), node.line) {
            errors.push(located.error("name", format!("{reference} is already defined on line {first}")));
        }
        documents.push(located);
    }
    if errors.is_empty() { Ok(documents) } else { Err(errors) }
}

#[cfg(test)]
mod tests;
