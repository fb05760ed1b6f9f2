//! The payment core: what a request costs, whether its voucher pays for it, and the one door through which a channel's
//! money changes.
//!
//! **Owns** quotes, accounts and holds, and the tower layer that puts them in front of any HTTP service.
//! **Promises** that the service behind it is called only for a request that is free or held against a verified,
//! covered voucher; that a hold is posted or voided exactly once, whatever drops the request; and that the head of a paid
//! answer leaves only after its charge is in the books.
//! **Does not** listen, connect or speak to a chain: deposits, refunds and reads go to the [`desk`], whose other end
//! the redeemer holds.

//!
//! # In front of an axum application
//!
//! ```
//! use axum::{Router, body::Body, routing::get};
//! use http::{Request, StatusCode};
//! use peaje::gate::policy::{Policy, Price, Route, Terms, TokenTerms};
//! use peaje::gate::{Desk, Gate, path::PathPattern};
//! use peaje::protocol::{Amount, Network};
//! use tower::ServiceExt as _;
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let base_sepolia = Network::by_name("base-sepolia").ok_or("no such preset")?;
//! let usdc = base_sepolia.token("usdc").ok_or("no such preset")?;
//! let terms = Terms {
//!     chain_id: base_sepolia.chain_id,
//!     token: TokenTerms::preset(usdc),
//!     pay_to: "0x209693Bc6afc0C5328bA36FaF03C514EF312287C".parse()?,
//!     receiver_authorizer: "0x3325a78425F17a7E487Eb5666b2bFd93aBb06c70".parse()?,
//!     withdraw_delay_s: 86_400,
//!     max_timeout_s: 60,
//!     max_in_flight: 32,
//!     min_deposit: None,
//! };
//! let price = Price::Fixed(Amount::from_price("$0.002", usdc.decimals)?);
//! let routes = vec![Route::new(PathPattern::parse("/weather")?, price)];
//! let policy = Policy::new(terms, "https://api.example.com", routes).map_err(|_| "two routes are equal")?;
//!
//! // `Desk::closed()` quotes prices but has no chain behind it. `Desk::new()` with `redeem::Teller` at its other end
//! // takes deposits, pays refunds and redeems.
//! let gate = Gate::new(policy, Desk::closed());
//! let app = Router::new().route("/weather", get(|| async { "sunny" })).layer(gate.layer());
//!
//! let unpaid = app.oneshot(Request::get("/weather").body(Body::empty())?).await?;
//! assert_eq!(unpaid.status(), StatusCode::PAYMENT_REQUIRED);
//! assert!(unpaid.headers().contains_key("payment-required"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod accounts;
mod admit;
mod answer;
mod background;
mod body;
pub mod desk;
mod evidence;
pub mod explain;
mod former;
pub mod hot;
pub mod identifier;
mod idle;
mod limits;
mod look;
pub mod matching;
pub mod meter;
pub mod metered;
mod once;
pub mod path;
mod patience;
pub mod people;
pub mod policy;
pub mod quota;
pub mod record;
mod replay;
mod served;
mod service;
pub mod shop;
pub mod tender;
mod tills;
mod turns;
mod unread;
mod way;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::protocol::{ChannelConfig, Domain, Hash};
use background::Background;
use desk::DepositPlace;
use evidence::Evidence;
use former::Former;
use limits::Budget;
use patience::Patience;
use people::Doorkeeper;
use record::Recorder;
use replay::Replays;

pub use accounts::{Accounts, Statement};
pub use answer::refusal;
pub use body::AnswerBody;
pub use desk::{Desk, Questions};
pub use former::MAX_FORMER;
pub use hot::HotKeys;
pub use limits::{DepositLimits, Limits, MAX_PEERS, Peer};
pub(crate) use look::BodyWanted;
pub(crate) use matching::{BodyKind, kind_of_body};
pub use patience::MAX_DOUBTED;
pub use policy::Policy;
pub(crate) use replay::{Content, Heard};
pub use replay::{Idempotency, MAX_FINISHING, MAX_FINISHING_TIME};
pub use service::{HoldBack, PaymentLayer, PaymentService};
pub(crate) use service::{as_variable, strip_ours};
pub use way::Way;

/// The payment core: one price list, one set of accounts, one desk. Cheap to clone; all clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate {
    policy: Arc<ArcSwap<Policy>>,
    /// The chain that is paid on here.
    chain_id: u64,
    /// The domain vouchers are signed under there.
    settlement: Domain,
    /// The tills of the other chains.
    others: Arc<[Gate]>,
    /// Whether offers of this chain are left out of quotes.
    withheld: Arc<AtomicBool>,
    former: Arc<Former>,
    accounts: Accounts,
    desk: Desk,
    limits: Arc<ArcSwap<Limits>>,
    deposits: Arc<Budget>,
    refunds: Arc<Budget>,
    evidence: Arc<Evidence>,
    patience: Arc<Patience>,
    doorkeeper: Arc<Doorkeeper>,
    hot_keys: HotKeys,
    recorder: Option<Recorder>,
    /// For those who read on for the report of an answer whose payer has left.
    reading_on: Background,
    replays: Replays,
}

impl Gate {
    /// A gate whose books are in memory only: what was not claimed is gone with the process.
    pub fn new(policy: Policy, desk: Desk) -> Self {
        Self::with_accounts(policy, desk, Accounts::in_memory())
    }

    /// A gate that goes on with these accounts.
    pub fn with_accounts(policy: Policy, desk: Desk, accounts: Accounts) -> Self {
        let reading_on = Background::of(metered::MAX_READING_ON);
        Self {
            chain_id: policy.terms().chain_id,
            settlement: *policy.settlement(),
            others: Arc::default(),
            withheld: Arc::default(),
            policy: Arc::new(ArcSwap::from_pointee(policy)),
            former: Arc::default(),
            accounts,
            desk,
            limits: Arc::default(),
            deposits: Arc::default(),
            refunds: Arc::default(),
            evidence: Arc::default(),
            patience: Arc::default(),
            doorkeeper: Arc::default(),
            hot_keys: HotKeys::default(),
            recorder: None,
            replays: Replays::new(Idempotency::default(), &reading_on),
            reading_on,
        }
    }

    /// The same gate with other limits than [`Limits::default`]. Layers and clones that were made before keep theirs.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits: Arc::new(ArcSwap::from_pointee(limits)), ..self }
    }

    /// The same gate with so many bytes for the tables of keys that pay often, instead of [`HotKeys::DEFAULT_BYTES`]; with
    /// none at zero. Layers and clones that were made before keep theirs.
    #[must_use]
    pub fn with_hot_keys(self, max_bytes: usize) -> Self {
        Self { hot_keys: HotKeys::new(max_bytes), ..self }
    }

    /// The same gate with another rule for answers that may be asked for again. Layers and clones that were made before
    /// keep theirs.
    #[must_use]
    pub fn with_idempotency(self, rules: Idempotency) -> Self {
        Self { replays: Replays::new(rules, &self.reading_on), ..self }
    }

    /// The tables of keys that pay often.
    pub fn hot_keys(&self) -> &HotKeys {
        &self.hot_keys
    }

    /// How far it goes for its payers.
    pub fn limits(&self) -> Limits {
        **self.limits.load()
    }

    /// Other limits from now on, for all clones.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }

    /// The same gate, which tells this recorder of each request. Layers and clones that were made before do not.
    #[must_use]
    pub fn with_recorder(self, recorder: Recorder) -> Self {
        Self { recorder: Some(recorder), ..self }
    }

    /// Who is told of each request, if anybody is.
    pub fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// The layer that puts this gate in front of a service.
    pub fn layer(&self) -> PaymentLayer {
        PaymentLayer::new(self.clone())
    }

    /// The price list in force.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Puts another price list in force at once: quotes of the former one are not good any more. Requests that are being
    /// served keep theirs.
    pub fn set_policy(&self, policy: Policy) {
        self.replace_policy(policy, Duration::ZERO);
    }

    /// Puts another price list in force. Quotes of the former one stay good for so long: who pays one is served and charged
    /// by the list it came from. True if the new list says anything new; otherwise nothing is done.
    pub fn replace_policy(&self, policy: Policy, grace: Duration) -> bool {
        let _alone = self.former.replacing();
        let replaced = self.policy();
        let next = policy.following(&replaced);
        self.former.keep(&replaced, &next, grace, Instant::now());
        let is_new = replaced.digest() != next.digest();
        if is_new {
            self.policy.store(Arc::new(next));
        }
        is_new
    }

    /// The same gate, where the quote of an hour of the day that is over stays good for so long; not at all unless said.
    /// Quotes of a price list that is replaced have a grace of their own, see [`Gate::replace_policy`].
    #[must_use]
    pub fn with_quote_grace(self, grace: Duration) -> Self {
        self.former.set_grace(grace);
        self
    }

    /// How many former price lists are kept for the sake of their quotes, at most [`MAX_FORMER`].
    pub fn former_policies(&self) -> usize {
        self.former.len()
    }

    /// Takes the place of a deposit that a former process relayed and whose end is not known, so that nobody relays it
    /// again meanwhile. `None` where the channel's place is taken.
    pub(crate) fn deposit_place(&self, config: &ChannelConfig, salt: Hash) -> Option<DepositPlace> {
        self.desk.take_over(config.id(&self.settlement), config.payer, salt)
    }

    /// The accounts.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Ends when nothing goes on any more for clients that have left: neither requests that will be asked for again, nor
    /// reports of what an answer cost. What is left of it when its runtime ends costs what a request does that we end, once
    /// the accounts are told to abandon ([`Accounts::abandon`]).
    pub async fn unfinished(&self) {
        self.reading_on.done().await;
    }
}
