//! Reading a request's body, within limits.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::body::Incoming;

use super::failure::Failure;

/// A long conversation with its pictures.
pub(super) const TALK_BYTES_MAX: usize = 32 << 20;
pub(super) const MANAGE_BYTES_MAX: usize = 1 << 20;
const READ_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn read(body: Incoming, max: usize) -> Result<Bytes, Failure> {
    let read = tokio::time::timeout(READ_TIMEOUT, Limited::new(body, max).collect());
    match read.await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failure {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            message: format!("request body is longer than {max} bytes"),
        }),
        Ok(Err(error)) => Err(Failure::bad_request(error.to_string())),
        Err(_) => Err(Failure {
            status: StatusCode::REQUEST_TIMEOUT,
            message: "request body took too long to arrive".to_owned(),
        }),
    }
}
