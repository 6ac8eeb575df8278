//! Manifests: YAML or JSON documents that describe services, gateways and routes.
//!
//! - `node`: text to a tree in which every value knows its line.
//! - `fields`: reading a tree against what is allowed, keeping the path for errors.
//! - `document`: the three kinds of document.
//! - `tls`: their `tls` fields.
//! - `access`: the access file, a document of its own.
//!
//! JSON is read as the YAML it is (YAML 1.2 §1.3); what is stored is read by [`from_json`]. Every error names the source, the line and the
//! path of the field, what was wrong and what is allowed. Nothing is guessed: unknown fields,
//! duplicate keys and values of another type are refused.

mod access;
mod document;
mod fields;
mod node;
mod tls;

use std::{collections::HashMap, fmt, sync::Arc};

pub use access::access;
pub use document::{Document, DocumentRef};
use node::Node;

/// A document and where it stands, so that later checks can still point at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// What was read.
    pub document: Document,
    /// The file, or what stands for it; shared by the documents of a text.
    pub source: Arc<str>,
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
        ManifestError { file: self.source.as_ref().to_owned(), line, path, message: message.into() }
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

/// How many errors are reported; the others are counted.
pub const MAX_ERRORS: usize = 100;

/// Errors, at most [`MAX_ERRORS`] of them kept, so that a text in which everything is wrong costs no
/// more than the text.
#[derive(Debug, Default)]
pub struct Errors {
    found: Vec<ManifestError>,
    more: usize,
}

impl Errors {
    /// Adds one.
    pub fn push(&mut self, error: ManifestError) {
        if self.found.len() < MAX_ERRORS {
            self.found.push(error);
        } else {
            self.more += 1;
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Those that were kept, then one that says how many more there are.
    pub fn into_vec(self) -> Vec<ManifestError> {
        let Self { mut found, more } = self;
        if more > 0 {
            let file = found.last().map(|last| last.file.clone()).unwrap_or_default();
            let message = format!("and {more} more errors; correct these first");
            found.push(ManifestError { file, line: 0, path: String::new(), message });
        }
        found
    }
}

impl Extend<ManifestError> for Errors {
    fn extend<I: IntoIterator<Item = ManifestError>>(&mut self, errors: I) {
        errors.into_iter().for_each(|error| self.push(error));
    }
}

/// Reads every document of `text`; `source` names it in errors.
///
/// # Errors
/// All that is wrong, in the order of the text, as [`Errors::into_vec`] bounds it; never empty. A text
/// without a document is an error: applying nothing is hardly what was meant.
pub fn parse(source: &str, text: &str) -> Result<Vec<Located>, Vec<ManifestError>> {
    let mut errors = Errors::default();
    let documents = read(source, text, &mut errors);
    if errors.is_empty() { Ok(documents) } else { Err(errors.into_vec()) }
}

/// Reads every document of `text` as [`parse`] does, and adds what is wrong to `errors`. What is
/// returned is of use only when nothing was added.
pub fn read(source: &str, text: &str, errors: &mut Errors) -> Vec<Located> {
    let error = |line, message| ManifestError { file: source.to_owned(), line, path: String::new(), message };
    let nodes = match node::parse(text) {
        Ok(nodes) => nodes,
        Err((line, message)) => {
            errors.push(error(line, message));
            return Vec::new();
        }
    };
    if nodes.is_empty() {
        errors.push(error(0, "holds no document; a document starts with `kind: Service`".to_owned()));
    }
    let name: Arc<str> = Arc::from(source);
    let mut documents: Vec<Located> = Vec::with_capacity(nodes.len());
    let mut first_lines = HashMap::new();
    for node in &nodes {
        let document = document::read(node, &mut fields::Context::new(source, errors));
        let Some(document) = document else { continue };
        let lines = node.lines();
        let located = Located { document, source: Arc::clone(&name), line: node.line, lines };
        let reference = located.document.reference();
        if let Some(first) = first_lines.insert(reference.clone(), node.line) {
            errors.push(located.error("name", format!("{reference} is already defined on line {first}")));
        }
        documents.push(located);
    }
    documents
}

/// Reads a document back from the JSON it serialises to, by the rules of [`parse`] but without its
/// text, so that no peculiarity of YAML stands between what was accepted and what is read again.
/// `source` names it in errors, which have no line.
///
/// # Errors
/// All that is wrong; never empty.
pub fn from_json(source: &str, value: &serde_json::Value) -> Result<Document, Vec<ManifestError>> {
    let mut errors = Errors::default();
    let document = document::read(&Node::from(value), &mut fields::Context::new(source, &mut errors));
    match document {
        Some(document) if errors.is_empty() => Ok(document),
        _ => Err(errors.into_vec()),
    }
}

#[cfg(test)]
mod tests;
