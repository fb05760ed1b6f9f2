//! What a model says it used, read from its answer as it passes.
//!
//! **Owns** the reading of usage reports as OpenAI's and Anthropic's interfaces write them, in JSON bodies and in streams
//! of server-sent events, and the count of those events. **Promises** constant memory whatever passes: bytes are looked at
//! once, where they are, and nothing of an answer is kept but the numbers of its report; that what is read does not depend
//! on how the bytes were cut; and that a report is taken by its place in the structure, so that no text a model writes is
//! mistaken for one. **Does not** change, hold or decode anything: a compressed answer has no report.
//!
//! | where | what |
//! |---|---|
//! | `usage` of the whole | chat completions, embeddings and their last chunk; messages, `message_delta` |
//! | `response.usage` | responses, `response.completed` |
//! | `message.usage` | `message_start`: what is known at the beginning, no report until another one comes |
//!
//! Reports of one answer are put together field by field, a later one over an earlier one. A count that is no whole number
//! spoils its report, until a later one has it right.

mod events;
mod json;

use events::EventReader;
use json::JsonReader;

use super::measured::Tokens;

/// A count above this is taken for this: no answer uses so many, and what is made of it must not overflow.
pub const MAX_COUNT: u64 = 1_000_000_000_000;

/// Reads an answer's bytes for what it says it used.
#[derive(Debug, Clone)]
pub struct UsageReader(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// One JSON text, or several one after the other.
    Json(JsonReader),
    /// Server-sent events, whose data are JSON texts.
    Events(EventReader),
}

impl UsageReader {
    /// For a JSON body; for several JSON texts, each on a line, too.
    pub fn of_json() -> Self {
        Self(Kind::Json(JsonReader::default()))
    }

    /// For a body of server-sent events.
    pub fn of_events() -> Self {
        Self(Kind::Events(EventReader::new(true)))
    }

    /// For a body of server-sent events that are only counted.
    pub fn counting_events() -> Self {
        Self(Kind::Events(EventReader::new(false)))
    }

    /// Reads on.
    pub fn read(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Kind::Json(json) => json.read(bytes),
            Kind::Events(events) => events.read(bytes),
        }
    }

    /// How many events had come to their end: those with data, as a browser would hand them on.
    pub fn events(&self) -> u64 {
        match &self.0 {
            Kind::Json(_) => 0,
            Kind::Events(events) => events.count(),
        }
    }

    /// What was used in all, if a report has said so.
    pub fn report(&self) -> Option<Tokens> {
        self.found().report()
    }

    /// What was used so far, as far as it is known: a report, or what was known at the beginning.
    pub fn so_far(&self) -> Option<Tokens> {
        self.found().so_far()
    }

    fn found(&self) -> &Found {
        match &self.0 {
            Kind::Json(json) => json.found(),
            Kind::Events(events) => events.found(),
        }
    }
}

/// One field of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Count {
    #[default]
    Absent,
    Is(u64),
    /// There, and no whole number.
    Spoiled,
}

impl Count {
    fn over(self, earlier: Self) -> Self {
        if self == Self::Absent { earlier } else { self }
    }

    fn or_zero(self) -> u64 {
        if let Self::Is(count) = self { count } else { 0 }
    }
}

/// Which field of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// `prompt_tokens`: with everything that came from or went to the cache.
    Prompt,
    /// `input_tokens`: with what came from the cache where `input_tokens_details` says how much that is, without otherwise.
    Input,
    /// `completion_tokens` or `output_tokens`.
    Output,
    /// `cached_tokens` of the details.
    Cached,
    /// `cache_read_input_tokens`.
    CacheRead,
    /// `cache_creation_input_tokens`.
    CacheWrite,
}

/// The fields of a report, or of several put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Fields {
    prompt: Count,
    input: Count,
    output: Count,
    cached: Count,
    cache_read: Count,
    cache_write: Count,
}

impl Fields {
    fn set(&mut self, field: Field, count: Count) {
        *match field {
            Field::Prompt => &mut self.prompt,
            Field::Input => &mut self.input,
            Field::Output => &mut self.output,
            Field::Cached => &mut self.cached,
            Field::CacheRead => &mut self.cache_read,
            Field::CacheWrite => &mut self.cache_write,
        } = count;
    }

    fn all(&self) -> [Count; 6] {
        let Self { prompt, input, output, cached, cache_read, cache_write } = *self;
        [prompt, input, output, cached, cache_read, cache_write]
    }

    fn over(self, earlier: Self) -> Self {
        Self {
            prompt: self.prompt.over(earlier.prompt),
            input: self.input.over(earlier.input),
            output: self.output.over(earlier.output),
            cached: self.cached.over(earlier.cached),
            cache_read: self.cache_read.over(earlier.cache_read),
            cache_write: self.cache_write.over(earlier.cache_write),
        }
    }

    fn tokens(&self) -> Option<Tokens> {
        // Neither what went in nor what came out is no report.
        let empty = [self.prompt, self.input, self.output].iter().all(|count| *count == Count::Absent);
        if empty || self.all().contains(&Count::Spoiled) {
            return None;
        }
        let cache_write = self.cache_write.or_zero();
        let cached_input = self.cached.over(self.cache_read).or_zero();
        let input = match (self.prompt, self.input, self.cached) {
            (Count::Is(all), ..) => all.saturating_sub(cached_input).saturating_sub(cache_write),
            (_, Count::Is(all), Count::Is(cached)) => all.saturating_sub(cached),
            (_, input, _) => input.or_zero(),
        };
        Some(Tokens { input, cached_input, cache_write, output: self.output.or_zero() })
    }
}

/// What the reports of an answer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Found {
    fields: Fields,
    /// Whether one of them was more than what is known at the beginning.
    reported: bool,
}

impl Found {
    const NOTHING: Self = {
        let none = Count::Absent;
        let fields =
            Fields { prompt: none, input: none, output: none, cached: none, cache_read: none, cache_write: none };
        Self { fields, reported: false }
    };

    /// A report has come to its end.
    fn add(&mut self, report: Fields, beginning: bool) {
        self.fields = report.over(self.fields);
        let says_something = report.all().iter().any(|count| *count != Count::Absent);
        self.reported |= says_something && !beginning;
    }

    fn report(&self) -> Option<Tokens> {
        self.fields.tokens().filter(|_| self.reported)
    }

    fn so_far(&self) -> Option<Tokens> {
        self.fields.tokens()
    }
}

#[cfg(test)]
mod tests;
