//! Reading a tree against what is allowed, keeping the path for errors.
//!
//! Readers return `Option`: `None` means that the reason is already in the context's errors, so one
//! pass reports everything that is wrong.

use std::{fmt::Display, str::FromStr};

use super::{
    Errors, ManifestError,
    node::{Key, Node, Value},
};

/// Where the reader stands, and what it has found wrong so far.
pub(super) struct Context<'a> {
    source: &'a str,
    path: Vec<String>,
    errors: &'a mut Errors,
}

impl<'a> Context<'a> {
    pub(super) fn new(source: &'a str, errors: &'a mut Errors) -> Self {
        Self { source, path: Vec::new(), errors }
    }

    /// Reads inside the field `name`.
    pub(super) fn within<T>(&mut self, name: impl Into<String>, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(name.into());
        let value = read(self);
        self.path.pop();
        value
    }

    /// Records what is wrong here; `None`, to end a reader with.
    pub(super) fn error<T>(&mut self, line: u32, message: impl Into<String>) -> Option<T> {
        let mut path = String::new();
        for part in &self.path {
            if !path.is_empty() && !part.starts_with('[') {
                path.push('.');
            }
            path.push_str(part);
        }
        self.errors.push(ManifestError { file: self.source.to_owned(), line, path, message: message.into() });
        None
    }

    /// A text that parses as `T`, whose error says what is allowed.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, node: &Node, what: &str) -> Option<T> {
        let text = self.text(node, what)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => self.error(node.line, error.to_string()),
        }
    }

    /// A key that parses as `T`.
    pub(super) fn key<T: FromStr<Err: Display>>(&mut self, key: &Key) -> Option<T> {
        match key.text.parse() {
            Ok(value) => Some(value),
            Err(error) => self.error(key.line, error.to_string()),
        }
    }

    pub(super) fn text<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.value {
            Value::String(text) => Some(text),
            other => self.error(node.line, format!("is {}; expected {what}", hint(other))),
        }
    }

    pub(super) fn boolean(&mut self, node: &Node) -> Option<bool> {
        match node.value {
            Value::Bool(value) => Some(value),
            ref other => self.error(node.line, format!("is {}; expected `true` or `false`", other.what())),
        }
    }

    /// A whole number from 0 to `u32::MAX`.
    pub(super) fn whole(&mut self, node: &Node) -> Option<u32> {
        let number = match node.value {
            Value::Integer(n) => u32::try_from(n).ok(),
            _ => None,
        };
        number.or_else(|| {
            let what = node.value.what();
            self.error(node.line, format!("is {what}; expected a whole number from 0 to 4294967295"))
        })
    }

    pub(super) fn list<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Node]> {
        match &node.value {
            Value::Sequence(items) => Some(items),
            other => self.error(node.line, format!("is {}; expected a list of {what}", other.what())),
        }
    }

    pub(super) fn mapping<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [(Key, Node)]> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            other => self.error(node.line, format!("is {}; expected {what}", other.what())),
        }
    }

    /// The fields of a mapping; names outside `allowed` are errors. `what` describes the mapping.
    pub(super) fn fields<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        allowed: &'static [&'static str],
    ) -> Option<Fields<'n>> {
        let entries = self.mapping(node, what)?;
        let mut known = true;
        for (key, _) in entries {
            if !allowed.contains(&key.text.as_str()) {
                let list = allowed.join(", ");
                let name = key.text.chars().take(80).collect::<String>();
                self.within(name, |cx| {
                    cx.error::<()>(key.line, format!("is not a field of {what}; allowed: {list}"))
                });
                known = false;
            }
        }
        known.then_some(Fields { line: node.line, entries })
    }
}

fn hint(value: &Value) -> String {
    match value {
        // The commonest slip: `name: 1` or `version: 1.0` reads as a number in YAML.
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) => {
            format!("{} (put it in quotes to make it text)", value.what())
        }
        other => other.what(),
    }
}

/// The fields of one mapping, all of them known.
pub(super) struct Fields<'n> {
    pub(super) line: u32,
    entries: &'n [(Key, Node)],
}

impl<'n> Fields<'n> {
    /// The value of `name`, unless it is absent or null.
    pub(super) fn optional(&self, name: &str) -> Option<&'n Node> {
        let found = self.entries.iter().find(|(key, _)| key.text == name);
        found.map(|(_, node)| node).filter(|node| !matches!(node.value, Value::Null))
    }

    /// The value of `name`, which must be there.
    pub(super) fn required(&self, cx: &mut Context<'_>, name: &str) -> Option<&'n Node> {
        self.optional(name).or_else(|| cx.within(name, |cx| cx.error(self.line, "is missing")))
    }
}
