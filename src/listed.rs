//! Headers that are lists.
//!
//! **Owns** the one reading of a header whose values are members between commas, in one line or several (RFC 9110, 5.6.1).
//! **Does not** read quoted commas: none of the lists here has any.

use http::{HeaderMap, HeaderName};

/// The members of a list, without the blanks around them. Lines that are no text have none.
pub(crate) fn members(headers: &HeaderMap, list: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(list).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// Whether a list has this member, in any letter case.
pub(crate) fn has(headers: &HeaderMap, list: HeaderName, member: &str) -> bool {
    members(headers, list).any(|name| name.eq_ignore_ascii_case(member))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http::header::TRAILER;

    #[test]
    fn a_list_has_its_members_in_any_line_and_case() {
        let mut headers = HeaderMap::new();
        for line in [&b"x-a , X-B"[..], b"x-\xff", b"x-c"] {
            headers.append(TRAILER, HeaderValue::from_bytes(line).unwrap());
        }
        assert_eq!(members(&headers, TRAILER).collect::<Vec<_>>(), ["x-a", "X-B", "x-c"]);
        assert!(["X-A", "x-b", "x-c"].iter().all(|name| has(&headers, TRAILER, name)));
        assert!(!has(&headers, TRAILER, "x-") && !has(&HeaderMap::new(), TRAILER, ""));
    }
}
