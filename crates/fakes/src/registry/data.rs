//! Bytes on their way to a client, in the order they stand, spoilt where a fault says so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{ACCEPT_RANGES, CONTENT_RANGE, RANGE};

use super::tally::{Tally, While};
use super::{
    Body, CONTENT_LENGTH, CONTENT_TYPE, Digest, Fault, LOCATION, Parts, Response, Shared, StatusCode, Step, said, with,
};
use crate::body::{Broken, flushed_and_broken};
use crate::release::Content;

const FRAME_BYTES: usize = 64 << 10;

/// A body that is to be `from..end` of a content. `end` may lie behind its end.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) content: Content,
    pub(super) from: u64,
    pub(super) end: u64,
    pub(super) fault: Option<Fault>,
    /// A blob's bytes are counted.
    pub(super) counted: Option<(Digest, Arc<Tally>, While)>,
}

/// What a blob's storage answers: `Range: bytes=a-b` or the whole.
pub(super) async fn part(shared: Arc<Shared>, head: &Parts, digest: &Digest) -> Response<Body> {
    let Some(content) = shared.stock.blob(digest) else {
        return said(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    let size = content.size();
    let wanted = head.headers.get(RANGE).and_then(|value| value.to_str().ok());
    let Some((from, end)) = wanted.map_or(Some((0, size)), |wanted| range(wanted, size)) else {
        return with(StatusCode::RANGE_NOT_SATISFIABLE, &[(CONTENT_RANGE, format!("bytes */{size}"))]);
    };
    let fault = shared.faults.of(Step::Data, from, end - from);
    let (from, end, partial) = match &fault {
        Some(Fault::Status { status }) => return failed(*status),
        Some(Fault::Redirect { to }) => return with(StatusCode::TEMPORARY_REDIRECT, &[(LOCATION, to.clone())]),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Whole) => (0, size, false),
        Some(Fault::Overrun { by }) => (from, end.saturating_add(*by), wanted.is_some()),
        _ => (from, end, wanted.is_some()),
    };
    let mut headers = vec![
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, (end - from).to_string()),
        (ACCEPT_RANGES, "bytes".to_owned()),
    ];
    if partial {
        headers.push((CONTENT_RANGE, format!("bytes {from}-{}/{size}", end.saturating_sub(1))));
    }
    let mut response = with(if partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK }, &headers);
    let counted = Some((digest.clone(), shared.tally.clone(), shared.tally.sending(digest)));
    *response.body_mut() = Sending { content, from, end, fault, counted }.body();
    response
}

/// Half open. A range of nothing is none.
fn range(wanted: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = wanted.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() { size } else { last.parse::<u64>().ok()?.checked_add(1)?.min(size) };
    (first < end).then_some((first, end))
}

pub(super) fn failed(status: u16) -> Response<Body> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    said(status, "UNKNOWN", "the fake was told to fail")
}

impl Sending {
    pub(super) fn body(self) -> Body {
        let begun = self.from;
        let frames = futures::stream::unfold((self, begun), |(sending, at)| async move {
            let frame = sending.frame(at).await?;
            let next = at + frame.as_ref().map_or(0, |bytes| bytes.len() as u64);
            Some((frame.map(Frame::data), (sending, next)))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// What comes at `at`. `None` is the clean end.
    async fn frame(&self, at: u64) -> Option<Result<Bytes, Broken>> {
        let sent = at - self.from;
        let most = match self.fault {
            Some(Fault::Cut { at }) if sent >= at => return Some(Err(flushed_and_broken().await)),
            Some(Fault::Stall { at }) if sent >= at => std::future::pending().await,
            Some(Fault::Cut { at } | Fault::Stall { at }) => at - sent,
            // In tenths of a second, so that it flows.
            Some(Fault::Slow { rate }) => (rate / 10).max(1),
            _ => u64::MAX,
        };
        let length = FRAME_BYTES.min(usize::try_from((self.end - at).min(most)).unwrap_or(usize::MAX));
        if length == 0 {
            return None;
        }
        if let Some(Fault::Slow { rate }) = self.fault {
            tokio::time::sleep(Duration::from_secs_f64(length as f64 / rate.max(1) as f64)).await;
        }
        let mut bytes = self.content.read(at, length);
        if bytes.is_empty() {
            bytes = Bytes::from(vec![b'!'; length]);
        }
        if let Some(Fault::Flip { at: flipped }) = self.fault
            && let Some(place) = flipped.checked_sub(at).and_then(|place| usize::try_from(place).ok())
            && place < bytes.len()
        {
            let mut spoilt = bytes.to_vec();
            spoilt[place] ^= 1;
            bytes = spoilt.into();
        }
        if let Some((digest, tally, _)) = &self.counted {
            let length = bytes.len() as u64;
            tally.add(|asked| asked.blobs.entry(digest.clone()).or_default().bytes += length);
        }
        Some(Ok(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        assert_eq!(range("bytes=0-9", 100), Some((0, 10)));
        assert_eq!(range("bytes=90-", 100), Some((90, 100)));
        assert_eq!(range("bytes=90-200", 100), Some((90, 100)));
        for none in ["", "bytes=", "bytes=-5", "bytes=5-4", "bytes=100-", "bytes=x-1", "bytes=0-18446744073709551615"] {
            assert_eq!(range(none, 100), None, "{none}");
        }
    }
}
