//! Text to a tree in which every value knows its line.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Deserializer, de};
use serde_saphyr::{Spanned, budget::BudgetBreach};

/// How many documents a text may hold.
const MAX_DOCUMENTS: usize = 100_000;
/// How many values and keys a text may hold: more than 8 MiB of sensible documents do.
const MAX_NODES: usize = 2_000_000;
/// How many steps the YAML reader may take: begin and end of each node and each document.
const MAX_EVENTS: usize = 2 * (MAX_NODES + MAX_DOCUMENTS);

/// A value and the line it stands on, from 1.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: u32,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) line: u32,
    pub(super) text: String,
}

impl Value {
    /// What it is, in the words of an error message.
    pub(super) fn what(&self) -> String {
        match self {
            Value::Null => "nothing".to_owned(),
            Value::Bool(b) => format!("`{b}`"),
            Value::Integer(n) => format!("the number {n}"),
            Value::Float(n) => format!("the number {n}"),
            Value::String(s) => format!("the text `{}`", s.chars().take(80).collect::<String>()),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        }
    }
}

impl Node {
    /// The line of each field below this node, by its path.
    pub(super) fn lines(&self) -> HashMap<String, u32> {
        let mut lines = HashMap::new();
        self.collect_lines(String::new(), &mut lines);
        lines
    }

    fn collect_lines(&self, path: String, lines: &mut HashMap<String, u32>) {
        match &self.value {
            Value::Sequence(items) => {
                for (i, item) in items.iter().enumerate() {
                    item.collect_lines(format!("{path}[{i}]"), lines);
                }
            }
            Value::Mapping(entries) => {
                let dot = if path.is_empty() { "" } else { "." };
                for (key, node) in entries {
                    node.collect_lines(format!("{path}{dot}{}", key.text), lines);
                }
            }
            _ => {}
        }
        lines.insert(path, self.line);
    }
}

/// Every document of `text`, or the line and the reason it cannot be read.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, (u32, String)> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: MAX_DOCUMENTS,
            max_nodes: MAX_NODES,
            max_events: MAX_EVENTS,
        },
    };
    serde_saphyr::from_multiple_with_options::<Node>(text, options).map_err(|error| {
        let line = error.location().map_or(0, |l| u32::try_from(l.line()).unwrap_or(u32::MAX));
        if let serde_saphyr::Error::Budget { breach, .. } = error.without_snippet()
            && let Some(message) = too_much(breach)
        {
            return (line, message);
        }
        // The rendered error repeats the text around it over several lines; its first line says what it is.
        let rendered = error.to_string();
        let first = rendered.lines().next().unwrap_or("not YAML").trim();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        (line, format!("not valid YAML or JSON: {first}"))
    })
}

/// What to say of a text that is larger than the bounds above.
fn too_much(breach: &BudgetBreach) -> Option<String> {
    let (limit, what) = match breach {
        BudgetBreach::Documents { .. } => (MAX_DOCUMENTS, "documents"),
        BudgetBreach::Nodes { .. } => (MAX_NODES, "values and keys"),
        BudgetBreach::Events { .. } => (MAX_EVENTS, "parts"),
        _ => return None,
    };
    Some(format!(
        "holds more than {limit} {what}, the most that is read at once; apply fewer documents at once"
    ))
}

impl From<&serde_json::Value> for Node {
    /// The same tree, on no line.
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let value = match value {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => number
                .as_i128()
                .map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Integer),
            Json::String(text) => Value::String(text.clone()),
            Json::Array(items) => Value::Sequence(items.iter().map(Node::from).collect()),
            Json::Object(entries) => {
                let entry =
                    |(key, value): (&String, &Json)| (Key { line: 0, text: key.clone() }, value.into());
                Value::Mapping(entries.iter().map(entry).collect())
            }
        };
        Self { line: 0, value }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: line_of(&spanned), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { line: line_of(&spanned), text: spanned.value })
    }
}

fn line_of<T>(spanned: &Spanned<T>) -> u32 {
    u32::try_from(spanned.referenced.line()).unwrap_or(u32::MAX)
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> de::Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(i128::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Mapping(entries))
    }
}
