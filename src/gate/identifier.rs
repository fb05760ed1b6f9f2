//! Payment identifiers: a name that a client gives to one request, so that it is not paid twice.
//!
//! **Owns** the `payment-identifier` extension as far as it is on the wire: what is advertised, and the id in a payment.
//! **Promises** that an id is one of the specification's form or the request is refused. **Does not** know what an id stands
//! for; that is the gate's business.

use serde_json::{Map, Value, json};

use super::answer::Refusal;
use crate::protocol::Code;
use crate::protocol::x402::PAYMENT_IDENTIFIER;

/// The shortest id, in characters (specification of the extension).
pub const MIN_ID_CHARS: usize = 16;
/// The longest id, in characters.
pub const MAX_ID_CHARS: usize = 128;

/// Whether payments for a route carry an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identifiers {
    /// They are not advertised, and ignored where one comes all the same.
    #[default]
    Off,
    /// A client may send one.
    Optional,
    /// A payment without one is refused.
    Required,
}

impl Identifiers {
    /// What a quote with these extensions asks for.
    pub fn of(extensions: &Map<String, Value>) -> Self {
        let Some(extension) = extensions.get(PAYMENT_IDENTIFIER) else { return Self::Off };
        match extension.pointer("/info/required") {
            Some(Value::Bool(true)) => Self::Required,
            _ => Self::Optional,
        }
    }

    /// What a quote says of it. It comes back with every payment, so it has no word too many: stock clients look at
    /// `info.required` only.
    pub fn extension(self) -> Option<Value> {
        let required = match self {
            Self::Off => return None,
            Self::Optional => false,
            Self::Required => true,
        };
        let id = json!({
            "type": "string", "minLength": MIN_ID_CHARS, "maxLength": MAX_ID_CHARS, "pattern": "^[a-zA-Z0-9_-]+$"
        });
        Some(json!({
            "info": {"required": required},
            "schema": {
                "type": "object",
                "properties": {"required": {"type": "boolean"}, "id": id},
                "required": ["required"],
            },
        }))
    }

    /// The id a payment with these extensions has, if it is asked for.
    pub(super) fn read(self, extensions: &Map<String, Value>) -> Result<Option<&str>, Refusal> {
        if self == Self::Off {
            return Ok(None);
        }
        let id = extensions.get(PAYMENT_IDENTIFIER).and_then(|extension| extension.pointer("/info/id"));
        match id {
            None | Some(Value::Null) if self == Self::Required => Err(Refusal::from(Code::IdentifierRequired)
                .with_detail(
                    "send an id in extensions.payment-identifier.info.id, and the same one when you send again",
                )),
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(id)) if is_valid(id) => Ok(Some(id)),
            Some(_) => Err(Refusal::from(Code::IdentifierInvalid).with_detail(format!(
                "an id has {MIN_ID_CHARS} to {MAX_ID_CHARS} letters, digits, hyphens and underscores"
            ))),
        }
    }
}

fn is_valid(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (MIN_ID_CHARS..=MAX_ID_CHARS).contains(&id.len()) && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(id: &Value) -> Map<String, Value> {
        let extensions = json!({PAYMENT_IDENTIFIER: {"info": {"required": false, "id": id}}});
        extensions.as_object().unwrap().clone()
    }

    #[test]
    fn an_id_has_the_specified_form_or_is_refused() {
        let cases = [
            ("a".repeat(15), false),
            ("a".repeat(16), true),
            ("A-z_0".repeat(4), true),
            ("a".repeat(128), true),
            ("a".repeat(129), false),
            ("a b".repeat(8), false),
            ("ä".repeat(16), false),
        ];
        for (id, expected) in cases {
            let extensions = sent(&json!(id));
            let read = Identifiers::Optional.read(&extensions);
            assert_eq!(read.as_ref().is_ok_and(|read| *read == Some(&*id)), expected, "{id}: {read:?}");
            assert!(Identifiers::Off.read(&extensions).unwrap().is_none());
        }
        assert!(Identifiers::Optional.read(&sent(&json!(7))).is_err());
    }

    #[test]
    fn only_a_required_id_is_missed() {
        for extensions in [Map::new(), sent(&Value::Null)] {
            assert!(Identifiers::Off.read(&extensions).unwrap().is_none());
            assert!(Identifiers::Optional.read(&extensions).unwrap().is_none());
            assert!(Identifiers::Required.read(&extensions).is_err());
        }
    }

    #[test]
    fn what_is_advertised_is_what_is_asked_for() {
        for identifiers in [Identifiers::Off, Identifiers::Optional, Identifiers::Required] {
            let advertised = identifiers.extension().map(|extension| (PAYMENT_IDENTIFIER.to_owned(), extension));
            assert_eq!(Identifiers::of(&advertised.into_iter().collect()), identifiers);
        }
    }
}
