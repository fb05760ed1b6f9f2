//! The `bazaar` extension: what a catalogue writes down of a route (specification: x402 `extensions/bazaar`).
//!
//! A quote is made once for a route and its extensions come back with every payment, so it says what is the same for all
//! requests: the first of the route's methods, and its path as a template.

use http::Method;
use serde_json::{Map, Value, json};

use super::{methods, template};
use crate::gate::policy::Route;

/// The extension's key.
pub const BAZAAR: &str = "bazaar";

/// How deep an example is made of a schema.
const MAX_DEPTH: u8 = 8;

/// The extension for a route: `info`, a `schema` that validates it, and a template where the path has parameters.
pub fn bazaar(route: &Route) -> Value {
    let method = methods(route).first().cloned().unwrap_or(Method::GET);
    let has_body = [Method::POST, Method::PUT, Method::PATCH].contains(&method);
    let given = &route.shelf.input_schema;
    let schema = given.clone().map_or_else(|| json!({"type": "object"}), Value::Object);
    let example = match &route.shelf.input_example {
        Some(example) => Some(Value::Object(example.clone())),
        None => given.is_some().then(|| example(&schema, MAX_DEPTH)),
    };
    let mut input = Map::new();
    input.insert("type".to_owned(), json!("http"));
    input.insert("method".to_owned(), json!(method.as_str()));
    let mut properties = Map::new();
    properties.insert("type".to_owned(), json!({"type": "string", "const": "http"}));
    properties.insert("method".to_owned(), json!({"type": "string", "enum": [method.as_str()]}));
    let mut required = vec!["type", "method"];
    if has_body {
        input.insert("bodyType".to_owned(), json!("json"));
        input.insert("body".to_owned(), example.unwrap_or_else(|| json!({})));
        properties.insert("bodyType".to_owned(), json!({"type": "string", "enum": ["json", "form-data", "text"]}));
        properties.insert("body".to_owned(), schema);
        required.extend(["bodyType", "body"]);
    } else if let Some(example) = example {
        input.insert("queryParams".to_owned(), example);
        properties.insert("queryParams".to_owned(), schema);
    }
    let output = output(route);
    let mut info = json!({"input": input});
    let mut parts = json!({"input": {"type": "object", "properties": properties, "required": required}});
    if let (Some(output), Some(info), Some(parts)) = (output, info.as_object_mut(), parts.as_object_mut()) {
        info.insert("output".to_owned(), output);
        let types = json!({"type": {"type": "string"}, "example": {"type": "object"}});
        parts.insert("output".to_owned(), json!({"type": "object", "properties": types, "required": ["type"]}));
    }
    let mut extension = json!({
        "info": info,
        "schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": parts,
            "required": ["input"],
        },
    });
    let template = template(route);
    // A template cannot say "and all below"; then each path stands for itself.
    if let Some(extension) = extension.as_object_mut()
        && template.contains("/:")
        && !template.ends_with('*')
    {
        extension.insert("routeTemplate".to_owned(), json!(template));
    }
    extension
}

/// What the answers are, if anything was said of them.
fn output(route: &Route) -> Option<Value> {
    let example = &route.shelf.output_example;
    let kind = match route.mime_type.as_deref() {
        Some(mime_type) if mime_type.contains("json") => "json",
        Some(mime_type) => mime_type.split('/').next().unwrap_or("text"),
        None if example.is_some() => "json",
        None => return None,
    };
    let mut output = json!({"type": kind});
    if let (Some(example), Some(output)) = (example, output.as_object_mut()) {
        output.insert("example".to_owned(), json!(example));
    }
    Some(output)
}

/// Something that a schema would take: what it names as an example, a default or a choice, or the plainest of its type.
fn example(schema: &Value, depth: u8) -> Value {
    let named = ["example", "default", "const"].iter().find_map(|key| schema.get(key));
    let first = |key: &str| schema.get(key).and_then(|list| list.get(0));
    if let Some(named) = named.or_else(|| first("examples")).or_else(|| first("enum")) {
        return named.clone();
    }
    let kind = schema.get("type").map(|kind| if kind.is_array() { kind.get(0).unwrap_or(kind) } else { kind });
    let least = schema.get("minimum").cloned();
    match kind.and_then(Value::as_str) {
        Some("string") => json!("text"),
        Some("integer" | "number") => least.unwrap_or(json!(0)),
        Some("boolean") => json!(false),
        Some("array") => {
            let item = schema.get("items").filter(|_| depth > 0).map(|item| example(item, depth.saturating_sub(1)));
            Value::Array(item.into_iter().collect())
        }
        Some("null") => Value::Null,
        _ => {
            let properties = schema.get("properties").and_then(Value::as_object).filter(|_| depth > 0);
            let of = |(name, schema): (&String, &Value)| (name.clone(), example(schema, depth.saturating_sub(1)));
            Value::Object(properties.into_iter().flatten().map(of).collect())
        }
    }
}
