//! A node inside a program of your own: founds a mesh of one in a scratch folder, changes a setting, reads it back, and
//! shows who changed it.
//!
//! ```sh
//! cargo run --example settings
//! ```
//!
//! `Node` is what `omx up` runs, without HTTP: `Node::start` opens the folder and the sockets, `Node::api` is what the
//! gateway and the command line stand on. The same four calls work on any member of a larger mesh; there the write goes to
//! the leader, and has been synced by a majority of the voters when it returns.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use node::{Config, Consistency, EngineWanted, Node, OllamaWanted, Wanted};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    // Loopback and any free port: nobody else sees this node.
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = Config {
        data_dir: folder.path().join("node"),
        name: "embedded".parse()?,
        mesh: anywhere,
        bulk: anywhere,
        mdns: false,
        join: None,
        // It runs no models.
        backend: Wanted { ollama: OllamaWanted::None, engine: EngineWanted::Off, slots: None, program: None },
        ollama_models: None,
        up_limit: None,
        down_limit: None,
    };
    let node = Node::start(config, |progress| println!("{progress:?}")).await?;
    let api = node.api();

    // A mesh keeps who changed what; a program speaks for the user it runs as, here for one of that number.
    let somebody = api.user(1000);
    let written = api.set(somebody, "mesh.name", "a mesh of one".to_owned(), None).await?;
    // Not older than the write, whichever member is asked.
    let read = api.setting("mesh.name", Consistency::AtLeast(written.index)).await?;
    println!("{} is `{}` since change {}", read.key, read.value, read.index);
    for change in api.setting_history("mesh.name", Consistency::Local).await? {
        println!("{:>3}  {:?}  by {}", change.index, change.value, change.by);
    }

    node.stop(Duration::from_secs(5)).await;
    Ok(())
}
