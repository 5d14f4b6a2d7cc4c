//! A crowd of clients that are silent, dribble or do not read: the limits close them all, and whoever asks properly
//! meanwhile is answered.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]
#![cfg(unix)]

#[path = "support/rig.rs"]
mod rig;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use gateway::Limits;
use rig::{ENDLESS, MODEL, PATIENCE, Rig, post, to_end};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const OF_EACH: usize = 40;
/// Of those whose answers fill buffers.
const DEAF: usize = 8;

#[derive(Debug, Clone, Copy)]
enum Manner {
    Silent,
    /// A header now and then, for ever.
    DribblesHead,
    /// As announced, byte by byte.
    DribblesBody,
    /// What it announced never comes.
    KeepsBody,
    /// Asks once, is answered, and stays.
    Stays,
    /// Asks for a long answer and reads no more than its beginning.
    Deaf,
}
use Manner::{Deaf, DribblesBody, DribblesHead, KeepsBody, Silent, Stays};

fn limits() -> Limits {
    let short = Duration::from_millis(500);
    // More than there are: it is the deadlines that close them.
    let many = 20 * OF_EACH;
    Limits { connections: many, connections_per_ip: many, head: short, idle: short, body: short, stalled: short }
}

/// One client, until the server has closed its connection.
async fn endure(rig: &Rig, manner: Manner) {
    let mut stream = rig.connect().await;
    let head = "POST /api/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n";
    match manner {
        Silent => assert_eq!(to_end(&mut stream).await, ""),
        DribblesHead => {
            let said = dribble(stream, head, "x: y\r\n").await;
            assert!(!said.contains("200 OK"), "{said}");
        }
        DribblesBody => {
            let said = dribble(stream, &format!("{head}\r\n"), " ").await;
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
        }
        KeepsBody => {
            stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
            let said = to_end(&mut stream).await;
            assert!(
                said.starts_with("HTTP/1.1 408") && said.contains(r#"{"error":"the body did not arrive"#),
                "{said}"
            );
        }
        Stays => {
            stream.write_all(b"GET /api/version HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
            let said = to_end(&mut stream).await;
            assert!(said.starts_with("HTTP/1.1 200") && !said.contains("connection: close"), "{said}");
        }
        Deaf => {
            let body = format!(r#"{{"model":"{ENDLESS}","prompt":"?","options":{{"num_ctx":20000}}}}"#);
            stream.write_all(post("/api/generate", &body).as_bytes()).await.unwrap();
            let mut some = [0; 1_000];
            stream.read_exact(&mut some).await.unwrap();
            // A client that does not read does not see the end: what it asked for is given up instead.
            rig.fake.until(|counts| counts.cancelled == DEAF as u64, PATIENCE).await.unwrap();
        }
    }
}

/// Says `start`, and then `more` again and again.
async fn dribble(stream: TcpStream, start: &str, more: &str) -> String {
    let (mut reading, mut writing) = stream.into_split();
    let closed = AtomicBool::new(false);
    let speaks = async {
        let _ = writing.write_all(start.as_bytes()).await;
        while !closed.load(Ordering::Relaxed) && writing.write_all(more.as_bytes()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let hears = async {
        let said = to_end(&mut reading).await;
        closed.store(true, Ordering::Relaxed);
        said
    };
    tokio::join!(speaks, hears).1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slow_are_closed_and_the_others_served_meanwhile() {
    let rig = Rig::new(limits()).await;
    let all_closed = AtomicBool::new(false);
    let slow = async {
        let manners = [Silent, DribblesHead, DribblesBody, KeepsBody, Stays].map(|manner| (manner, OF_EACH));
        let crowd = manners.into_iter().chain([(Deaf, DEAF)]);
        let crowd = crowd.flat_map(|(manner, count)| std::iter::repeat_n(manner, count));
        let ended = join_all(crowd.map(|manner| endure(&rig, manner)));
        tokio::time::timeout(PATIENCE, ended).await.expect("the limits close everybody");
        all_closed.store(true, Ordering::Relaxed);
    };
    let served = async {
        let mut served = 0;
        while !all_closed.load(Ordering::Relaxed) {
            assert!(rig.is_well().await, "after {served} good answers");
            served += 1;
        }
        served
    };
    let ((), served) = tokio::join!(slow, served);
    eprintln!("{served} requests for `{MODEL}` were answered while {} clients were slow", 5 * OF_EACH + DEAF);
    assert!(served > 1);
    // Nobody is left behind, neither here nor at the backend.
    rig.fake.until(|counts| counts.running == 0 && counts.waiting == 0, PATIENCE).await.unwrap();
    rig.is_alone().await;
}
