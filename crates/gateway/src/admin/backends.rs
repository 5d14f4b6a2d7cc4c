//! Enrolled backends: Ollamas on machines without a node.

use types::NodeName;

use crate::failure::Failure;
use crate::route::Ask;
use crate::wire;

pub(crate) async fn list(ask: Ask<wire::Freshness>) -> Result<Vec<wire::EnrolledBackend>, Failure> {
    let backends = ask.api().enrolled_backends(ask.consistency()?).await?;
    Ok(backends.into_iter().map(wire::EnrolledBackend::from).collect())
}

pub(crate) async fn enroll(ask: Ask<wire::EnrollBackend>) -> Result<wire::EnrolledBackend, Failure> {
    let wire::EnrollBackend { name, url, node } = ask.input.clone();
    let at = url.parse().map_err(|error: node::ParseEndpointError| Failure::bad_request(error.to_string()))?;
    Ok(ask.api().enroll_backend(ask.actor()?, name, &at, node.as_deref()).await?.into())
}

pub(crate) async fn remove(ask: Ask<wire::Nothing>) -> Result<wire::Done, Failure> {
    let name: NodeName =
        ask.part("name").parse().map_err(|error: types::ParseNameError| Failure::bad_request(error.to_string()))?;
    Ok(wire::Done { index: ask.api().remove_backend(ask.actor()?, name).await? })
}

impl From<node::EnrolledInfo> for wire::EnrolledBackend {
    fn from(backend: node::EnrolledInfo) -> Self {
        let node::EnrolledInfo { name, url, node, host, enrolled_at } = backend;
        let standing = |node::Standing { id, name }| wire::Standing { id, name };
        let (node, host) = (node.map(standing), host.map(standing));
        Self { name, url, node, host, enrolled_at: wire::Time(enrolled_at) }
    }
}
