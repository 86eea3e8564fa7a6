//! Memory that a thread keeps between tasks, so that it stays in the thread's cache.

use crate::ops::buffer::{Buffer, Pod, spoil};
use std::cell::Cell;
use std::thread::LocalKey;

/// A element type with a buffer per thread.
pub(crate) trait Scratch: Pod {
    fn kept() -> &'static LocalKey<Cell<Option<Buffer<Self>>>>;
}

macro_rules! scratch {
    ($t:ty) => {
        impl Scratch for $t {
            fn kept() -> &'static LocalKey<Cell<Option<Buffer<Self>>>> {
                thread_local! {
                    static KEPT: Cell<Option<Buffer<$t>>> = const { Cell::new(None) };
                }
                &KEPT
            }
        }
    };
}
scratch!(f32);
scratch!(f64);

/// Lends `len` elements of arbitrary value. A nested use gets separate memory.
pub(crate) fn with_scratch<T: Scratch, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let kept = T::kept().take().filter(|b| b.len() >= len);
    let mut buffer = kept.unwrap_or_else(|| Buffer::unpooled(len));
    spoil(&mut buffer[..len]);
    let result = f(&mut buffer[..len]);
    T::kept().set(Some(buffer));
    result
}
