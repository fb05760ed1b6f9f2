//! What stands between the proxy and the facilitator: it can lose what it carries, and lie.

use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

/// What becomes of a request to settle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// The facilitator gets it, and its answer comes back.
    Open,
    /// The facilitator never gets it, and a gateway says so in no words that count.
    Dropped,
    /// Nobody gets it, and nothing comes back.
    Held,
    /// The facilitator gets it, and its answer is lost.
    Lost,
    /// The facilitator gets it, and nothing comes back.
    Silent,
    /// The facilitator gets it, and says that it is not mined yet.
    Pending,
    /// Refused with this code. The facilitator does not get it.
    Refused(&'static str),
    /// Found invalid with this code, when it is asked to verify.
    Invalid(&'static str),
    /// Refused with this status and no words. The facilitator does not get it.
    Status(u16),
    /// Claims of more rows than this are refused by their size; the facilitator gets all else.
    AtMost(usize),
    /// Success by this transaction. The facilitator does not get it.
    Lie(String),
}

#[derive(Clone)]
pub(crate) struct Office(Arc<Desk>);

struct Desk {
    to: String,
    http: reqwest::Client,
    way: Mutex<Way>,
    /// The payloads that were to be settled, repetitions included.
    asked: Mutex<Vec<Value>>,
    /// The last of the requests, whole.
    last: Mutex<Bytes>,
}

impl Office {
    pub(crate) async fn open(to: String) -> (Self, String) {
        peaje::chain::install_tls();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let office = Self(Arc::new(Desk {
            to,
            http,
            way: Mutex::new(Way::Open),
            asked: Mutex::default(),
            last: Mutex::default(),
        }));
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let router = axum::Router::new().fallback(pass).with_state(office.clone());
        tokio::spawn(async move { axum::serve(socket, router).await.unwrap() });
        (office, url)
    }

    pub(crate) fn set(&self, way: Way) {
        *self.0.way.lock().unwrap() = way;
    }

    /// What was to be settled so far, by the payload's type.
    pub(crate) fn asked(&self) -> Vec<String> {
        let asked = self.0.asked.lock().unwrap();
        asked.iter().map(|payload| payload["type"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn asked_for(&self, purpose: &str) -> usize {
        self.asked().iter().filter(|asked| *asked == purpose).count()
    }

    /// How many rows each claim had.
    pub(crate) fn rows(&self) -> Vec<usize> {
        let asked = self.0.asked.lock().unwrap();
        let claims = asked.iter().filter(|payload| payload["type"] == "claim");
        claims.map(|payload| payload["claims"].as_array().unwrap().len()).collect()
    }

    /// Brings the facilitator the last request, so late that nobody waits for the answer.
    pub(crate) async fn carry_out_last(&self) {
        let last = self.0.last.lock().unwrap().clone();
        self.forward(Method::POST, &Uri::from_static("/settle"), last).await;
    }

    async fn forward(&self, method: Method, uri: &Uri, body: Bytes) -> (StatusCode, Value) {
        let request = self.0.http.request(method, format!("{}{}", self.0.to, uri.path())).body(body);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }
}

async fn pass(State(office): State<Office>, method: Method, uri: Uri, body: Bytes) -> Response {
    let way = office.0.way.lock().unwrap().clone();
    if let (Way::Invalid(code), "/verify") = (&way, uri.path()) {
        return told((StatusCode::OK, json!({"isValid": false, "invalidReason": code})));
    }
    if uri.path() != "/settle" {
        return told(office.forward(method, &uri, body).await);
    }
    let request: Value = serde_json::from_slice(&body).unwrap();
    *office.0.last.lock().unwrap() = body.clone();
    let network = request["paymentRequirements"]["network"].clone();
    office.0.asked.lock().unwrap().push(request["paymentPayload"]["payload"].clone());
    match way {
        Way::AtMost(rows) if claims(&request) > rows => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Way::Open | Way::Invalid(_) | Way::AtMost(_) => told(office.forward(method, &uri, body).await),
        Way::Dropped => StatusCode::BAD_GATEWAY.into_response(),
        Way::Held => std::future::pending().await,
        Way::Lost => {
            office.forward(method, &uri, body).await;
            StatusCode::BAD_GATEWAY.into_response()
        }
        Way::Silent => {
            office.forward(method, &uri, body).await;
            std::future::pending().await
        }
        Way::Pending => {
            let (_, answer) = office.forward(method, &uri, body).await;
            let pending = json!({
                "success": false, "errorReason": "settlement_pending", "network": network,
                "transaction": answer["transaction"],
            });
            told((StatusCode::OK, pending))
        }
        Way::Refused(code) => told((
            StatusCode::OK,
            json!({"success": false, "errorReason": code, "network": network, "transaction": ""}),
        )),
        Way::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Way::Lie(transaction) => {
            told((StatusCode::OK, json!({"success": true, "network": network, "transaction": transaction})))
        }
    }
}

fn claims(request: &Value) -> usize {
    request["paymentPayload"]["payload"]["claims"].as_array().map_or(0, Vec::len)
}

fn told((status, body): (StatusCode, Value)) -> Response {
    (status, axum::Json(body)).into_response()
}
