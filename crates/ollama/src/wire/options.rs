//! The `options` of a request, and of a model's own parameters. Unknown ones are passed over; of known ones the type
//! is checked, in Ollama's words.

use serde_json::{Map, Value};

/// `None` leaves the default, which is the engine's to know.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    // what takes a reload to change
    pub num_ctx: Option<i64>,
    pub num_batch: Option<i64>,
    pub num_gpu: Option<i64>,
    pub main_gpu: Option<i64>,
    pub use_mmap: Option<bool>,
    pub num_thread: Option<i64>,
    // per request
    pub num_keep: Option<i64>,
    pub seed: Option<i64>,
    pub num_predict: Option<i64>,
    pub top_k: Option<i64>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repeat_last_n: Option<i64>,
    pub temperature: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub stop: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("option {name:?} must be of {due}")]
pub struct InvalidOption {
    name: String,
    due: &'static str,
}

impl Options {
    /// Later layers win, name by name; `null` says nothing.
    pub fn read<'a>(layers: impl IntoIterator<Item = &'a Map<String, Value>>) -> Result<Self, InvalidOption> {
        let mut options = Self::default();
        for (name, value) in layers.into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            options.set(name, value).map_err(|due| InvalidOption { name: name.clone(), due })?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<(), &'static str> {
        match name {
            "num_ctx" => self.num_ctx = Some(integer(value)?),
            "num_batch" => self.num_batch = Some(integer(value)?),
            "num_gpu" => self.num_gpu = Some(integer(value)?),
            "main_gpu" => self.main_gpu = Some(integer(value)?),
            "use_mmap" => self.use_mmap = Some(value.as_bool().ok_or("type boolean")?),
            "num_thread" => self.num_thread = Some(integer(value)?),
            "num_keep" => self.num_keep = Some(integer(value)?),
            "seed" => self.seed = Some(integer(value)?),
            "num_predict" => self.num_predict = Some(integer(value)?),
            "top_k" => self.top_k = Some(integer(value)?),
            "top_p" => self.top_p = Some(float(value)?),
            "min_p" => self.min_p = Some(float(value)?),
            "typical_p" => self.typical_p = Some(float(value)?),
            "repeat_last_n" => self.repeat_last_n = Some(integer(value)?),
            "temperature" => self.temperature = Some(float(value)?),
            "repeat_penalty" => self.repeat_penalty = Some(float(value)?),
            "presence_penalty" => self.presence_penalty = Some(float(value)?),
            "frequency_penalty" => self.frequency_penalty = Some(float(value)?),
            "stop" => self.stop = Some(texts(value)?),
            _ => {}
        }
        Ok(())
    }
}

/// Fractions are cut off, as Go does.
fn integer(value: &Value) -> Result<i64, &'static str> {
    let whole = || value.as_i64().or_else(|| value.as_f64().map(|number| number as i64));
    whole().ok_or("type integer")
}

fn float(value: &Value) -> Result<f32, &'static str> {
    value.as_f64().map(|number| number as f32).ok_or("type float32")
}

fn texts(value: &Value) -> Result<Vec<String>, &'static str> {
    let items = value.as_array().ok_or("type array")?;
    let text = |item: &Value| item.as_str().map(str::to_owned).ok_or("an array of strings");
    items.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(layers: &[Value]) -> Result<Options, String> {
        let layers = layers.iter().map(|layer| layer.as_object().unwrap());
        Options::read(layers).map_err(|error| error.to_string())
    }

    #[test]
    fn the_request_wins_over_the_model_and_nothing_over_neither() {
        let model = json!({ "temperature": 0.5, "stop": ["a"], "num_ctx": 8 });
        let request = json!({ "temperature": 0, "num_ctx": null, "mirostat": "gone", "seed": 7.9 });
        let options = read(&[model, request]).unwrap();
        let expected = Options {
            temperature: Some(0.0),
            stop: Some(vec!["a".to_owned()]),
            num_ctx: Some(8),
            seed: Some(7),
            ..Options::default()
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn a_wrong_type_is_named_as_ollama_names_it() {
        for (option, words) in [
            (json!({ "num_ctx": "8" }), r#"option "num_ctx" must be of type integer"#),
            (json!({ "use_mmap": 1 }), r#"option "use_mmap" must be of type boolean"#),
            (json!({ "top_p": "0.5" }), r#"option "top_p" must be of type float32"#),
            (json!({ "stop": "a" }), r#"option "stop" must be of type array"#),
            (json!({ "stop": ["a", 1] }), r#"option "stop" must be of an array of strings"#),
        ] {
            assert_eq!(read(&[option]).unwrap_err(), words);
        }
    }
}
