//! The paying side of a test: wallets that sign what they are told to, and payments open to any change.
#![allow(dead_code, reason = "a toolbox: not every test needs every tool")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "in a test a panic is the report")]

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use peaje::gate::policy::{Terms, TokenTerms};
use peaje::protocol::bytes::encode_decimal;
use peaje::protocol::bytes::keccak256;
use peaje::protocol::contracts::{PERMIT2, PERMIT2_COLLECTOR};
use peaje::protocol::deposit::{Authorization, EIP2612_SPONSORING, Permit2Authorization, TokenPermit};
use peaje::protocol::x402;
use peaje::protocol::{
    Address, Amount, ChannelConfig, ChannelId, Domain, Hash, LocalKey, Network, SignedVoucher, Voucher,
};

/// What every payment says it is for; nobody checks it.
const RESOURCE: &str = "https://api.example.test/paid";

/// Unix seconds.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A wallet, and the channel it would pay from.
#[derive(Debug, Clone)]
pub(crate) struct Payer {
    /// Its key.
    pub(crate) key: LocalKey,
    /// The channel's terms. Whatever is signed afterwards follows a change.
    pub(crate) config: ChannelConfig,
    /// What the proxy asks for.
    pub(crate) terms: Terms,
    /// The offer it echoes.
    pub(crate) offer: Value,
    /// The extensions it echoes.
    pub(crate) extensions: Map<String, Value>,
}

/// A deposit before it is signed. The defaults are what a stock client signs.
#[derive(Debug, Clone)]
pub(crate) struct DepositWish {
    /// How much is deposited.
    pub(crate) amount: u128,
    /// The voucher's ceiling.
    pub(crate) max: u128,
    /// Unix seconds.
    pub(crate) valid_after: u64,
    /// Unix seconds.
    pub(crate) valid_before: u64,
    /// The salt the payload shows.
    pub(crate) salt: Hash,
    /// The salt that goes into the nonce that is signed.
    pub(crate) signed_salt: Hash,
    /// The token's domain.
    pub(crate) domain: Domain,
    /// Who signs the authorization.
    pub(crate) signer: LocalKey,
}

/// What a provider on Base Sepolia may ask for.
pub(crate) fn usual_terms() -> Terms {
    let network = Network::by_name("base-sepolia").unwrap();
    Terms {
        chain_id: network.chain_id,
        token: TokenTerms::preset(network.token("usdc").unwrap()),
        pay_to: Address([1; 20]),
        receiver_authorizer: Address([2; 20]),
        withdraw_delay_s: 86_400,
        max_timeout_s: 60,
        max_in_flight: 32,
        min_deposit: None,
    }
}

impl Payer {
    /// The `n`th wallet, with the usual channel and an offer of this price. Asking again gives the same account.
    pub(crate) fn new(n: u8, terms: &Terms, price: u128) -> Self {
        let key = LocalKey::from_bytes(&keccak256(&[b'p', n]).0).unwrap();
        let config = terms.channel_of(key.address());
        let offer = json!(terms.offer(Amount::new(price)));
        Self { key, config, terms: terms.clone(), offer, extensions: Map::new() }
    }

    /// The account.
    pub(crate) fn address(&self) -> Address {
        self.key.address()
    }

    /// The channel.
    pub(crate) fn id(&self) -> ChannelId {
        self.config.id(&self.settlement())
    }

    /// The domain vouchers are signed under.
    pub(crate) fn settlement(&self) -> Domain {
        self.terms.settlement()
    }

    /// The same wallet with another channel: everything equal but the salt.
    pub(crate) fn with_salt(&self, salt: u8) -> Self {
        Self { config: ChannelConfig { salt: Hash([salt; 32]), ..self.config }, ..self.clone() }
    }

    /// A signed voucher for `max` in all.
    pub(crate) fn signed(&self, max: u128) -> SignedVoucher {
        Voucher { channel: self.id(), max_claimable: Amount::new(max) }.sign(&self.settlement(), &self.key)
    }

    /// A payment by voucher, for `max` in all.
    pub(crate) fn voucher(&self, max: u128) -> Payment {
        self.payment(json!({"type": "voucher", "channelConfig": self.config, "voucher": self.signed(max)}))
    }

    /// A refund of `amount`, or of all that is left. `max` is what was charged, as the payer knows it.
    pub(crate) fn refund(&self, max: u128, amount: Option<&str>) -> Payment {
        let mut payload = json!({"type": "refund", "channelConfig": self.config, "voucher": self.signed(max)});
        if let Some(amount) = amount {
            payload["amount"] = json!(amount);
        }
        self.payment(payload)
    }

    /// A payment with a deposit of `amount`, for `max` in all.
    pub(crate) fn deposit(&self, amount: u128, max: u128) -> Payment {
        self.deposit_with(amount, max, |_| ())
    }

    /// The same, changed before it is signed. Every call takes a salt of its own.
    pub(crate) fn deposit_with(&self, amount: u128, max: u128, change: impl FnOnce(&mut DepositWish)) -> Payment {
        let salt = fresh_salt();
        let mut wish = DepositWish {
            amount,
            max,
            valid_after: 0,
            valid_before: now_s() + self.terms.max_timeout_s,
            salt,
            signed_salt: salt,
            domain: self.terms.token_domain(),
            signer: self.key.clone(),
        };
        change(&mut wish);
        // A change of the salt alone is meant for both.
        let signed_salt = if wish.signed_salt == salt { wish.salt } else { wish.signed_salt };
        let digest = Authorization::digest(
            &wish.domain,
            self.config.payer,
            Amount::new(wish.amount),
            wish.valid_after,
            wish.valid_before,
            Authorization::nonce(self.id(), signed_salt),
        );
        self.payment(json!({
            "type": "deposit",
            "channelConfig": self.config,
            "voucher": self.signed(wish.max),
            "deposit": {"amount": wish.amount.to_string(), "authorization": {"erc3009Authorization": {
                "validAfter": wish.valid_after.to_string(),
                "validBefore": wish.valid_before.to_string(),
                "salt": wish.salt,
                "signature": wish.signer.sign(digest),
            }}},
        }))
    }

    /// A payment with a deposit of `amount` through Permit2, for `max` in all. Every call takes a nonce of its own.
    pub(crate) fn permit2(&self, amount: u128, max: u128) -> Payment {
        self.permit2_until(amount, max, now_s() + self.terms.max_timeout_s)
    }

    /// The same with a deadline, Unix seconds.
    pub(crate) fn permit2_until(&self, amount: u128, max: u128, deadline: u64) -> Payment {
        self.permit2_signed(amount, max, deadline, fresh_salt(), &Domain::permit2(self.terms.chain_id), &self.key)
    }

    /// The same with everything about its signature.
    pub(crate) fn permit2_signed(
        &self,
        amount: u128,
        max: u128,
        deadline: u64,
        nonce: Hash,
        domain: &Domain,
        signer: &LocalKey,
    ) -> Payment {
        let token = self.config.token;
        let digest = Permit2Authorization::digest(domain, token, Amount::new(amount), nonce, deadline, self.id());
        self.payment(json!({
            "type": "deposit",
            "channelConfig": self.config,
            "voucher": self.signed(max),
            "deposit": {"amount": amount.to_string(), "authorization": {"permit2Authorization": {
                "from": self.config.payer,
                "permitted": {"token": token, "amount": amount.to_string()},
                "spender": PERMIT2_COLLECTOR,
                "nonce": encode_decimal(&nonce),
                "deadline": deadline.to_string(),
                "witness": {"channelId": self.id()},
                "signature": signer.sign(digest),
            }}},
        }))
    }

    /// The `info` of the extension that brings an EIP-2612 permit of `amount` for Permit2. `nonce` is the payer's with the
    /// token.
    pub(crate) fn permit(&self, amount: u128, nonce: u8, deadline: u64) -> Value {
        let mut word = Hash::ZERO;
        word.0[31] = nonce;
        let domain = self.terms.token_domain();
        let digest = TokenPermit::digest(&domain, self.config.payer, Amount::new(amount), word, deadline);
        json!({
            "from": self.config.payer,
            "asset": self.config.token,
            "spender": PERMIT2,
            "amount": amount.to_string(),
            "nonce": nonce.to_string(),
            "deadline": deadline.to_string(),
            "signature": self.key.sign(digest),
            "version": "1",
        })
    }

    /// A payment with this payload, echoing the offer.
    pub(crate) fn payment(&self, payload: Value) -> Payment {
        let mut payment = json!({
            "x402Version": 2,
            "resource": {"url": RESOURCE},
            "accepted": self.offer,
            "payload": payload,
        });
        if !self.extensions.is_empty() {
            payment["extensions"] = json!(self.extensions);
        }
        Payment(payment)
    }
}

fn fresh_salt() -> Hash {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    keccak256(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes())
}

/// A payment header's JSON, open to any change.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Payment(pub(crate) Value);

impl Payment {
    /// Sets what a JSON pointer names; its parent must exist.
    #[track_caller]
    pub(crate) fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = self.0.pointer_mut(parent).unwrap_or_else(|| panic!("no {pointer}"));
        parent[key] = value.into();
        self
    }

    /// Brings an EIP-2612 permit along.
    pub(crate) fn with_permit(mut self, info: Value) -> Self {
        self.0["extensions"][EIP2612_SPONSORING]["info"] = info;
        self
    }

    /// Removes what a JSON pointer names.
    #[track_caller]
    pub(crate) fn without(mut self, pointer: &str) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = self.0.pointer_mut(parent).and_then(Value::as_object_mut);
        parent.and_then(|parent| parent.remove(key)).unwrap_or_else(|| panic!("no {pointer}"));
        self
    }

    /// What a JSON pointer names.
    #[track_caller]
    pub(crate) fn at(&self, pointer: &str) -> Value {
        self.0.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}")).clone()
    }

    /// The header's text.
    pub(crate) fn header(&self) -> String {
        x402::encode(&self.0)
    }
}
