//! Pointwise nonlinearities.

use super::number::Real;

/// A pointwise function after a convolution and its norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Activation {
    /// y = u
    #[default]
    Identity,
    /// y = max(u, 0)
    Relu,
    /// y = min(max(u, 0), 6)
    Relu6,
    /// y = u * sigmoid(u) (Elfwing et al. 2017, arXiv 1702.03118)
    Silu,
    /// y = 1 / (1 + exp(-u))
    Sigmoid,
}

impl Activation {
    /// Its name, the same in every version of the crate.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Relu => "relu",
            Self::Relu6 => "relu6",
            Self::Silu => "silu",
            Self::Sigmoid => "sigmoid",
        }
    }

    /// Whether the derivative can be computed from the output alone, so that the input need not be saved.
    pub fn gates_by_result(self) -> bool {
        matches!(self, Self::Identity | Self::Relu | Self::Relu6)
    }

    /// The value at `u`.
    #[inline(always)]
    pub fn value<T: Real>(self, u: T) -> T {
        match self {
            Self::Identity => u,
            Self::Relu => u.larger(T::zero()),
            Self::Relu6 => u.larger(T::zero()).smaller(T::from_f64(6.0)),
            Self::Silu => u * sigmoid(u),
            Self::Sigmoid => sigmoid(u),
        }
    }

    /// The derivative at `u`; for those that gate by their result, `u` may be the result as well. The reference of the
    /// kernels' own.
    #[cfg(test)]
    #[inline(always)]
    pub fn slope<T: Real>(self, u: T) -> T {
        let gate = |open: bool| if open { T::one() } else { T::zero() };
        match self {
            Self::Identity => T::one(),
            Self::Relu => gate(u > T::zero()),
            Self::Relu6 => gate(u > T::zero() && u < T::from_f64(6.0)),
            Self::Silu => {
                let s = sigmoid(u);
                s * (T::one() + u * (T::one() - s))
            }
            Self::Sigmoid => {
                let s = sigmoid(u);
                s * (T::one() - s)
            }
        }
    }
}

#[inline(always)]
fn sigmoid<T: Real>(u: T) -> T {
    T::one() / (T::one() + (T::zero() - u).exponential())
}
