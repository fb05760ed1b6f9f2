//! `/llms.txt`: the price list for models, in the form of <https://llmstxt.org>.

use std::fmt::Write as _;

use super::{Stock, words};
use crate::gate::policy::{Listing, Route};
use crate::pricing::StatusRule;

pub(super) fn write(stock: &Stock<'_>) -> String {
    let Stock { origin, listings, free, .. } = stock;
    let mut text = format!("# {}\n\n", stock.name());
    if let Some(description) = &stock.front.description {
        let _ = writeln!(text, "> {description}\n");
    }
    let _ = writeln!(
        text,
        "An HTTP API at {origin} that is paid for by the request, without an account or a key: over x402 (version 2, \
         scheme batch-settlement) in {} on {}. An unpaid request is answered with 402 and a quote; what a quote says \
         counts, and this list is for information.",
        stock.terms.token.domain_name,
        stock.network(),
    );
    if !listings.is_empty() {
        text.push_str("\n## Prices\n\n");
    }
    for listing in *listings {
        let _ = write!(text, "- {}: {}.", shown(&listing.route), stock.price(listing));
        if !is_usual(listing) {
            let _ = write!(text, " {}", words::by_status(&listing.route.status_rule));
        }
        notes(&mut text, &listing.route);
    }
    if !free.is_empty() {
        text.push_str("\n## Free\n\n");
    }
    for route in *free {
        let _ = write!(text, "- {}", shown(route));
        notes(&mut text, route);
    }
    let by_status = words::by_status(&StatusRule::default());
    if listings.iter().all(|listing| is_usual(listing)) {
        let _ = writeln!(text, "\n{by_status}");
    } else if listings.iter().any(|listing| is_usual(listing)) {
        let _ = writeln!(text, "\nWhere nothing else is said: {by_status}");
    }
    let _ = write!(
        text,
        "
## How to pay

From a shell, with a key in PEAJE_AGENT_KEY that holds some {token}: `peaje pay {origin}/...`

From JavaScript, with the packages @x402/fetch, @x402/evm and viem:

```js
import {{ wrapFetchWithPayment, x402Client }} from \"@x402/fetch\";
import {{ toClientEvmSigner }} from \"@x402/evm\";
import {{ BatchSettlementEvmScheme }} from \"@x402/evm/batch-settlement/client\";

const client = new x402Client().register(
  \"eip155:{chain_id}\",
  new BatchSettlementEvmScheme(toClientEvmSigner(account, publicClient)),
);
const answer = await wrapFetchWithPayment(fetch, client)(\"{origin}/...\");
```

The first payment opens a channel with a deposit, which the server sends to the chain; you need no gas. Every later one
is a signature. What is not spent is yours, and a refund returns it.

## More

- [{origin}/.well-known/x402]({origin}/.well-known/x402): the same as JSON, with the offers
",
        token = stock.terms.token.domain_name,
        chain_id = stock.terms.chain_id,
    );
    if stock.front.openapi.is_some() {
        let _ = writeln!(text, "- [{origin}/openapi.json]({origin}/openapi.json): OpenAPI, with prices");
    }
    text
}

/// Whether answers are charged by their status as usual.
fn is_usual(listing: &Listing) -> bool {
    listing.route.status_rule == StatusRule::default()
}

fn notes(text: &mut String, route: &Route) {
    if let Some(description) = &route.description {
        let _ = write!(text, " {description}{}", if description.ends_with('.') { "" } else { "." });
    }
    if let Some(mime_type) = &route.mime_type {
        let _ = write!(text, " Answers {mime_type}.");
    }
    text.push('\n');
}

/// A route's methods and path.
pub(super) fn shown(route: &Route) -> String {
    let methods = route.methods.iter().map(http::Method::as_str).collect::<Vec<_>>().join(", ");
    let methods = if methods.is_empty() { "any method" } else { &methods };
    format!("`{methods} {}`", route.pattern)
}
