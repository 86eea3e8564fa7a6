//! The common parts of the vectors of x86-64.

/// The part of `impl Simd` that differs between the vector lengths in the names of the intrinsics alone. Masks, partial
/// loads and stores, and the last step of a transposition differ in kind and are written out for each.
macro_rules! common_operations {
    (
        $v:ty,
        splat: $splat:ident,
        broadcast: $broadcast:ident,
        load: $load:ident,
        store: $store:ident,
        mul_add: $mul_add:ident,
        scale: $shift:ident $add_integers:ident $to_integers:ident $from_integers:ident,
        $($binary:ident: $intrinsic:ident,)*
    ) => {
        #[inline(always)]
        fn splat(self, v: f32) -> $v {
            // SAFETY: `self` proves CPU support.
            unsafe { $splat(v) }
        }
        #[inline(always)]
        unsafe fn broadcast(self, p: *const f32) -> $v {
            // SAFETY: `self` proves CPU support; the caller upholds the method's safety contract.
            unsafe { $broadcast(_mm_load_ss(p)) }
        }
        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> $v {
            // SAFETY: `self` proves CPU support; the caller upholds the method's safety contract.
            unsafe { $load(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: $v) {
            // SAFETY: `self` proves CPU support; the caller upholds the method's safety contract.
            unsafe { $store(p, v) }
        }
        #[inline(always)]
        fn mul_add(self, a: $v, b: $v, c: $v) -> $v {
            // SAFETY: `self` proves CPU support.
            unsafe { $mul_add(a, b, c) }
        }
        #[inline(always)]
        fn scale(self, v: $v, t: $v) -> $v {
            // SAFETY: `self` proves CPU support.
            unsafe {
                let power = $shift::<23>($to_integers(t));
                $from_integers($add_integers($to_integers(v), power))
            }
        }
        $(
            #[inline(always)]
            fn $binary(self, a: $v, b: $v) -> $v {
                // SAFETY: `self` proves CPU support.
                unsafe { $intrinsic(a, b) }
            }
        )*
    };
}
pub(super) use common_operations;
