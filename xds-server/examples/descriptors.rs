//! Makes `xds-server/src/message/descriptors.bin`: the types that a message may be written in JSON for.
//!
//! The source is the `FileDescriptorSet` in the `envoy-types` crate of `Cargo.lock`, which that crate does
//! not expose; so that both speak of the same Envoy. Run it after an update of the crate, at the root of
//! the repository:
//!
//! ```sh
//! cargo run -p xds-server --example descriptors
//! ```
//!
//! It keeps what the JSON mapping needs: messages, fields, enums, and options that change an encoding.
//! Comments, annotations, services, and what no resource can hold are left out. The set opens with an
//! empty file that is named after the version of the crate.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    path::PathBuf,
    process::Command,
};

use prost::Message;
use prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumOptions, FieldDescriptorProto, FieldOptions,
    FileDescriptorProto, FileDescriptorSet, MessageOptions,
    field_descriptor_proto::{Label, Type},
};

const INTO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/message/descriptors.bin");

/// What resources are made of, and what people put in an `Any`; the rest comes along where these refer
/// to it. Services and the admin interface do not.
const ROOTS: [&str; 10] = [
    "envoy/config/",
    "envoy/data/",
    "envoy/extensions/",
    "envoy/service/runtime/",
    "envoy/type/",
    "envoy/watchdog/",
    "google/rpc/",
    "opentelemetry/",
    "udpa/type/",
    "xds/",
];
/// What only describes descriptors.
const META: [&str; 2] = ["xds/annotations/", "google/protobuf/descriptor.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let (version, source) = source()?;
    let whole = std::fs::read(&source)?;
    let mut files: Vec<FileDescriptorProto> = FileDescriptorSet::decode(&*whole)?.file;
    let count = files.len();
    for (path, package) in [("xds/type/v3/", "xds.type.v3"), ("udpa/type/v1/", "udpa.type.v1")] {
        let path = format!("{path}typed_struct.proto");
        if !files.iter().any(|file| file.name() == path) {
            files.push(typed_struct(path, package));
        }
    }
    let files = reached(files.into_iter().map(trimmed).collect())?;
    let mark = FileDescriptorProto { name: Some(format!("envoy-types-{version}")), ..Default::default() };
    let set = FileDescriptorSet { file: std::iter::once(mark).chain(files).collect() };
    // Whoever reads it finds every name.
    prost_reflect::DescriptorPool::from_file_descriptor_set(set.clone())?;
    let bytes = set.encode_to_vec();
    std::fs::write(INTO, &bytes)?;
    println!(
        "{INTO}\n{} of {count} files, {} of {} bytes, of envoy-types {version}",
        set.file.len() - 1,
        bytes.len(),
        whole.len()
    );
    Ok(())
}

/// The version of `envoy-types`, and its descriptors.
fn source() -> Result<(String, PathBuf), Box<dyn Error>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output =
        Command::new(cargo).args(["metadata", "--locked", "--offline", "--format-version", "1"]).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let package =
        packages.iter().find(|package| package["name"] == "envoy-types").ok_or("envoy-types is not used")?;
    let field = |name: &str| package[name].as_str().ok_or_else(|| format!("cargo metadata: no {name}"));
    let manifest = PathBuf::from(field("manifest_path")?);
    Ok((field("version")?.to_owned(), manifest.with_file_name("src/generated/types.bin")))
}

/// `TypedStruct`, which stands for messages of any type and which the crate lacks
/// (cncf/xds `xds/type/v3/typed_struct.proto` and its predecessor in `udpa`).
fn typed_struct(path: String, package: &str) -> FileDescriptorProto {
    let field = |name: &str, number, r#type: Type, type_name: Option<&str>| FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(r#type.into()),
        type_name: type_name.map(str::to_owned),
        ..Default::default()
    };
    FileDescriptorProto {
        name: Some(path),
        package: Some(package.to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: vec![DescriptorProto {
            name: Some("TypedStruct".to_owned()),
            field: vec![
                field("type_url", 1, Type::String, None),
                field("value", 2, Type::Message, Some(".google.protobuf.Struct")),
            ],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn trimmed(file: FileDescriptorProto) -> FileDescriptorProto {
    FileDescriptorProto {
        name: file.name,
        package: file.package,
        // Made anew once it is known what is left.
        dependency: file.dependency,
        message_type: file.message_type.into_iter().map(trimmed_message).collect(),
        enum_type: file.enum_type.into_iter().map(trimmed_enum).collect(),
        syntax: file.syntax,
        ..Default::default()
    }
}

fn trimmed_message(message: DescriptorProto) -> DescriptorProto {
    let map_entry = message.options.and_then(|options| options.map_entry);
    DescriptorProto {
        field: message.field.into_iter().map(trimmed_field).collect(),
        nested_type: message.nested_type.into_iter().map(trimmed_message).collect(),
        enum_type: message.enum_type.into_iter().map(trimmed_enum).collect(),
        oneof_decl: message
            .oneof_decl
            .into_iter()
            .map(|oneof| prost_reflect::prost_types::OneofDescriptorProto { options: None, ..oneof })
            .collect(),
        options: map_entry
            .map(|map_entry| MessageOptions { map_entry: Some(map_entry), ..Default::default() }),
        name: message.name,
        ..Default::default()
    }
}

fn trimmed_field(field: FieldDescriptorProto) -> FieldDescriptorProto {
    let packed = field.options.as_ref().and_then(|options| options.packed);
    let json_name = field.json_name.as_deref().filter(|name| **name != json_name(field.name()));
    FieldDescriptorProto {
        json_name: json_name.map(str::to_owned),
        options: packed.map(|packed| FieldOptions { packed: Some(packed), ..Default::default() }),
        ..field
    }
}

fn trimmed_enum(mut r#enum: EnumDescriptorProto) -> EnumDescriptorProto {
    for value in &mut r#enum.value {
        value.options = None;
    }
    let allow_alias = r#enum.options.and_then(|options| options.allow_alias);
    EnumDescriptorProto {
        name: r#enum.name,
        value: r#enum.value,
        options: allow_alias.map(|allow| EnumOptions { allow_alias: Some(allow), ..Default::default() }),
        ..Default::default()
    }
}

/// What `name` is in JSON unless its file says otherwise; a reader knows.
fn json_name(name: &str) -> String {
    let mut upper = false;
    let mut json = String::new();
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if std::mem::take(&mut upper) => json.push(c.to_ascii_uppercase()),
            c => json.push(c),
        }
    }
    json
}

/// The files that the roots need, in an order in which each comes after those it needs.
fn reached(files: Vec<FileDescriptorProto>) -> Result<Vec<FileDescriptorProto>, Box<dyn Error>> {
    let mut home = BTreeMap::new();
    for file in &files {
        let package = format!(".{}", file.package());
        for r#enum in &file.enum_type {
            home.insert(format!("{package}.{}", r#enum.name()), file.name().to_owned());
        }
        for message in &file.message_type {
            defined(&package, message, &mut |name| {
                home.insert(name, file.name().to_owned());
            });
        }
    }
    let mut by_name: BTreeMap<String, FileDescriptorProto> =
        files.into_iter().map(|file| (file.name().to_owned(), file)).collect();
    for file in by_name.values_mut() {
        let mut needs = BTreeSet::new();
        for message in &file.message_type {
            referred(message, &mut |name| needs.insert(name.to_owned()));
        }
        let needs = needs.iter().map(|name| home.get(name).ok_or_else(|| format!("{name} is nowhere")));
        let needs = needs.collect::<Result<BTreeSet<&String>, String>>()?;
        file.dependency = needs.into_iter().filter(|need| *need != file.name()).cloned().collect();
    }
    let is_root = |name: &str| {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        begins(&ROOTS) && !begins(&META)
    };
    let roots: Vec<String> = by_name.keys().filter(|name| is_root(name)).cloned().collect();
    let mut ordered = Vec::new();
    for root in roots {
        take(&root, &mut by_name, &mut ordered);
    }
    Ok(ordered)
}

fn take(name: &str, from: &mut BTreeMap<String, FileDescriptorProto>, into: &mut Vec<FileDescriptorProto>) {
    if let Some(file) = from.remove(name) {
        for need in &file.dependency {
            take(need, from, into);
        }
        into.push(file);
    }
}

fn defined(scope: &str, message: &DescriptorProto, add: &mut impl FnMut(String)) {
    let name = format!("{scope}.{}", message.name());
    for r#enum in &message.enum_type {
        add(format!("{name}.{}", r#enum.name()));
    }
    for nested in &message.nested_type {
        defined(&name, nested, add);
    }
    add(name);
}

fn referred(message: &DescriptorProto, add: &mut impl FnMut(&str) -> bool) {
    for field in &message.field {
        if field.type_name.is_some() {
            add(field.type_name());
        }
    }
    for nested in &message.nested_type {
        referred(nested, add);
    }
}
