//! Chat templates as models bring them: Jinja, as Hugging Face's `transformers` sets it up.

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::Value;

use super::Error;

/// Steps a template may take. One for a thousand long messages takes some hundred thousand; a hostile one ends here,
/// after some seconds at most.
const STEPS_MAX: u64 = 10_000_000;
const NAME: &str = "chat_template";
/// How a message of the template's own, for whoever sent the messages, is told from a failure.
const RAISED: &str = "raised: ";

#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
}

/// What templates know by name.
#[derive(Debug, Serialize)]
pub(super) struct Context<'a> {
    pub messages: &'a [Value],
    /// `none` where there are none, as some templates ask for just that.
    pub tools: Option<&'a [Value]>,
    pub add_generation_prompt: bool,
    pub bos_token: &'a str,
    pub eos_token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_thinking: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<&'static str>,
}

impl Template {
    pub(super) fn new(source: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
        environment.set_fuel(Some(STEPS_MAX));
        // Prompts are no HTML, whatever the template is called.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, without_generation_marks(source)).map_err(failed)?;
        Ok(Self { environment })
    }

    pub(super) fn render(&self, context: &Context<'_>, now: SystemTime) -> Result<String, Error> {
        // A function of the time is one of this call alone.
        let mut environment = self.environment.clone();
        environment.add_function("strftime_now", move |format: &str| strftime(now, format));
        let template = environment.get_template(NAME).map_err(failed)?;
        template.render(minijinja::Value::from(Serde(context))).map_err(failed)
    }
}

/// The innermost cause says most: the outer ones tell where in the template it was.
fn failed(error: minijinja::Error) -> Error {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let detail = cause.downcast_ref().and_then(minijinja::Error::detail).map(str::to_owned);
    match detail.as_deref().and_then(|detail| detail.strip_prefix(RAISED)) {
        Some(raised) => Error::Refused(raised.to_owned()),
        None => Error::Template(cause.to_string()),
    }
}

fn raise_exception(message: &str) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

/// As Python's `json.dumps` writes it, with the marks of HTML left alone: the model has seen it so.
fn tojson(value: &minijinja::Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Ours are the defaults of `transformers`; what else may be asked for changes nothing a model would notice.
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<minijinja::Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = vec![b' '; width.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&indent);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, PythonFormatter)),
    };
    let invalid = |what: String| minijinja::Error::new(ErrorKind::InvalidOperation, what);
    written.map_err(|error| invalid(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| invalid(error.to_string()))
}

/// A blank behind each comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// In UTC: where a user lives is not the model's business.
fn strftime(now: SystemTime, format: &str) -> Result<String, minijinja::Error> {
    let invalid = |error: jiff::Error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string());
    let now = jiff::Timestamp::try_from(now).map_err(invalid)?.to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(invalid)
}

/// `{% generation %}` marks for training what the assistant says; to a prompt it means nothing.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (tag, after) = (&rest[start + 2..start + length], &rest[start + length..]);
        out.push_str(&rest[..start + 2]);
        match tag.trim_matches(['-', '+', ' ', '\n']) {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn render_with(source: &str, messages: &[Value], tools: Option<&[Value]>) -> Result<String, Error> {
        let context = Context {
            messages,
            tools,
            add_generation_prompt: true,
            bos_token: "<s>",
            eos_token: "</s>",
            enable_thinking: None,
            reasoning_effort: None,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Template::new(source)?.render(&context, now)
    }

    fn render(source: &str) -> Result<String, Error> {
        let messages =
            [json!({ "role": "user", "content": " Hi <b> " }), json!({ "role": "assistant", "content": "Yo" })];
        render_with(source, &messages, None)
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_trims_them() {
        let source = "{% for message in messages %}\n    {% if true %}\n{{ message.role }}\n    {% endif %}\n{% endfor %}\nend\n";
        assert_eq!(render(source).unwrap(), "user\nassistant\nend");
    }

    #[test]
    fn nothing_is_escaped() {
        assert_eq!(render("{{ messages[0]['content'] }}{{ bos_token }}").unwrap(), " Hi <b> <s>");
    }

    #[test]
    fn python_s_methods_and_slices_are_there() {
        let source = "{{ messages[0].content.strip().upper().startswith('HI') }} {{ messages[1:][0].get('content') }} \
                      {{ messages[::-1][0]['role'] }} {{ 'a,b'.split(',')|length }} {{ messages[0].items()|length }}";
        assert_eq!(render(source).unwrap().to_lowercase(), "true yo assistant 2 2");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let tools = [json!({ "z": [1, 2.5, null, true], "a": { "é": "<&'\"" }, "e": {} })];
        let compact = render_with("{{ tools[0]|tojson }}", &[], Some(&tools)).unwrap();
        assert_eq!(compact, r#"{"z": [1, 2.5, null, true], "a": {"é": "<&'\""}, "e": {}}"#);
        let pretty = render_with("{{ tools[0].a|tojson(indent=4) }}", &[], Some(&tools)).unwrap();
        assert_eq!(pretty, "{\n    \"é\": \"<&'\\\"\"\n}");
        assert!(render_with("{{ tools[0]|tojson(ensure_ascii=False) }}", &[], Some(&tools)).is_ok());
    }

    #[test]
    fn tools_are_none_where_there_are_none() {
        let source =
            "{{ tools is defined }}{{ tools is none }}{% if tools %}x{% endif %}{{ enable_thinking is defined }}";
        assert_eq!(render(source).unwrap().to_lowercase(), "truetruefalse");
    }

    #[test]
    fn the_time_is_the_one_handed_in() {
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "14 Nov 2023");
        assert!(matches!(render("{{ strftime_now('%!') }}"), Err(Error::Template(_))));
    }

    #[test]
    fn a_template_may_refuse_in_its_own_words() {
        let refused = render("{% for m in messages %}{{ raise_exception('roles must alternate') }}{% endfor %}");
        assert_eq!(refused, Err(Error::Refused("roles must alternate".to_owned())));
        let in_macro = render("{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}");
        assert_eq!(in_macro, Err(Error::Refused("no".to_owned())));
    }

    #[test]
    fn marks_for_training_mean_nothing() {
        let source = "{% for m in messages %}{% generation %}{{ m.role }}{%- endgeneration -%}{% endfor %}";
        assert_eq!(render(source).unwrap(), "userassistant");
        assert_eq!(without_generation_marks("{% if a %}{%"), "{% if a %}{%");
    }

    #[test]
    fn a_broken_or_endless_template_fails_and_ends() {
        assert!(matches!(Template::new("{% if %}"), Err(Error::Template(_))));
        assert!(matches!(render("{{ 1 + [] }}"), Err(Error::Template(_))));
        let nested = "{% for a in range(99999) %}".repeat(3) + &"{% endfor %}".repeat(3);
        assert!(matches!(render(&nested), Err(Error::Template(_))));
        assert!(matches!(render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), Err(Error::Template(_))));
    }
}
