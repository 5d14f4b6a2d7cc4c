//! `/api/push`: each blob the registry does not have, in parts, and then the manifest.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use bytes::Bytes;
use hyper::{Method, StatusCode};

use super::download::part_bytes;
use super::http::Url;
use super::progress::{Progress, Reporter, Wanted};
use super::remote::{Remote, good};
use super::{Depot, failed, md5};
use crate::body::Answer;
use crate::fault::Fault;
use crate::folder::Layer;
use crate::json::Fields;
use crate::name::Name;
use crate::refusal::Refusal;
use crate::release::MANIFEST_TYPE;

pub(super) async fn push(depot: &Arc<Depot>, body: &[u8], fault: Option<Fault>) -> Result<Answer, Refusal> {
    let fields = Fields::read("PushRequest", body)?;
    let asked = fields.model()?;
    if asked.is_empty() {
        return Err(Refusal::bad_request("model is required"));
    }
    let insecure = fields.flag("insecure")?.unwrap_or(false);
    let stream = fields.flag("stream")?.unwrap_or(true);
    let work = {
        let depot = depot.clone();
        move |reporter| async move { send(&depot, &asked, insecure, &reporter).await }
    };
    Progress::begin(depot, Wanted { stream, fault }, work).await
}

async fn send(depot: &Depot, asked: &str, insecure: bool, reporter: &Reporter) -> Result<(), Refusal> {
    let name = Name::parse(asked).ok_or_else(Refusal::invalid_name)?;
    reporter.say("retrieving manifest").await;
    let kept = depot.folder.find(&name);
    let Some((kept, bytes)) = kept.and_then(|kept| depot.folder.manifest_bytes(&kept.name).map(|bytes| (kept, bytes)))
    else {
        reporter.say("couldn't retrieve manifest").await;
        return Err(failed("file does not exist"));
    };
    let remote = Remote::new(depot, &kept.name, insecure)?;
    for layer in kept.manifest.blobs() {
        blob(depot, &remote, layer, reporter).await?;
    }
    reporter.say("pushing manifest").await;
    let url = remote.url(&format!("manifests/{}", remote.tag()));
    let headers = [("content-type", MANIFEST_TYPE.to_owned())];
    good(remote.ask(&Method::PUT, &url, &headers, bytes.into()).await?).await?;
    reporter.say("success").await;
    Ok(())
}

async fn blob(depot: &Depot, remote: &Remote, layer: &Layer, reporter: &Reporter) -> Result<(), Refusal> {
    let Layer { digest, size, from, .. } = layer;
    let whole = || reporter.blob("pushing", digest, *size, *size);
    if remote.size(digest).await?.is_some() {
        whole().await;
        return Ok(());
    }
    let mut begin = remote.url("blobs/uploads/");
    if let Some(from) = from.as_deref().and_then(Name::parse) {
        let escaped = |text: String| text.replace(':', "%3A").replace('/', "%2F");
        begin.path += &format!("?from={}&mount={}", escaped(from.repository()), escaped(digest.to_string()));
    }
    let begun = good(remote.ask(&Method::POST, &begin, &[], Bytes::new()).await?).await?;
    let place = begun.header("docker-upload-location").or_else(|| begun.location());
    if begun.status == StatusCode::CREATED {
        whole().await;
        return Ok(());
    }
    let mut place = next(&begin, place)?;
    let mut file = fs::File::open(depot.folder.blob(digest)).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let size = part_bytes(total, depot.transfer);
    let mut sums = Vec::new();
    reporter.blob("pushing", digest, total, 0).await;
    for number in 0..total.div_ceil(size) {
        let first = number * size;
        let length = size.min(total - first);
        let mut part = vec![0; usize::try_from(length).map_err(failed)?];
        file.seek(SeekFrom::Start(first)).and_then(|_| file.read_exact(&mut part)).map_err(failed)?;
        sums.extend(md5::digest(&part));
        place = send_part(remote, &place, first, part.into()).await?;
        reporter.blob("pushing", digest, total, first + length).await;
    }
    let separator = if place.path.contains('?') { '&' } else { '?' };
    let etag: String = md5::digest(&sums).iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = digest.to_string().replace(':', "%3A");
    place.path += &format!("{separator}digest={digest}&etag={etag}-{}", sums.len() / md5::BYTES);
    good(remote.ask(&Method::PUT, &place, &[], Bytes::new()).await?).await.map(drop)
}

/// To where the registry says, by its own word or one it sends on to.
async fn send_part(remote: &Remote, place: &Url, first: u64, part: Bytes) -> Result<Url, Refusal> {
    let last = first + (part.len() as u64).saturating_sub(1);
    let headers = [
        ("content-range", format!("{first}-{last}")),
        ("x-redirect-uploads", "1".to_owned()),
        ("content-type", "application/octet-stream".to_owned()),
    ];
    let reply = good(remote.ask(&Method::PATCH, place, &headers, part.clone()).await?).await?;
    let location = reply.header("docker-upload-location").or_else(|| reply.location());
    if reply.status == StatusCode::TEMPORARY_REDIRECT {
        let elsewhere = next(place, location)?;
        good(remote.put_elsewhere(&elsewhere, part).await?).await?;
        return Ok(place.clone());
    }
    next(place, location)
}

fn next(here: &Url, location: Option<String>) -> Result<Url, Refusal> {
    let location = location.ok_or_else(|| failed("http: no Location header in response"))?;
    here.join(&location).ok_or_else(|| failed("failed to parse Location header"))
}
