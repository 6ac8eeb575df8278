//! Lets a request through to its handler when who sent it may.

use axum::{
    extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Api, answer::ApiError};
use crate::access::{
    Need, NoToken, Peer, Shown,
    rules::{Rule, rule},
};

/// How much of a path is logged, in characters.
const MAX_SHOWN: usize = 200;

/// Admits a request, and notes for its handler who sent it; or answers 401 (RFC 9110 §15.5.2) or 403.
pub(super) async fn admit(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    // As the handlers read them: decoded, so that both mean the same service.
    let parameters = RawPathParams::from_request_parts(&mut parts, &()).await.ok();
    let mut parameters = parameters.iter().flatten();
    let service = parameters.find_map(|(name, value)| (name == "service").then_some(value));
    let route = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    let need = match rule(parts.method.as_str(), route) {
        Rule::Open => Need::Nothing,
        Rule::Needs(role) => Need::Role(role, service),
    };
    let shown = Shown { peer: parts.extensions.get::<Peer>(), token: token(&parts.headers) };
    let path: String = parts.uri.path().chars().take(MAX_SHOWN).collect();
    let admitted = api.access.admit(&shown, &need, format_args!("{} {path}", parts.method));
    match admitted {
        Ok(who) => {
            parts.extensions.insert(who);
            next.run(Request::from_parts(parts, body)).await
        }
        Err(refusal) => ApiError::Denied(refusal).into_response(),
    }
}

/// The bearer token of a request (RFC 6750 §2.1). Not from a query or a form (§2.2, §2.3): those are
/// logged by whatever stands between.
fn token(headers: &HeaderMap) -> Option<Result<&str, NoToken>> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let first = all.next()?;
    if all.next().is_some() {
        return Some(Err(NoToken));
    }
    let token = first.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        // RFC 9110 §11.1: the scheme is case-insensitive.
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
    });
    Some(token.filter(|token| !token.is_empty()).ok_or(NoToken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_from_one_bearer_header_and_nothing_else() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            token(&headers).map(|token| token.map(str::to_owned).map_err(|NoToken| ()))
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["Bearer abc"]), Some(Ok("abc".to_owned())));
        assert_eq!(read(&["bEARER  abc"]), Some(Ok("abc".to_owned())));
        for bad in [&["Basic abc"][..], &["Bearer"], &["Bearer "], &["abc"], &["Bearer a", "Bearer a"]] {
            assert_eq!(read(bad), Some(Err(())), "{bad:?}");
        }
    }
}
