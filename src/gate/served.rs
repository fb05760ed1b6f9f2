//! Whether an answer is one that is paid for.
//!
//! HTTP's status decides, by its route's rule. A failed call of gRPC has status 200 all the same and says in `grpc-status`
//! that it failed; one that says so before its first message is not charged. One that fails later says so in its trailers,
//! when its head has left as paid.

use http::{HeaderName, Response};

use crate::pricing::{Share, StatusRule};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Whether the upstream has done what was asked, or has done what its route charges for all the same, as far as the head of
/// its answer tells. What is not served costs nothing, and its voucher is good again.
pub(super) fn is_served<B>(rule: &StatusRule, answer: &Response<B>) -> bool {
    rule.share(answer.status().as_u16()) != Share::NONE && !is_failed_call(answer)
}

/// Whether the upstream failed at what was asked, by the head of its answer.
pub(super) fn has_failed<B>(answer: &Response<B>) -> bool {
    answer.status().is_client_error() || answer.status().is_server_error() || is_failed_call(answer)
}

fn is_failed_call<B>(answer: &Response<B>) -> bool {
    answer.headers().get(&GRPC_STATUS).is_some_and(|code| code != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_either_kind_says_that_an_answer_is_not_paid_for() {
        let served = |status: u16, grpc: Option<&str>| {
            let mut answer = Response::builder().status(status);
            if let Some(code) = grpc {
                answer = answer.header("grpc-status", code);
            }
            is_served(&StatusRule::default(), &answer.body(()).unwrap())
        };
        assert!(served(200, None) && served(101, None) && served(399, None) && served(200, Some("0")));
        assert!(!served(400, None) && !served(503, Some("0")) && !served(200, Some("5")) && !served(200, Some("x")));
    }
}
