//! Whether a value has a shape; how shapes are written stands at the head of the table.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// Where it differs first, and how.
pub(super) fn mismatch(at: &str, shape: &Value, value: &Value) -> Option<String> {
    let fits = match (shape, value) {
        (Value::String(kind), _) => fits(kind, value),
        (Value::Object(shape), Value::Object(value)) => return fields(at, shape, value),
        (Value::Array(shape), Value::Array(items)) => return list(at, shape, items),
        (exactly, _) => exactly == value,
    };
    (!fits).then(|| format!("`{at}` is {value} and should be {shape}"))
}

fn fits(kind: &str, value: &Value) -> bool {
    if let Some((one, other)) = kind.split_once('|') {
        return fits(one, value) || fits(other, value);
    }
    if let Some(exactly) = kind.strip_prefix('=') {
        return value.as_str() == Some(exactly);
    }
    if let Some(beginning) = kind.strip_suffix('%') {
        return value.as_str().is_some_and(|text| text.starts_with(beginning));
    }
    let text = |good: fn(&str) -> bool| value.as_str().is_some_and(good);
    match kind {
        "any" => true,
        "null" => value.is_null(),
        "string" => value.is_string(),
        "text" => text(|text| !text.is_empty()),
        "int" => value.is_u64(),
        "positive" => value.as_u64().is_some_and(|number| number > 0),
        "number" => value.is_number(),
        "bool" => value.is_boolean(),
        "time" => text(|text| text.ends_with('Z') && moment(text)),
        "moment" => text(moment),
        "digest" => text(|text| {
            text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        }),
        _ => false,
    }
}

fn moment(text: &str) -> bool {
    text.as_bytes().get(10) == Some(&b'T') && text.parse::<Timestamp>().is_ok()
}

fn list(at: &str, shape: &[Value], items: &[Value]) -> Option<String> {
    let Some(each) = shape.first() else {
        return (!items.is_empty()).then(|| format!("`{at}` should be empty"));
    };
    if shape.len() > 1 && items.is_empty() {
        return Some(format!("`{at}` is empty"));
    }
    items.iter().enumerate().find_map(|(number, item)| mismatch(&format!("{at}[{number}]"), each, item))
}

fn fields(at: &str, shape: &Map<String, Value>, value: &Map<String, Value>) -> Option<String> {
    let path = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    let named = |name: &str| {
        let known = shape.iter().enumerate().find(|(_, (key, _))| key.strip_suffix('?').unwrap_or(key) == name);
        known.map(|(place, (_, shape))| (place, shape))
    };
    let mut last = 0;
    for (name, value) in value {
        match named(name) {
            Some((place, _)) if place < last => return Some(format!("`{}` comes too late", path(name))),
            Some((place, shape)) => {
                last = place;
                if let Some(what) = mismatch(&path(name), shape, value) {
                    return Some(what);
                }
            }
            None if shape.contains_key("*") => {}
            None => return Some(format!("`{}` is not known", path(name))),
        }
    }
    let needed = shape.keys().filter(|key| !key.ends_with('?') && *key != "*");
    needed.into_iter().find(|key| !value.contains_key(*key)).map(|key| format!("`{}` is missing", path(key)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn differs(shape: Value, value: Value) -> bool {
        mismatch("", &shape, &value).is_some()
    }

    #[test]
    fn each_kind_takes_what_it_names_and_nothing_else() {
        let digest = "0a".repeat(32);
        for (kind, good, bad) in [
            ("string", json!(""), json!(1)),
            ("text", json!("a"), json!("")),
            ("=a", json!("a"), json!("b")),
            ("=", json!(""), json!("b")),
            ("a%", json!("ab"), json!("ba")),
            ("int", json!(0), json!(-1)),
            ("null", json!(null), json!("")),
            ("null|=a|positive", json!("a"), json!("b")),
            ("null|=a|positive", json!(7), json!(0)),
            ("positive", json!(1), json!(0)),
            ("number", json!(-0.5), json!("1")),
            ("bool", json!(false), json!(0)),
            ("time", json!("2026-08-21T10:00:00.000000001Z"), json!("2026-08-21T10:00:00+02:00")),
            ("moment", json!("2026-08-21T10:00:00+02:00"), json!("2026-08-21")),
            ("digest", json!(digest), json!(digest.to_uppercase())),
        ] {
            assert!(!differs(json!(kind), good.clone()), "{kind} takes {good}");
            assert!(differs(json!(kind), bad.clone()), "{kind} does not take {bad}");
        }
        assert!(differs(json!("typo"), json!("anything")));
        assert!(!differs(json!(1), json!(1)) && differs(json!(1), json!(2)) && differs(json!(null), json!({})));
    }

    #[test]
    fn fields_are_all_there_are_and_in_their_order() {
        let shape = || json!({ "a": "int", "b?": "int", "c": { "d": "bool" } });
        assert!(!differs(shape(), json!({ "a": 1, "b": 2, "c": { "d": true } })));
        assert!(!differs(shape(), json!({ "a": 1, "c": { "d": true } })));
        for wrong in [
            json!({ "a": 1 }),
            json!({ "a": 1, "c": { "d": 1 } }),
            json!({ "a": 1, "c": { "d": true }, "e": 1 }),
            json!({ "c": { "d": true }, "a": 1 }),
            json!([]),
        ] {
            assert!(differs(shape(), wrong.clone()), "{wrong}");
        }
        assert!(!differs(json!({ "a": 1, "*": "any" }), json!({ "x": 2, "a": 1 })));
    }

    #[test]
    fn lists_are_empty_or_not_as_told() {
        assert!(!differs(json!(["int"]), json!([])) && differs(json!(["int", "+"]), json!([])));
        assert!(differs(json!(["int"]), json!([1, "a"])) && differs(json!([]), json!([1])));
    }
}
