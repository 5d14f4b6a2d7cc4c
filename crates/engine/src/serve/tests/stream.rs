//! Streams while they run: what has come is told at once, and who goes away takes the request along.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use serde_json::json;

use super::rig::{Rig, done, text, within};
use crate::runner::Ended;
use crate::serve::SECRET_HEADER;

async fn next_line(body: &mut hyper::body::Incoming) -> Option<String> {
    let frame = within(body.frame()).await?.unwrap();
    Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
}

#[tokio::test]
async fn each_piece_is_told_before_the_next_is_there() {
    let rig = Rig::new().await;
    rig.script.says([text("one")]);
    let (response, _connection) = rig.start("/api/generate", &json!({ "model": "tiny", "prompt": "Hi" })).await;
    let mut body = response.into_body();
    assert!(next_line(&mut body).await.unwrap().contains(r#""response":"one""#));
    let model = rig.script.open();
    model.send(text("two")).await.unwrap();
    assert!(next_line(&mut body).await.unwrap().contains(r#""response":"two""#));
    model.send(done(Ended::Stop)).await.unwrap();
    assert!(next_line(&mut body).await.unwrap().contains(r#""done":true"#));
    assert_eq!(next_line(&mut body).await, None);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_request() {
    let rig = Rig::new().await;
    for streams in [true, false] {
        rig.script.says([text("one")]);
        let request = json!({ "model": "tiny", "prompt": "Hi", "stream": streams });
        if streams {
            let (response, connection) = rig.start("/api/generate", &request).await;
            let mut body = response.into_body();
            assert!(next_line(&mut body).await.unwrap().contains("one"));
            drop((body, connection));
        } else {
            // No byte of the answer has come when this one goes.
            let (mut sender, connection) = rig.connect().await;
            let before = rig.script.jobs().len();
            let builder = Request::builder().method("POST").uri("/api/generate").header("host", "engine");
            let asked = builder.header(SECRET_HEADER, rig.secret()).body(Full::new(Bytes::from(request.to_string())));
            let answer = sender.send_request(asked.unwrap());
            let is_running = async {
                while rig.script.jobs().len() == before {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                answer = answer => panic!("{answer:?}"),
                () = within(is_running) => {}
            }
            drop((sender, connection));
        }
        within(rig.script.open().closed()).await;
    }
}

#[tokio::test]
async fn a_shutdown_lets_streams_finish_and_takes_nothing_new() {
    let mut rig = Rig::new().await;
    rig.script.says([text("one")]);
    let (response, connection) = rig.start("/api/generate", &json!({ "model": "tiny", "prompt": "Hi" })).await;
    let mut body = response.into_body();
    next_line(&mut body).await.unwrap();
    rig.shutdown.cancel();
    let refused = async {
        while tokio::net::TcpStream::connect(rig.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    within(refused).await;
    rig.script.open().send(done(Ended::Stop)).await.unwrap();
    assert!(next_line(&mut body).await.unwrap().contains(r#""done":true"#));
    assert_eq!(next_line(&mut body).await, None);
    drop(connection);
    // The server, and the library that nobody asks any more.
    for _ in 0..2 {
        within(rig.tasks.join_next()).await.unwrap().unwrap();
    }
}
