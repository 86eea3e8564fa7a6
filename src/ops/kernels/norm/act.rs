//! Activations as types, so that each pass is compiled once for each of them.

use crate::ops::simd::{Lanes, Simd};

/// A pointwise function of a vector, and its gradient.
pub(super) trait Act: Copy + Send + Sync {
    /// The value at `u`.
    fn value<S: Simd>(self, s: S, u: S::V) -> S::V;
    /// `g` times the slope at `u`.
    fn gated<S: Simd>(self, s: S, u: S::V, g: S::V) -> S::V;
}

#[derive(Clone, Copy)]
pub(super) struct Identity;
impl Act for Identity {
    #[inline(always)]
    fn value<S: Simd>(self, _: S, u: S::V) -> S::V {
        u
    }
    #[inline(always)]
    fn gated<S: Simd>(self, _: S, _: S::V, g: S::V) -> S::V {
        g
    }
}

#[derive(Clone, Copy)]
pub(super) struct Relu;
impl Act for Relu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, u: S::V) -> S::V {
        s.max(s.zero(), u)
    }
    #[inline(always)]
    fn gated<S: Simd>(self, s: S, u: S::V, g: S::V) -> S::V {
        s.keep(s.less(s.zero(), u), g)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Relu6;
impl Act for Relu6 {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, u: S::V) -> S::V {
        s.min(s.splat(S::T::from_f32(6.0)), s.max(s.zero(), u))
    }
    #[inline(always)]
    fn gated<S: Simd>(self, s: S, u: S::V, g: S::V) -> S::V {
        s.keep(s.less(u, s.splat(S::T::from_f32(6.0))), s.keep(s.less(s.zero(), u), g))
    }
}

#[inline(always)]
fn sigmoid<S: Simd>(s: S, u: S::V) -> S::V {
    let one = s.splat(S::T::from_f32(1.0));
    s.div(one, s.add(one, s.exp(s.sub(s.zero(), u))))
}

#[derive(Clone, Copy)]
pub(super) struct Silu;
impl Act for Silu {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, u: S::V) -> S::V {
        s.mul(u, sigmoid(s, u))
    }
    #[inline(always)]
    fn gated<S: Simd>(self, s: S, u: S::V, g: S::V) -> S::V {
        let one = s.splat(S::T::from_f32(1.0));
        let v = sigmoid(s, u);
        s.mul(g, s.mul(v, s.mul_add(u, s.sub(one, v), one)))
    }
}

#[derive(Clone, Copy)]
pub(super) struct Sigmoid;
impl Act for Sigmoid {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, u: S::V) -> S::V {
        sigmoid(s, u)
    }
    #[inline(always)]
    fn gated<S: Simd>(self, s: S, u: S::V, g: S::V) -> S::V {
        let v = sigmoid(s, u);
        s.mul(g, s.mul(v, s.sub(s.splat(S::T::from_f32(1.0)), v)))
    }
}

/// Evaluates the expression with the activation's type.
macro_rules! with_act {
    ($value:expr, $act:ident => $body:expr) => {
        match $value {
            $crate::ops::activation::Activation::Identity => {
                let $act = $crate::ops::kernels::norm::act::Identity;
                $body
            }
            $crate::ops::activation::Activation::Relu => {
                let $act = $crate::ops::kernels::norm::act::Relu;
                $body
            }
            $crate::ops::activation::Activation::Relu6 => {
                let $act = $crate::ops::kernels::norm::act::Relu6;
                $body
            }
            $crate::ops::activation::Activation::Silu => {
                let $act = $crate::ops::kernels::norm::act::Silu;
                $body
            }
            $crate::ops::activation::Activation::Sigmoid => {
                let $act = $crate::ops::kernels::norm::act::Sigmoid;
                $body
            }
        }
    };
}
pub(super) use with_act;
