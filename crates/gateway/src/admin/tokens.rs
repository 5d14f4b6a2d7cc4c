//! Join tokens. The text of one is in the answer that makes it and nowhere else.

use std::time::Duration;

use types::Role;

use crate::failure::Failure;
use crate::route::Ask;
use crate::wire;

const TTL_S_DEFAULT: u64 = 60 * 60;
const TTL_S_MAX: u64 = 30 * 24 * 60 * 60;

pub(crate) async fn list(ask: Ask<wire::Freshness>) -> Result<Vec<wire::Token>, Failure> {
    let tokens = ask.api().tokens(ask.consistency()?).await?;
    let shown = |token: node::TokenInfo| wire::Token {
        id: token.id.to_string(),
        role: token.role,
        uses_left: token.uses_left,
        created_at: wire::Time(token.created_at),
        expires_at: wire::Time(token.expires_at),
    };
    Ok(tokens.into_iter().map(shown).collect())
}

pub(crate) async fn create(ask: Ask<wire::CreateToken>) -> Result<wire::NewToken, Failure> {
    let wire::CreateToken { role, uses, ttl_s } = ask.input;
    let (role, uses, ttl_s) = (role.unwrap_or(Role::Node), uses.unwrap_or(1), ttl_s.unwrap_or(TTL_S_DEFAULT));
    if !(1..=TTL_S_MAX).contains(&ttl_s) {
        return Err(Failure::bad_request(format!("`ttl_s` is from 1 to {TTL_S_MAX}")));
    }
    let token = ask.api().create_token(ask.actor()?, role, uses, Duration::from_secs(ttl_s)).await?;
    Ok(wire::NewToken { id: token.id().to_string(), token: token.reveal(), role, uses, ttl_s })
}

pub(crate) async fn revoke(ask: Ask<wire::Nothing>) -> Result<wire::Done, Failure> {
    let id = ask.part("id").parse().map_err(node::Error::from)?;
    Ok(wire::Done { index: ask.api().revoke_token(ask.actor()?, &id).await? })
}
