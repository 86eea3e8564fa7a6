//! The element types that operations are generic over, and access to the elements of tensors of these types.

use super::buffer::Pod;
use candle_core::{CpuStorage, Result, Storage, Tensor, WithDType, bail};

/// f32 or f64.
pub(crate) trait Real: WithDType + Pod {
    /// e^self
    fn exponential(self) -> Self;
    /// The square root.
    fn root(self) -> Self;
    /// The larger of two; NaN if `self` is.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self < other { other } else { self }
    }
    /// The smaller of two; NaN if `self` is.
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        if self > other { other } else { self }
    }
    /// A tensor's own elements, if they are of this type.
    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! real {
    ($t:ty, $variant:ident) => {
        impl Real for $t {
            #[inline(always)]
            fn exponential(self) -> Self {
                self.exp()
            }
            #[inline(always)]
            fn root(self) -> Self {
                self.sqrt()
            }
            fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                if let CpuStorage::$variant(values) = storage { Some(values) } else { None }
            }
        }
    };
}
real!(f32, F32);
real!(f64, F64);

/// Lets `f` read a tensor's elements without copying them. A tensor that is not contiguous is copied first.
pub(crate) fn with_slice<T: WithDType, R>(t: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let t = if t.is_contiguous() { t.clone() } else { t.contiguous()? };
    let (storage, layout) = t.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(cpu), Some((from, to))) => f(&cpu.as_slice::<T>()?[from..to]),
        _ => bail!("a contiguous tensor on the CPU is expected"),
    }
}
