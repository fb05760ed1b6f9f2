//! What must hold of any payment header, as a plain function: the property tests and the fuzz target call the same.
#![allow(dead_code, reason = "a toolbox: not every caller needs every tool")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "here a panic is the report")]

use peaje::protocol::x402::{Action, Echo, Offer, Payment, WrittenOffer};

/// The offer that headers are read for.
pub(crate) fn offer() -> WrittenOffer {
    let offer: Offer = serde_json::from_str(
        r#"{"scheme":"batch-settlement","network":"eip155:84532","amount":"2000",
            "asset":"0x036CbD53842c5426634e7929541eC2318f3dCF7e","payTo":"0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
            "maxTimeoutSeconds":300,
            "extra":{"receiverAuthorizer":"0x3325a78425F17a7E487Eb5666b2bFd93aBb06c70","withdrawDelay":900,
                     "name":"US\"D\" coin","version":"2","minDeposit":"2000","maxInFlight":32}}"#,
    )
    .unwrap();
    WrittenOffer::new(offer)
}

/// A header read for an offer is read as if there were no faster way: the same payment, or the same error. Says whether it
/// was read the faster way.
#[track_caller]
pub(crate) fn check_header(header: &[u8], offer: &WrittenOffer) -> bool {
    let plain = Payment::read(header);
    let read = Payment::read_for(header, [offer]);
    match (read, plain) {
        (Ok(read), Ok(plain)) => {
            let answers = plain.accepted.answers(offer.offer());
            let direct = matches!(read.accepted, Echo::Of(_));
            assert!(!direct || answers, "only what answers the offer is read so");
            assert_eq!(read.accepted.answers(offer.offer()), answers);
            assert_eq!(read.accepted.answers_terms_of(offer.offer()), plain.accepted.answers_terms_of(offer.offer()));
            assert_eq!(read.config, plain.config);
            assert_eq!(read.voucher, plain.voucher);
            assert_eq!(read.order, plain.order);
            assert_eq!(read.extensions, plain.extensions);
            match (read.action, plain.action) {
                (Action::Pay, Action::Pay) => {}
                (Action::DepositAndPay(read), Action::DepositAndPay(plain)) => assert_eq!(read, plain),
                (Action::Refund(read), Action::Refund(plain)) => assert_eq!(read, plain),
                (read, plain) => panic!("{read:?} instead of {plain:?}"),
            }
            direct
        }
        (Err(read), Err(plain)) => {
            assert_eq!(read, plain);
            false
        }
        (read, plain) => panic!("{read:?} instead of {plain:?}"),
    }
}

/// The body of the fuzz target: any bytes, as JSON in a header, and as the header itself.
pub(crate) fn fuzz(data: &[u8]) {
    use base64::Engine as _;
    let offer = offer();
    check_header(data, &offer);
    check_header(base64::engine::general_purpose::STANDARD.encode(data).as_bytes(), &offer);
}
