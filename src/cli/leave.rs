//! `omx leave`: this node goes for good.

use clap::Args;
use gateway::wire::Nothing;

use super::Session;
use super::confirm::confirm;
use crate::client::Method;
use crate::failure::Failure;

/// Take this node out of its mesh for good
///
/// It hands over what it leads and votes for, and its membership ends. Its key is barred: to come back, the machine needs
/// an empty data folder and a new token. To stop a node for a while, end `omx up` instead.
#[derive(Debug, Args)]
pub(super) struct Leave {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Leave {
    pub(super) async fn run(self, session: &Session) -> Result<String, Failure> {
        let client = session.client()?;
        confirm(self.yes, "This node leaves its mesh and cannot come back with this data folder.")?;
        let answer = client.send(Method::POST, "/omx/v1/leave", &Nothing {}).await?;
        session.out.answer(&answer, |_: Nothing| "this node is no member of the mesh any more\n".to_owned())
    }
}
