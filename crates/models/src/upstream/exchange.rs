//! One HTTP exchange with a registry, or with where it sends us.
//!
//! Addresses are looked at after the name was resolved, and the connection goes to the address that was looked at: a name
//! that means something else a moment later changes nothing.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection};
use hyper::header::{HOST, HeaderMap, LOCATION};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use ollama::Origin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::Error;
use super::address::is_public;

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// For a head, and for each next piece of a body.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often we let ourselves be sent elsewhere.
const REDIRECTS_MAX: usize = 5;

/// How registries are reached.
#[derive(Clone)]
pub(crate) struct Roads {
    tls: Arc<ClientConfig>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
type Io = TokioIo<Box<dyn Stream>>;

/// What is asked for, where.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub(crate) origin: Origin,
    /// With the question mark and what follows it.
    pub(crate) path: String,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    /// `None` once it has ended; what it brought is in the body all the same.
    connection: Option<Connection<Io, Empty<Bytes>>>,
}

impl Roads {
    /// Trusts whom this machine trusts.
    pub(crate) fn new() -> Self {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (added, ignored) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            tracing::info!(ignored, "this machine names nobody to trust: registries can be asked over plain HTTP only");
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("the provider speaks both versions of TLS");
        Self { tls: Arc::new(config.with_root_certificates(roots).with_no_client_auth()) }
    }

    /// Asks, and goes where it is sent. `headers` go to the first origin only, but for a range, which is what is asked.
    pub(crate) async fn ask(&self, method: &Method, page: &Page, headers: &[(&str, &str)]) -> Result<Answer, Error> {
        let first = &page.origin;
        let mut page = page.clone();
        for _ in 0..=REDIRECTS_MAX {
            let at_home = page.origin == *first;
            let told: Vec<_> =
                headers.iter().filter(|(name, _)| at_home || name.eq_ignore_ascii_case("range")).copied().collect();
            // Only the operator's own word leads into a private network.
            let answer = self.once(method, &page, &told, at_home).await?;
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let to = answer.headers.get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
            page = page.elsewhere(to)?;
        }
        Err(Error::Redirects(REDIRECTS_MAX))
    }

    async fn once(
        &self,
        method: &Method,
        page: &Page,
        headers: &[(&str, &str)],
        may_be_private: bool,
    ) -> Result<Answer, Error> {
        let at = &page.origin;
        let io = tokio::time::timeout(CONNECT_MAX, self.connect(at, may_be_private));
        let io = io.await.map_err(|_| Error::unreachable(at, "no connection within 10 s"))??;
        let failed = |error: hyper::Error| Error::unreachable(at, &error.to_string());
        let (mut sender, connection) = http1::handshake(io).await.map_err(failed)?;
        let agent = concat!("omx/", env!("CARGO_PKG_VERSION"));
        let mut request = Request::builder().method(method).uri(&page.path).header(HOST, at.authority());
        request = request.header("user-agent", agent);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new()).map_err(|_| Error::Strange("an address that is none".to_owned()))?;
        let mut connection = Some(connection);
        let answered = async {
            let mut response = std::pin::pin!(sender.send_request(request));
            loop {
                let Some(driven) = &mut connection else { break response.await };
                tokio::select! {
                    biased;
                    response = &mut response => break response,
                    _ = driven => connection = None,
                }
            }
        };
        let response = tokio::time::timeout(SILENCE_MAX, answered).await;
        let response =
            response.map_err(|_| Error::unreachable(at, "it did not answer within 30 s"))?.map_err(failed)?;
        let (head, body) = response.into_parts();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body, connection })
    }

    async fn connect(&self, at: &Origin, may_be_private: bool) -> Result<Io, Error> {
        let found = tokio::net::lookup_host((at.host(), at.port())).await;
        let found: Vec<SocketAddr> = found.map_err(|error| Error::unreachable(at, &error.to_string()))?.collect();
        let (open, private): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|address| may_be_private || is_public(address.ip()));
        let mut last = match private.first() {
            Some(address) => Error::Private { host: at.host().to_owned(), address: address.ip() },
            None => Error::unreachable(at, "its name means no address"),
        };
        for address in open {
            match TcpStream::connect(address).await {
                Ok(stream) => return self.dress(at, stream).await,
                Err(error) => last = Error::unreachable(at, &error.to_string()),
            }
        }
        Err(last)
    }

    async fn dress(&self, at: &Origin, stream: TcpStream) -> Result<Io, Error> {
        if at.is_plain() {
            return Ok(TokioIo::new(Box::new(stream)));
        }
        let failed = |error: &dyn fmt::Display| Error::unreachable(at, &format!("no secure connection: {error}"));
        let name = ServerName::try_from(at.host().to_owned()).map_err(|error| failed(&error))?;
        let stream =
            TlsConnector::from(self.tls.clone()).connect(name, stream).await.map_err(|error| failed(&error))?;
        Ok(TokioIo::new(Box::new(stream)))
    }
}

impl Page {
    /// Where a `Location` leads.
    fn elsewhere(&self, to: &str) -> Result<Self, Error> {
        let strange = || Error::Strange(format!("a redirect to `{}`", to.chars().take(100).collect::<String>()));
        // Without either it would be read as a host, or as relative to something.
        if !(to.contains("://") || to.starts_with('/') && !to.starts_with("//")) {
            return Err(strange());
        }
        let uri: Uri = to.parse().map_err(|_| strange())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        if !path.starts_with('/') {
            return Err(strange());
        }
        let Some(authority) = uri.authority() else { return Ok(Self { origin: self.origin.clone(), path }) };
        let scheme = uri.scheme_str().unwrap_or(if self.origin.is_plain() { "http" } else { "https" });
        if scheme == "http" && !self.origin.is_plain() {
            return Err(strange());
        }
        let origin = format!("{scheme}://{authority}").parse().map_err(|_| strange())?;
        Ok(Self { origin, path })
    }
}

impl Answer {
    /// The next piece; `None` at the end. Reads only what was asked for.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        tokio::time::timeout(SILENCE_MAX, self.frame()).await.unwrap_or(Some(Err(Error::Broken)))
    }

    async fn frame(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            let frame = match &mut self.connection {
                None => self.body.frame().await?,
                Some(driven) => tokio::select! {
                    biased;
                    frame = self.body.frame() => frame?,
                    _ = driven => {
                        self.connection = None;
                        continue;
                    }
                },
            };
            match frame.map(|frame| frame.into_data()) {
                Ok(Ok(bytes)) => return Some(Ok(bytes)),
                Ok(Err(_trailers)) => {}
                Err(_) => return Some(Err(Error::Broken)),
            }
        }
    }

    /// All of it, where it is not longer than this.
    pub(crate) async fn whole(mut self, max: usize) -> Result<Vec<u8>, Error> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.next().await {
            let bytes = bytes?;
            if whole.len() + bytes.len() > max {
                return Err(Error::Strange(format!("an answer of more than {max} bytes")));
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole)
    }
}

impl fmt::Debug for Roads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Roads")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(origin: &str) -> Page {
        Page { origin: origin.parse().unwrap(), path: "/v2/x".to_owned() }
    }

    #[test]
    fn a_redirect_is_read_as_it_is_written() {
        let elsewhere = |from: &str, to: &str| {
            let page = page(from).elsewhere(to).ok()?;
            Some(format!("{}{}", page.origin, page.path))
        };
        assert_eq!(elsewhere("https://r", "/y?z=1").unwrap(), "https://r/y?z=1");
        assert_eq!(elsewhere("https://r", "https://cdn.x/a").unwrap(), "https://cdn.x/a");
        assert_eq!(elsewhere("http://r", "http://r:81/a").unwrap(), "http://r:81/a");
        for hostile in ["", "http://cdn/a", "ftp://x/a", "y", "//x\\y", "https://u:p@h/a", "file:///etc/passwd"] {
            assert_eq!(elsewhere("https://r", hostile), None, "{hostile}");
        }
    }
}
