//! Fast kernels, one file or folder per operation: its chooser and its loops.
//!
//! A chooser picks the instruction set, and for a convolution the algorithm, from the processor and the shapes alone.
//! Operations call kernels through it; tests also name the level and the algorithm. The loops of `portable` are the
//! reference.

pub(super) mod conv;
pub(super) mod norm;
pub(super) mod pool;
