//! `omx keys`: who may use the API from elsewhere.

use std::time::Duration;

use clap::Subcommand;
use gateway::wire::{CreateKey, Done, Key, NewKey};
use types::Scope;

use super::{Freshness, Session};
use crate::client::{Method, segment};
use crate::failure::Failure;
use crate::out::Out;
use crate::table::Table;
use crate::times::parse_duration;

const PATH: &str = "/omx/v1/keys";

/// Make and revoke API keys: create, ls, revoke
///
/// Callers on this machine need none; others do. A key holds at every node of the mesh.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  omx keys create chat --scope infer\n  \
    omx keys create grafana --scope read --ttl 90d\n  \
    curl -H \"authorization: Bearer $KEY\" http://tower:11435/omx/v1/status")]
pub(super) enum Keys {
    /// Make a key and print it, alone, on stdout; nothing shows it again
    Create {
        /// What people call it
        name: String,
        /// What it opens: `infer`, `read`, `models`, `admin`; `admin` includes the others
        #[arg(long, required = true, value_delimiter = ',', value_name = "SCOPE,…")]
        scope: Vec<Scope>,
        /// How long it is good for, such as 12h, 90d [default: until revoked]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        ttl: Option<Duration>,
    },
    /// List the keys, without their secrets
    Ls(Freshness),
    /// Make a key worthless on all nodes
    Revoke {
        /// As `omx keys ls` shows it
        id: String,
    },
}

impl Keys {
    pub(super) async fn run(self, session: &Session) -> Result<String, Failure> {
        let (client, out) = (session.client()?, &session.out);
        match self {
            Self::Create { name, scope, ttl } => {
                let body = CreateKey { name, scopes: scope, ttl_s: ttl.map(|ttl| ttl.as_secs()) };
                let answer = client.send(Method::POST, PATH, &body).await?;
                out.answer(&answer, |new: NewKey| format!("{}\n", new.key))
            }
            Self::Ls(freshness) => {
                let answer = client.get(&freshness.of(PATH)).await?;
                out.answer(&answer, |keys: Vec<Key>| list(&keys, out))
            }
            Self::Revoke { id } => {
                let answer = client.delete(&format!("{PATH}/{}", segment(&id))).await?;
                out.answer(&answer, |_: Done| format!("key `{id}` opens nothing any more\n"))
            }
        }
    }
}

fn list(keys: &[Key], out: &Out) -> String {
    let mut table = Table::new(["ID", "NAME", "SCOPES", "MADE", "EXPIRES"]);
    for key in keys {
        table.row([
            key.id.clone(),
            key.name.clone(),
            key.scopes.iter().map(Scope::to_string).collect::<Vec<_>>().join(","),
            out.ago(key.created_at.0),
            key.expires_at.map_or_else(|| "never".to_owned(), |time| out.ago(time.0)),
        ]);
    }
    table.render(out.width)
}

#[cfg(test)]
mod tests {
    use gateway::wire::Time;
    use types::UnixMillis;

    use super::*;

    #[test]
    fn a_list_says_what_each_key_opens_and_until_when() {
        let now = UnixMillis(1_800_000_000_000);
        let key = |name: &str, expires_at| Key {
            id: "0102030405ff".to_owned(),
            name: name.to_owned(),
            scopes: vec![Scope::Infer, Scope::Read],
            created_at: Time(now),
            expires_at,
        };
        let later = Time(now.after(Duration::from_secs(7_200)));
        let shown = list(&[key("chat", None), key("ci", Some(later))], &Out { json: false, width: None, now });
        assert!(shown.contains("0102030405ff  chat  infer,read  now   never\n"), "{shown}");
        assert!(shown.contains("0102030405ff  ci    infer,read  now   in 2 h\n"), "{shown}");
    }
}
