//! Vector instructions, chosen once per process.
//!
//! A kernel is written once, as a [`Job`] over any [`Simd`]; [`Lanes::run`] compiles it for each instruction set and
//! takes the one that the [`Level`] names. A `Simd` value is a token: it exists only where the processor was found to
//! have its instructions, so that arithmetic on vectors needs no unsafe code.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
mod level;
mod plain;
mod scratch;
#[cfg(test)]
mod tests;
mod types;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use lanes::{Job, Lanes, Simd};
pub(crate) use level::Level;
pub(crate) use scratch::with_scratch;
