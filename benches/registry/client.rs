//! One writer on one connection: HTTP/1.1 with JSON, or gRPC. Plain blocking sockets, so that little of the machine goes
//! to the measuring side.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Longer than either side takes to say that there is no leader.
const LIMIT: Duration = Duration::from_secs(15);

/// How a value is written, where.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// `PUT /omx/v1/config/mesh.name`
    Omx { api: SocketAddr, key: String },
    /// etcd's JSON gateway: `POST /v3/kv/put`
    EtcdJson { api: SocketAddr },
    /// etcd's own protocol: `etcdserverpb.KV/Put`
    EtcdGrpc { api: SocketAddr },
}

pub(crate) enum Client {
    Http(Http),
    Grpc(Grpc),
}

impl Client {
    pub(crate) fn connect(target: &Target) -> Result<Self> {
        Ok(match target {
            Target::Omx { api, key } => {
                let head = format!("PUT /omx/v1/config/mesh.name HTTP/1.1\r\nauthorization: Bearer {key}\r\n");
                Self::Http(Http::connect(*api, &head, r#"{"value":""#)?)
            }
            Target::EtcdJson { api } => {
                // The key `mesh.name` in base64.
                Self::Http(Http::connect(*api, "POST /v3/kv/put HTTP/1.1\r\n", r#"{"key":"bWVzaC5uYW1l","value":""#)?)
            }
            Target::EtcdGrpc { api } => Self::Grpc(Grpc::connect(*api)?),
        })
    }

    /// Returns once the write is acknowledged. `value` consists of letters and digits, a multiple of four, so that it is
    /// base64 as it stands.
    pub(crate) fn put(&mut self, value: &str) -> Result<()> {
        match self {
            Self::Http(http) => http.put(value),
            Self::Grpc(grpc) => grpc.put(value),
        }
    }
}

fn dial(api: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(api).with_context(|| format!("nobody at `{api}`"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

pub(crate) struct Http {
    stream: BufReader<TcpStream>,
    /// Up to the length of the body.
    head: String,
    body_start: &'static str,
}

impl Http {
    fn connect(api: SocketAddr, head: &str, body_start: &'static str) -> Result<Self> {
        let head = format!("{head}host: {api}\r\ncontent-type: application/json\r\ncontent-length: ");
        Ok(Self { stream: BufReader::new(dial(api)?), head, body_start })
    }

    fn put(&mut self, value: &str) -> Result<()> {
        let length = self.body_start.len() + value.len() + 2;
        let request = format!("{}{length}\r\n\r\n{}{value}\"}}", self.head, self.body_start);
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut status, mut length) = (String::new(), None, None);
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if status.is_none() {
                status = text.split(' ').nth(1).map(str::to_owned);
            } else if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        let mut body = vec![0; length.context("no length of the answer")?];
        self.stream.read_exact(&mut body)?;
        match status.as_deref() {
            Some("200") => Ok(()),
            other => bail!("status {other:?}: {}", String::from_utf8_lossy(&body)),
        }
    }
}

/// As much HTTP/2 as one call at a time needs. Headers go out as literals, and those that come in are not decoded: a Put
/// that succeeded has a message in its answer, one that failed has none.
pub(crate) struct Grpc {
    stream: BufReader<TcpStream>,
    headers: Vec<u8>,
    stream_id: u32,
    /// Bytes of answers that the other side has not been given back in its window.
    received: u32,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

impl Grpc {
    fn connect(api: SocketAddr) -> Result<Self> {
        let mut stream = dial(api)?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
        let mut headers = Vec::new();
        let authority = api.to_string();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/etcdserverpb.KV/Put"),
            (":authority", &authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            // Literal header field without indexing, new name, no Huffman coding.
            headers.extend([0, short(name.len())]);
            headers.extend(name.as_bytes());
            headers.push(short(value.len()));
            headers.extend(value.as_bytes());
        }
        Ok(Self { stream: BufReader::new(stream), headers, stream_id: 1, received: 0 })
    }

    fn put(&mut self, value: &str) -> Result<()> {
        let mut message = Vec::new();
        for (tag, bytes) in [(0x0a, b"mesh.name".as_slice()), (0x12, value.as_bytes())] {
            message.extend([tag, short(bytes.len())]);
            message.extend(bytes);
        }
        let mut body = vec![0, 0, 0, 0, short(message.len())];
        body.extend(message);
        let id = self.stream_id;
        self.stream_id += 2;
        let mut out = frame(HEADERS, END_HEADERS, id, &self.headers);
        out.extend(frame(DATA, END_STREAM, id, &body));
        if self.received > 16 << 10 {
            out.extend(frame(WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes()));
            self.received = 0;
        }
        self.stream.get_mut().write_all(&out)?;
        let mut answered = false;
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head)?;
            let [a, b, c, kind, flags, id_bytes @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.stream.read_exact(&mut payload)?;
            let ours = u32::from_be_bytes(id_bytes) == id;
            match kind {
                SETTINGS if flags & ACK == 0 => self.stream.get_mut().write_all(&frame(SETTINGS, ACK, 0, &[]))?,
                PING if flags & ACK == 0 => self.stream.get_mut().write_all(&frame(PING, ACK, 0, &payload))?,
                DATA if ours => {
                    self.received += u32::try_from(payload.len())?;
                    answered |= !payload.is_empty();
                }
                GOAWAY | RST_STREAM => bail!("the server gave up: frame {kind}, {payload:?}"),
                _ => {}
            }
            if ours && matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                ensure!(answered, "the call failed");
                return Ok(());
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames here are short").to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// Lengths of one byte, below where HPACK and protocol buffers begin to need two.
fn short(length: usize) -> u8 {
    u8::try_from(length).ok().filter(|length| *length < 127).expect("names and values here are short")
}
