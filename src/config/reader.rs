//! Sections of a TOML document, read key by key.
