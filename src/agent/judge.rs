//! What to pay, what to sign and what to believe.
//!
//! **Owns** every decision about money on the paying side, as pure functions: the choice of an offer, the size of a
//! deposit, the next step on a channel, the judgement of receipts and of correctives. **Promises** to be total on
//! whatever a server sends. **Does not** know a socket, a disk, a key or a clock.

use std::fmt;

use serde::Deserialize as _;
use serde_json::{Map, Value};

use super::book::PendingDeposit;
use super::budget::{Budget, BudgetRefusal, Dollars, Limit};
use super::reader::ChainChannel;
use crate::protocol::channel::{MAX_WITHDRAW_DELAY_S, MIN_WITHDRAW_DELAY_S};
use crate::protocol::deposit::MIN_AUTHORIZATION_LEFT_S;
use crate::protocol::x402::{
    self, HeaderError, MAX_IN_FLIGHT, Offer, PERMIT2_METHOD, Receipt, SCHEME, TRANSFER_METHOD, VERSION,
};
use crate::protocol::{Address, Amount, ChannelId, Code, Domain, Hash, Network, Signature, SignedVoucher};

/// The longest a deposit authorization is made valid, in seconds, whatever the server asks for: while it is valid and
/// its fate open, the channel cannot be topped up.
pub const MAX_AUTHORIZATION_S: u64 = 3_600;
/// How long after its end an authorization is still taken to be alive, in seconds: clocks differ, and nodes lag.
pub const EXPIRY_MARGIN_S: u64 = 60;
/// The longest text of a server that is shown, in characters.
const MAX_SHOWN_CHARS: usize = 200;

// ---------------------------------------------------------------------------------------------------------- quotes

/// A quote as it came: offers of other schemes may have any shape, and an offer is echoed as it was made.
#[derive(Debug, Clone)]
pub struct LooseQuote {
    /// The server's `error`, untouched.
    pub error: Option<String>,
    /// The offers.
    pub accepts: Vec<Value>,
    /// What is for sale, to be echoed.
    pub resource: Option<Value>,
    /// What else the server can do, to be echoed.
    pub extensions: Option<Value>,
}

/// Why a quote cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteFault {
    /// There is none.
    #[error("there is no PAYMENT-REQUIRED header (the server may speak x402 version 1 only)")]
    Missing,
    /// It is not base64 of JSON.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Another version of the protocol.
    #[error("it is not of x402 version 2")]
    Version,
    /// It has no list of offers.
    #[error("it lists no offers")]
    NoOffers,
}

/// Reads a `PAYMENT-REQUIRED` header.
///
/// # Errors
/// When it is missing or not a quote of x402 version 2.
pub fn read_quote(header: Option<&[u8]>) -> Result<LooseQuote, QuoteFault> {
    let mut object: Map<String, Value> = x402::decode(header.ok_or(QuoteFault::Missing)?)?;
    if object.get("x402Version").and_then(Value::as_u64) != Some(VERSION) {
        return Err(QuoteFault::Version);
    }
    let Some(Value::Array(accepts)) = object.remove("accepts") else { return Err(QuoteFault::NoOffers) };
    let error = object.get("error").and_then(Value::as_str).map(str::to_owned);
    let echoed = |value: Option<Value>| value.filter(|value| !value.is_null());
    let resource = echoed(object.remove("resource"));
    let extensions = echoed(object.remove("extensions"));
    Ok(LooseQuote { error, accepts, resource, extensions })
}

// ---------------------------------------------------------------------------------------------------------- offers

/// A token that may be paid with although it has no preset, or whose preset is overridden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownToken {
    /// The chain it is on.
    pub chain_id: u64,
    /// Where it is.
    pub address: Address,
    /// Decimal places of a dollar.
    pub decimals: u8,
    /// The `name` of its EIP-712 domain.
    pub domain_name: String,
    /// The `version` of its EIP-712 domain.
    pub domain_version: String,
}

/// Which terms an agent agrees to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Chains that may be paid on; empty: every chain a known token is on.
    pub chains: Vec<u64>,
    /// Tokens beside the presets of [`crate::protocol::networks`]. They come before a preset of the same address.
    pub tokens: Vec<KnownToken>,
    /// The longest delay before a deposit can be withdrawn against the server's will, in seconds.
    pub max_withdraw_delay_s: u64,
}

impl Default for Terms {
    /// The preset tokens, on any of their chains, with any delay the contract allows.
    fn default() -> Self {
        Self { chains: Vec::new(), tokens: Vec::new(), max_withdraw_delay_s: MAX_WITHDRAW_DELAY_S }
    }
}

impl Terms {
    fn token(&self, chain_id: u64, address: Address) -> Option<KnownToken> {
        let own = self.tokens.iter().find(|token| token.chain_id == chain_id && token.address == address);
        own.cloned().or_else(|| {
            let preset = Network::by_chain_id(chain_id)?.tokens.iter().find(|token| token.address() == address)?;
            Some(KnownToken {
                chain_id,
                address,
                decimals: preset.decimals,
                domain_name: preset.domain_name.to_owned(),
                domain_version: preset.domain_version.to_owned(),
            })
        })
    }

    fn knows_chain(&self, chain_id: u64) -> bool {
        let has_token =
            Network::by_chain_id(chain_id).is_some() || self.tokens.iter().any(|token| token.chain_id == chain_id);
        has_token && (self.chains.is_empty() || self.chains.contains(&chain_id))
    }
}

/// Why an offer is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OfferFault {
    /// Another payment scheme, or none.
    #[error("scheme {0:?} is not {SCHEME}")]
    Scheme(String),
    /// Its shape is not that of an offer.
    #[error("an offer is malformed ({0})")]
    Malformed(String),
    /// A chain that is not known, or not allowed.
    #[error("network {0:?} is not known or not allowed")]
    Network(String),
    /// A token that is not known on its chain.
    #[error("token {0} is not known; allow it explicitly if you trust it")]
    Token(Address),
    /// The token's signing domain is not the one it is known by.
    #[error("token {0} is offered with another name or version than it has")]
    TokenDomain(Address),
    /// The receiver is the zero address.
    #[error("it pays the zero address")]
    PayTo,
    /// Nobody could sign refunds for the receiver.
    #[error("it names no receiver authorizer")]
    ReceiverAuthorizer,
    /// The withdraw delay is missing, or longer than agreed to, or one the contract refuses.
    #[error("its withdraw delay is missing or out of range")]
    WithdrawDelay,
    /// Deposits by something else than an ERC-3009 authorization or a Permit2 transfer, which is all this agent signs.
    #[error("it wants deposits by {0:?}, this agent signs eip3009 and permit2 only")]
    TransferMethod(String),
    /// A variant of the scheme this agent does not speak.
    #[error("it wants {key} {value:?}, which this agent does not speak")]
    Variant {
        /// The key in `extra`.
        key: &'static str,
        /// What it asks for.
        value: String,
    },
    /// No time to be paid in.
    #[error("it leaves no time to pay")]
    Timeout,
}

/// An offer that was found acceptable, with what was found out about it.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The offer.
    pub offer: Offer,
    /// The same as it came, to be echoed.
    pub echo: Value,
    /// Its chain.
    pub chain_id: u64,
    /// Its token.
    pub token: KnownToken,
    /// Who signs claims and refunds for the receiver; not zero.
    pub receiver_authorizer: Address,
    /// Seconds between announcing a withdrawal and making it.
    pub withdraw_delay: u64,
    /// Whether its token is deposited through Permit2 instead of by ERC-3009.
    pub by_permit2: bool,
    /// The least the server wants deposited, if it says so and it covers the price.
    pub min_deposit: Option<Amount>,
    /// How many vouchers may be signed ahead; 1 where the server does not say.
    pub max_in_flight: u32,
}

impl Choice {
    /// The token's own signing domain.
    pub fn token_domain(&self) -> Domain {
        let KnownToken { chain_id, address, domain_name, domain_version, .. } = &self.token;
        Domain::new(domain_name, domain_version, *chain_id, *address)
    }
}

/// Why no offer was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChoiceFault {
    /// None is acceptable; one reason an offer.
    NoOffer(Vec<OfferFault>),
    /// At least one is acceptable but for its price. The cheapest of them.
    TooExpensive(BudgetRefusal),
}

/// Takes the first acceptable offer: the order is the server's preference. `max_price` is not asked of a refund.
///
/// # Errors
/// When there is none.
pub fn choose(accepts: &[Value], terms: &Terms, max_price: Option<Dollars>) -> Result<Choice, ChoiceFault> {
    let mut faults = Vec::new();
    let mut cheapest: Option<Dollars> = None;
    for echo in accepts {
        match examine(echo, terms) {
            Ok(choice) => {
                let price = Dollars::of(choice.offer.amount, choice.token.decimals);
                if max_price.is_none_or(|max| price <= max) {
                    return Ok(choice);
                }
                cheapest = Some(cheapest.map_or(price, |other| other.min(price)));
            }
            Err(fault) => faults.push(fault),
        }
    }
    match (cheapest, max_price) {
        (Some(asked), Some(allowed)) => Err(ChoiceFault::TooExpensive(BudgetRefusal {
            limit: Limit::Request,
            asked,
            allowed,
            spent: Dollars::ZERO,
        })),
        _ => Err(ChoiceFault::NoOffer(faults)),
    }
}

fn examine(offered: &Value, terms: &Terms) -> Result<Choice, OfferFault> {
    let scheme = offered.get("scheme").and_then(Value::as_str).unwrap_or_default();
    if scheme != SCHEME {
        return Err(OfferFault::Scheme(shown(scheme)));
    }
    let offer = Offer::deserialize(offered).map_err(|error| OfferFault::Malformed(shown(&error.to_string())))?;
    let extra = |key: &str| offer.extra.get(key).filter(|value| !value.is_null());
    let chain_id = x402::chain_id_of(&offer.network)
        .filter(|id| terms.knows_chain(*id))
        .ok_or_else(|| OfferFault::Network(shown(&offer.network)))?;
    let token = terms.token(chain_id, offer.asset).ok_or(OfferFault::Token(offer.asset))?;
    let is = |key: &str, expected: &str| extra(key).and_then(Value::as_str) == Some(expected);
    if !is("name", &token.domain_name) || !is("version", &token.domain_version) {
        return Err(OfferFault::TokenDomain(offer.asset));
    }
    if offer.pay_to.is_zero() {
        return Err(OfferFault::PayTo);
    }
    let receiver_authorizer = extra("receiverAuthorizer")
        .and_then(Value::as_str)
        .and_then(|text| text.parse::<Address>().ok())
        .filter(|address| !address.is_zero())
        .ok_or(OfferFault::ReceiverAuthorizer)?;
    let longest = terms.max_withdraw_delay_s.min(MAX_WITHDRAW_DELAY_S);
    let withdraw_delay = extra("withdrawDelay")
        .and_then(Value::as_u64)
        .filter(|delay| (MIN_WITHDRAW_DELAY_S..=longest).contains(delay))
        .ok_or(OfferFault::WithdrawDelay)?;
    let by_permit2 = match extra(TRANSFER_METHOD).map(|method| method.as_str().ok_or(method)) {
        None | Some(Ok("eip3009")) => false,
        Some(Ok(PERMIT2_METHOD)) => true,
        Some(Ok(other)) => return Err(OfferFault::TransferMethod(shown(other))),
        Some(Err(other)) => return Err(OfferFault::TransferMethod(shown(&text_of(other)))),
    };
    for (key, default) in [("paymentFlow", "authorization"), ("voucherManager", "server")] {
        if let Some(value) = extra(key).filter(|value| value.as_str() != Some(default)) {
            return Err(OfferFault::Variant { key, value: shown(&text_of(value)) });
        }
    }
    if offer.max_timeout_seconds == 0 {
        return Err(OfferFault::Timeout);
    }
    let min_deposit = extra("minDeposit")
        .and_then(Value::as_str)
        .and_then(|text| text.parse::<Amount>().ok())
        .filter(|least| *least >= offer.amount);
    // What cannot be read is no promise.
    let max_in_flight =
        extra(MAX_IN_FLIGHT).and_then(Value::as_u64).map_or(1, |most| u32::try_from(most).unwrap_or(u32::MAX));
    let echo = without_state(offered);
    Ok(Choice {
        offer,
        echo,
        chain_id,
        token,
        receiver_authorizer,
        withdraw_delay,
        by_permit2,
        min_deposit,
        max_in_flight,
    })
}

/// The offer without what a corrective adds to it: the state is addressed to us and answers nothing.
fn without_state(offered: &Value) -> Value {
    let mut echo = offered.clone();
    if let Some(extra) = echo.get_mut("extra").and_then(Value::as_object_mut) {
        extra.remove("channelState");
        extra.remove("voucherState");
    }
    echo
}

// -------------------------------------------------------------------------------------------------------- deposits

/// How much to deposit so that a balance reaches `max`: the server's minimum if it named one, else so many requests as
/// the budget says, in any case what is missing, and never above the limit on deposits.
///
/// # Errors
/// When what is missing, or the server's minimum (below which it may refuse), is above that limit.
pub fn deposit_size(balance: Amount, max: Amount, choice: &Choice, budget: &Budget) -> Result<Amount, BudgetRefusal> {
    let decimals = choice.token.decimals;
    let cap = budget.max_deposit.to_amount(decimals);
    let missing = max.saturating_sub(balance);
    let least = missing.max(choice.min_deposit.unwrap_or(Amount::ZERO));
    if least > cap {
        return Err(BudgetRefusal {
            limit: Limit::Deposit,
            asked: Dollars::of(least, decimals),
            allowed: budget.max_deposit,
            spent: Dollars::ZERO,
        });
    }
    let wanted = match choice.min_deposit {
        Some(_) => least,
        None => choice.offer.amount.checked_mul(u128::from(budget.deposit_multiplier)).unwrap_or(Amount::MAX),
    };
    Ok(wanted.max(least).min(cap))
}

/// The books of a channel, as far as the next step depends on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Funds {
    /// What the next voucher is signed above: what was charged in all, or more where vouchers were signed ahead.
    pub charged: Amount,
    /// What is known to be deposited.
    pub balance: Amount,
    /// A deposit whose fate is open.
    pub pending: Option<PendingDeposit>,
    /// The chain, or the server, has just said that the pending deposit is not there yet.
    pub pending_is_absent: bool,
}

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// A voucher; the balance covers it.
    Voucher,
    /// A voucher that is covered if the pending deposit landed. It costs nothing to ask, and a deposit that landed
    /// without our hearing of it is found this way.
    VoucherOnPending,
    /// A voucher and the pending deposit once more: the same authorization, which can land only once.
    SameDeposit(PendingDeposit),
    /// A voucher and a new deposit of so much.
    NewDeposit(Amount),
}

/// Why nothing can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanFault {
    /// The budget refuses the deposit.
    Budget(BudgetRefusal),
    /// A deposit that may still land does not cover this; seconds until it cannot any more.
    DepositOpen {
        /// Seconds.
        seconds: u64,
    },
    /// The next ceiling does not fit.
    Overflow,
}

/// The next step on a channel, and the ceiling to sign. `now` is Unix time in seconds.
///
/// # Errors
/// When a deposit is needed and must not be made.
pub fn plan(funds: &Funds, choice: &Choice, budget: &Budget, now: u64) -> Result<(Plan, Amount), PlanFault> {
    let max = funds.charged.checked_add(choice.offer.amount).ok_or(PlanFault::Overflow)?;
    if max <= funds.balance {
        return Ok((Plan::Voucher, max));
    }
    if let Some(pending) = funds.pending {
        let covers = funds.balance.checked_add(pending.amount).is_none_or(|landed| landed >= max);
        if covers && !funds.pending_is_absent {
            return Ok((Plan::VoucherOnPending, max));
        }
        if covers && now.saturating_add(MIN_AUTHORIZATION_LEFT_S) < pending.valid_before {
            return Ok((Plan::SameDeposit(pending), max));
        }
        if may_land(&pending, now) {
            let seconds = pending.valid_before.saturating_add(EXPIRY_MARGIN_S).saturating_sub(now);
            return Err(PlanFault::DepositOpen { seconds });
        }
    }
    let deposit = deposit_size(funds.balance, max, choice, budget).map_err(PlanFault::Budget)?;
    Ok((Plan::NewDeposit(deposit), max))
}

/// Whether a deposit may still land at Unix time `now`, in seconds.
pub fn may_land(pending: &PendingDeposit, now: u64) -> bool {
    now <= pending.valid_before.saturating_add(EXPIRY_MARGIN_S)
}

// -------------------------------------------------------------------------------------------------------- receipts

/// What a paid request asked for, against which its receipt is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The most it may be charged.
    pub amount: Amount,
    /// The deposit that went with it.
    pub deposit: Option<Amount>,
}

/// Why a receipt, or a part of it, is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptFault {
    /// There is none.
    #[error("the answer has no receipt")]
    Missing,
    /// It cannot be read.
    #[error("the receipt cannot be read: {0}")]
    Unreadable(String),
    /// `chargedAmount` is missing or no decimal string.
    #[error("the receipt does not say what was charged, as a decimal string")]
    NoCharge,
    /// More was charged than was offered.
    #[error("the receipt charges {charged}, more than the {amount} that were offered")]
    Overcharged {
        /// What it says.
        charged: Amount,
        /// The most it may say.
        amount: Amount,
    },
    /// It does not confirm the deposit that was sent: no transaction, or another amount.
    #[error("the receipt does not confirm the deposit")]
    Deposit,
}

/// What a receipt is worth.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReceiptVerdict {
    /// What was charged, if that is believed.
    pub charged: Option<Amount>,
    /// The transaction of our deposit, if it is said to have landed whole.
    pub landed: Option<Hash>,
    /// The server says that the payment failed: its code and message, shortened.
    pub refusal: Option<(String, String)>,
    /// What is not believed.
    pub doubt: Option<ReceiptFault>,
    /// The receipt as it came. Untrusted; for showing.
    pub receipt: Option<Receipt>,
}

/// Judges a `PAYMENT-RESPONSE` header. The charge and the deposit are believed one without the other; the state of the
/// channel is never copied from it.
pub fn judge_receipt(header: Option<&[u8]>, asked: Asked) -> ReceiptVerdict {
    let doubtful = |fault| ReceiptVerdict { doubt: Some(fault), ..ReceiptVerdict::default() };
    let Some(header) = header else { return doubtful(ReceiptFault::Missing) };
    let receipt: Receipt = match x402::decode(header) {
        Ok(receipt) => receipt,
        Err(error) => return doubtful(ReceiptFault::Unreadable(shown(&error.to_string()))),
    };
    if !receipt.success {
        let code = shown(receipt.error_reason.as_deref().unwrap_or("payment failed"));
        let message = shown(receipt.error_message.as_deref().unwrap_or_default());
        return ReceiptVerdict { refusal: Some((code, message)), receipt: Some(receipt), ..ReceiptVerdict::default() };
    }
    let (charged, mut doubt) = match receipt.charged_amount() {
        Some(charged) if charged <= asked.amount => (Some(charged), None),
        Some(charged) => (None, Some(ReceiptFault::Overcharged { charged, amount: asked.amount })),
        None => (None, Some(ReceiptFault::NoCharge)),
    };
    let landed = asked.deposit.and_then(|deposit| {
        let whole = receipt.amount.as_deref().and_then(|amount| amount.parse().ok()) == Some(deposit);
        receipt.transaction.parse::<Hash>().ok().filter(|_| whole)
    });
    if asked.deposit.is_some() && landed.is_none() {
        doubt = doubt.or(Some(ReceiptFault::Deposit));
    }
    ReceiptVerdict { charged, landed, refusal: None, doubt, receipt: Some(receipt) }
}

// ------------------------------------------------------------------------------------------------------ correctives

/// Whether a refusal invites a correction of our books. The text is compared letter by letter, as the scheme says.
pub fn is_corrective(error: &str) -> bool {
    [Code::CumulativeAmountMismatch, Code::CumulativeBelowClaimed].iter().any(|code| code.as_str() == error)
}

/// Whether a refusal of a voucher that hoped for a pending deposit says that it has not landed yet. A server that is
/// still at it may call the channel busy.
pub fn says_pending_is_absent(error: &str) -> bool {
    is_underfunded(error) || error == Code::ChannelBusy.as_str()
}

/// Whether a refusal says that the channel holds less than our books say.
pub fn is_underfunded(error: &str) -> bool {
    [Code::ChannelNotFound, Code::CumulativeExceedsBalance].iter().any(|code| code.as_str() == error)
}

/// Why a corrective is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CorrectiveFault {
    /// More was charged than was signed for.
    #[error("it claims more was charged than was ever signed for")]
    ChargedAboveSigned,
    /// Less was charged than the chain says was claimed.
    #[error("it claims less was charged than was claimed on chain")]
    BelowClaimed,
    /// The voucher it shows is not ours.
    #[error("the voucher it shows was not signed by this agent")]
    ForeignSignature,
    /// Part of the state is missing or malformed.
    #[error("the state it shows is malformed or of another channel")]
    Malformed,
}

/// What a corrective shows of a channel. Nothing of it is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownState {
    /// What the server says was charged in all.
    pub charged: Amount,
    /// What the server says is deposited, if it says so.
    pub balance: Option<Amount>,
    /// The ceiling of our latest voucher.
    pub signed_max: Amount,
    /// Its signature.
    pub signature: Signature,
}

/// Finds the state a corrective shows of `channel`. `None`: it shows none, so only the chain can tell.
///
/// # Errors
/// When there is one, and it is malformed.
pub fn shown_state(accepts: &[Value], channel: ChannelId) -> Result<Option<ShownState>, CorrectiveFault> {
    let extras = accepts
        .iter()
        .filter(|offered| offered.get("scheme").and_then(Value::as_str) == Some(SCHEME))
        .filter_map(|offered| offered.get("extra"));
    let is_ours = |state: &Value| match state.get("channelId").and_then(Value::as_str) {
        Some(id) => id.parse() == Ok(channel),
        None => true,
    };
    for extra in extras {
        let (Some(state), Some(voucher)) = (extra.get("channelState"), extra.get("voucherState")) else { continue };
        if !is_ours(state) {
            continue;
        }
        let amount = |value: Option<&Value>| value.and_then(Value::as_str).and_then(|text| text.parse().ok());
        let charged = amount(state.get("chargedCumulativeAmount")).ok_or(CorrectiveFault::Malformed)?;
        let signed_max = amount(voucher.get("signedMaxClaimable")).ok_or(CorrectiveFault::Malformed)?;
        let signature = voucher
            .get("signature")
            .and_then(|signature| Signature::deserialize(signature).ok())
            .ok_or(CorrectiveFault::Malformed)?;
        return Ok(Some(ShownState { charged, balance: amount(state.get("balance")), signed_max, signature }));
    }
    Ok(None)
}

/// What the books of a channel are corrected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Correction {
    /// What was charged in all.
    pub charged: Amount,
    /// The highest ceiling that is known to be signed.
    pub signed_max: Amount,
    /// What is deposited.
    pub balance: Amount,
}

/// Our side of a channel, against which a corrective is judged.
#[derive(Debug, Clone, Copy)]
pub struct OwnSide {
    /// The channel.
    pub channel: ChannelId,
    /// The settlement contract's signing domain on its chain.
    pub settlement: Domain,
    /// Who signs our vouchers.
    pub signer: Address,
    /// What our books say was charged in all.
    pub charged: Amount,
    /// What our books say is deposited.
    pub balance: Amount,
}

/// Judges a corrective that shows a voucher.
///
/// The balance follows the chain upwards only, because a node may lag behind a deposit we already know of; unless
/// nothing else can be wrong, that is, both sides agree on what was charged. Without a chain it follows the server
/// upwards: a balance that is not there hurts the server alone, which gets a voucher it cannot claim in full.
///
/// # Errors
/// When the state is not proven.
pub fn judge_corrective(
    state: &ShownState,
    own: &OwnSide,
    chain: Option<ChainChannel>,
) -> Result<Correction, CorrectiveFault> {
    if state.charged > state.signed_max {
        return Err(CorrectiveFault::ChargedAboveSigned);
    }
    if chain.is_some_and(|chain| state.charged < chain.total_claimed) {
        return Err(CorrectiveFault::BelowClaimed);
    }
    let voucher =
        SignedVoucher { channel: own.channel, max_claimable: state.signed_max, signature: state.signature.clone() };
    if voucher.signature.recover(voucher.digest(&own.settlement)) != Ok(own.signer) {
        return Err(CorrectiveFault::ForeignSignature);
    }
    let balance = match chain {
        Some(chain) if state.charged == own.charged => chain.balance,
        Some(chain) => own.balance.max(chain.balance),
        None => own.balance.max(state.balance.unwrap_or_default()),
    };
    Ok(Correction { charged: state.charged, signed_max: state.signed_max, balance })
}

// ------------------------------------------------------------------------------------------------------------ texts

/// A server's text made fit for a terminal: printable ASCII, and not long.
pub fn shown(text: &str) -> String {
    let printable = |character: char| if matches!(character, ' '..='~') { character } else { '?' };
    text.chars().take(MAX_SHOWN_CHARS).map(printable).collect()
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Voucher => "voucher",
            Self::VoucherOnPending => "voucher on a pending deposit",
            Self::SameDeposit(_) => "the pending deposit again",
            Self::NewDeposit(_) => "a new deposit",
        })
    }
}

#[cfg(test)]
mod tests;
