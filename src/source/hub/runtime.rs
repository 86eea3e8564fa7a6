//! Asynchronous work behind synchronous functions.

use crate::error::{Error, Result};
use tokio::runtime::{Builder, Runtime};

/// Runs `work` with a runtime on a separate thread, so that callers may be inside a runtime themselves.
pub(super) fn with_runtime<T: Send>(work: impl FnOnce(&Runtime) -> Result<T> + Send) -> Result<T> {
    let on_thread = || {
        let runtime = Builder::new_current_thread().enable_all().build();
        work(&runtime.map_err(Error::io("start a runtime for", "the hub"))?)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("hub".into()).spawn_scoped(scope, on_thread);
        let thread = thread.map_err(Error::io("start a thread for", "the hub"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
