//! The epilogue of a convolution, forward and backward: bias, residual, norm and activation.

use super::activation::Activation;

/// The operations on a convolution's sum before it is stored: y = act(sum + bias + residual).
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a, T> {
    /// One element per output channel.
    pub bias: Option<&'a [T]>,
    /// Of the output's size.
    pub residual: Option<&'a [T]>,
    /// Identity, Relu or Relu6; the others are applied in a separate pass.
    pub act: Activation,
}

impl<T> Epilogue<'_, T> {
    /// Stores the bare sum.
    pub const NONE: Self = Epilogue { bias: None, residual: None, act: Activation::Identity };
}

/// Backward of the activation: from y if saved, else from the recomputed u. Here u = a z + b (+ residual).
#[derive(Clone, Copy)]
pub(crate) struct Gate<'a, T> {
    pub act: Activation,
    pub a: &'a [T],
    pub b: &'a [T],
    pub y: Option<&'a [T]>,
}

/// Mean and biased variance of each channel.
pub(crate) struct Statistics {
    pub mean: Vec<f64>,
    pub var: Vec<f64>,
}
