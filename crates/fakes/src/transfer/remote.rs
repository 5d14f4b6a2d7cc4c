//! A registry as a client sees it, with what it asks for before it lets one in.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};

use super::http::{Reply, Url, get, send};
use super::{Depot, failed};
use crate::digest::Digest;
use crate::folder::MANIFEST_BYTES_MAX;
use crate::name::Name;
use crate::refusal::Refusal;
use crate::release::MANIFEST_TYPE;

/// Beyond it the words of an error are none.
const WORDS_BYTES_MAX: u64 = 64 << 10;
const REDIRECTS_MAX: usize = 10;

#[derive(Debug)]
pub(super) struct Remote {
    upstream: Option<SocketAddr>,
    base: Url,
    repository: String,
    tag: String,
    agent: String,
    answer_within: Duration,
    token: Mutex<Option<String>>,
}

impl Remote {
    /// Ollama's own registry is asked over TLS, which the one that answers for it here does without.
    pub(super) fn new(depot: &Depot, name: &Name, insecure: bool) -> Result<Self, Refusal> {
        let scheme = if insecure { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{}", name.host())).ok_or_else(|| failed("invalid host"))?;
        let system = format!("{} {}", std::env::consts::ARCH, std::env::consts::OS);
        Ok(Self {
            upstream: depot.upstream,
            base,
            repository: name.repository(),
            tag: name.tag().to_owned(),
            agent: format!("ollama/{} ({system}) Go/go1.24", depot.version),
            answer_within: depot.transfer.stall,
            token: Mutex::default(),
        })
    }

    /// As it is served, whatever it says.
    pub(super) async fn manifest(&self) -> Result<Bytes, Refusal> {
        let url = self.url(&format!("manifests/{}", self.tag));
        let accept = [("accept", MANIFEST_TYPE.to_owned())];
        let mut reply = get(self.upstream, &url, &self.headers(&accept)).await?;
        if self.signed_in(&reply).await? {
            reply = get(self.upstream, &url, &self.headers(&accept)).await?;
        }
        good(reply).await?.bytes(MANIFEST_BYTES_MAX).await
    }

    /// How long a blob is; nothing where that is not said. `None` where there is no such blob.
    pub(super) async fn size(&self, digest: &Digest) -> Result<Option<u64>, Refusal> {
        let reply = self.ask(&Method::HEAD, &self.url(&format!("blobs/{digest}")), &[], Bytes::new()).await?;
        if reply.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let reply = good(reply).await?;
        Ok(Some(reply.length().unwrap_or(0)))
    }

    /// Where its bytes are. Redirects on one host are followed; the first that leads to another, or an answer that
    /// says where, is it.
    pub(super) async fn locate(&self, digest: &Digest) -> Result<Url, Refusal> {
        let mut url = self.url(&format!("blobs/{digest}"));
        for _ in 0..REDIRECTS_MAX {
            let asked = self.ask(&Method::GET, &url, &[], Bytes::new());
            let reply = tokio::time::timeout(self.answer_within, asked).await;
            let reply = reply.map_err(|_| failed("context deadline exceeded"))??;
            if !matches!(reply.status, StatusCode::OK | StatusCode::TEMPORARY_REDIRECT) {
                return Err(failed(format!("unexpected status code {}", reply.status.as_u16())));
            }
            let location = reply.location().ok_or_else(|| failed("http: no Location header in response"))?;
            let next = url.join(&location).ok_or_else(|| failed("failed to parse Location header"))?;
            if reply.status == StatusCode::OK || next.host != url.host {
                return Ok(next);
            }
            url = next;
        }
        Err(failed("maximum redirects exceeded (10) for directURL"))
    }

    /// Bytes of a blob, of whom nobody asks who one is.
    pub(super) async fn part(&self, at: &Url, first: u64, last: u64) -> Result<Reply, Refusal> {
        let headers = [("range", format!("bytes={first}-{last}")), ("user-agent", "Go-http-client/1.1".to_owned())];
        get(self.upstream, at, &headers).await
    }

    /// Anything of a push.
    pub(super) async fn ask(
        &self,
        method: &Method,
        url: &Url,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> Result<Reply, Refusal> {
        let reply = send(self.upstream, method, url, &self.headers(headers), body.clone()).await?;
        if self.signed_in(&reply).await? {
            return send(self.upstream, method, url, &self.headers(headers), body).await;
        }
        Ok(reply)
    }

    /// Where a part is to go that was sent on, without telling who sends it.
    pub(super) async fn put_elsewhere(&self, url: &Url, part: Bytes) -> Result<Reply, Refusal> {
        send(self.upstream, &Method::PUT, url, &[], part).await
    }

    /// Below the repository.
    pub(super) fn url(&self, path: &str) -> Url {
        Url { path: format!("/v2/{}/{path}", self.repository), ..self.base.clone() }
    }

    pub(super) fn tag(&self) -> &str {
        &self.tag
    }

    /// Whether a token was wanted, and is there now: then the same is to be asked once more.
    async fn signed_in(&self, reply: &Reply) -> Result<bool, Refusal> {
        if reply.status != StatusCode::UNAUTHORIZED {
            return Ok(false);
        }
        self.sign_in(&reply.header("www-authenticate").unwrap_or_default()).await.map(|()| true)
    }

    /// The signature is none, which a registry that checks it would not take.
    async fn sign_in(&self, wanted: &str) -> Result<(), Refusal> {
        let field = |name: &str| {
            let rest = wanted.split_once(&format!("{name}=\""))?.1;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let realm = field("realm").and_then(|realm| Url::parse(&realm)).ok_or_else(|| failed("unauthorized"))?;
        if realm.host != self.base.host {
            return Err(failed(format!(
                "realm host \"{}\" does not match original host \"{}\"",
                realm.host, self.base.host
            )));
        }
        let escaped = |text: String| text.replace(':', "%3A").replace('/', "%2F").replace(',', "%2C");
        let scope = escaped(field("scope").unwrap_or_default());
        let service = escaped(field("service").unwrap_or_default());
        let path = format!("{}?nonce=bm9uY2U&scope={scope}&service={service}&ts=1", realm.path);
        let signature = ("authorization", "nobody:signed".to_owned());
        let reply = get(self.upstream, &Url { path, ..realm }, &[signature]).await?;
        let answer = good(reply).await?.bytes(WORDS_BYTES_MAX).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer).map_err(failed)?;
        let token = answer["token"].as_str().ok_or_else(|| failed("unauthorized"))?;
        *self.token.lock().expect("nothing panics while it holds the lock") = Some(token.to_owned());
        Ok(())
    }

    fn headers<'a>(&self, headers: &[(&'a str, String)]) -> Vec<(&'a str, String)> {
        let token = self.token.lock().expect("nothing panics while it holds the lock").clone();
        let mut all = headers.to_vec();
        all.push(("user-agent", self.agent.clone()));
        all.extend(token.map(|token| ("authorization", format!("Bearer {token}"))));
        all
    }
}

/// An error of the registry's in Ollama's words.
pub(super) async fn good(reply: Reply) -> Result<Reply, Refusal> {
    match reply.status {
        StatusCode::NOT_FOUND => Err(failed("file does not exist")),
        status if status.as_u16() >= 400 => {
            let words = reply.bytes(WORDS_BYTES_MAX).await.unwrap_or_default();
            Err(failed(format!("{}: {}", status.as_u16(), String::from_utf8_lossy(&words))))
        }
        _ => Ok(reply),
    }
}
