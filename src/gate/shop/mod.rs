//! The shop window: what is for sale here, for those who look for it.
//!
//! **Owns** the documents that a site shows of itself: `/.well-known/x402` for crawlers, `/openapi.json` for tools,
//! `/llms.txt` for models, a page for people, and what a quote says for catalogues (`bazaar`). **Promises** that all of
//! them are made of the price list, once when it is made, so that none can say what a quote does not; that they cost
//! nothing; that a route named by an operator goes before each of them; and that a page holds no script and nothing of a
//! request that is not escaped. **Does not** sell: prices here are for information, the quote decides.

mod bazaar;
mod manifest;
mod openapi;
mod page;
mod text;
mod words;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, USER_AGENT, VARY};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use serde_json::{Map, Value};

use super::path::CleanPath;
use super::policy::{Listing, Route, Terms};
use crate::protocol::{Amount, Network};

pub use bazaar::{BAZAAR, bazaar};
pub use openapi::{OpenApiError, check_openapi};
pub(super) use page::QuotePage;

/// Where crawlers look.
const WELL_KNOWN: [&str; 2] = ["/.well-known/x402", "/.well-known/x402.json"];
/// Where tools look.
const OPENAPI: &str = "/openapi.json";
/// Where models look.
const LLMS: &str = "/llms.txt";
/// Where people begin.
const HOME: &str = "/";

/// How long a document may be taken from a cache. Prices change while a site runs.
const CACHED: HeaderValue = HeaderValue::from_static("public, max-age=60");

/// What a page may do: show itself. There is nothing to fetch, run, frame or send.
pub(super) const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// What a provider says of the whole site.
#[derive(Debug, Clone, Default)]
pub struct Storefront {
    /// Its name; the host's, if there is none.
    pub name: Option<String>,
    /// What it is, in a sentence or two.
    pub description: Option<String>,
    /// The provider's own OpenAPI document, which is shown with prices.
    pub openapi: Option<Arc<Value>>,
}

/// How a route stands in the window.
#[derive(Debug, Clone, PartialEq)]
pub struct Shelf {
    /// Whether it stands there at all. It is sold either way.
    pub listed: bool,
    /// The JSON Schema of its query or, for methods that have one, of its body.
    pub input_schema: Option<Map<String, Value>>,
    /// An example of the same.
    pub input_example: Option<Map<String, Value>>,
    /// An example of its answer.
    pub output_example: Option<Map<String, Value>>,
}

impl Default for Shelf {
    fn default() -> Self {
        Self { listed: true, input_schema: None, input_example: None, output_example: None }
    }
}

/// What the documents are made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stock<'a> {
    pub(super) front: &'a Storefront,
    pub(super) terms: &'a Terms,
    pub(super) origin: &'a str,
    /// What is listed and costs something, most specific first.
    pub(super) listings: &'a [&'a Listing],
    /// What is listed and free.
    pub(super) free: &'a [&'a Route],
}

impl Stock<'_> {
    /// The site's name.
    fn name(&self) -> &str {
        let host = || self.origin.split_once("://").map_or(self.origin, |(_, rest)| rest);
        self.front.name.as_deref().unwrap_or_else(host)
    }

    /// The chain's name, for people.
    fn network(&self) -> String {
        let chain_id = self.terms.chain_id;
        Network::by_chain_id(chain_id).map_or_else(|| format!("chain {chain_id}"), |network| network.name.to_owned())
    }

    /// An amount in dollars.
    fn dollars(&self, amount: Amount) -> String {
        amount.to_price(self.terms.token.decimals)
    }

    /// The prices of a listing's route in words, at whatever hour.
    fn price(&self, listing: &Listing) -> String {
        let words = |price| words::price(price, self.terms.token.decimals);
        let Route { price, schedule, .. } = &*listing.route;
        let windows = schedule.windows().iter().map(|(window, price)| format!("; {window}: {}", words(price)));
        std::iter::once(words(price)).chain(windows).collect()
    }
}

/// The documents of a price list.
#[derive(Debug)]
pub(super) struct Shop {
    documents: Vec<(&'static str, Document)>,
    /// For `/`, where no route takes it: for people, and for everybody else.
    home: Option<(Document, Document)>,
}

/// Something to look at.
#[derive(Debug)]
struct Document {
    body: Bytes,
    content_type: HeaderValue,
    tag: HeaderValue,
    is_page: bool,
}

impl Shop {
    /// Writes everything. `is_taken` says whether a route names this very path, and `finds` which listing a method and a
    /// path lead to.
    pub(super) fn new<'a>(
        stock: &Stock<'a>,
        is_taken: impl Fn(&str) -> bool,
        finds: impl Fn(&Method, &str) -> Option<&'a Listing>,
    ) -> Self {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
        const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
        let manifest = manifest::write(stock);
        let text = text::write(stock);
        let mut documents: Vec<_> =
            WELL_KNOWN.map(|path| (path, Document::new(manifest.clone(), JSON, false))).into_iter().collect();
        documents.push((LLMS, Document::new(text.clone(), TEXT, false)));
        if let Some(document) = &stock.front.openapi {
            documents.push((OPENAPI, Document::new(openapi::priced(document, stock, finds), JSON, false)));
        }
        documents.retain(|(path, _)| !is_taken(path));
        let home =
            (!is_taken(HOME)).then(|| (Document::new(page::home(stock), HTML, true), Document::new(text, TEXT, false)));
        Self { documents, home }
    }

    /// The document a request is for, whatever wider route its path belongs to.
    pub(super) fn document<B>(&self, request: &Request<B>) -> Option<Response<Bytes>> {
        let path = request.uri().path();
        let (_, document) = self.documents.iter().find(|(place, _)| *place == path)?;
        is_reading(request.method()).then(|| document.answer(request.headers()))
    }

    /// The first page, for a request that no route takes.
    pub(super) fn home<B>(&self, request: &Request<B>) -> Option<Response<Bytes>> {
        let (page, text) = self.home.as_ref()?;
        if request.uri().path() != HOME || !is_reading(request.method()) {
            return None;
        }
        let document = if prefers_html(request.headers()) { page } else { text };
        let mut response = document.answer(request.headers());
        response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
        Some(response)
    }
}

impl Document {
    fn new(body: impl Into<Bytes>, content_type: HeaderValue, is_page: bool) -> Self {
        let body = body.into();
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let tag = format!("\"{:016x}\"", hasher.finish());
        Self { body, content_type, tag: HeaderValue::try_from(tag).expect("digits are header text"), is_page }
    }

    fn answer(&self, asked: &HeaderMap) -> Response<Bytes> {
        let known = asked.get_all(IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
        let is_known = known.flat_map(|tags| tags.split(',')).any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.trim_start_matches("W/").as_bytes() == self.tag.as_bytes()
        });
        let mut response = Response::new(if is_known { Bytes::new() } else { self.body.clone() });
        let headers = response.headers_mut();
        headers.insert(ETAG, self.tag.clone());
        headers.insert(CACHE_CONTROL, CACHED);
        if self.is_page {
            harden(headers);
        }
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            headers.insert(CONTENT_TYPE, self.content_type.clone());
            // A `HEAD` is told too.
            headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
        response
    }
}

/// What goes with every page.
pub(super) fn harden(headers: &mut HeaderMap) {
    headers.insert("content-security-policy", PAGE_POLICY);
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
}

/// Whether this is somebody who opened a link: a program gets what programs read.
pub(super) fn is_browsing<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let navigates = match headers.get("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        // Older browsers do not say.
        None => headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"Mozilla/")),
    };
    navigates && is_reading(request.method()) && prefers_html(headers)
}

fn is_reading(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Whether HTML is named, and nothing that programs read is named with a higher weight or before it.
fn prefers_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut best: Option<(bool, u32)> = None;
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(1_000, thousandths);
        let is_html = kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml");
        // `*/*` is what everybody adds at the end.
        if kind != "*/*" && weight > 0 && best.is_none_or(|(_, heaviest)| weight > heaviest) {
            best = Some((is_html, weight));
        }
    }
    best.is_some_and(|(is_html, _)| is_html)
}

/// A weight such as `0.8`; one that cannot be read is none.
fn thousandths(weight: &str) -> u32 {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    let text = format!("{whole}{fraction:0<3}");
    if fraction.len() > 3 { 0 } else { text.parse().unwrap_or(0).min(1_000) }
}

/// Whether a route's path is this one and no other.
pub(super) fn names(route: &Route, path: &str) -> bool {
    let pattern = route.pattern.to_string();
    let is_plain = !pattern.contains(['{', '*']);
    is_plain && CleanPath::parse(path).is_ok_and(|path| route.pattern.matches(&path))
}

/// The methods a route is for, as it is shown. One for all of them has none of its own, and is shown as a `GET`.
fn methods(route: &Route) -> &[Method] {
    if route.methods.is_empty() { &[Method::GET] } else { &route.methods }
}

/// A path as catalogues write it: `/users/:id` for `/users/{id}`.
fn template(route: &Route) -> String {
    let pattern = route.pattern.to_string();
    let segment = |segment: &str| match segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
        Some(name) => format!(":{name}"),
        None => segment.to_owned(),
    };
    pattern.split('/').map(segment).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::try_from(value).unwrap());
        prefers_html(&headers)
    }

    #[test]
    fn html_is_for_those_who_want_it_most() {
        let cases = [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", true),
            ("text/html", true),
            ("TEXT/HTML;q=0.5", true),
            ("application/json, text/html;q=0.9", false),
            ("application/json, text/html", false),
            ("text/html;q=0.9, application/json;q=0.8", true),
            ("*/*", false),
            ("*/*, text/html;q=0.1", true),
            ("text/html;q=0", false),
            ("application/json", false),
            ("", false),
        ];
        for (value, expected) in cases {
            assert_eq!(accepts(value), expected, "{value}");
        }
        assert!(!prefers_html(&HeaderMap::new()));
    }

    #[test]
    fn a_browser_navigates_and_a_program_does_not() {
        let html = "text/html,*/*;q=0.8";
        let request = |method: Method, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri("/");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.body(()).unwrap()
        };
        let cases = [
            (Method::GET, vec![("accept", html), ("user-agent", "Mozilla/5.0")], true),
            (Method::GET, vec![("accept", html), ("sec-fetch-mode", "navigate")], true),
            (Method::GET, vec![("accept", html), ("user-agent", "Mozilla/5.0"), ("sec-fetch-mode", "cors")], false),
            (Method::GET, vec![("accept", "*/*"), ("user-agent", "Mozilla/5.0")], false),
            (Method::GET, vec![("accept", html), ("user-agent", "curl/8")], false),
            (Method::GET, vec![("accept", html)], false),
            (Method::POST, vec![("accept", html), ("sec-fetch-mode", "navigate")], false),
        ];
        for (method, headers, expected) in cases {
            assert_eq!(is_browsing(&request(method, &headers)), expected, "{headers:?}");
        }
    }
}
