//! Wei in JSON: decimal text, because they outgrow the numbers of JSON's readers soon.

use serde::{Deserialize as _, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(wei: &Option<u128>, serializer: S) -> Result<S::Ok, S::Error> {
    match wei {
        Some(wei) => serializer.collect_str(wei),
        None => serializer.serialize_none(),
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u128>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}
