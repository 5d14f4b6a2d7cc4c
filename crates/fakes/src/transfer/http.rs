//! Requests to others: over plain HTTP, and to this machine alone, whatever address is given.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap, LOCATION};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::failed;
use crate::name::Name;
use crate::refusal::Refusal;

const REDIRECTS_MAX: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) secure: bool,
    /// Without the port.
    pub(super) host: String,
    pub(super) port: Option<u16>,
    /// With the query.
    pub(super) path: String,
}

/// An answer whose body is still to be read. Dropped, its connection is closed.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Incoming,
    _connection: JoinSet<()>,
}

impl Url {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let host = uri.host()?.trim_matches(['[', ']']).to_ascii_lowercase();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Some(Self { secure, host, port: uri.port_u16(), path })
    }

    /// What a `Location` means that was answered here.
    pub(super) fn join(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(Self { path: location.to_owned(), ..self.clone() });
        }
        Self::parse(location)
    }

    /// Where it is. Names are not looked up, and another machine is never asked.
    fn address(&self, upstream: Option<SocketAddr>) -> Result<SocketAddr, String> {
        if self.host == Name::HOST {
            return upstream.ok_or_else(|| format!("dial tcp: lookup {}: no such host", self.host));
        }
        let port = self.port.unwrap_or(if self.secure { 443 } else { 80 });
        let address = match self.host.as_str() {
            "localhost" => Some(IpAddr::from(Ipv4Addr::LOCALHOST)),
            other => other.parse::<IpAddr>().ok().filter(IpAddr::is_loopback),
        };
        let address = address.ok_or_else(|| format!("dial tcp: lookup {}: no such host", self.host))?;
        if self.secure {
            return Err("http: server gave HTTP response to HTTPS client".to_owned());
        }
        Ok(SocketAddr::new(address, port))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "{}://{host}", if self.secure { "https" } else { "http" })?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

/// One request on a connection of its own. Failures are told in Go's words.
pub(super) async fn send(
    upstream: Option<SocketAddr>,
    method: &Method,
    url: &Url,
    headers: &[(&str, String)],
    body: Bytes,
) -> Result<Reply, Refusal> {
    let verb = method.as_str();
    let verb = format!("{}{}", &verb[..1], verb[1..].to_ascii_lowercase());
    let wrong = |what: String| failed(format!("{verb} \"{url}\": {what}"));
    let address = url.address(upstream).map_err(wrong)?;
    let stream = TcpStream::connect(address).await.map_err(|error| wrong(format!("dial tcp {address}: {error}")))?;
    let told = |error: &dyn fmt::Display| wrong(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // How it ended shows in what is read from it.
        let _ = connection.await;
    });
    let host = url.port.map_or_else(|| url.host.clone(), |port| format!("{}:{port}", url.host));
    let mut request = Request::builder().method(method).uri(&url.path).header(HOST, host);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request.body(Full::new(body)).map_err(|error| told(&error))?;
    let response = sender.send_request(request).await.map_err(|error| told(&error))?;
    let (head, body) = response.into_parts();
    Ok(Reply { status: head.status, headers: head.headers, body, _connection: driver })
}

/// With redirects followed wherever they lead on this machine.
pub(super) async fn get(upstream: Option<SocketAddr>, url: &Url, headers: &[(&str, String)]) -> Result<Reply, Refusal> {
    let mut url = url.clone();
    for _ in 0..REDIRECTS_MAX {
        let reply = send(upstream, &Method::GET, &url, headers, Bytes::new()).await?;
        match reply.location().filter(|_| reply.status.is_redirection()) {
            Some(location) => url = url.join(&location).ok_or_else(|| failed("failed to parse Location header"))?,
            None => return Ok(reply),
        }
    }
    Err(failed(format!("Get \"{url}\": stopped after {REDIRECTS_MAX} redirects")))
}

impl Reply {
    pub(super) fn location(&self) -> Option<String> {
        self.header(LOCATION.as_str())
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH.as_str())?.parse().ok()
    }

    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name)?.to_str().ok().map(str::to_owned)
    }

    /// All of the body. One that is longer than `max` is an error.
    pub(super) async fn bytes(self, max: u64) -> Result<Bytes, Refusal> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        // The connection lives until here.
        let Self { body, _connection, .. } = self;
        Limited::new(body, max).collect().await.map(http_body_util::Collected::to_bytes).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_leads_away_from_this_machine() {
        let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, 7));
        let reached = |text: &str| Url::parse(text).and_then(|url| url.address(Some(upstream)).ok());
        for near in
            ["http://127.0.0.1:5000/v2", "http://localhost:5000/", "http://[::1]:5000/", "http://127.9.9.9:5000/"]
        {
            assert!(
                reached(near).is_some_and(|address| address.port() == 5000 && address.ip().is_loopback()),
                "{near}"
            );
        }
        assert_eq!(reached("https://registry.ollama.ai/v2/x"), Some(upstream));
        for far in
            ["http://169.254.169.254/", "http://10.0.0.1:80/", "http://example.org/", "http://0.0.0.0/", "file:///x"]
        {
            assert_eq!(reached(far), None, "{far}");
        }
        assert_eq!(reached("https://127.0.0.1:5000/v2"), None);
    }

    #[test]
    fn a_location_is_absolute_or_a_path() {
        let here = Url::parse("http://127.0.0.1:5000/v2/x?y").unwrap();
        assert_eq!(here.join("/z?a").unwrap().to_string(), "http://127.0.0.1:5000/z?a");
        assert_eq!(here.join("http://[::1]:6/z").unwrap().to_string(), "http://[::1]:6/z");
        assert_eq!((here.join("//evil/z"), here.join("z"), here.join("")), (None, None, None));
    }
}
