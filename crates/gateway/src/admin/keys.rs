//! API keys. The text of one is in the answer that makes it and nowhere else.

use std::time::Duration;

use node::KeyLimits;

use crate::failure::Failure;
use crate::route::Ask;
use crate::wire;

pub(crate) async fn list(ask: Ask<wire::Freshness>) -> Result<Vec<wire::Key>, Failure> {
    let keys = ask.api().keys(ask.consistency()?).await?;
    let shown = |key: node::KeyInfo| wire::Key {
        id: key.id.to_string(),
        name: key.name,
        scopes: key.scopes.into(),
        created_at: wire::Time(key.created_at),
        expires_at: key.expires_at.map(wire::Time),
        concurrent: key.limits.concurrent,
        per_minute: key.limits.per_minute,
    };
    Ok(keys.into_iter().map(shown).collect())
}

pub(crate) async fn create(ask: Ask<wire::CreateKey>) -> Result<wire::NewKey, Failure> {
    let wire::CreateKey { name, scopes, ttl_s, concurrent, per_minute } = ask.input.clone();
    if ttl_s == Some(0) {
        return Err(Failure::bad_request("`ttl_s` is at least 1"));
    }
    let ttl = ttl_s.map(Duration::from_secs);
    let limits = KeyLimits { concurrent, per_minute };
    let key = ask.api().create_key(ask.actor()?, name, scopes.into(), ttl, limits).await?;
    Ok(wire::NewKey { id: key.id.to_string(), key: key.text.expose().clone() })
}

pub(crate) async fn revoke(ask: Ask<wire::Nothing>) -> Result<wire::Done, Failure> {
    let id = ask.part("id").parse().map_err(node::Error::from)?;
    Ok(wire::Done { index: ask.api().revoke_key(ask.actor()?, id).await? })
}
