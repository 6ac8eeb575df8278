//! Applying manifests.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, header},
};
use config::manifest::{self, DocumentRef, Errors, Located, ManifestError};

use super::{
    Api,
    answer::ApiError,
    request::{Actor, MAX_MANIFEST, Queried, WriteQuery, answer, no_if_match, text},
    types::{ErrorAnswer, Files, WriteAnswer},
};
use crate::{
    certificates,
    registry::write::{Refusal, Write},
};

/// The content type of several files at once.
const FILES: &str = "application/vnd.sluicegate.files+json";
/// How much of a file's name is kept, in characters.
const MAX_FILE_NAME: usize = 200;

/// Applies manifest documents, all of them or none.
///
/// The body is YAML or JSON, or several named files. `x-sluicegate-source` names a single body in
/// errors. Certificates, keys and authorities that gateways and services name are read by the server,
/// by their absolute path, and a bad one is refused.
#[utoipa::path(
    post, path = "/v1/apply", tag = "manifests",
    params(
        ("dry_run" = Option<bool>, Query, description = "Only say what would change"),
        ("wait" = Option<String>, Query, description = "`applied`: answer when every connected proxy has it"),
        ("timeout" = Option<String>, Query, description = "How long to wait, `2s` by default"),
    ),
    request_body(content((String = "application/yaml"), (Files = "application/vnd.sluicegate.files+json"))),
    responses((status = 200, body = WriteAnswer), (status = 400, body = ErrorAnswer), (status = 413, body = ErrorAnswer)),
)]
pub(super) async fn apply(
    State(api): State<Api>,
    Actor(actor): Actor,
    Queried(query): Queried<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WriteAnswer>, ApiError> {
    let waiting = query.waiting()?;
    no_if_match(&headers)?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let is_files = content_type.split(';').next().is_some_and(|t| t.trim() == FILES);
    let source = headers.get("x-sluicegate-source").and_then(|v| v.to_str().ok()).unwrap_or("manifest");
    let text = text(&headers, body, MAX_MANIFEST).await?;
    let files = if is_files {
        let files: Files = serde_json::from_str(&text)
            .map_err(|e| ApiError::bad_request(format!("the body is not as expected: {e}")))?;
        files.files.into_iter().map(|file| (file.name, file.text)).collect()
    } else {
        vec![(source.to_owned(), text)]
    };
    // Large manifests take a while to read, and so do the certificates they name; the runtime has
    // better things to do meanwhile.
    let documents = tokio::task::spawn_blocking(move || read_and_check(&files)).await;
    let documents = documents.map_err(|e| Refusal::Store(format!("reading the manifest failed: {e}")))??;
    let done = api.registry.write(Write::Apply(documents), &actor, query.dry_run).await?;
    Ok(Json(answer(&api, done, query.dry_run, waiting).await))
}

/// Reads every document of every file, and the certificates they name, or says all that is wrong.
fn read_and_check(files: &[(String, String)]) -> Result<Vec<Located>, Refusal> {
    let documents = read(files)?;
    check_certificates(&documents)?;
    Ok(documents)
}

/// Reads the certificates that `documents` name, or says all that is wrong with them.
pub(crate) fn check_certificates<'d>(
    documents: impl IntoIterator<Item = &'d Located>,
) -> Result<(), Refusal> {
    let mut errors = Errors::default();
    certificates::check(documents, SystemTime::now(), &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(Refusal::Invalid(errors.into_vec())) }
}

/// Reads every document of every file, or says all that is wrong.
pub(crate) fn read(files: &[(String, String)]) -> Result<Vec<Located>, Refusal> {
    let mut documents: Vec<Located> = Vec::new();
    let mut errors = Errors::default();
    for (name, text) in files {
        let name: String = name.chars().take(MAX_FILE_NAME).collect();
        documents.extend(manifest::read(&name, text, &mut errors));
    }
    if files.is_empty() {
        let message = "no file was sent; send at least one".to_owned();
        errors.push(ManifestError { file: "files".to_owned(), line: 0, path: String::new(), message });
    }
    duplicates(&documents, &mut errors);
    if errors.is_empty() { Ok(documents) } else { Err(Refusal::Invalid(errors.into_vec())) }
}

/// The same object in two files; within one file the reader has found it already.
fn duplicates(documents: &[Located], errors: &mut Errors) {
    let mut first: HashMap<DocumentRef, &Located> = HashMap::new();
    for located in documents {
        let reference = located.document.reference();
        if let Some(before) = first.insert(reference.clone(), located)
            && !Arc::ptr_eq(&before.source, &located.source)
        {
            let message = format!("{reference} is already defined in {}:{}", before.source, before.line);
            errors.push(located.error("name", message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(files: &[(String, String)]) -> Vec<ManifestError> {
        match read(files) {
            Err(Refusal::Invalid(errors)) => errors,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_name_of_a_file_is_cut() {
        let errors = refused(&[("é".repeat(1 << 20), "kind: Gateway\n".to_owned())]);
        assert!(errors.len() > 1);
        assert!(errors.iter().all(|error| error.file == "é".repeat(MAX_FILE_NAME)));
    }

    #[test]
    fn the_errors_of_all_files_together_are_bounded() {
        let files: Vec<_> = (0..150).map(|i| (format!("f{i}"), String::new())).collect();
        let errors = refused(&files);
        assert_eq!(errors.len(), manifest::MAX_ERRORS + 1);
        assert_eq!(errors[manifest::MAX_ERRORS].message, "and 50 more errors; correct these first");
    }

    #[test]
    fn an_object_is_defined_once_in_all_files() {
        let text = "kind: Gateway\nname: g\nlisten: 127.0.0.1:0\n".to_owned();
        let errors = refused(&[("a".to_owned(), text.clone()), ("b".to_owned(), text.clone())]);
        assert_eq!(errors[0].to_string(), "b:2: name: Gateway g is already defined in a:1");
        let twice = refused(&[("a".to_owned(), format!("{text}---\n{text}"))]);
        assert_eq!(twice.len(), 1, "{twice:?}");
    }
}
