//! Clients that leave, of a node that had their requests run by another one.
#![cfg(target_os = "linux")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testnet::{Node, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::{LIMIT, MODEL, Mesh, client, fake};

const CANCELS: usize = 1_000;
const AT_ONCE: usize = 20;

/// A request for a long answer, of which the connection is the client.
async fn ask(api: SocketAddr) -> Result<TcpStream> {
    let mut connection = TcpStream::connect(api).await?;
    let body = format!(r#"{{"model":"{MODEL}","prompt":"a story","options":{{"num_predict":5000}}}}"#);
    let head = format!("POST /api/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all((head + &body).as_bytes()).await?;
    Ok(connection)
}

#[test]
fn clients_that_leave_stop_what_runs_for_them_elsewhere_and_leave_nothing_behind() -> Result<()> {
    let mesh = Mesh::before(vec![fake(4, 200.0, Duration::ZERO)])?;
    let (api, backend) = (mesh.entry().run()?.api, &mesh.fakes[0]);
    mesh.runtime.block_on(async {
        let mut client = ask(api).await?;
        ensure!(client.read(&mut [0; 64]).await? > 0);
        drop(client);
        backend.until(|counts| counts.cancelled == 1 && counts.running == 0, Duration::from_secs(1)).await?;
        Ok(())
    })?;

    let nodes = mesh.testnet.nodes();
    let before: Vec<usize> = nodes.iter().map(descriptors).collect::<Result<_>>()?;
    mesh.runtime.block_on(async {
        for round in 0..CANCELS / AT_ONCE {
            let clients = (0..AT_ONCE).map(|number| async move {
                let mut client = ask(api).await?;
                // Each second one stays until its answer has begun.
                if (round + number).is_multiple_of(2) {
                    ensure!(client.read(&mut [0; 300]).await? > 0, "an answer without a byte");
                }
                anyhow::Ok(())
            });
            let clients: JoinSet<anyhow::Result<()>> = clients.collect();
            clients.join_all().await.into_iter().collect::<Result<()>>()?;
        }
        anyhow::Ok(())
    })?;
    wait_until("nothing to be left over", LIMIT, || {
        let counts = backend.counts();
        ensure!(counts.running == 0 && counts.waiting == 0, "{counts:?}");
        for node in nodes {
            let page = mesh.runtime.block_on(client::get(node.run()?.api, "/metrics"))?;
            for name in ["omx_infer_under_way", "omx_queue_running", "omx_queue_waiting"] {
                let line = page.lines().find(|line| line.starts_with(name)).context("the figure is there")?;
                ensure!(line.ends_with(" 0"), "{}: {line}", node.name());
            }
        }
        for (node, before) in nodes.iter().zip(&before) {
            let now = descriptors(node)?;
            // Connections that are kept for the next request.
            ensure!(now <= before + 40, "{} had {before} descriptors, has {now}", node.name());
        }
        Ok(())
    })?;
    ensure!(backend.counts().cancelled > CANCELS as u64 / 4, "{:?}", backend.counts());
    Ok(())
}

fn descriptors(node: &Node) -> Result<usize> {
    let pid = node.pid().context("it runs")?;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
