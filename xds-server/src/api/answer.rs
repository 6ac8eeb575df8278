//! Refusals as answers: a status, a word for programs, a sentence for people.

use axum::{
    Json,
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use config::manifest::MAX_ERRORS;

use super::types::{ErrorAnswer, ErrorBody};
use crate::{access, registry::write::Refusal};

/// A request that was refused.
#[derive(Debug)]
pub(super) enum ApiError {
    Refused(Refusal),
    TooLarge(usize),
    Timeout,
    ForeignPage,
    Denied(access::Refusal),
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl ApiError {
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::Refused(Refusal::BadRequest(message.into()))
    }

    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Refused(Refusal::Invalid(_) | Refusal::BadRequest(_)) => {
                (StatusCode::BAD_REQUEST, "invalid")
            }
            Self::Refused(Refusal::NotFound(_)) => (StatusCode::NOT_FOUND, "not_found"),
            Self::Refused(Refusal::InUse(_)) => (StatusCode::CONFLICT, "in_use"),
            Self::Refused(Refusal::Stale(_)) => (StatusCode::PRECONDITION_FAILED, "conflict"),
            Self::Refused(Refusal::Store(_)) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::Refused(Refusal::Unavailable(_)) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Self::Refused(Refusal::Busy(_)) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::Timeout => (StatusCode::REQUEST_TIMEOUT, "timeout"),
            Self::Denied(refusal) if refusal.is_unauthenticated() => {
                (StatusCode::UNAUTHORIZED, "unauthenticated")
            }
            Self::ForeignPage | Self::Denied(_) => (StatusCode::FORBIDDEN, "forbidden"),
        }
    }
}

/// The body that says why.
pub(crate) fn error_body(code: &str, refusal: &Refusal) -> ErrorBody {
    let (message, details) = match refusal {
        Refusal::Invalid(errors) => {
            let first = errors.first().map(ToString::to_string).unwrap_or_default();
            let message = match errors.len() {
                0 | 1 => first,
                // The last one says how many more there are.
                n if n > MAX_ERRORS => format!("{first} (and more than {} more)", MAX_ERRORS - 1),
                n => format!("{first} (and {} more)", n - 1),
            };
            (message, errors.clone())
        }
        other => (other.to_string(), Vec::new()),
    };
    ErrorBody { code: code.to_owned(), message, details }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status();
        let error = match &self {
            Self::Refused(refusal) => error_body(code, refusal),
            Self::TooLarge(limit) => ErrorBody {
                code: code.to_owned(),
                message: format!("the body is larger than {limit} bytes; apply fewer documents at once"),
                details: Vec::new(),
            },
            Self::ForeignPage => ErrorBody {
                code: code.to_owned(),
                message: "a page of another site may not use this API".to_owned(),
                details: Vec::new(),
            },
            Self::Denied(refusal) => {
                ErrorBody { code: code.to_owned(), message: refusal.to_string(), details: Vec::new() }
            }
            Self::Timeout => ErrorBody {
                code: code.to_owned(),
                message: "the body did not arrive in time".to_owned(),
                details: Vec::new(),
            },
        };
        let mut response = (status, Json(ErrorAnswer { error })).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        if let Self::Denied(refusal) = &self {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge(refusal));
        }
        response
    }
}

/// What a client lacks (RFC 6750 §3): without an error when it has shown nothing.
fn challenge(refusal: &access::Refusal) -> header::HeaderValue {
    use config::access::Role;
    header::HeaderValue::from_static(match (refusal.is_unauthenticated(), refusal.by, refusal.scope) {
        (true, access::By::Nobody, _) => "Bearer realm=\"sluicegate\"",
        (true, ..) => "Bearer realm=\"sluicegate\", error=\"invalid_token\"",
        (false, _, scope) => match scope {
            Some(Role::Read) => "Bearer realm=\"sluicegate\", error=\"insufficient_scope\", scope=\"read\"",
            Some(Role::Register) => {
                "Bearer realm=\"sluicegate\", error=\"insufficient_scope\", scope=\"register\""
            }
            Some(Role::Shift) => "Bearer realm=\"sluicegate\", error=\"insufficient_scope\", scope=\"shift\"",
            Some(Role::Admin) => "Bearer realm=\"sluicegate\", error=\"insufficient_scope\", scope=\"admin\"",
            None => "Bearer realm=\"sluicegate\", error=\"insufficient_scope\"",
        },
    })
}

pub(super) async fn no_such_page(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::Refused(Refusal::NotFound(format!(
        "there is nothing at {path}; /v1/openapi.json lists what there is"
    )))
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!("{path} does not take {method}; /v1/openapi.json lists what it takes");
    let error = ErrorBody { code: "invalid".to_owned(), message, details: Vec::new() };
    (StatusCode::METHOD_NOT_ALLOWED, Json(ErrorAnswer { error })).into_response()
}
