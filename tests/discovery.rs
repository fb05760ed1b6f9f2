//! What a site shows of its price list, asked for as crawlers, models, tools and browsers do.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

#[path = "support/npm.rs"]
mod npm;

use std::convert::Infallible;
use std::io::Write as _;
use std::process::{Command, Stdio};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use peaje::config::Config;
use peaje::gate::{Desk, Gate};
use peaje::protocol::Address;
use peaje::protocol::x402::{self, PAYMENT_REQUIRED};
use serde_json::{Value, json};
use tower::{Layer as _, ServiceExt as _, service_fn};

const CONFIG: &str = r#"
[server]
public_url = "https://api.example.test"

[upstream]
url = "http://127.0.0.1:8080"

[chain]
network = "base-sepolia"
rpc = "env:PEAJE_RPC"

[receiver]
pay_to = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
authorizer_key = "env:PEAJE_AUTHORIZER_KEY"

[[route]]
path = "/v1/weather/{city}"
methods = ["GET"]
price = "$0.002"
description = "Weather <now> & \"then\""
mime_type = "application/json"
bazaar = true
input_schema = { type = "object", properties = { days = { type = "integer", minimum = 1 } }, required = ["days"] }
output_example = { celsius = 21 }

[[route]]
path = "/v1/chat"
methods = ["POST"]
price = "$0.05"
bazaar = true
input_schema = { type = "object", properties = { text = { type = "string" }, tone = { enum = ["dry", "wry"] } }, required = ["text", "tone"] }

[[route]]
path = "/v1/secret"
price = "$1"
listed = false

[[route]]
path = "/v1/all/*"
price = "$0.01"
bazaar = true

[[route]]
path = "/health"
price = "free"
"#;

const BROWSER: &[(&str, &str)] =
    &[("accept", "text/html,application/xhtml+xml,*/*;q=0.8"), ("sec-fetch-mode", "navigate")];

/// A gate with a config, in front of an upstream that says so.
fn gate(config: &str) -> Gate {
    let config = Config::parse(config, "c.toml").unwrap_or_else(|errors| panic!("{errors}"));
    Gate::new(config.policy(Address([7; 20])).unwrap(), Desk::closed())
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

async fn ask(gate: &Gate, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let upstream = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("upstream")))) });
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let response = gate.layer().layer(upstream).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Answer { status: head.status, headers: head.headers, body }
}

async fn get(gate: &Gate, path: &str) -> Answer {
    ask(gate, Method::GET, path, &[]).await
}

#[tokio::test]
async fn crawlers_find_what_is_sold_and_nothing_that_is_not_listed() {
    let gate = gate(CONFIG);
    let answer = get(&gate, "/.well-known/x402").await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, "application/json"));
    assert_eq!(answer.header("cache-control"), "public, max-age=60");
    let manifest = answer.json();
    assert_eq!((&manifest["version"], &manifest["x402Version"]), (&json!(1), &json!(2)));
    // Only what can be asked for as it stands.
    assert_eq!(manifest["resources"], json!(["https://api.example.test/v1/chat"]));
    let items = manifest["items"].as_array().unwrap();
    let of = |path: &str| items.iter().find(|item| item["input"]["routeTemplate"] == path).unwrap();
    assert_eq!(items.len(), 3);
    assert!(!answer.body.contains("secret"));
    let weather = of("/v1/weather/:city");
    assert_eq!(weather["resource"]["url"], "https://api.example.test/v1/weather/:city");
    assert_eq!(weather["accepts"][0]["amount"], "2000");
    assert_eq!((&weather["price"], &weather["input"]["method"]), (&json!("$0.002 a request"), &json!("GET")));
    assert_eq!(weather["output"]["example"], json!({"celsius": 21}));
    assert_eq!(of("/v1/chat")["input"]["body"]["required"], json!(["text", "tone"]));
    // What a live quote offers is what is listed.
    let quote: Value = x402::decode(get(&gate, "/v1/weather/x").await.header(PAYMENT_REQUIRED).as_bytes()).unwrap();
    assert_eq!(quote["accepts"], weather["accepts"]);
    assert_eq!(get(&gate, "/.well-known/x402.json").await.body, answer.body);
}

#[tokio::test]
async fn a_document_is_taken_from_a_cache_as_long_as_it_is_the_same() {
    let first = get(&gate(CONFIG), "/llms.txt").await;
    let tag = first.header("etag").to_owned();
    let known = |tag: &str| [("if-none-match", tag.to_owned())];
    for (tag, status) in
        [(tag.clone(), 304), (format!("\"x\", W/{tag}"), 304), ("*".into(), 304), ("\"x\"".into(), 200)]
    {
        let [(name, value)] = known(&tag);
        let answer = ask(&gate(CONFIG), Method::GET, "/llms.txt", &[(name, &value)]).await;
        assert_eq!(answer.status.as_u16(), status, "{tag}");
        assert_eq!(answer.body.is_empty(), status == 304);
        assert_eq!(answer.header("etag"), first.header("etag"));
    }
    let dearer = get(&gate(&CONFIG.replace("$0.05", "$0.06")), "/llms.txt").await;
    assert_ne!(dearer.header("etag"), tag);
    let head = ask(&gate(CONFIG), Method::HEAD, "/llms.txt", &[]).await;
    assert_eq!((head.body.len(), head.header("content-length")), (0, &*first.body.len().to_string()));
}

#[tokio::test]
async fn models_read_prices_in_words_and_how_to_pay() {
    let text = get(&gate(CONFIG), "/llms.txt").await;
    assert_eq!(text.header("content-type"), "text/plain; charset=utf-8");
    for part in [
        "# api.example.test\n",
        "- `GET /v1/weather/{city}`: $0.002 a request. Weather <now> & \"then\". Answers application/json.\n",
        "- `POST /v1/chat`: $0.05 a request.\n",
        "## Free\n\n- `any method /health`\n",
        "peaje pay https://api.example.test/",
        "\"eip155:84532\"",
    ] {
        assert!(text.body.contains(part), "{part}\n{}", text.body);
    }
    assert!(!text.body.contains("secret") && !text.body.contains("openapi"));
}

#[tokio::test]
async fn a_browser_sees_a_page_and_still_gets_the_quote() {
    let gate = gate(CONFIG);
    let page = ask(&gate, Method::GET, "/v1/weather/%3Cscript%3E?q='%22&amp;", BROWSER).await;
    assert_eq!((page.status, page.header("content-type")), (StatusCode::PAYMENT_REQUIRED, "text/html; charset=utf-8"));
    assert_eq!(page.header("cache-control"), "no-store");
    let quote: Value = x402::decode(page.header(PAYMENT_REQUIRED).as_bytes()).unwrap();
    assert_eq!(quote["accepts"][0]["amount"], "2000");
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("script"), "{policy}");
    assert!(page.body.starts_with("<!doctype html><html lang=\"en\">"));
    for part in ["$0.002 a request", "Weather &lt;now&gt; &amp; &quot;then&quot;", "/%3Cscript%3E?q=%27%22&amp;amp;"] {
        assert!(page.body.contains(part), "{part}\n{}", page.body);
    }
    assert!(!page.body.contains("<script") && !page.body.contains("<now>"));
    // Programs get what programs read, and who pays gets no page.
    for headers in [
        &[][..],
        &[("accept", "*/*"), ("user-agent", "Mozilla/5.0")],
        &[("accept", "application/json, text/html;q=0.5"), ("sec-fetch-mode", "navigate")],
        &[("accept", "text/html"), ("sec-fetch-mode", "cors"), ("user-agent", "Mozilla/5.0")],
        &[("accept", "text/html"), ("sec-fetch-mode", "navigate"), ("payment-signature", "e30=")],
    ] {
        let answer = ask(&gate, Method::GET, "/v1/chat/", headers).await;
        assert_eq!(answer.header("content-type"), "application/json", "{headers:?}");
    }
    let head = ask(&gate, Method::HEAD, "/v1/weather/x", BROWSER).await;
    assert_eq!((head.status, head.body.len()), (StatusCode::PAYMENT_REQUIRED, 0));
}

#[tokio::test]
async fn the_first_page_is_shown_where_no_route_takes_it() {
    let shown = gate(CONFIG);
    let page = ask(&shown, Method::GET, "/", BROWSER).await;
    assert_eq!((page.status, page.header("content-type")), (StatusCode::OK, "text/html; charset=utf-8"));
    assert!(page.body.contains("GET /v1/weather/{city}") && !page.body.contains("secret"));
    let text = get(&shown, "/").await;
    assert!(text.body.starts_with("# api.example.test"));
    assert_eq!((text.header("vary"), page.header("vary")), ("accept", "accept"));
    assert_eq!(ask(&shown, Method::POST, "/", BROWSER).await.status, StatusCode::NOT_FOUND);
    assert_eq!(get(&shown, "/other").await.status, StatusCode::NOT_FOUND);
    // A site has a first page of its own.
    let site = gate(&format!("{CONFIG}[[route]]\npath = \"/*\"\nprice = \"free\""));
    assert_eq!(ask(&site, Method::GET, "/", BROWSER).await.body, "upstream");
}

#[tokio::test]
async fn a_route_of_that_very_name_goes_before_a_document() {
    let wide = gate(&format!("{CONFIG}[[route]]\npath = \"/*\"\nprice = \"$0.001\""));
    assert!(get(&wide, "/llms.txt").await.body.starts_with("# "));
    let named = gate(&format!("{CONFIG}[[route]]\npath = \"/llms.txt\"\nprice = \"free\""));
    assert_eq!(get(&named, "/llms.txt").await.body, "upstream");
    assert_eq!(get(&named, "/.well-known/x402").await.status, StatusCode::OK);
    let parameter = gate(&format!("{CONFIG}[[route]]\npath = \"/{{file}}\"\nprice = \"free\""));
    assert!(get(&parameter, "/llms.txt").await.body.starts_with("# "));
}

#[tokio::test]
async fn nothing_is_shown_where_that_is_not_wanted() {
    let gate = gate(&format!("{CONFIG}[discovery]\nenabled = false"));
    for path in ["/", "/llms.txt", "/.well-known/x402", "/openapi.json"] {
        assert_eq!(get(&gate, path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    let answer = ask(&gate, Method::GET, "/v1/chat/", BROWSER).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask(&gate, Method::GET, "/v1/weather/x", BROWSER).await.header("content-type"), "application/json");
}

fn load(openapi: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("peaje.toml");
    std::fs::write(&file, format!("{CONFIG}[discovery]\nopenapi = \"api.json\"")).unwrap();
    std::fs::write(folder.path().join("api.json"), openapi).unwrap();
    Config::load(&file).map_err(|errors| errors.to_string())
}

#[tokio::test]
async fn the_providers_openapi_document_is_shown_with_prices() {
    assert_eq!(get(&gate(CONFIG), "/openapi.json").await.status, StatusCode::NOT_FOUND);
    let document = json!({
        "openapi": "3.1.0",
        "info": {"title": "Weather", "version": "1"},
        "servers": [{"url": "http://internal:8080/v1"}],
        "paths": {
            "/weather/{city}": {"get": {"responses": {"200": {"description": "ok"}}}, "parameters": []},
            "/chat": {"post": {}, "get": {"summary": "not sold"}},
            "/secret": {"get": {"summary": "hidden"}, "put": {"summary": "hidden"}},
            "/elsewhere": {"get": {}},
        },
    });
    let config = load(&document.to_string()).unwrap();
    let gate = Gate::new(config.policy(Address([7; 20])).unwrap(), Desk::closed());
    let priced = get(&gate, "/openapi.json").await.json();
    assert_eq!(priced["info"], document["info"]);
    assert_eq!(priced["servers"], json!([{"url": "https://api.example.test/v1"}]));
    let weather = &priced["paths"]["/weather/{city}"]["get"];
    assert_eq!(weather["x-payment-info"]["price"], json!({"mode": "fixed", "currency": "USD", "amount": "0.002"}));
    assert_eq!(weather["x-payment-info"]["protocols"][0]["x402"]["amount"], "2000");
    assert!(weather["responses"]["402"].is_object() && weather["responses"]["200"].is_object());
    assert!(priced["paths"]["/chat"]["post"]["responses"]["402"].is_object());
    assert_eq!(priced["paths"]["/chat"]["get"], json!({"summary": "not sold"}));
    assert_eq!(priced["paths"]["/secret"], json!({}));
    assert_eq!(priced["paths"]["/elsewhere"]["get"], json!({}));

    for (bad, why) in [("nonsense", "not JSON"), ("{}", "no \"openapi\" version 3"), ("[]", "not a JSON object")] {
        let error = load(bad).unwrap_err();
        assert!(error.contains("[discovery].openapi") && error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn quotes_satisfy_the_official_validators() {
    if npm::skipped() {
        return;
    }
    let gate = gate(CONFIG);
    let mut validator = Command::new("node")
        .arg("bazaar.mjs")
        .current_dir(npm::ready("tests/stock_client"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = validator.stdin.take().unwrap();
    let routes = [
        (Method::GET, "/v1/weather/paris", json!("/v1/weather/:city")),
        (Method::POST, "/v1/chat", Value::Null),
        (Method::GET, "/v1/all/x", Value::Null),
    ];
    for (method, path, _) in &routes {
        let answer = ask(&gate, method.clone(), path, &[]).await;
        let header = answer.header(PAYMENT_REQUIRED);
        assert!(header.len() < 4_096, "{path}: {} bytes", header.len());
        let quote: Value = x402::decode(header.as_bytes()).unwrap();
        assert_eq!(quote["extensions"]["bazaar"]["info"]["input"]["method"], method.as_str());
        writeln!(lines, "{}", quote["extensions"]).unwrap();
    }
    drop(lines);
    let output = String::from_utf8(validator.wait_with_output().unwrap().stdout).unwrap();
    let verdicts: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(verdicts.len(), routes.len(), "{output}");
    for (verdict, (_, path, template)) in verdicts.iter().zip(&routes) {
        assert_eq!(verdict["errors"], json!([]), "{path}");
        assert_eq!(verdict.get("template").unwrap_or(&Value::Null), template, "{path}");
        assert!(verdict["id"].as_str().unwrap().starts_with("pay_"), "{path}");
    }
}

#[tokio::test]
async fn what_an_answer_costs_by_its_status_is_told_as_its_route_has_it() {
    let rule = "charge_on = { \"404\" = \"10%\" }\n";
    let usual = "An answer of status 400 or above costs nothing.";
    let other =
        "Of its price an answer costs, by its status: 2xx 100%, 3xx 100%, 4xx 0%, 404 10%; 401, 402, 407 and 5xx";
    let text = |body: &str| (body.contains(usual), body.contains(other), body.contains("Where nothing else is said"));
    let shop = gate(CONFIG);
    assert_eq!(text(&get(&shop, "/llms.txt").await.body), (true, false, false));
    assert_eq!(text(&ask(&shop, Method::GET, "/v1/weather/x", BROWSER).await.body), (true, false, false));
    let shop = gate(&CONFIG.replace("methods = [\"GET\"]\n", &format!("methods = [\"GET\"]\n{rule}")));
    assert_eq!(text(&get(&shop, "/llms.txt").await.body), (true, true, true));
    assert_eq!(text(&ask(&shop, Method::GET, "/v1/weather/x", BROWSER).await.body), (false, true, false));
    assert_eq!(text(&ask(&shop, Method::GET, "/v1/all/x", BROWSER).await.body), (true, false, false));
    let shop = gate(&CONFIG.replace("price = \"$", &format!("{rule}price = \"$")));
    assert_eq!(text(&get(&shop, "/llms.txt").await.body), (false, true, false));
}

#[tokio::test]
async fn prices_of_some_hours_are_shown_as_such() {
    // One of the two halves of the week, whenever this runs.
    let at = |days: &str, price: &str| format!("[[route.at]]\ndays = \"{days}\"\nprice = \"{price}\"\n");
    let window = at("mon-thu", "$0.03") + &at("fri-sun", "$0.03");
    let shop = gate(&CONFIG.replace("price = \"free\"\n", &format!("price = \"free\"\n{window}")));
    let page = ask(&shop, Method::GET, "/health", BROWSER).await.body;
    assert!(page.contains("This costs <strong>$0.03 a request</strong>"), "{page}");
    let list = get(&shop, "/llms.txt").await.body;
    let told = "- `any method /health`: free; mon-thu 00:00-24:00 UTC: $0.03 a request; fri-sun 00:00-24:00 UTC: $0.03 a request.";
    assert!(list.contains(told) && !list.contains("## Free"), "{list}");
}
