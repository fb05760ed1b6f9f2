//! The log, and the access log ([`access`]).
//!
//! **Owns** where events go and in which form: stderr, as text for people or as one JSON object a line for machines.
//! **Promises** that by default only this crate speaks below a warning, because the libraries below it would print
//! bodies, headers and RPC URLs with their API keys. **Does not** decide what is logged; the rule that no key,
//! signature, payment header or query string may be is every room's own to keep.

pub mod access;

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

pub use crate::config::{LogFormat, LogLevel, LogOptions};

/// The environment variable that overrides the configured level.
pub const FILTER_ENV: &str = "RUST_LOG";

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The environment variable holds something else than a filter.
    #[error("RUST_LOG is no filter; write it like \"info\" or \"peaje::gate=debug,info\"")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// Somebody has set it up already.
    #[error("the log was set up twice")]
    Twice(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// Puts another filter in the place of the one in force.
type Refilter = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// That of the process's log, once it is set up.
static REFILTER: OnceLock<Refilter> = OnceLock::new();

/// Sets the log of this process up. Once.
pub fn init(options: LogOptions) -> Result<(), TelemetryError> {
    let terminal = std::io::stderr().is_terminal();
    let colour = terminal && colours_welcome();
    let (subscriber, refilter) = subscriber(options, filter().as_deref(), terminal, colour, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(TelemetryError::Twice)?;
    // Nobody else can have been here: the log is set up once.
    drop(REFILTER.set(refilter));
    Ok(())
}

/// Another level from now on, for this process's log if it is set up. The environment goes on to win.
pub fn set_level(level: LogLevel) {
    if let (Some(refilter), Ok(filter)) = (REFILTER.get(), filter_of(level, filter().as_deref())) {
        refilter(filter);
    }
}

/// What the environment says, if anything.
fn filter() -> Option<String> {
    std::env::var(FILTER_ENV).ok().filter(|text| !text.trim().is_empty())
}

/// Whether the environment allows colours on a terminal (<https://no-color.org>).
pub fn colours_welcome() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn subscriber<W>(
    options: LogOptions,
    filter: Option<&str>,
    terminal: bool,
    colour: bool,
    writer: W,
) -> Result<(Box<dyn Subscriber + Send + Sync>, Refilter), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let json = match options.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter_of(options.level, filter)?).with_writer(writer);
    // A log that cannot be changed any more is that of a process that ends.
    Ok(if json {
        let builder = builder.json().flatten_event(true).with_span_list(false).with_filter_reloading();
        let handle = builder.reload_handle();
        (Box::new(builder.finish()), Box::new(move |filter| drop(handle.reload(filter))))
    } else {
        let builder = builder.with_ansi(colour).with_filter_reloading();
        let handle = builder.reload_handle();
        (Box::new(builder.finish()), Box::new(move |filter| drop(handle.reload(filter))))
    })
}

fn filter_of(level: LogLevel, filter: Option<&str>) -> Result<EnvFilter, TelemetryError> {
    let configured = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "warn,peaje=info",
        LogLevel::Debug => "warn,peaje=debug",
        LogLevel::Trace => "warn,peaje=trace",
    };
    EnvFilter::builder().parse(filter.unwrap_or(configured)).map_err(TelemetryError::Filter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written of four events.
    fn log(level: LogLevel, format: LogFormat, filter: Option<&str>, terminal: bool) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let options = LogOptions { level, format };
        let (subscriber, _) = subscriber(options, filter, terminal, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "peaje::gate", route = "v1", "our info");
            tracing::debug!(target: "peaje::gate", "our debug");
            tracing::info!(target: "hyper", "their info");
            tracing::warn!(target: "hyper", "their warning");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_level_is_ours_and_libraries_only_warn() {
        let seen = |level| log(level, LogFormat::Text, None, true).lines().count();
        assert_eq!(seen(LogLevel::Error), 0);
        assert_eq!(seen(LogLevel::Warn), 1);
        assert_eq!(seen(LogLevel::Info), 2);
        assert_eq!(seen(LogLevel::Debug), 3);
        assert_eq!(seen(LogLevel::Trace), 3);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        assert_eq!(log(LogLevel::Error, LogFormat::Text, Some("hyper=info"), true).lines().count(), 2);
        assert!(matches!(filter_of(LogLevel::Info, Some("peaje=loud")), Err(TelemetryError::Filter(_))));
    }

    #[test]
    fn the_level_can_be_changed_while_the_log_is_written() {
        let sink = Sink::default();
        let writer = sink.clone();
        let options = LogOptions { level: LogLevel::Warn, format: LogFormat::Json };
        let (subscriber, refilter) = subscriber(options, None, false, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let tell = |message| tracing::info!(target: "peaje::gate", message);
            tell("before");
            refilter(filter_of(LogLevel::Info, None).unwrap());
            tell("meanwhile");
            refilter(filter_of(LogLevel::Error, None).unwrap());
            tell("after");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert!(text.lines().count() == 1 && text.contains("meanwhile"), "{text}");
    }

    #[test]
    fn machines_get_one_object_a_line() {
        for (format, terminal) in [(LogFormat::Auto, false), (LogFormat::Json, true)] {
            let text = log(LogLevel::Info, format, None, terminal);
            let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
            assert_eq!((&first["level"], &first["route"]), (&"INFO".into(), &"v1".into()), "{text}");
            assert_eq!(first["message"], "our info");
        }
        for (format, terminal) in [(LogFormat::Auto, true), (LogFormat::Text, false)] {
            assert!(log(LogLevel::Info, format, None, terminal).contains("our info route=\"v1\""));
        }
    }
}
