//! What was measured, for people line by line and for machines at the end.

use serde_json::{Map, Value, json};

/// What is always there in the last line, null where it was not measured.
const FIELDS: [&str; 9] = [
    "verify_vs_k256",
    "verify_vs_libsecp256k1",
    "paid_cpu_vs_nginx",
    "free_cpu_vs_nginx",
    "quote_cpu_vs_nginx",
    "many_channels_ratio",
    "million_idle_ratio",
    "pipeline_gain",
    "flood_p99_ratio",
];

#[derive(Debug)]
pub(crate) struct Report(Map<String, Value>);

impl Default for Report {
    fn default() -> Self {
        Self(FIELDS.iter().map(|field| ((*field).to_owned(), Value::Null)).collect())
    }
}

impl Report {
    pub(crate) fn set(&mut self, field: &str, value: f64) {
        self.0.insert(field.to_owned(), json!((value * 1e3).round() / 1e3));
    }

    /// Prints the last line.
    pub(crate) fn finish(self) {
        println!("{}", Value::Object(self.0));
    }
}

pub(crate) fn median(samples: impl IntoIterator<Item = f64>) -> f64 {
    let mut samples: Vec<f64> = samples.into_iter().collect();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of the ratios of neighbours.
pub(crate) fn ratio(above: &[f64], below: &[f64]) -> f64 {
    median(above.iter().zip(below).map(|(above, below)| above / below))
}
