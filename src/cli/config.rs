//! `omx config`: the mesh's settings in the registry, and what this machine is set to.

use clap::Subcommand;
use gateway::wire::{Change, RollBack, SetValue, Setting};

use super::{Freshness, Session};
use crate::client::{Method, segment};
use crate::failure::Failure;
use crate::out::Out;
use crate::settings::{File, Key, Origin, Settings};
use crate::table::{Table, facts};

const PATH: &str = "/omx/v1/config";

/// See and change settings: ls, get, set, reset, history, rollback; show
///
/// Settings of the mesh are the same at every node, and every change can be taken back. What concerns one machine alone
/// (addresses, its name) comes from flags, OMX_* and `omx.toml` in its data folder: `omx config show`.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  omx config set voters.max 3\n  omx config history voters.max\n  \
    omx config rollback voters.max --to 17\n  omx config show --origin")]
pub(super) enum Config {
    /// List the mesh's settings, their values and what they do
    Ls(Freshness),
    /// Print the value of one setting
    Get {
        key: String,
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Change a setting on all nodes
    Set {
        key: String,
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// Only if its last change has this index (0: never changed), so that no other change is lost
        #[arg(long, value_name = "INDEX")]
        if_index: Option<u64>,
    },
    /// Return a setting to its default
    Reset { key: String },
    /// List the changes of a setting, oldest first
    History {
        key: String,
        #[command(flatten)]
        freshness: Freshness,
    },
    /// Make an earlier value of a setting hold again
    Rollback {
        key: String,
        /// Index of the change, as `omx config history` shows it; 0 for the default
        #[arg(long, value_name = "INDEX")]
        to: u64,
    },
    /// Show what `omx up` would use on this machine
    Show {
        /// Say for each value where it comes from
        #[arg(long)]
        origin: bool,
    },
}

impl Config {
    pub(super) async fn run(self, session: &Session) -> Result<String, Failure> {
        // Where no node runs, `show` works all the same.
        let (client, out) = (|| session.client(), &session.out);
        let path = |key: &str| format!("{PATH}/{}", segment(key));
        match self {
            Self::Ls(freshness) => {
                let answer = client()?.get(&freshness.of(PATH)).await?;
                out.answer(&answer, |settings: Vec<Setting>| list(&settings, out))
            }
            Self::Get { key, freshness } => {
                let answer = client()?.get(&freshness.of(&path(&key))).await?;
                out.answer(&answer, |setting: Setting| format!("{}\n", setting.value))
            }
            Self::Set { key, value, if_index } => {
                let body = SetValue { value, expect: if_index };
                let answer = client()?.send(Method::PUT, &path(&key), &body).await?;
                out.answer(&answer, |setting: Setting| changed(&setting))
            }
            Self::Reset { key } => {
                let answer = client()?.delete(&path(&key)).await?;
                out.answer(&answer, |setting: Setting| changed(&setting))
            }
            Self::History { key, freshness } => {
                let answer = client()?.get(&freshness.of(&format!("{}/history", path(&key)))).await?;
                out.answer(&answer, |changes: Vec<Change>| history(&changes, out))
            }
            Self::Rollback { key, to } => {
                let answer =
                    client()?.send(Method::POST, &format!("{}/rollback", path(&key)), &RollBack { to }).await?;
                out.answer(&answer, |setting: Setting| changed(&setting))
            }
            Self::Show { origin } => show(session, origin),
        }
    }
}

fn changed(setting: &Setting) -> String {
    format!("`{}` is `{}` (index {})\n", setting.key, setting.value, setting.index)
}

fn list(settings: &[Setting], out: &Out) -> String {
    let mut table = Table::new(["KEY", "VALUE", "DEFAULT", "INDEX", "WHAT IT IS"]);
    for setting in settings {
        let Setting { key, value, default, about, index } = setting.clone();
        table.row([key, value, default, index.to_string(), about]);
    }
    table.render(out.width)
}

fn history(changes: &[Change], out: &Out) -> String {
    let mut table = Table::new(["INDEX", "WHEN", "BY", "VALUE"]);
    for change in changes {
        let value = change.value.clone().unwrap_or_else(|| "(default)".to_owned());
        table.row([change.index.to_string(), out.ago(change.at.0), change.by.clone(), value]);
    }
    table.render(out.width)
}

fn show(session: &Session, origin: bool) -> Result<String, Failure> {
    let file = File::read(&session.folder.join("omx.toml"))?;
    let settings = Settings::resolve(&[], |name| std::env::var(name).ok(), &file)?;
    let rows = settings.rows();
    if session.out.json {
        let entry = |(key, value, origin): (Key, String, Origin)| serde_json::json!({ "key": key.name(), "value": value, "origin": origin.of(key) });
        return Ok(format!("{}\n", serde_json::Value::from_iter(rows.map(entry))));
    }
    if !origin {
        return Ok(facts(&rows.map(|(key, value, _)| (key.name(), value))));
    }
    let mut table = Table::new(["KEY", "VALUE", "FROM"]);
    for (key, value, origin) in rows {
        table.row([key.name().to_owned(), value, origin.of(key)]);
    }
    Ok(table.render(session.out.width))
}

#[cfg(test)]
mod tests {
    use gateway::wire::Time;
    use types::UnixMillis;

    use super::*;

    #[test]
    fn a_history_shows_what_can_be_rolled_back_to() {
        let now = UnixMillis(1_800_000_000_000);
        let change = |index, value: Option<&str>| Change {
            index,
            at: Time(UnixMillis(now.0 - 60_000)),
            by: "user 1000 at tower".to_owned(),
            value: value.map(str::to_owned),
        };
        let shown = history(&[change(17, Some("3")), change(21, None)], &Out { json: false, width: None, now });
        let expected = "INDEX  WHEN       BY                  VALUE\n\
                        17     1 min ago  user 1000 at tower  3\n\
                        21     1 min ago  user 1000 at tower  (default)\n";
        assert_eq!(shown, expected);
    }
}
