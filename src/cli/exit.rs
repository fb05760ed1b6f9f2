//! How a command ends.
//!
//! **Promises** that the exit code says whose turn it is: a script can tell a typo from a chain that is down and from a
//! price that was too high, without reading a line.

use std::fmt;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::output::Output;
use crate::config::ConfigErrors;

/// What the exit code means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Ok,
    /// 1: something failed that has no code of its own.
    Failed,
    /// 2: the command line is wrong.
    Usage,
    /// 3: the config is wrong.
    Config,
    /// 4: the chain cannot be reached, or is not the one that is configured.
    Chain,
    /// 5: the payment was refused, by a budget or by the server.
    Payment,
    /// 6: the other server cannot be reached or failed: the upstream, the API that was called, the admin listener.
    Server,
    /// 7: the books are damaged, in use by another process, or cannot be written.
    Books,
}

/// The part of every `--help` that explains exit codes.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  something else failed
  2  wrong command line
  3  wrong config
  4  chain unreachable, or not the configured one
  5  payment refused, by a budget or by the server
  6  the other server is unreachable or failed
  7  books damaged, in use, or not writable";

impl Exit {
    /// The code.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Config => 3,
            Self::Chain => 4,
            Self::Payment => 5,
            Self::Server => 6,
            Self::Books => 7,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// How a command ended that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    what: What,
    hint: Option<String>,
}

#[derive(Debug)]
enum What {
    Error(anyhow::Error),
    Config(ConfigErrors),
    Reported,
}

impl Failure {
    /// A failure with its cause, which is shown with the causes behind it.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, what: What::Error(error.into()), hint: None }
    }

    /// A failure in words.
    pub fn message(exit: Exit, message: impl fmt::Display) -> Self {
        Self::new(exit, anyhow::Error::msg(message.to_string()))
    }

    /// A failure whose reasons were printed already.
    pub fn reported(exit: Exit) -> Self {
        Self { exit, what: What::Reported, hint: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(self, hint: impl fmt::Display) -> Self {
        Self { hint: Some(hint.to_string()), ..self }
    }

    /// The code this ends the process with.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints it to stderr, as text or as one JSON object.
    pub fn print(&self, output: &Output, as_json: bool) {
        if as_json {
            if let Some(value) = self.to_json() {
                output.error_line(&value.to_string());
            }
        } else {
            output.error_text(&self.render(output));
        }
    }

    fn render(&self, output: &Output) -> String {
        match &self.what {
            What::Reported => String::new(),
            What::Config(errors) => errors.render(output.error_paint().is_coloured()),
            What::Error(error) => {
                let paint = output.error_paint();
                let causes: String = error.chain().skip(1).map(|cause| format!("\n  because {cause}")).collect();
                let hint = self.hint.as_ref().map(|hint| format!("\n  {} {hint}", paint.bold("try:")));
                format!("{} {error}{causes}{}\n", paint.red("error:"), hint.unwrap_or_default())
            }
        }
    }

    fn to_json(&self) -> Option<Value> {
        let code = self.exit.code();
        match &self.what {
            What::Reported => None,
            What::Config(errors) => {
                Some(json!({"error": "the config is refused", "exit_code": code, "errors": errors.to_json()}))
            }
            What::Error(error) => {
                let causes: Vec<_> = error.chain().skip(1).map(ToString::to_string).collect();
                Some(json!({
                    "error": error.to_string(), "causes": causes, "hint": self.hint, "exit_code": code,
                }))
            }
        }
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self { exit: Exit::Config, what: What::Config(errors), hint: None }
    }
}

/// Anything else that went wrong.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_help_names_every_code() {
        let all =
            [Exit::Ok, Exit::Failed, Exit::Usage, Exit::Config, Exit::Chain, Exit::Payment, Exit::Server, Exit::Books];
        for (line, exit) in HELP.lines().skip(1).zip(all) {
            assert!(line.starts_with(&format!("  {}  ", exit.code())), "{line}");
        }
        assert_eq!(HELP.lines().count(), all.len() + 1);
    }

    #[test]
    fn a_failure_shows_its_causes_and_a_way_out() {
        let cause = std::io::Error::other("connection refused");
        let error = anyhow::Error::new(cause).context("the node cannot be reached");
        let failure = Failure::new(Exit::Chain, error).hint("check the URL");
        let expected = "error: the node cannot be reached\n  because connection refused\n  try: check the URL\n";
        assert_eq!(failure.render(&Output::plain()), expected);
        let json = failure.to_json().unwrap();
        assert_eq!((&json["exit_code"], &json["causes"][0]), (&4.into(), &"connection refused".into()));
        let config = Failure::from(Config::parse("x", "c.toml").unwrap_err());
        assert_eq!(config.exit(), Exit::Config);
        assert!(config.render(&Output::plain()).starts_with("error: c.toml:1:2"));
        assert_eq!(config.to_json().unwrap()["errors"][0]["line"], 1);
        assert_eq!(Failure::reported(Exit::Failed).to_json(), None);
    }
}
