//! The least that a config says beside its routes.

/// A head that routes may follow. Nothing of it is asked for where only the price list is used.
pub(crate) const HEAD: &str = r#"
[upstream]
url = "http://127.0.0.1:8080"
[chain]
network = "base-sepolia"
rpc = "env:PEAJE_RPC"
[receiver]
pay_to = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
authorizer_key = "env:PEAJE_AUTHORIZER_KEY"
"#;
