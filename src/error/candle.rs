//! Candle's errors, without their backtraces.

use super::{BoxError, Error};

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(Box::new(without_backtrace(error)))
    }
}

/// Candle appends a backtrace to the message if `RUST_BACKTRACE` is set, which fills pages.
fn without_backtrace(error: candle_core::Error) -> candle_core::Error {
    use candle_core::Error::{Context, WithBacktrace, WithPath};
    match error {
        WithBacktrace { inner, .. } => without_backtrace(*inner),
        Context { inner, context } => Context { inner: Box::new(without_backtrace(*inner)), context },
        WithPath { inner, path } => WithPath { inner: Box::new(without_backtrace(*inner)), path },
        other => other,
    }
}

/// Removes Candle's backtrace from a cause of any kind.
pub(super) fn quiet(cause: BoxError) -> BoxError {
    match cause.downcast::<candle_core::Error>() {
        Ok(error) => Box::new(without_backtrace(*error)),
        Err(other) => other,
    }
}
