//! JSON to bytes: fields in the order of their numbers, entries of maps in the order of their keys.

use std::{collections::BTreeMap, iter};

use prost::Message;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor,
    prost_types::{self, ListValue, Struct, value},
};
use serde::de::value::MapDeserializer;
use serde_json::{Map, Value};

use super::{Fault, MAX_DEPTH, expected, short, types};

const TYPE: &str = "@type";
/// The member of an `Any` that holds a message with a JSON of its own.
const VALUE: &str = "value";

/// How many messages may still be in one another.
#[derive(Clone, Copy)]
struct Depth(usize);

impl Depth {
    fn inside(self) -> Result<Self, Fault> {
        let left = self.0.checked_sub(1);
        left.map(Self).ok_or_else(|| Fault::new(format!("is more than {MAX_DEPTH} messages deep")))
    }
}

/// A message on its own; config dumps say its `@type` inside.
pub(super) fn resource(desc: &MessageDescriptor, type_url: &str, value: &Value) -> Result<Vec<u8>, Fault> {
    let depth = Depth(MAX_DEPTH);
    match value {
        Value::Object(members) if members.contains_key(TYPE) && !is_special(desc) => {
            if members[TYPE] != type_url {
                return Err(Fault::new("is not the type_url of the resource").under(".@type"));
            }
            fields(desc, members.iter().filter(|(key, _)| *key != TYPE), depth)
        }
        value => message(desc, value, depth),
    }
}

fn message(desc: &MessageDescriptor, value: &Value, depth: Depth) -> Result<Vec<u8>, Fault> {
    let depth = depth.inside()?;
    match (desc.full_name(), value) {
        ("google.protobuf.Any", Value::Object(members)) => any(members, depth),
        ("google.protobuf.Struct", Value::Object(members)) => Ok(structure(members, depth)?.encode_to_vec()),
        ("google.protobuf.ListValue", Value::Array(items)) => Ok(list(items, depth)?.encode_to_vec()),
        ("google.protobuf.Value", value) => Ok(anything(value, depth)?.encode_to_vec()),
        (name, value) if is_special(desc) => {
            let read = DynamicMessage::deserialize_with_options(desc.clone(), value, &OPTIONS);
            let read = read.map_err(|_| Fault::new(format!("is not {}", expected::special(name))))?;
            Ok(read.encode_to_vec())
        }
        (_, Value::Object(members)) => fields(desc, members.iter(), depth),
        (name, _) => Err(Fault::new(format!("is not {}", expected::special(name)))),
    }
}

/// Unknown fields are refused, which is its default.
const OPTIONS: DeserializeOptions = DeserializeOptions::new();

/// Whether messages of this type are something else than an object of their fields.
fn is_special(desc: &MessageDescriptor) -> bool {
    let Some(name) = desc.full_name().strip_prefix("google.protobuf.") else { return false };
    matches!(name, "Any" | "Timestamp" | "Duration" | "FieldMask" | "Struct" | "Empty")
        || name.ends_with("Value")
}

fn any(members: &Map<String, Value>, depth: Depth) -> Result<Vec<u8>, Fault> {
    let Some(Value::String(type_url)) = members.get(TYPE) else {
        return Err(Fault::new("is not a type URL in a string; an Any has one").under(".@type"));
    };
    let desc = types::of(type_url).map_err(|fault| fault.under(".@type"))?;
    let mut rest = members.iter().filter(|(key, _)| *key != TYPE);
    let value = if is_special(&desc) {
        let name = desc.full_name();
        if let Some((key, _)) = rest.find(|(key, _)| *key != VALUE) {
            let fault = Fault::new(format!("is no member of an Any with a {name}, but `value` is"));
            return Err(fault.under(format_args!(".{}", short(key))));
        }
        match members.get(VALUE) {
            Some(value) => message(&desc, value, depth).map_err(|fault| fault.under(".value"))?,
            None if name == "google.protobuf.Empty" => Vec::new(),
            None => {
                let fault = Fault::new(format!("is missing; it is {}", expected::special(name)));
                return Err(fault.under(".value"));
            }
        }
    } else {
        fields(&desc, rest, depth.inside()?)?
    };
    Ok(prost_types::Any { type_url: type_url.clone(), value }.encode_to_vec())
}

fn fields<'a>(
    desc: &MessageDescriptor,
    members: impl Iterator<Item = (&'a String, &'a Value)>,
    depth: Depth,
) -> Result<Vec<u8>, Fault> {
    let mut encoded = BTreeMap::new();
    for (key, value) in members {
        let under = |fault: Fault| fault.under(format_args!(".{}", short(key)));
        let field = desc.get_field_by_json_name(key).or_else(|| desc.get_field_by_name(key));
        let Some(field) = field else {
            return Err(under(Fault::new(format!("is no field of {}", desc.full_name()))));
        };
        // Null is a field that is not there, unless it is a value of its own.
        if value.is_null() && !takes_null(&field) {
            continue;
        }
        if let Some(other) = rival(&field, &encoded) {
            let fault = format!("cannot be beside `{}`: {} has one of them", other.name(), desc.full_name());
            return Err(under(Fault::new(fault)));
        }
        encoded.insert(field.number(), one_field(&field, value, depth).map_err(under)?);
    }
    Ok(encoded.into_values().collect::<Vec<_>>().concat())
}

fn takes_null(field: &FieldDescriptor) -> bool {
    let name = match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(r#enum) => r#enum.full_name().to_owned(),
        _ => return false,
    };
    !field.is_list() && matches!(name.as_str(), "google.protobuf.Value" | "google.protobuf.NullValue")
}

/// What is there already in the place of `field`: itself by its other name, or another of its oneof.
fn rival(field: &FieldDescriptor, encoded: &BTreeMap<u32, Vec<u8>>) -> Option<FieldDescriptor> {
    if encoded.contains_key(&field.number()) {
        return Some(field.clone());
    }
    field.containing_oneof()?.fields().find(|other| encoded.contains_key(&other.number()))
}

fn one_field(field: &FieldDescriptor, value: &Value, depth: Depth) -> Result<Vec<u8>, Fault> {
    let Kind::Message(inner) = field.kind() else { return scalar(field, value) };
    let mut into = Vec::new();
    if field.is_map() {
        map(field, &inner, value, depth, &mut into)?;
    } else if field.is_list() {
        let Value::Array(items) = value else {
            return Err(Fault::new(format!("is not a list of {}", inner.full_name())));
        };
        for (i, item) in items.iter().enumerate() {
            let item = message(&inner, item, depth).map_err(|fault| fault.under(format_args!("[{i}]")))?;
            delimited(field, &item, &mut into);
        }
    } else {
        delimited(field, &message(&inner, value, depth)?, &mut into);
    }
    Ok(into)
}

fn map(
    field: &FieldDescriptor,
    entry: &MessageDescriptor,
    value: &Value,
    depth: Depth,
    into: &mut Vec<u8>,
) -> Result<(), Fault> {
    let depth = depth.inside()?;
    let (keys, values) = (entry.map_entry_key_field(), entry.map_entry_value_field());
    let Value::Object(members) = value else {
        return Err(Fault::new(format!("is not an object of {}", expected::scalar(&values.kind()))));
    };
    let sorted: BTreeMap<&String, &Value> = members.iter().collect();
    for (key, value) in sorted {
        let under = |fault: Fault| fault.under(format_args!("[{:?}]", short(key)));
        let key = match (keys.kind(), key.as_str()) {
            (Kind::Bool, "true" | "false") => Value::Bool(key == "true"),
            _ => Value::String(key.clone()),
        };
        let mut pair = scalar(&keys, &key).map_err(under)?;
        pair.append(&mut one_field(&values, value, depth).map_err(under)?);
        delimited(field, &pair, into);
    }
    Ok(())
}

/// A number, a text, an enum, or a list of such, with its key.
fn scalar(field: &FieldDescriptor, value: &Value) -> Result<Vec<u8>, Fault> {
    let read = |value: &Value| {
        let alone = MapDeserializer::<_, serde_json::Error>::new(iter::once((field.json_name(), value)));
        DynamicMessage::deserialize_with_options(field.parent_message().clone(), alone, &OPTIONS)
    };
    let what = || expected::scalar(&field.kind());
    match (read(value), value) {
        (Ok(message), _) if !value.is_null() || takes_null(field) => Ok(message.encode_to_vec()),
        (_, Value::Array(items)) if field.is_list() => {
            let at = items.iter().position(|item| read(&Value::Array(vec![item.clone()])).is_err());
            let fault = Fault::new(format!("is not {}", what()));
            Err(fault.under(format_args!("[{}]", at.unwrap_or_default())))
        }
        _ if field.is_list() => Err(Fault::new(format!("is not a list, each {}", what()))),
        _ => Err(Fault::new(format!("is not {}", what()))),
    }
}

fn delimited(field: &FieldDescriptor, bytes: &[u8], into: &mut Vec<u8>) {
    prost::encoding::encode_key(field.number(), prost::encoding::WireType::LengthDelimited, into);
    prost::encoding::encode_varint(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}

fn structure(members: &Map<String, Value>, depth: Depth) -> Result<Struct, Fault> {
    let depth = depth.inside()?;
    let member = |(key, value): (&String, &Value)| {
        let value = anything(value, depth).map_err(|fault| fault.under(format_args!(".{}", short(key))))?;
        Ok((key.clone(), value))
    };
    Ok(Struct { fields: members.iter().map(member).collect::<Result<_, Fault>>()? })
}

fn list(items: &[Value], depth: Depth) -> Result<ListValue, Fault> {
    let item = |(i, item)| anything(item, depth).map_err(|fault| fault.under(format_args!("[{i}]")));
    Ok(ListValue { values: items.iter().enumerate().map(item).collect::<Result<_, Fault>>()? })
}

fn anything(value: &Value, depth: Depth) -> Result<prost_types::Value, Fault> {
    let depth = depth.inside()?;
    let kind = match value {
        Value::Null => value::Kind::NullValue(0),
        Value::Bool(value) => value::Kind::BoolValue(*value),
        // All numbers of a Struct are doubles.
        Value::Number(number) => value::Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => value::Kind::StringValue(text.clone()),
        Value::Array(items) => value::Kind::ListValue(list(items, depth.inside()?)?),
        Value::Object(members) => value::Kind::StructValue(structure(members, depth.inside()?)?),
    };
    Ok(prost_types::Value { kind: Some(kind) })
}
