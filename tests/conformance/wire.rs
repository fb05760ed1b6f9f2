//! Cases 1 to 8: the wire.

use http::StatusCode;
use serde_json::json;

use super::harness::{PRICE, PUBLIC_URL, World, WorldOptions};

#[tokio::test]
async fn case_01_an_unpaid_get_is_quoted_and_the_upstream_never_hears_of_it() {
    let world = World::start(WorldOptions::default()).await;
    let before = world.tally().await;

    let answer = world.get("/paid?city=Madrid").await;

    answer.assert_refused(402, "Payment required");
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
    let quote = answer.quote().unwrap();
    assert_eq!(quote["x402Version"], json!(2));
    assert_eq!(quote["resource"]["url"], json!(format!("{PUBLIC_URL}/paid?city=Madrid")));
    world.assert_untouched(&before).await;
    world.opened(1, 5 * PRICE).await;
    world.finish(PRICE).await;
}
