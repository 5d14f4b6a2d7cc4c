//! Requests whose end can be read in more than one way, each with a second request hidden where one of the readings has
//! it. The hidden one is never answered, and never gets to what runs models.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![cfg(unix)]

#[path = "support/rig.rs"]
mod rig;

use std::time::Duration;

use gateway::Limits;
use rig::{MODEL, Rig, post, to_end};
use tokio::io::AsyncWriteExt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meets {
    /// One answer, which says no, or none.
    Refusal,
    /// There is one reading only: one answer, and the hidden request is part of the body or of nothing.
    OneAnswer,
}
use Meets::{OneAnswer, Refusal};

struct Case {
    what: String,
    meets: Meets,
    bytes: Vec<u8>,
}

const MARK: &str = "smuggled";

/// The one that must not be heard.
fn hidden() -> String {
    post("/api/generate", &format!(r#"{{"model":"{MODEL}","prompt":"{MARK}","stream":false}}"#))
}

/// The head of the first one, but for its end.
fn start() -> String {
    "POST /api/show HTTP/1.1\r\nhost: localhost\r\n".to_owned()
}

fn limits() -> Limits {
    let short = Duration::from_millis(500);
    Limits { head: short, idle: short, body: short, stalled: short, ..Limits::default() }
}

fn corpus() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |meets, what: &str, bytes: String| {
        cases.push(Case { what: what.to_owned(), meets, bytes: bytes.into_bytes() });
    };
    let (start, hidden) = (start(), hidden());
    let all = hidden.len();
    let chunk = format!("{all:x}\r\n{hidden}\r\n0\r\n\r\n");
    let ended = format!("0\r\n\r\n{hidden}");
    let (ended_all, chunk_all) = (ended.len(), chunk.len());

    // A length and chunks: by RFC 9112 chunks win and the connection ends.
    for (what, headers) in [
        ("length before chunks", format!("content-length: {ended_all}\r\ntransfer-encoding: chunked\r\n")),
        ("chunks before length", format!("transfer-encoding: chunked\r\ncontent-length: {ended_all}\r\n")),
        ("no length and chunks", "content-length: 0\r\ntransfer-encoding: chunked\r\n".to_owned()),
    ] {
        add(OneAnswer, what, format!("{start}{headers}\r\n{ended}"));
    }
    let short = "content-length: 4\r\ntransfer-encoding: chunked\r\n";
    add(OneAnswer, "chunks beyond the length", format!("{start}{short}\r\n{chunk}"));

    // Transfer codings that one server takes for `chunked` and another does not.
    for coding in [
        "identity, chunked",
        "chunked, identity",
        "gzip, chunked",
        "chunked, chunked",
        "chunked,",
        "xchunked",
        "chunkedx",
        "chunked;q=1",
        "\"chunked\"",
        "'chunked'",
        "identity",
        "chunked\x0b",
        "\x0bchunked",
        "chunked\0",
        "",
        "chunked\r\ntransfer-encoding: identity",
        "identity\r\ntransfer-encoding: chunked",
        "chunked\r\ntransfer-encoding: chunked",
        "chunked\r\ntransfer-encoding: x",
        "\r\n chunked",
        "chunked\r\n\tx",
        "chunked\rx: y",
    ] {
        for length in [format!("content-length: {ended_all}\r\n"), String::new()] {
            let bytes = format!("{start}{length}transfer-encoding: {coding}\r\n\r\n{ended}");
            add(Refusal, &format!("coding {coding:?}, {length:?}"), bytes);
        }
    }
    for name in
        ["transfer-encoding ", "transfer-encoding\t", " transfer-encoding", "transfer-encoding\0", "transfer encoding"]
    {
        let headers = format!("content-length: {ended_all}\r\n{name}: chunked\r\n");
        add(Refusal, &format!("header {name:?}"), format!("{start}{headers}\r\n{ended}"));
    }
    let other = format!("content-length: {ended_all}\r\ntransfer_encoding: chunked\r\n");
    add(OneAnswer, "a header that only looks like it", format!("{start}{other}\r\n{ended}"));
    let old = start.replace("HTTP/1.1", "HTTP/1.0");
    add(
        Refusal,
        "chunks in HTTP/1.0",
        format!("{old}connection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n{ended}"),
    );

    // Lengths.
    for length in [
        format!("{all}\r\ncontent-length: 0"),
        format!("0\r\ncontent-length: {all}"),
        format!("{all}, 0"),
        format!("{all}, {all}"),
        format!("+{all}"),
        format!("-{all}"),
        format!("0x{all:x}"),
        format!("{all} 0"),
        format!("{all}\0"),
        format!("\x0b{all}"),
        "".to_owned(),
        "1e2".to_owned(),
        "0.0".to_owned(),
        u64::MAX.to_string(),
        "18446744073709551616".to_owned(),
        "9".repeat(400),
        format!("0\r\n {all}"),
        format!("0\rcontent-length: {all}"),
    ] {
        add(Refusal, &format!("length {length:?}"), format!("{start}content-length: {length}\r\n\r\n{hidden}"));
    }
    for name in ["content-length ", " content-length", "content-length\0", "content\u{ad}length", "content length", ""]
    {
        add(Refusal, &format!("header {name:?}"), format!("{start}{name}: {all}\r\n\r\n{hidden}"));
    }
    for length in [format!("{all}\r\ncontent-length: {all}"), format!("000{all}"), format!("\t{all} ")] {
        add(OneAnswer, &format!("length {length:?}"), format!("{start}content-length: {length}\r\n\r\n{hidden}"));
    }
    let get = format!("GET /api/version HTTP/1.1\r\nhost: localhost\r\ncontent-length: {all}\r\n");
    add(OneAnswer, "a body where none is due", format!("{get}\r\n{hidden}"));
    add(
        OneAnswer,
        "a body that is to be asked for",
        format!("{start}expect: 100-continue\r\ncontent-length: {all}\r\n\r\n{hidden}"),
    );
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
    add(
        OneAnswer,
        "another protocol that was not agreed on",
        format!("{start}{upgrade}content-length: {all}\r\n\r\n{hidden}"),
    );

    // Line ends: a lone line feed ends a line, as RFC 9112 lets servers read it, in headers that decide too; a lone
    // carriage return is nothing.
    add(OneAnswer, "a length after a lone line feed", format!("{start}x: y\ncontent-length: {all}\r\n\r\n{hidden}"));
    add(OneAnswer, "chunks after a lone line feed", format!("{start}x: y\ntransfer-encoding: chunked\r\n\r\n{chunk}"));
    add(
        OneAnswer,
        "a head of lone line feeds",
        format!("{start}content-length: {all}\r\n\r\n").replace("\r\n", "\n") + &hidden,
    );
    for (what, head) in [
        ("a lone carriage return in a header", format!("{start}x: y\rz: {all}\r\n")),
        ("a doubled carriage return", format!("{start}x: y\r\r\n")),
        ("carriage returns alone", format!("{start}x: y\r").replace("\r\n", "\r")),
        ("a lone carriage return in the first line", start.replace("show ", "show\r ")),
        ("a folded line", format!("{start}x: y\r\n z\r\n")),
        ("a folded first header", start.replace("host", " host")),
        ("a NUL in the path", start.replace("show", "sh\0ow")),
        ("a NUL in a name", format!("{start}x\0: y\r\n")),
        ("a NUL in a value", format!("{start}x: y\0z\r\n")),
        ("a header without a colon", format!("{start}x\r\n")),
        ("a header without a name", format!("{start}: y\r\n")),
        ("two spaces", start.replace("POST ", "POST  ")),
        ("a space at the beginning", format!(" {start}")),
        ("a path with a space", start.replace("show", "show x")),
        ("no path", start.replace("/api/show ", "")),
        ("no version", start.replace(" HTTP/1.1", "")),
        ("another version", start.replace("1.1", "1.2")),
        ("HTTP/2 without its beginning", start.replace("1.1", "2.0")),
        ("a version in small letters", start.replace("HTTP", "http")),
        ("the beginning of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n".to_owned()),
        ("many headers", format!("{start}{}", "x: y\r\n".repeat(101))),
        ("a large header", format!("{start}x: {}\r\n", "y".repeat(17 << 10))),
        ("a long path", start.replace("show", &"x".repeat(17 << 10))),
        ("two names for one house", format!("{start}host: localhost\r\n")),
        ("two names for two houses", format!("{start}host: evil.example\r\n")),
        ("no name", start.replace("host: localhost\r\n", "")),
        ("a name in a list", start.replace("localhost", "localhost, evil.example")),
        ("a name with another before it", start.replace("localhost", "evil.example@localhost")),
        ("another name in the path", start.replace("/api/show", "http://evil.example/api/show")),
        ("another user in the path", start.replace("/api/show", "http://x@localhost/api/show")),
        (
            "another name in the header",
            start.replace("/api", "http://localhost/api").replace("host: localhost", "host: evil"),
        ),
        ("a tunnel", start.replace("POST /api/show", "CONNECT evil.example:443")),
    ] {
        add(Refusal, what, format!("{head}\r\n{hidden}"));
    }

    // Chunks.
    let chunked = format!("{start}transfer-encoding: chunked\r\n\r\n");
    for body in [
        format!("10000000000000000\r\n{hidden}"),
        format!("ffffffffffffffff1\r\n{hidden}"),
        format!("1000000000000{all:x}\r\n{hidden}\r\n0\r\n\r\n"),
        format!("-1\r\n{hidden}"),
        format!("+{all:x}\r\n{hidden}\r\n0\r\n\r\n"),
        format!("0x{all:x}\r\n{hidden}\r\n0\r\n\r\n"),
        format!(" {all:x}\r\n{hidden}\r\n0\r\n\r\n"),
        format!("{all:x}\n{hidden}\n0\n\n"),
        format!("{all:x}\r{hidden}\r0\r\r"),
        format!("{all:x}_0\r\n{hidden}\r\n0\r\n\r\n"),
        format!("\r\n{all:x}\r\n{hidden}\r\n0\r\n\r\n"),
        format!("2\r\n{{}}0\r\n\r\n{hidden}"),
        format!("2\r\n{{}}xx0\r\n\r\n{hidden}"),
        format!("2\r\n{{}}\n0\r\n\r\n{hidden}"),
        format!("2;a\nb\r\n{{}}\r\n0\r\n\r\n{hidden}"),
        format!("2;{}\r\n{{}}\r\n0\r\n\r\n{hidden}", "x".repeat(20 << 10)),
        format!("2\r\n{{}}\r\n0\r\nx: {}\r\n\r\n{hidden}", "y".repeat(20 << 10)),
        format!("0\n\n{hidden}"),
        format!("0\r\n\r{hidden}"),
        format!("\r\n\r\n{hidden}"),
        format!("x\r\n{hidden}"),
        format!("2\u{0}\r\n{{}}\r\n0\r\n\r\n{hidden}"),
    ] {
        add(Refusal, &format!("chunks {:?}", &body[..body.len().min(40)]), format!("{chunked}{body}"));
    }
    add(OneAnswer, "a request in a chunk", format!("{chunked}{chunk}"));
    let extended = chunk.replacen("\r\n", ";a=\"b\"\r\n", 1);
    add(OneAnswer, "a request in a chunk with an extension", format!("{chunked}{extended}"));
    let length = format!("content-length: {chunk_all}\r\n");
    add(OneAnswer, "chunks that are a body", format!("{start}{length}\r\n{chunk}"));
    cases
}

struct Outcome {
    said: String,
    answers: usize,
    asked: u64,
    heard: bool,
}

async fn outcome(rig: &Rig, bytes: &[u8]) -> Outcome {
    let before = rig.fake.counts().inferences;
    let mut stream = rig.connect().await;
    // It may be closed before all is said.
    let _ = stream.write_all(bytes).await;
    let said = to_end(&mut stream).await;
    Outcome {
        // An invitation to send the body is none.
        answers: said.matches("HTTP/1.").count() - said.matches("HTTP/1.1 100 Continue").count(),
        asked: rig.fake.counts().inferences - before,
        heard: rig.fake.served().iter().any(|served| served.prompt_end.contains(MARK)),
        said,
    }
}

/// What the rest rests on: a request behind another that has a clear end is answered, and is seen to be.
#[tokio::test]
async fn what_is_not_hidden_is_heard() {
    let rig = Rig::new(limits()).await;
    let bytes = format!("{}content-length: 2\r\n\r\n{{}}{}", start(), hidden());
    let Outcome { said, answers, asked, heard } = outcome(&rig, bytes.as_bytes()).await;
    assert!(answers == 2 && asked == 1 && heard, "{answers} answers, {asked} asked, {said}");
}

#[tokio::test]
async fn what_is_hidden_in_a_request_is_never_heard() {
    let rig = Rig::new(limits()).await;
    let mut wrong = Vec::new();
    let cases = corpus();
    assert!(cases.len() > 120, "{}", cases.len());
    for Case { what, meets, bytes } in cases {
        let Outcome { said, answers, asked, heard } = outcome(&rig, &bytes).await;
        let status = said.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        let fits = match meets {
            Refusal => asked == 0 && answers <= 1 && status.is_none_or(|status| (400..500).contains(&status)),
            OneAnswer => asked == 0 && answers == 1,
        };
        if heard || !fits {
            let said: String = said.chars().take(600).collect();
            wrong.push(format!("{what}: {answers} answers, {asked} asked, heard: {heard}\n{said}"));
            if heard {
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of them\n{}", wrong.len(), wrong.join("\n----\n"));
    assert!(rig.is_well().await);
}
