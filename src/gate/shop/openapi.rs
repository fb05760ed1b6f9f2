//! `/openapi.json`: the provider's own document, with prices.
//!
//! Each operation that a paid route takes gets `x-payment-info` in the form that directories read (`price` in dollars, and
//! the offer for each protocol) and a 402 among its answers. Operations of routes that are not listed are left out. The
//! servers become the public URL, because what the provider's document names is what stands behind it.

use http::Method;
use serde_json::{Map, Value, json};

use super::Stock;
use crate::gate::policy::{Listing, Price};

/// Why a document is no OpenAPI document that could be priced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenApiError {
    /// No JSON object at all.
    #[error("it is not a JSON object; convert YAML to JSON first")]
    NoObject,
    /// It does not say so.
    #[error("it has no \"openapi\" version 3, so it is not an OpenAPI document that can be priced")]
    Version,
    /// There is nothing to price.
    #[error("it has no \"paths\"")]
    NoPaths,
}

/// Whether a document can be shown with prices.
pub fn check_openapi(document: &Value) -> Result<(), OpenApiError> {
    let object = document.as_object().ok_or(OpenApiError::NoObject)?;
    let version = object.get("openapi").and_then(Value::as_str).unwrap_or_default();
    if !version.starts_with("3.") {
        return Err(OpenApiError::Version);
    }
    object.get("paths").and_then(Value::as_object).map(drop).ok_or(OpenApiError::NoPaths)
}

/// The document with prices. `finds` says which listing a method and a path lead to.
pub(super) fn priced<'a>(
    document: &Value,
    stock: &Stock<'a>,
    finds: impl Fn(&Method, &str) -> Option<&'a Listing>,
) -> String {
    let mut document = document.clone();
    let base = base_path(&document);
    if let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) {
        for (path, operations) in paths.iter_mut() {
            let Some(operations) = operations.as_object_mut() else { continue };
            let example = example_of(&format!("{base}{path}"));
            let mut unlisted = Vec::new();
            for (name, operation) in operations.iter_mut() {
                let Some(method) = method_of(name) else { continue };
                match (finds(&method, &example), operation.as_object_mut()) {
                    (Some(listing), _) if !listing.route.shelf.listed => unlisted.push(name.clone()),
                    (Some(listing), Some(operation)) => add_price(operation, listing, stock),
                    _ => {}
                }
            }
            for name in unlisted {
                operations.remove(&name);
            }
        }
    }
    if let Some(document) = document.as_object_mut() {
        document.insert("servers".to_owned(), json!([{"url": format!("{}{base}", stock.origin)}]));
    }
    document.to_string()
}

/// The path of the first server, which stands before every path of the document.
fn base_path(document: &Value) -> String {
    let url = document.pointer("/servers/0/url").and_then(Value::as_str).unwrap_or_default();
    let path = match url.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or_default(),
        None => url,
    };
    // A path with variables is not one path.
    if path.contains('{') || !path.starts_with('/') { String::new() } else { path.trim_end_matches('/').to_owned() }
}

/// A path of the template's: parameters stand for anything.
fn example_of(template: &str) -> String {
    template.split('/').map(|segment| if segment.contains('{') { "x" } else { segment }).collect::<Vec<_>>().join("/")
}

fn method_of(name: &str) -> Option<Method> {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    known.into_iter().find(|method| method.as_str().eq_ignore_ascii_case(name))
}

fn add_price(operation: &mut Map<String, Value>, listing: &Listing, stock: &Stock<'_>) {
    let dollars = |amount| stock.dollars(amount).trim_start_matches('$').to_owned();
    let most = dollars(listing.preferred.price);
    let price = match &listing.preferred.charged {
        Price::Metered(_) => json!({"mode": "dynamic", "currency": "USD", "min": "0", "max": most}),
        _ => json!({"mode": "fixed", "currency": "USD", "amount": most}),
    };
    let info = json!({
        "price": price,
        "protocols": [{"x402": listing.preferred.offer.offer()}],
        "description": stock.price(listing),
    });
    operation.insert("x-payment-info".to_owned(), info);
    let answers = operation.entry("responses").or_insert_with(|| json!({}));
    if let Some(answers) = answers.as_object_mut() {
        answers.entry("402").or_insert_with(|| {
            json!({
                "description": "Payment required: the PAYMENT-REQUIRED header is the quote, base64 of JSON (x402).",
                "headers": {"PAYMENT-REQUIRED": {"schema": {"type": "string"}}},
            })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_document_with_paths_can_be_priced() {
        let cases = [
            (json!([]), Err(OpenApiError::NoObject)),
            (json!({"swagger": "2.0", "paths": {}}), Err(OpenApiError::Version)),
            (json!({"openapi": "3.1.0"}), Err(OpenApiError::NoPaths)),
            (json!({"openapi": "3.0.3", "paths": {}}), Ok(())),
        ];
        for (document, expected) in cases {
            assert_eq!(check_openapi(&document), expected, "{document}");
        }
    }

    #[test]
    fn the_first_servers_path_goes_before() {
        let cases = [
            (json!({}), ""),
            (json!({"servers": [{"url": "https://api.internal"}]}), ""),
            (json!({"servers": [{"url": "https://api.internal/v1/"}]}), "/v1"),
            (json!({"servers": [{"url": "/v2"}]}), "/v2"),
            (json!({"servers": [{"url": "https://api.internal/{stage}"}]}), ""),
        ];
        for (document, expected) in cases {
            assert_eq!(base_path(&document), expected, "{document}");
        }
    }
}
