//! Settings of the whole mesh.

use crate::failure::Failure;
use crate::route::Ask;
use crate::wire;

pub(crate) async fn list(ask: Ask<wire::Freshness>) -> Result<Vec<wire::Setting>, Failure> {
    let settings = ask.api().settings(ask.consistency()?).await?;
    Ok(settings.into_iter().map(wire::Setting::from).collect())
}

pub(crate) async fn get(ask: Ask<wire::Freshness>) -> Result<wire::Setting, Failure> {
    Ok(ask.api().setting(ask.part("key"), ask.consistency()?).await?.into())
}

pub(crate) async fn set(ask: Ask<wire::SetValue>) -> Result<wire::Setting, Failure> {
    let wire::SetValue { value, expect } = ask.input.clone();
    Ok(ask.api().set(ask.actor()?, ask.part("key"), value, expect).await?.into())
}

pub(crate) async fn reset(ask: Ask<wire::Nothing>) -> Result<wire::Setting, Failure> {
    Ok(ask.api().reset(ask.actor()?, ask.part("key")).await?.into())
}

pub(crate) async fn history(ask: Ask<wire::Freshness>) -> Result<Vec<wire::Change>, Failure> {
    let changes = ask.api().setting_history(ask.part("key"), ask.consistency()?).await?;
    let shown = |change: node::Change| wire::Change {
        index: change.index,
        at: wire::Time(change.at),
        by: change.by.to_string(),
        value: change.value,
    };
    Ok(changes.into_iter().map(shown).collect())
}

pub(crate) async fn roll_back(ask: Ask<wire::RollBack>) -> Result<wire::Setting, Failure> {
    Ok(ask.api().roll_back(ask.actor()?, ask.part("key"), ask.input.to).await?.into())
}

impl From<node::SettingInfo> for wire::Setting {
    fn from(setting: node::SettingInfo) -> Self {
        let node::SettingInfo { key, value, default, about, index } = setting;
        Self { key, value, default, about, index }
    }
}
