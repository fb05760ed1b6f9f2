//! The payments nearly all requests come with, read in one pass.
//!
//! **Owns** the reading of a plain voucher that answers an offer it was asked with, as it stands in the header's JSON.
//! **Promises** that what it reads, [`super::Payment::read`] reads too, and to the same values: it reads less, namely
//! nothing of extensions that are just the quoted ones, no deposits or refunds, no key twice, no escapes where text
//! matters, no signatures of another length than a key's, no extensions that are no object. **Does not** say why it did
//! not read something; the plain way is asked then, and says.

use serde_json::Map;

use super::json::Cursor;
use super::offer::{Echo, WrittenOffer};
use super::payment::{Action, Order, Payment, SIGNED_AHEAD};
use crate::protocol::amount::Amount;
use crate::protocol::bytes::{Address, ChannelId, Hash};
use crate::protocol::channel::ChannelConfig;
use crate::protocol::signature::Signature;
use crate::protocol::voucher::SignedVoucher;

/// The bytes of a key's signature.
const KEY_SIGNATURE_BYTES: usize = 65;

/// Reads a voucher payment that answers one of the offers; nothing where it is anything else.
pub(super) fn read<'o>(json: &[u8], offers: impl IntoIterator<Item = &'o WrittenOffer> + Clone) -> Option<Payment<'o>> {
    let mut cursor = Cursor::new(std::str::from_utf8(json).ok()?);
    cursor.white_space();
    let (mut version, mut accepted, mut extensions, mut paid) = (None, None, None, None);
    cursor.object(|key, cursor| match key {
        b"x402Version" => once(&mut version, cursor.number().filter(|version| *version == super::VERSION)),
        b"accepted" => once(&mut accepted, answered(offers.clone(), cursor)),
        b"payload" => once(&mut paid, payload(cursor)),
        b"extensions" => once(&mut extensions, echo(cursor, offers.clone())),
        _ => cursor.skip().map(drop),
    })?;
    cursor.end()?;
    let (offer, _) = (accepted?, version?);
    let (config, voucher, order) = paid?;
    let extensions = extensions.unwrap_or_default();
    Some(Payment { accepted: Echo::Of(offer), extensions, config, voucher, action: Action::Pay, order })
}

/// Passes over an echo, and says which offer it answers.
fn answered<'o>(
    offers: impl IntoIterator<Item = &'o WrittenOffer>,
    cursor: &mut Cursor<'_>,
) -> Option<&'o WrittenOffer> {
    let start = *cursor;
    offers.into_iter().find(|offer| {
        *cursor = start;
        offer.take_answer(cursor).is_some()
    })
}

/// Fills a field that was not there before. Which of two counts depends on the reader, so none is read here.
fn once<T>(field: &mut Option<T>, value: Option<T>) -> Option<()> {
    if field.is_some() {
        return None;
    }
    *field = Some(value?);
    Some(())
}

fn payload(cursor: &mut Cursor<'_>) -> Option<(ChannelConfig, SignedVoucher, Order)> {
    let (mut kind, mut terms, mut signed, mut ahead) = (None, None, None, None);
    cursor.object(|key, cursor| match key {
        b"type" => once(&mut kind, cursor.take(b"\"voucher\"")),
        b"channelConfig" => once(&mut terms, config(cursor)),
        b"voucher" => once(&mut signed, voucher(cursor)),
        key if key == SIGNED_AHEAD.as_bytes() => once(&mut ahead, cursor.boolean()),
        _ => cursor.skip().map(drop),
    })?;
    kind?;
    let order = if ahead == Some(true) { Order::Ahead } else { Order::InTurn };
    Some((terms?, signed?, order))
}

fn config(cursor: &mut Cursor<'_>) -> Option<ChannelConfig> {
    let (mut payer, mut payer_authorizer, mut receiver, mut receiver_authorizer) = (None, None, None, None);
    let (mut token, mut withdraw_delay, mut salt) = (None, None, None);
    cursor.object(|key, cursor| match key {
        b"payer" => once(&mut payer, cursor.hex().map(Address)),
        b"payerAuthorizer" => once(&mut payer_authorizer, cursor.hex().map(Address)),
        b"receiver" => once(&mut receiver, cursor.hex().map(Address)),
        b"receiverAuthorizer" => once(&mut receiver_authorizer, cursor.hex().map(Address)),
        b"token" => once(&mut token, cursor.hex().map(Address)),
        b"withdrawDelay" => once(&mut withdraw_delay, cursor.number()),
        b"salt" => once(&mut salt, cursor.hex().map(Hash)),
        _ => cursor.skip().map(drop),
    })?;
    Some(ChannelConfig {
        payer: payer?,
        payer_authorizer: payer_authorizer?,
        receiver: receiver?,
        receiver_authorizer: receiver_authorizer?,
        token: token?,
        withdraw_delay: withdraw_delay?,
        salt: salt?,
    })
}

fn voucher(cursor: &mut Cursor<'_>) -> Option<SignedVoucher> {
    let (mut channel, mut max_claimable, mut signature): (_, Option<Amount>, _) = (None, None, None);
    cursor.object(|key, cursor| match key {
        b"channelId" => once(&mut channel, cursor.hex().map(ChannelId)),
        b"maxClaimableAmount" => once(&mut max_claimable, cursor.amount()),
        b"signature" => once(&mut signature, cursor.hex::<KEY_SIGNATURE_BYTES>()),
        _ => cursor.skip().map(drop),
    })?;
    let signature = Signature::from_bytes(signature?)?;
    Some(SignedVoucher { channel: channel?, max_claimable: max_claimable?, signature })
}

/// An object of any shape; mostly there is none, or what was quoted comes back as it was. That says nothing.
fn echo<'o>(
    cursor: &mut Cursor<'_>,
    offers: impl IntoIterator<Item = &'o WrittenOffer>,
) -> Option<Map<String, serde_json::Value>> {
    match cursor.skip()? {
        // The same stand beside all of them.
        text if offers.into_iter().next().is_some_and(|offer| offer.is_quoted_beside(text)) => Some(Map::new()),
        text => serde_json::from_slice(text).ok(),
    }
}
