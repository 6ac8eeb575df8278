//! What a field takes, said to those who wrote something else.

use prost_reflect::{EnumDescriptor, Kind};

/// How many names of an enum are listed.
const MAX_LISTED: usize = 20;

/// What a scalar of this kind is in JSON.
pub(super) fn scalar(kind: &Kind) -> String {
    match kind {
        Kind::Double | Kind::Float => "a number".to_owned(),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "an int32, as a number".to_owned(),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "an int64, as a number or in a string".to_owned(),
        Kind::Uint32 | Kind::Fixed32 => "a uint32, as a number".to_owned(),
        Kind::Uint64 | Kind::Fixed64 => "a uint64, as a number or in a string".to_owned(),
        Kind::Bool => "a bool: true or false".to_owned(),
        Kind::String => "a string".to_owned(),
        Kind::Bytes => "bytes, in base64".to_owned(),
        Kind::Message(message) => special(message.full_name()),
        Kind::Enum(r#enum) => names(r#enum),
    }
}

fn names(r#enum: &EnumDescriptor) -> String {
    let names: Vec<String> = r#enum.values().take(MAX_LISTED).map(|value| value.name().to_owned()).collect();
    let more = if r#enum.values().len() > MAX_LISTED { ", …" } else { "" };
    format!("of {}: {}{more}", r#enum.full_name(), names.join(", "))
}

/// What a message with a JSON of its own is in it.
pub(super) fn special(name: &str) -> String {
    let form = match name {
        "google.protobuf.Duration" => "seconds in a string such as \"1.5s\"",
        "google.protobuf.Timestamp" => "a string such as \"2026-01-31T12:00:00Z\"",
        "google.protobuf.FieldMask" => "names in a string such as \"a,b.c\"",
        "google.protobuf.Any" => "an object with its @type",
        "google.protobuf.Empty" => "{}",
        "google.protobuf.ListValue" => "a list",
        "google.protobuf.BoolValue" => "true or false",
        "google.protobuf.StringValue" => "a string",
        "google.protobuf.BytesValue" => "a string in base64",
        name if name.ends_with("Value") => "a number in its range",
        _ => "an object",
    };
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {name}: {form}")
}
