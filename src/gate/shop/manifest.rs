//! `/.well-known/x402`: the price list for crawlers.
//!
//! Two forms are in use, and one document has both: a `resources` list of URLs that a crawler asks for their quotes, and
//! `items` with the offers and how each is asked for.

use serde_json::{Map, Value, json};

use super::{BAZAAR, Stock, methods, template};
use crate::gate::policy::Listing;

/// The form of the list of URLs.
const LIST_VERSION: u64 = 1;

pub(super) fn write(stock: &Stock<'_>) -> String {
    let items: Vec<Value> = stock
        .listings
        .iter()
        .flat_map(|listing| methods(&listing.route).iter().map(|m| item(stock, listing, m.as_str())))
        .collect();
    let mut resources: Vec<String> = stock
        .listings
        .iter()
        .map(|listing| listing.route.pattern.to_string())
        // What has a parameter cannot be asked for.
        .filter(|path| !path.contains(['{', '*']))
        .map(|path| format!("{}{path}", stock.origin))
        .collect();
    resources.dedup();
    let mut document = json!({
        "version": LIST_VERSION,
        "x402Version": crate::protocol::x402::VERSION,
        "name": stock.name(),
        "resources": resources,
        "items": items,
    });
    if let (Some(description), Some(document)) = (&stock.front.description, document.as_object_mut()) {
        document.insert("description".to_owned(), json!(description));
    }
    document.to_string()
}

fn item(stock: &Stock<'_>, listing: &Listing, method: &str) -> Value {
    let route = &listing.route;
    let template = template(route);
    let mut resource = Map::new();
    resource.insert("url".to_owned(), json!(format!("{}{template}", stock.origin)));
    if let Some(description) = &route.description {
        resource.insert("description".to_owned(), json!(description));
    }
    if let Some(mime_type) = &route.mime_type {
        resource.insert("mimeType".to_owned(), json!(mime_type));
    }
    let mut input = Map::new();
    input.insert("method".to_owned(), json!(method));
    input.insert("routeTemplate".to_owned(), json!(template));
    let part = if ["POST", "PUT", "PATCH"].contains(&method) { "body" } else { "queryParams" };
    if let Some(schema) = &route.shelf.input_schema {
        input.insert(part.to_owned(), json!(schema));
    }
    let mut output = Map::new();
    if let Some(mime_type) = &route.mime_type {
        output.insert("mimeType".to_owned(), json!(mime_type));
    }
    if let Some(example) = &route.shelf.output_example {
        output.insert("example".to_owned(), json!(example));
    }
    let mut item = json!({
        "resource": resource,
        "type": "http",
        "accepts": listing.offered().map(|offered| offered.offer.offer()).collect::<Vec<_>>(),
        "price": stock.price(listing),
        "input": input,
    });
    // The catalogue's own extension is this entry.
    let extensions: Vec<_> = route.extensions.keys().filter(|key| *key != BAZAAR).collect();
    if let Some(item) = item.as_object_mut() {
        if !output.is_empty() {
            item.insert("output".to_owned(), Value::Object(output));
        }
        if !extensions.is_empty() {
            item.insert("extensions".to_owned(), json!(extensions));
        }
    }
    item
}
