//! `omx keys`: who may use the API from elsewhere.

use std::num::NonZeroU32;
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
    omx keys create ci --scope infer --concurrent 2 --per-minute 60\n  \
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
        /// Requests to models it may have under way at once, at each node [default: no limit of its own]
        #[arg(long, value_name = "N")]
        concurrent: Option<NonZeroU32>,
        /// Requests to models it may start within a minute, at each node [default: no limit of its own]
        #[arg(long, value_name = "N")]
        per_minute: Option<NonZeroU32>,
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
            Self::Create { name, scope, ttl, concurrent, per_minute } => {
                let ttl_s = ttl.map(|ttl| ttl.as_secs());
                let body = CreateKey { name, scopes: scope, ttl_s, concurrent, per_minute };
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
    let mut table = Table::new(["ID", "NAME", "SCOPES", "LIMITS", "MADE", "EXPIRES"]);
    for key in keys {
        table.row([
            key.id.clone(),
            key.name.clone(),
            key.scopes.iter().map(Scope::to_string).collect::<Vec<_>>().join(","),
            limits(key),
            out.ago(key.created_at.0),
            key.expires_at.map_or_else(|| "never".to_owned(), |time| out.ago(time.0)),
        ]);
    }
    table.render(out.width)
}

fn limits(key: &Key) -> String {
    let at_once = key.concurrent.map(|most| format!("{most} at once"));
    let per_minute = key.per_minute.map(|most| format!("{most}/min"));
    at_once.into_iter().chain(per_minute).collect::<Vec<_>>().join(", ")
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
            concurrent: None,
            per_minute: None,
        };
        let later = Time(now.after(Duration::from_secs(7_200)));
        let limited = Key { concurrent: NonZeroU32::new(2), per_minute: NonZeroU32::new(60), ..key("app", None) };
        let shown = list(&[key("chat", None), key("ci", Some(later)), limited], &Out { json: false, width: None, now });
        assert!(shown.contains("0102030405ff  chat  infer,read  -                  now   never\n"), "{shown}");
        assert!(shown.contains("0102030405ff  ci    infer,read  -                  now   in 2 h\n"), "{shown}");
        assert!(shown.contains("0102030405ff  app   infer,read  2 at once, 60/min  now   never\n"), "{shown}");
    }
}
