//! The registry answers as clients of Ollama's own need it, and goes wrong as it is told.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::time::Duration;

use fakes::registry::{Config, Fault, Step, Storage};
use fakes::{Digest, Registry, Release};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(20);

struct Reply {
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// `lines` are a request line and headers. What comes is read to the end of the connection, whatever end that is.
async fn ask(registry: &Registry, lines: &str, body: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(registry.address()).await.unwrap();
    let (first, headers) = lines.split_once('\n').unwrap_or((lines, ""));
    let headers: String = headers.lines().map(|line| format!("{}\r\n", line.trim())).collect();
    let head = format!("{first} HTTP/1.1\r\nhost: fake\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    stream.write_all(format!("{head}{headers}\r\n").as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(answer.len());
    let body = answer.get(end + 4..).unwrap_or_default().to_vec();
    Reply { head: String::from_utf8(answer[..end].to_vec()).unwrap(), body }
}

async fn start(storage: Storage) -> (Registry, Release) {
    let registry = Registry::start(Config { storage, ..Config::default() }).await.unwrap();
    let release = Release::made(1, 300_000);
    registry.publish("tiny:1b", &release).unwrap();
    (registry, release)
}

fn path_of(location: &str) -> &str {
    location.split_once("//").map_or(location, |(_, rest)| &rest[rest.find('/').unwrap()..])
}

#[tokio::test]
async fn a_model_is_had_step_by_step_as_ollama_does_it() {
    for storage in [Storage::Elsewhere, Storage::Here] {
        let (registry, release) = start(storage).await;
        let manifest = ask(&registry, "GET /v2/library/tiny/manifests/1b", b"").await;
        assert_eq!((manifest.status(), &manifest.body[..]), (200, &release.manifest()[..]));
        for blob in release.blobs() {
            let path = format!("/v2/library/tiny/blobs/{}", blob.digest);
            let size = blob.content.size();
            let head = ask(&registry, &format!("HEAD {path}"), b"").await;
            assert_eq!((head.status(), head.header("content-length")), (200, Some(size.to_string().as_str())));
            let located = ask(&registry, &format!("GET {path}"), b"").await;
            let location = located.header("location").unwrap();
            match storage {
                Storage::Elsewhere => assert!(located.status() == 307 && location.starts_with("http://localhost:")),
                Storage::Here => assert_eq!((located.status(), location), (200, path.as_str())),
            }
            let half = size / 2;
            let mut whole = Vec::new();
            for range in [format!("0-{}", half - 1), format!("{half}-{}", size - 1)] {
                let part = ask(&registry, &format!("GET {}\nrange: bytes={range}", path_of(location)), b"").await;
                assert_eq!(
                    (part.status(), part.header("content-range")),
                    (206, Some(&*format!("bytes {range}/{size}")))
                );
                whole.extend(part.body);
            }
            assert_eq!(Digest::of(&whole), blob.digest);
            let taken = registry.taken(&blob.digest);
            assert_eq!((taken.parts, taken.bytes), (2, size));
        }
        let asked = registry.stop().await;
        assert_eq!((asked.manifests, asked.heads, asked.locates, asked.sending_max), (1, 5, 5, 1));
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let (registry, release) = start(Storage::Here).await;
    let blob = &release.weights().digest;
    let none = Digest::of(b"nobody has this");
    for (path, status) in [
        ("GET /v2/library/tiny/manifests/2b".to_owned(), 404),
        ("GET /v2/library/other/manifests/1b".to_owned(), 404),
        (format!("HEAD /v2/library/tiny/blobs/{none}"), 404),
        (format!("GET /v2/library/other/blobs/{blob}"), 404),
        ("GET /v2/library/tiny/blobs/sha256:../../x".to_owned(), 404),
        ("GET /v2/".to_owned(), 404),
        (format!("DELETE /v2/library/tiny/blobs/{blob}"), 405),
        (format!("GET /storage/{blob}\nrange: bytes=300000-"), 416),
    ] {
        assert_eq!(ask(&registry, &path, b"").await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn who_needs_a_token_is_given_one_for_a_signature_and_loses_it_to_no_storage() {
    let config = Config { token: Some("secret".to_owned()), ..Config::default() };
    let registry = Registry::start(config).await.unwrap();
    let release = Release::made(1, 0);
    registry.publish("tiny:1b", &release).unwrap();
    let path = "GET /v2/library/tiny/manifests/1b";
    let refused = ask(&registry, path, b"").await;
    let realm = "Bearer realm=\"http://fake/token\",service=\"fake\",";
    assert!(refused.status() == 401 && refused.header("www-authenticate").unwrap().starts_with(realm));
    let query = "GET /token?service=fake&scope=repository%3Alibrary%2Ftiny%3Apull&ts=1&nonce=n";
    assert_eq!(ask(&registry, query, b"").await.status(), 401);
    let granted = ask(&registry, &format!("{query}\nauthorization: key:signature"), b"").await;
    assert_eq!(granted.body, br#"{"token":"secret"}"#);
    assert_eq!(ask(&registry, &format!("{path}\nauthorization: Bearer secret"), b"").await.status(), 200);
    let stored = format!("GET /storage/{}", release.weights().digest);
    assert_eq!(ask(&registry, &stored, b"").await.status(), 200);
    assert_eq!(ask(&registry, &format!("{stored}\nauthorization: Bearer secret"), b"").await.status(), 400);
    assert_eq!((registry.asked().strangers, registry.asked().tokens), (1, 1));
}

#[tokio::test]
async fn answers_are_spoilt_as_told() {
    let (registry, release) = start(Storage::Here).await;
    let blob = release.weights().digest.clone();
    let whole = registry.blob(&blob).unwrap();
    let faults = registry.faults();
    let path = format!("/v2/library/tiny/blobs/{blob}");
    let part = format!("GET {path}\nrange: bytes=1000-1999");
    let data = async |fault: Fault| {
        faults.next(1, Step::Data, fault);
        ask(&registry, &part, b"").await
    };

    let cut = data(Fault::Cut { at: 100 }).await;
    assert_eq!((cut.header("content-length"), &cut.body[..]), (Some("1000"), &whole[1000..1100]));
    let flipped = data(Fault::Flip { at: 1500 }).await.body;
    let differs: Vec<_> = (0..1000).filter(|at| flipped[*at] != whole[1000 + at]).collect();
    assert_eq!((flipped.len(), differs), (1000, vec![500]));
    let long = data(Fault::Overrun { by: 10 }).await;
    assert_eq!((long.header("content-length"), long.body.len()), (Some("1010"), 1010));
    let ignored = data(Fault::Whole).await;
    assert_eq!((ignored.status(), ignored.body.len()), (200, whole.len()));
    assert_eq!(data(Fault::Status { status: 500 }).await.status(), 500);
    assert_eq!(data(Fault::Slow { rate: 1 << 30 }).await.body, whole[1000..2000]);
    assert_eq!(ask(&registry, &part, b"").await.body, whole[1000..2000]);

    let metadata = "http://169.254.169.254/latest".to_owned();
    faults.next(1, Step::Locate, Fault::Redirect { to: metadata.clone() });
    assert_eq!(ask(&registry, &format!("GET {path}"), b"").await.header("location"), Some(metadata.as_str()));
    faults.next(1, Step::Locate, Fault::Nowhere);
    let nowhere = ask(&registry, &format!("GET {path}"), b"").await;
    assert_eq!((nowhere.status(), nowhere.header("location")), (200, None));
    faults.next(1, Step::Head, Fault::Announce { size: 7 });
    assert_eq!(ask(&registry, &format!("HEAD {path}"), b"").await.header("content-length"), Some("7"));
    faults.next(1, Step::Manifest, Fault::Flip { at: 0 });
    assert_ne!(ask(&registry, "GET /v2/library/tiny/manifests/1b", b"").await.body[0], b'{');
    faults.next(1, Step::Manifest, Fault::Status { status: 404 });
    assert_eq!(ask(&registry, "GET /v2/library/tiny/manifests/1b", b"").await.status(), 404);
}

#[tokio::test]
async fn a_part_that_stalls_ends_when_its_client_goes() {
    let (registry, release) = start(Storage::Here).await;
    registry.faults().always(Step::Data, Fault::Stall { at: 10 });
    let mut stream = TcpStream::connect(registry.address()).await.unwrap();
    let request = format!("GET /storage/{} HTTP/1.1\r\nhost: x\r\n\r\n", release.weights().digest);
    stream.write_all(request.as_bytes()).await.unwrap();
    let asked = registry.until(|asked| asked.sending == 1, LIMIT).await.unwrap();
    assert_eq!(asked.connections_open, 1);
    drop(stream);
    registry.until(|asked| asked.sending == 0 && asked.connections_open == 0, LIMIT).await.unwrap();
    assert!(registry.taken(&release.weights().digest).bytes <= 10);
}

#[tokio::test]
async fn a_model_is_pushed_part_by_part_and_a_known_blob_is_mounted() {
    for storage in [Storage::Elsewhere, Storage::Here] {
        let (registry, release) = start(storage).await;
        let bytes = b"a blob of one's own";
        let digest = Digest::of(bytes);
        let begun = ask(&registry, "POST /v2/me/mine/blobs/uploads/", b"").await;
        assert_eq!(begun.status(), 202);
        let place = path_of(begun.header("location").unwrap()).to_owned();
        for (from, part) in [(10, &bytes[10..]), (0, &bytes[..10])] {
            let range = format!("content-range: {from}-{}\nx-redirect-uploads: 1", from + part.len() - 1);
            let sent = ask(&registry, &format!("PATCH {place}\n{range}"), part).await;
            let sent = match storage {
                Storage::Elsewhere => {
                    assert_eq!(sent.status(), 307);
                    ask(&registry, &format!("PUT {}", path_of(sent.header("location").unwrap())), part).await
                }
                Storage::Here => sent,
            };
            assert_eq!((sent.status(), path_of(sent.header("location").unwrap())), (202, place.as_str()));
        }
        let finished = ask(&registry, &format!("PUT {place}?digest={digest}&etag=x-2"), b"").await;
        assert_eq!(finished.status(), 201);
        assert_eq!(registry.blob(&digest).unwrap(), bytes[..]);

        let weights = &release.weights().digest;
        let manifest = format!(r#"{{"config":{{"digest":"{digest}"}},"layers":[{{"digest":"{weights}"}}]}}"#);
        let put = "PUT /v2/me/mine/manifests/1b";
        assert_eq!(ask(&registry, put, manifest.as_bytes()).await.status(), 400, "it is not linked here yet");
        let mount = format!("POST /v2/me/mine/blobs/uploads/?from=library%2Ftiny&mount=sha256%3A{}", weights.hex());
        assert_eq!(ask(&registry, &mount, b"").await.status(), 201);
        assert_eq!(ask(&registry, put, manifest.as_bytes()).await.status(), 201);
        assert_eq!(registry.manifest("me/mine:1b").unwrap(), manifest);
        let pushed = registry.asked().pushed;
        assert_eq!((pushed.mounts, pushed.uploads, pushed.parts, pushed.manifests), (1, 1, 2, 1));
    }
}

#[tokio::test]
async fn an_upload_that_is_not_what_it_says_is_refused() {
    let (registry, _) = start(Storage::Here).await;
    let begun = ask(&registry, "POST /v2/me/mine/blobs/uploads/", b"").await;
    let place = path_of(begun.header("location").unwrap()).to_owned();
    assert_eq!(ask(&registry, &format!("PATCH {place}\ncontent-range: 0-0"), b"x").await.status(), 202);
    let other = Digest::of(b"y");
    assert_eq!(ask(&registry, &format!("PUT {place}?digest={other}&etag=x-1"), b"").await.status(), 400);
    assert_eq!(registry.blob(&other), None);
    registry.faults().next(1, Step::Push, Fault::Status { status: 500 });
    assert_eq!(ask(&registry, "POST /v2/me/mine/blobs/uploads/", b"").await.status(), 500);
    assert_eq!(ask(&registry, "PATCH /uploads/99\ncontent-range: 0-0", b"x").await.status(), 404);
}

#[tokio::test]
async fn faults_can_be_ordered_over_http_where_that_is_allowed() {
    let order = br#"{"at_step":"manifest","fault":"status","status":503,"next":1}"#;
    let (closed, _) = start(Storage::Here).await;
    assert_eq!(ask(&closed, "POST /__fault", order).await.status(), 405);
    let open = Registry::start(Config { control: true, ..Config::default() }).await.unwrap();
    open.publish("tiny", &Release::made(1, 0)).unwrap();
    assert_eq!(ask(&open, "POST /__fault", order).await.status(), 200);
    assert_eq!(ask(&open, "POST /__fault", b"{}").await.status(), 400);
    assert_eq!(ask(&open, "GET /v2/library/tiny/manifests/latest", b"").await.status(), 503);
    assert_eq!(ask(&open, "GET /v2/library/tiny/manifests/latest", b"").await.status(), 200);
}
