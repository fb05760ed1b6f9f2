//! What a command prints: results on stdout, everything else on stderr.
//!
//! **Promises** colours on terminals only and never where `NO_COLOR` is set, and that a reader who hangs up (`| head`)
//! is no error.

use std::io::{self, IsTerminal as _};

use serde_json::Value;

use crate::telemetry::colours_welcome;

/// Where the output goes, and what it may look like there.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    stdout_terminal: bool,
    stderr_terminal: bool,
    colours: bool,
}

impl Output {
    /// As this process was started.
    pub fn detect() -> Self {
        Self {
            stdout_terminal: io::stdout().is_terminal(),
            stderr_terminal: io::stderr().is_terminal(),
            colours: colours_welcome(),
        }
    }

    /// As if nobody looked: no terminals, no colours.
    pub fn plain() -> Self {
        Self { stdout_terminal: false, stderr_terminal: false, colours: false }
    }

    /// Whether the result should be JSON: because it was asked for, or because a program reads stdout.
    pub fn json_result(&self, asked: bool) -> bool {
        asked || !self.stdout_terminal
    }

    /// The same for what goes to stderr.
    pub fn json_summary(&self, asked: bool) -> bool {
        asked || !self.stderr_terminal
    }

    /// Whether a person reads stdout.
    pub fn stdout_is_terminal(&self) -> bool {
        self.stdout_terminal
    }

    /// Whether a person reads stderr.
    pub fn stderr_is_terminal(&self) -> bool {
        self.stderr_terminal
    }

    /// Colours for stdout.
    pub fn paint(&self) -> Paint {
        Paint(self.colours && self.stdout_terminal)
    }

    /// Colours for stderr.
    pub fn error_paint(&self) -> Paint {
        Paint(self.colours && self.stderr_terminal)
    }

    /// Writes text to stdout as it is.
    pub fn text(&self, text: &str) {
        write(io::stdout().lock(), text.as_bytes());
    }

    /// Writes a line to stdout.
    pub fn line(&self, line: &str) {
        self.text(&format!("{line}\n"));
    }

    /// Writes JSON to stdout: indented for people, on one line for programs.
    pub fn json(&self, value: &Value) {
        self.line(&if self.stdout_terminal { format!("{value:#}") } else { value.to_string() });
    }

    /// Writes text to stderr as it is.
    pub fn error_text(&self, text: &str) {
        write(io::stderr().lock(), text.as_bytes());
    }

    /// Writes a line to stderr.
    pub fn error_line(&self, line: &str) {
        self.error_text(&format!("{line}\n"));
    }
}

/// There is nobody to tell when telling fails; a reader that has seen enough is no failure at all.
fn write(mut to: impl io::Write, bytes: &[u8]) {
    drop(to.write_all(bytes).and_then(|()| to.flush()));
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub struct Paint(bool);

impl Paint {
    /// Whether it paints at all.
    pub fn is_coloured(self) -> bool {
        self.0
    }

    /// For what is well.
    pub fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    /// For what is wrong.
    pub fn red(self, text: &str) -> String {
        self.with("1;31", text)
    }

    /// For what should be looked at.
    pub fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    /// For what matters.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// For what can be skipped.
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_json_and_no_colours() {
        let piped = Output { stdout_terminal: false, stderr_terminal: true, colours: true };
        assert!(piped.json_result(false) && !piped.json_summary(false) && piped.json_summary(true));
        assert_eq!(piped.paint().red("x"), "x");
        assert_eq!(piped.error_paint().red("x"), "\u{1b}[1;31mx\u{1b}[0m");
        let plain = Output { stdout_terminal: true, stderr_terminal: true, colours: false };
        assert!(!plain.json_result(false) && !plain.paint().is_coloured());
    }
}
