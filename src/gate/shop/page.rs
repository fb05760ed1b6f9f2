//! Pages for people: the price list, and what a browser sees in place of a quote.
//!
//! Each is one file without a script: it can be read with styles off, by a screen reader, and in the dark.

use super::text::shown;
use super::{Stock, words};
use crate::gate::policy::{Listing, Route};

/// What a browser gets with a 402: written once, but for the URL that was asked for.
#[derive(Debug, Clone)]
pub(in crate::gate) struct QuotePage {
    /// Up to the URL.
    begin: String,
    /// From there on.
    end: String,
}

/// Stands where the URL will be. No text that comes from outside holds a control character unescaped.
const PLACE: &str = "\u{1}";

impl QuotePage {
    pub(in crate::gate) fn new(stock: &Stock<'_>, listing: &Listing) -> Self {
        let Listing { route, .. } = listing;
        let price = words::price(&listing.preferred.charged, stock.terms.token.decimals);
        let (name, origin) = (escaped(stock.name()), escaped(stock.origin));
        let what = route.description.as_deref().map(|text| format!("<p class=\"what\">{}</p>", escaped(text)));
        let (price, shown) = (escaped(&price), code(&shown(route)));
        let kind = route.mime_type.as_deref().map(|text| row("Answers", &format!("<code>{}</code>", escaped(text))));
        let body = format!(
            "<header><p class=\"site\">{name}</p><h1>This costs <strong>{price}</strong></h1>{what}</header>\
             <main><p>The address you opened is sold by the request, to programs. A browser cannot pay for it; a program \
             with a key that holds some {token} can, without an account.</p>\
             <h2>Pay from a shell</h2><pre><code>peaje pay '{origin}{PLACE}'</code></pre>\
             <h2>Pay from JavaScript</h2><pre><code>{script}</code></pre>\
             <h2>Terms</h2><dl>{route}{kind}{network}{token_row}{receiver}</dl>\
             <p>The quote itself is in the <code>PAYMENT-REQUIRED</code> header of this answer (x402, version 2). \
             {by_status}</p></main>{footer}",
            by_status = escaped(&words::by_status(&route.status_rule)),
            what = what.unwrap_or_default(),
            token = escaped(&stock.terms.token.domain_name),
            script = script(stock, &format!("{origin}{PLACE}")),
            route = row("Route", &shown),
            kind = kind.unwrap_or_default(),
            network = row("Chain", &format!("{} ({})", escaped(&stock.network()), stock.terms.chain_id)),
            token_row = row("Token", &token(stock)),
            receiver = row("Paid to", &format!("<code>{}</code>", stock.terms.pay_to)),
            footer = footer(stock),
        );
        let page = page(&format!("{} – {name}", "Payment required"), &body);
        let mut pieces = page.splitn(2, PLACE);
        let begin = pieces.next().unwrap_or_default().to_owned();
        Self { begin, end: pieces.next().unwrap_or_default().to_owned() }
    }

    /// The page for a path and query.
    pub(in crate::gate) fn write(&self, path_and_query: &str) -> String {
        let url = escaped(path_and_query);
        // In a shell's quotes and in a script's a quote would end the text; a URL has it escaped.
        let url = url.replace("&#39;", "%27");
        format!("{}{url}{}", self.begin, self.end.replace(PLACE, &url))
    }
}

/// The price list.
pub(super) fn home(stock: &Stock<'_>) -> String {
    let name = escaped(stock.name());
    let what = stock.front.description.as_deref().map(|text| format!("<p class=\"what\">{}</p>", escaped(text)));
    let entry = |route: &Route, price: &str| {
        let what = route.description.as_deref().map(|text| format!("<p>{}</p>", escaped(text))).unwrap_or_default();
        format!("<li><p>{}<span class=\"price\">{}</span></p>{what}</li>", code(&shown(route)), escaped(price))
    };
    let paid: String = stock.listings.iter().map(|listing| entry(&listing.route, &stock.price(listing))).collect();
    let free: String = stock.free.iter().map(|route| entry(route, "free")).collect();
    let list = if paid.is_empty() && free.is_empty() {
        "<p>Nothing is listed.</p>".to_owned()
    } else {
        format!("<ul class=\"list\">{paid}{free}</ul>")
    };
    let body = format!(
        "<header><h1>{name}</h1>{what}</header><main>\
         <p>An HTTP API that is paid for by the request: in {token} on {network}, over x402, without an account.</p>\
         <h2>Prices</h2>{list}\
         <h2>Pay from a shell</h2><pre><code>peaje pay '{origin}/…'</code></pre>\
         <h2>Pay from JavaScript</h2><pre><code>{script}</code></pre>\
         <p>The first payment opens a channel with a deposit, which the server sends to the chain: you need no gas. Every \
         later one is a signature. What is not spent is yours, and a refund returns it.</p></main>{footer}",
        what = what.unwrap_or_default(),
        token = escaped(&stock.terms.token.domain_name),
        network = escaped(&stock.network()),
        origin = escaped(stock.origin),
        script = script(stock, &format!("{}/…", escaped(stock.origin))),
        footer = footer(stock),
    );
    page(&name, &body)
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title><style>{STYLE}</style></head>\
         <body>{body}</body></html>"
    )
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1b1f;--dim:#5b5b66;--line:#d9d9e0;--paper:#fff;--well:#f4f4f7;--accent:#0b6b4f}\
@media(prefers-color-scheme:dark){:root{--ink:#ececf1;--dim:#a3a3b0;--line:#34343d;--paper:#17171b;--well:#212127;--accent:#5fd3ac}}\
*{box-sizing:border-box}\
body{margin:0 auto;max-width:44rem;padding:2.5rem 1.25rem 4rem;background:var(--paper);color:var(--ink);\
font:1.0625rem/1.6 system-ui,sans-serif;overflow-wrap:anywhere}\
h1{font-size:1.75rem;line-height:1.25;margin:.25rem 0 .75rem;text-wrap:balance}h1 strong{color:var(--accent)}\
h2{font-size:1.0625rem;margin:2rem 0 .5rem}p{margin:.5rem 0}.site,footer{color:var(--dim)}.what{font-size:1.125rem}\
code,pre{font-family:ui-monospace,monospace;font-size:.9375rem}\
pre{background:var(--well);border:1px solid var(--line);border-radius:.5rem;padding:.875rem 1rem;overflow-x:auto;\
overflow-wrap:normal;line-height:1.5}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.375rem 1.25rem;margin:0}dt{color:var(--dim)}dd{margin:0}\
.list{list-style:none;margin:0;padding:0;border-top:1px solid var(--line)}\
.list li{padding:.75rem 0;border-bottom:1px solid var(--line)}.list p{margin:.125rem 0}\
.list p:first-child{display:flex;flex-wrap:wrap;justify-content:space-between;gap:.125rem 1.25rem}\
.list p+p{color:var(--dim)}.price{color:var(--accent);font-weight:600}\
a{color:var(--accent)}a:focus-visible{outline:2px solid;outline-offset:2px}\
footer{margin-top:2.5rem;padding-top:1rem;border-top:1px solid var(--line);font-size:.9375rem}\
@media(max-width:30rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}}";

/// How a program pays for a URL that is escaped already.
fn script(stock: &Stock<'_>, url: &str) -> String {
    format!(
        "import {{ wrapFetchWithPayment, x402Client }} from \"@x402/fetch\";\n\
         import {{ toClientEvmSigner }} from \"@x402/evm\";\n\
         import {{ BatchSettlementEvmScheme }} from \"@x402/evm/batch-settlement/client\";\n\n\
         const signer = toClientEvmSigner(account, publicClient); // both from viem\n\
         const client = new x402Client()\n  .register(\"eip155:{}\", new BatchSettlementEvmScheme(signer));\n\
         const answer = await wrapFetchWithPayment(fetch, client)(\n  '{url}');",
        stock.terms.chain_id,
    )
}

fn footer(stock: &Stock<'_>) -> String {
    let origin = escaped(stock.origin);
    let link = |path: &str, text: &str| format!("<a href=\"{origin}{path}\">{text}</a>");
    let openapi = stock.front.openapi.is_some().then(|| format!(" · {}", link("/openapi.json", "OpenAPI")));
    format!(
        "<footer>For programs: {} · {}{}</footer>",
        link("/.well-known/x402", "price list (JSON)"),
        link("/llms.txt", "llms.txt"),
        openapi.unwrap_or_default(),
    )
}

fn row(name: &str, value: &str) -> String {
    format!("<dt>{name}</dt><dd>{value}</dd>")
}

fn token(stock: &Stock<'_>) -> String {
    format!("{} <code>{}</code>", escaped(&stock.terms.token.domain_name), stock.terms.token.address)
}

/// A text with its backquotes, which mark code.
fn code(text: &str) -> String {
    format!("<code>{}</code>", escaped(text.trim_matches('`')))
}

/// What has a meaning in HTML, in a shell's quotes or in a script's, does not have it any more.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_has_a_meaning() {
        assert_eq!(escaped("<b a='1' b=\"2\">&\u{1}\n"), "&lt;b a=&#39;1&#39; b=&quot;2&quot;&gt;&amp;  ");
    }

    #[test]
    fn a_url_cannot_leave_its_quotes() {
        let page = QuotePage { begin: "'".to_owned(), end: format!("' and '{PLACE}'") };
        assert_eq!(page.write("/a?q='$(x)'<s>"), "'/a?q=%27$(x)%27&lt;s&gt;' and '/a?q=%27$(x)%27&lt;s&gt;'");
    }
}
