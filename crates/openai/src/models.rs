//! `/v1/models` and `/v1/models/{model}`, by `/api/tags` and `/api/show`.

use ollama::ModelName;
use ollama::wire::encode;
use serde::{Deserialize, Serialize};

use crate::{Error, written};

#[derive(Deserialize)]
struct Tags {
    models: Vec<Listed>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Listed {
    name: String,
    model: String,
    modified_at: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Shown {
    modified_at: String,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    /// `null` where there is none.
    data: Option<Vec<Model<'a>>>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    owned_by: String,
}

/// Retells the answer of `/api/tags`.
pub fn list(tags: &[u8]) -> Result<Vec<u8>, Error> {
    let tags: Tags = serde_json::from_slice(tags).map_err(Error::Answer)?;
    let data: Vec<_> = tags.models.iter().map(|listed| Model::new(listed.id(), &listed.modified_at)).collect();
    Ok(written(&List { object: "list", data: (!data.is_empty()).then_some(data) }))
}

/// What to ask `/api/show` for one model.
pub fn show(model: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Native<'a> {
        model: &'a str,
    }
    encode(&Native { model })
}

/// Retells the answer of `/api/show`, under the name it was asked by.
pub fn one(shown: &[u8], model: &str) -> Result<Vec<u8>, Error> {
    let shown: Shown = serde_json::from_slice(shown).map_err(Error::Answer)?;
    Ok(written(&Model::new(model, &shown.modified_at)))
}

impl Listed {
    fn id(&self) -> &str {
        if self.model.is_empty() { &self.name } else { &self.model }
    }
}

impl<'a> Model<'a> {
    fn new(id: &'a str, modified_at: &str) -> Self {
        // A model whose age nobody can read is there all the same.
        let created = modified_at.parse().map_or(0, |moment: jiff::Timestamp| moment.as_second());
        let owned_by = id.parse().map_or_else(|_| "library".to_owned(), |name: ModelName| name.parts()[1].to_owned());
        Self { id, object: "model", created, owned_by }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(told: Result<Vec<u8>, Error>) -> String {
        String::from_utf8(told.unwrap()).unwrap()
    }

    #[test]
    fn each_model_is_listed_with_its_age_and_owner() {
        let tags = br#"{"models":[
            {"name":"a:latest","model":"a:latest","modified_at":"2023-11-14T23:13:20.123456789+01:00","size":7},
            {"name":"bob/b:1b","model":"","modified_at":"2023-11-14T22:13:21Z"},
            {"name":"?","model":"?"}
        ]}"#;
        let expected = concat!(
            r#"{"object":"list","data":["#,
            r#"{"id":"a:latest","object":"model","created":1700000000,"owned_by":"library"},"#,
            r#"{"id":"bob/b:1b","object":"model","created":1700000001,"owned_by":"bob"},"#,
            r#"{"id":"?","object":"model","created":0,"owned_by":"library"}]}"#,
            "\n",
        );
        assert_eq!(text(list(tags)), expected);
    }

    #[test]
    fn no_models_are_null_as_ollama_has_it() {
        assert_eq!(text(list(br#"{"models":[]}"#)), "{\"object\":\"list\",\"data\":null}\n");
        assert!(list(b"{}").is_err() && list(b"").is_err() && list(b"[]").is_err());
    }

    #[test]
    fn one_model_has_the_name_it_was_asked_by() {
        assert_eq!(show("bob/B"), br#"{"model":"bob/B"}"#);
        let expected = "{\"id\":\"bob/B\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"bob\"}\n";
        assert_eq!(text(one(br#"{"details":{},"modified_at":"2023-11-14T22:13:20Z"}"#, "bob/B")), expected);
        assert!(one(b"x", "m").is_err());
    }
}
