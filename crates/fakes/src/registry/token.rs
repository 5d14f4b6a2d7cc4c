//! Who may: a token, which is given for a signature that nobody checks here.

use hyper::header::{CONTENT_TYPE, HOST, WWW_AUTHENTICATE};

use super::{AUTHORIZATION, Body, Parts, Response, Route, Shared, StatusCode, full, said, with};

const SERVICE: &str = "fake";

/// The answer for who brings no token where one is needed. Where blobs are stored none is, and to bring one there is to
/// give it away.
pub(super) fn check(shared: &Shared, route: &Route, head: &Parts) -> Option<Response<Body>> {
    let token = shared.config.token.as_deref()?;
    let brought = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match route {
        Route::Token | Route::Fault | Route::Upload { .. } => None,
        Route::Stored { .. } if brought.is_none() => None,
        Route::Stored { .. } => Some(said(StatusCode::BAD_REQUEST, "UNSUPPORTED", "a token does not belong here")),
        _ if brought == Some(&format!("Bearer {token}")) => None,
        Route::Manifest { repository, .. } | Route::Blob { repository, .. } | Route::Begin { repository } => {
            shared.tally.add(|asked| asked.strangers += 1);
            // Under the name it was asked by, as clients insist.
            let host = head.headers.get(HOST).and_then(|value| value.to_str().ok());
            let realm = format!("http://{}/token", host.unwrap_or("localhost"));
            let scope = format!("repository:{repository}:pull,push");
            let mut refused = said(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
            let wanted = with(
                StatusCode::UNAUTHORIZED,
                &[(WWW_AUTHENTICATE, format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\",scope=\"{scope}\""))],
            );
            refused.headers_mut().extend(wanted.headers().clone());
            Some(refused)
        }
    }
}

pub(super) fn grant(shared: &Shared, head: &Parts) -> Response<Body> {
    let query = head.uri.query().unwrap_or_default();
    let whole = ["service=", "scope=", "ts=", "nonce="].iter().all(|field| query.contains(field));
    let signed = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(token) = shared.config.token.as_deref().filter(|_| whole && signed.is_some_and(|it| it.contains(':')))
    else {
        return said(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "not signed");
    };
    shared.tally.add(|asked| asked.tokens += 1);
    let mut granted = with(StatusCode::OK, &[(CONTENT_TYPE, "application/json".to_owned())]);
    *granted.body_mut() = full(serde_json::json!({ "token": token }).to_string().into());
    granted
}
