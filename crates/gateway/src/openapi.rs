//! The description of the API for programs, made from the routes themselves.

use std::sync::LazyLock;

use axum::Json;
use axum::response::{IntoResponse, Response};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::access::Need;
use crate::failure::Failure;
use crate::route::{Answers, Ask, Route};
use crate::{table, wire};

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| document(&table::routes()));

pub(crate) async fn serve(_: Ask<wire::Nothing>) -> Result<Response, Failure> {
    Ok(Json(&*DOCUMENT).into_response())
}

fn document(routes: &[Route]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes {
        let described = operation(route, &mut generator);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = described;
    }
    // Last: it takes what the routes above have mentioned.
    let failed = generator.subschema_for::<wire::Failed>();
    json!({
        "openapi": "3.1.0",
        "info": { "title": "OllamaMax admin API", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": {
                "Failed": { "description": "Not done", "content": { "application/json": { "schema": failed } } }
            },
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "omx_…" },
                "key": { "type": "apiKey", "in": "header", "name": "x-api-key" },
            },
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = route
        .path_parts()
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    if let Some(query) = route.query {
        parameters.extend(query_parameters(&resolved(generator, query)));
    }
    let answer = match route.answer {
        Answers::Json(shape) => json!({ "application/json": { "schema": shape(generator) } }),
        Answers::Other(media_type) => json!({ media_type: {} }),
    };
    let mut described = json!({
        "summary": route.about,
        "parameters": parameters,
        "responses": {
            route.success.as_str(): { "description": "Done", "content": answer },
            "default": { "$ref": "#/components/responses/Failed" },
        },
        "security": security(route.need),
        "x-omx-needs": needs(route.need),
        "x-omx-deadline-s": route.deadline.as_secs(),
        "x-omx-body-bytes-max": route.body_max,
    });
    if let Some(body) = route.body {
        described["requestBody"] = json!({ "content": { "application/json": { "schema": body(generator) } } });
    }
    described
}

/// A query's type itself, not a reference to it: its fields are parameters of their own.
fn resolved(generator: &SchemaGenerator, shape: crate::route::Shape) -> Value {
    let settings = generator.settings().clone().with(|settings| settings.inline_subschemas = true);
    shape(&mut settings.into_generator()).to_value()
}

fn query_parameters(schema: &Value) -> impl Iterator<Item = Value> + '_ {
    let fields = schema["properties"].as_object().into_iter().flatten();
    fields.map(|(name, schema)| json!({ "name": name, "in": "query", "required": false, "schema": schema }))
}

fn needs(need: Need) -> String {
    match need {
        Need::Nothing => "nothing".to_owned(),
        Need::Scope(scope) => scope.to_string(),
        Need::Machine => "the local socket".to_owned(),
    }
}

fn security(need: Need) -> Value {
    match need {
        Need::Nothing | Need::Machine => json!([]),
        Need::Scope(_) => json!([{ "bearer": [] }, { "key": [] }]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every `$ref` below a value.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_described_and_nothing_else_is() {
        let document = document(&table::routes());
        let paths = document["paths"].as_object().unwrap();
        let described: BTreeSet<_> = paths
            .iter()
            .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |m| format!("{m} {path}")))
            .collect();
        let routes = table::routes();
        let served = routes.iter().map(|route| format!("{} {}", route.method.as_str().to_lowercase(), route.path));
        assert_eq!(described, served.collect());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document(&table::routes());
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.contains("#/components/schemas/Status"), "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn the_parameters_of_a_question_are_its_types_fields() {
        let document = document(&table::routes());
        let parameters = document["paths"]["/omx/v1/config/{key}"]["get"]["parameters"].as_array().unwrap();
        let names: Vec<_> = parameters.iter().map(|parameter| parameter["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["key", "consistency", "at_least"]);
    }
}
