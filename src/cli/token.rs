//! `omx token`: who may join.

use std::time::Duration;

use clap::Subcommand;
use gateway::wire::{self, CreateToken, Done, NewToken};
use types::Role;

use super::{Freshness, Session};
use crate::client::{Method, segment};
use crate::failure::Failure;
use crate::out::Out;
use crate::table::Table;
use crate::times::parse_duration;

const PATH: &str = "/omx/v1/tokens";

/// Make and revoke the tokens with which machines join: create, ls, revoke
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  omx token create                         one machine, within an hour\n  \
    omx token create --uses 5 --ttl 1d       five machines, within a day\n  \
    omx token create --role worker           a machine that serves and never votes\n  \
    ssh attic omx up --join \"$(omx token create)\"")]
pub(super) enum Token {
    /// Make a token and print it, alone, on stdout; nothing shows it again
    Create {
        /// What the new member may do: `node` may vote and take commands, `worker` only serves
        #[arg(long, value_name = "node|worker")]
        role: Option<Role>,
        /// How many machines may join with it [default: 1]
        #[arg(long, value_name = "N")]
        uses: Option<u32>,
        /// How long it is good for, such as 30m, 12h, 7d [default: 1h]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        ttl: Option<Duration>,
    },
    /// List the tokens that still open the door
    Ls(Freshness),
    /// Make a token worthless
    Revoke {
        /// As `omx token ls` shows it, or its beginning
        id: String,
    },
}

impl Token {
    pub(super) async fn run(self, session: &Session) -> Result<String, Failure> {
        let (client, out) = (session.client()?, &session.out);
        match self {
            Self::Create { role, uses, ttl } => {
                let body = CreateToken { role, uses, ttl_s: ttl.map(|ttl| ttl.as_secs()) };
                let answer = client.send(Method::POST, PATH, &body).await?;
                out.answer(&answer, |new: NewToken| format!("{}\n", new.token))
            }
            Self::Ls(freshness) => {
                let answer = client.get(&freshness.of(PATH)).await?;
                out.answer(&answer, |tokens: Vec<wire::Token>| list(&tokens, out))
            }
            Self::Revoke { id } => {
                let answer = client.delete(&format!("{PATH}/{}", segment(&id))).await?;
                out.answer(&answer, |_: Done| format!("token `{id}` opens nothing any more\n"))
            }
        }
    }
}

fn list(tokens: &[wire::Token], out: &Out) -> String {
    let mut table = Table::new(["ID", "ROLE", "USES LEFT", "MADE", "EXPIRES"]);
    for token in tokens {
        table.row([
            token.id.clone(),
            token.role.to_string(),
            token.uses_left.to_string(),
            out.ago(token.created_at.0),
            out.ago(token.expires_at.0),
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
    fn a_list_says_how_long_each_token_is_good_for() {
        let now = UnixMillis(1_800_000_000_000);
        let token = wire::Token {
            id: "a1b2c3d4e5f6".to_owned(),
            role: Role::Node,
            uses_left: 2,
            created_at: Time(UnixMillis(now.0 - 600_000)),
            expires_at: Time(now.after(Duration::from_secs(3_000))),
        };
        let shown = list(&[token], &Out { json: false, width: None, now });
        let row = "a1b2c3d4e5f6  node  2          10 min ago  in 50 min";
        assert_eq!(shown.lines().nth(1), Some(row), "{shown}");
    }
}
