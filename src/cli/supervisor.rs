//! What a supervisor (systemd, as `Type=notify` or `notify-reload`) is told of this process.
//!
//! **Promises** that nothing happens where nobody asks to be told, and that a supervisor that does not listen is no
//! failure.

/// It serves.
pub(super) fn ready() {
    #[cfg(unix)]
    tell(&[sd_notify::NotifyState::Ready]);
}

/// It reads its config again; [`ready`] follows.
pub(super) fn reloading() {
    #[cfg(unix)]
    {
        use sd_notify::NotifyState;

        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "there is no clock to tell a supervisor"),
        }
    }
}

/// It is on its way down.
pub(super) fn stopping() {
    #[cfg(unix)]
    tell(&[sd_notify::NotifyState::Stopping]);
}

#[cfg(unix)]
fn tell(what: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::debug!(%error, "the supervisor cannot be told");
    }
}
