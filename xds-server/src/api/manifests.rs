//! Applying manifests.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, header},
};
use config::manifest::{self, Located, ManifestError};

use super::{
    Api,
    answer::ApiError,
    request::{Actor, MAX_MANIFEST, Queried, WriteQuery, answer, text},
    types::{ErrorAnswer, Files, WriteAnswer},
};
use crate::registry::write::{Refusal, Write};

/// The content type of several files at once.
const FILES: &str = "application/vnd.sluicegate.files+json";

/// Applies manifest documents, all of them or none.
///
/// The body is YAML or JSON, or several named files. `x-sluicegate-source` names a single body in
/// errors.
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
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let is_files = content_type.split(';').next().is_some_and(|t| t.trim() == FILES);
    let source = headers.get("x-sluicegate-source").and_then(|v| v.to_str().ok()).unwrap_or("manifest");
    let text = text(&headers, body, MAX_MANIFEST).await?;
    let files = if is_files {
        let files: Files = serde_json::from_str(&text)
            .map_err(|e| ApiError::bad_request(format!("the body is not as expected: {e}")))?;
        files.files.into_iter().map(|file| (file.name, file.text)).collect()
    } else {
        vec![(source.chars().take(200).collect(), text)]
    };
    // Large manifests take a while to read; the runtime has better things to do meanwhile.
    let documents = tokio::task::spawn_blocking(move || read(&files)).await;
    let documents = documents.map_err(|e| Refusal::Store(format!("reading the manifest failed: {e}")))??;
    let done = api.registry.write(Write::Apply(documents), &actor, query.dry_run).await?;
    Ok(Json(answer(&api, done, query.dry_run, waiting).await))
}

/// Reads every document of every file, or says all that is wrong.
pub(crate) fn read(files: &[(String, String)]) -> Result<Vec<Located>, Refusal> {
    let mut documents: Vec<Located> = Vec::new();
    let mut errors = Vec::new();
    for (name, text) in files {
        match manifest::parse(name, text) {
            Ok(read) => documents.extend(read),
            Err(found) => errors.extend(found),
        }
    }
    if files.is_empty() {
        let message = "no file was sent; send at least one".to_owned();
        errors.push(ManifestError { file: "files".to_owned(), line: 0, path: String::new(), message });
    }
    errors.extend(duplicates(&documents));
    if errors.is_empty() { Ok(documents) } else { Err(Refusal::Invalid(errors)) }
}

/// The same object in two files; within one file the reader has found it already.
fn duplicates(documents: &[Located]) -> Vec<ManifestError> {
    let mut first = std::collections::HashMap::new();
    let mut errors = Vec::new();
    for located in documents {
        let reference = located.document.reference();
        if let Some(before) = first.insert(reference.clone(), located) {
            let message = format!("{reference} is already defined in {}:{}", before.source, before.line);
            errors.push(located.error("name", message));
        }
    }
    errors
}
