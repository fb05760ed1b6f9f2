//! Quotes as text: what all quotes of a route have in common is written once.

use serde_json::{Map, Value};

use super::header::{base64_of, with_room};
use super::json::{write_part, write_string};
use super::offer::{ChannelState, Resource, VERSION, VoucherState, WrittenOffer};

/// The quote of a route, but for what each request makes of it: the JSON of [`super::Quote`] in pieces. A corrective is
/// about its first offer, because stock clients look at no other.
#[derive(Debug, Clone)]
pub struct WrittenQuote {
    /// Up to the error.
    begin: Vec<u8>,
    /// From there into the resource's URL, which goes on with the path that was asked for.
    url: Vec<u8>,
    /// From there into the first offer's own terms, to which a corrective adds.
    offer: Vec<u8>,
    /// From there, with the other offers, up to the last bracket.
    end: Vec<u8>,
}

/// What a quote says to one request.
#[derive(Debug, Clone, Copy)]
pub struct QuoteDetails<'a> {
    /// Why this is not the paid answer.
    pub error: &'a str,
    /// What follows the origin in the resource's URL.
    pub path_and_query: &'a str,
    /// The channel's true state, for a client that is out of step.
    pub corrective: Option<(&'a ChannelState, Option<&'a VoucherState>)>,
}

impl WrittenQuote {
    /// Writes what is the same in all quotes for `resource`, whose URL is the origin only, with the offer that is preferred
    /// and then the others.
    pub fn new<'o>(
        resource: &Resource,
        first: &WrittenOffer,
        others: impl IntoIterator<Item = &'o WrittenOffer>,
        extensions: &Map<String, Value>,
    ) -> Self {
        let begin = format!("{{\"x402Version\":{VERSION},\"error\":").into_bytes();
        let mut url = b",\"resource\":{\"url\":\"".to_vec();
        write_part(&mut url, &resource.url);
        let mut rest = b"\"".to_vec();
        let notes = [("description", &resource.description), ("mimeType", &resource.mime_type)];
        for (key, note) in notes.iter().filter_map(|(key, note)| note.as_ref().map(|note| (*key, note))) {
            rest.push(b',');
            write_string(&mut rest, key);
            rest.push(b':');
            write_string(&mut rest, note);
        }
        rest.extend_from_slice(b"},\"accepts\":[");
        let terms = first.text().strip_suffix("}}").expect("an offer ends with its own terms");
        rest.extend_from_slice(terms.as_bytes());
        let mut end = b"}}".to_vec();
        for other in others {
            end.push(b',');
            end.extend_from_slice(other.text().as_bytes());
        }
        end.push(b']');
        if !extensions.is_empty() {
            end.extend_from_slice(b",\"extensions\":");
            serde_json::to_writer(&mut end, extensions).expect("an object has string keys");
        }
        Self { begin, url, offer: rest, end }
    }

    /// The header's text, and the same as a body: with a message, if there is one, for there people look. Headers are for
    /// programs, and have little room.
    pub fn write(&self, details: QuoteDetails<'_>, message: Option<&str>) -> (String, Vec<u8>) {
        with_room(|json| {
            self.write_open(json, details);
            json.push(b'}');
            let header = base64_of(json);
            if let Some(message) = message {
                json.pop();
                json.extend_from_slice(b",\"message\":");
                write_string(json, message);
                json.push(b'}');
            }
            (header, json.clone())
        })
    }

    /// Writes the quote without its last bracket.
    fn write_open(&self, json: &mut Vec<u8>, QuoteDetails { error, path_and_query, corrective }: QuoteDetails<'_>) {
        json.extend_from_slice(&self.begin);
        write_string(json, error);
        json.extend_from_slice(&self.url);
        write_part(json, path_and_query);
        json.extend_from_slice(&self.offer);
        if let Some((state, voucher)) = corrective {
            if !json.ends_with(b"{") {
                json.push(b',');
            }
            json.extend_from_slice(b"\"channelState\":");
            state.write(json);
            if let Some(voucher) = voucher {
                json.extend_from_slice(b",\"voucherState\":");
                serde_json::to_writer(&mut *json, voucher).expect("a voucher has string keys");
            }
        }
        json.extend_from_slice(&self.end);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Offer, Quote, SCHEME, decode};
    use super::*;
    use crate::protocol::{Address, Amount, ChannelId, Signature};
    use proptest::prelude::*;
    use serde_json::json;

    fn state(number: u128) -> ChannelState {
        ChannelState {
            channel_id: ChannelId([u8::try_from(number % 251).unwrap(); 32]),
            balance: Amount::new(number),
            total_claimed: Amount::new(number / 2),
            withdraw_requested_at: u64::try_from(number >> 64).unwrap(),
            refund_nonce: number % 1000,
            charged_cumulative_amount: Amount::new(number / 3),
        }
    }

    proptest! {
        #[test]
        fn a_written_quote_is_the_one_serde_writes(
            origin in "https://[a-z\"\\\\]{1,9}",
            (error, path, message) in (any::<String>(), any::<String>(), any::<Option<String>>()),
            (description, mime_type) in (any::<Option<String>>(), any::<Option<String>>()),
            (name, number) in (any::<String>(), any::<u128>()),
            (own_terms, extended, corrective, others) in (any::<bool>(), any::<bool>(), 0..3u8, 0..3u8),
        ) {
            let extra = if own_terms { json!({"name": name, "withdrawDelay": 900}) } else { json!({}) };
            let mut offer = Offer {
                scheme: SCHEME.to_owned(),
                network: "eip155:1".to_owned(),
                amount: Amount::new(number),
                asset: Address([1; 20]),
                pay_to: Address([2; 20]),
                max_timeout_seconds: 60,
                extra: extra.as_object().unwrap().clone(),
            };
            let extensions = if extended { json!({name: {"info": {"a": error}}}) } else { json!({}) };
            let extensions = extensions.as_object().unwrap().clone();
            let resource = |url| Resource { url, description: description.clone(), mime_type: mime_type.clone() };
            let others: Vec<_> = (0..others).map(|asset| Offer { asset: Address([asset; 20]), ..offer.clone() }).collect();
            let first = WrittenOffer::new(offer.clone());
            let written_others: Vec<_> = others.iter().cloned().map(WrittenOffer::new).collect();
            let written = WrittenQuote::new(&resource(origin.clone()), &first, &written_others, &extensions);

            let signature = Signature::from_bytes([7; 65]).unwrap();
            let voucher = VoucherState { signed_max_claimable: Amount::new(number), signature };
            let voucher = Some(&voucher).filter(|_| corrective == 2);
            let state = Some(state(number)).filter(|_| corrective > 0);
            let corrective = state.as_ref().map(|state| (state, voucher));
            let details = QuoteDetails { error: &error, path_and_query: &path, corrective };
            let (header, body) = written.write(details, message.as_deref());

            if let Some((state, voucher)) = corrective {
                offer.extra.insert("channelState".to_owned(), json!(state));
                if let Some(voucher) = voucher {
                    offer.extra.insert("voucherState".to_owned(), json!(voucher));
                }
            }
            let plain = Quote {
                x402_version: VERSION,
                error: Some(error.clone()),
                resource: resource(format!("{origin}{path}")),
                accepts: [vec![offer], others].concat(),
                extensions,
            };
            prop_assert_eq!(decode::<Value>(header.as_bytes()).ok(), Some(json!(plain)).filter(|_| header.len() <= 16_384));
            if corrective.is_none() {
                prop_assert_eq!(&header, &super::super::encode(&plain), "byte for byte");
            }
            let mut expected = json!(plain);
            if let Some(message) = message {
                expected["message"] = json!(message);
            }
            prop_assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
        }
    }
}
