//! Vectors of 512 bits.

use super::lanes::{Job, Simd};
use super::x86::common_operations;
use std::arch::x86_64::{
    __m512, __mmask16, _CMP_LT_OQ, _mm_load_ss, _mm512_add_epi32, _mm512_add_ps, _mm512_broadcastss_ps,
    _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_div_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_maskz_mov_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_storeu_ps,
    _mm512_sub_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

/// A flag for each of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> u32 {
    (1 << n) - 1
}

/// 16 elements of f32.
#[derive(Clone, Copy)]
pub(crate) struct F32(());

impl F32 {
    /// The token.
    /// # Safety
    /// The processor has the instructions of this module.
    pub unsafe fn detected() -> Self {
        Self(())
    }
}

impl Simd for F32 {
    type T = f32;
    type V = __m512;
    type Mask = __mmask16;
    const LANES: usize = 16;
    const TILE: [usize; 2] = [28, 14];
    const FIXED_PITCH: bool = true;

    common_operations! {
        __m512,
        splat: _mm512_set1_ps,
        broadcast: _mm512_broadcastss_ps,
        load: _mm512_loadu_ps,
        store: _mm512_storeu_ps,
        mul_add: _mm512_fmadd_ps,
        scale: _mm512_slli_epi32 _mm512_add_epi32 _mm512_castps_si512 _mm512_castsi512_ps,
        add: _mm512_add_ps,
        sub: _mm512_sub_ps,
        mul: _mm512_mul_ps,
        div: _mm512_div_ps,
        max: _mm512_max_ps,
        min: _mm512_min_ps,
    }

    #[inline(always)]
    fn call<J: Job<f32>>(self, job: J) -> J::Output {
        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
        fn avx512<J: Job<f32>>(s: F32, job: J) -> J::Output {
            job.run(s)
        }
        // SAFETY: `self` proves CPU support.
        unsafe { avx512(self, job) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: `self` proves CPU support; the caller upholds the method's safety contract; lanes from `n` on are not
        // touched.
        unsafe { _mm512_maskz_loadu_ps(first(n) as __mmask16, p) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, v: __m512, n: usize) {
        // SAFETY: `self` proves CPU support; the caller upholds the method's safety contract; lanes from `n` on are not
        // touched.
        unsafe { _mm512_mask_storeu_ps(p, first(n) as __mmask16, v) }
    }
    #[inline(always)]
    fn less(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: `self` proves CPU support.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn keep(self, mask: __mmask16, a: __m512) -> __m512 {
        // SAFETY: `self` proves CPU support.
        unsafe { _mm512_maskz_mov_ps(mask, a) }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [__m512; 16]) {
        let mut pairs = *rows;
        let mut fours = *rows;
        // SAFETY: `self` proves CPU support.
        unsafe {
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // Quarter q of `fours[4 i + k]` holds element 4 q + k of the rows 4 i to 4 i + 3.
            for i in [0, 4, 8, 12] {
                for k in 0..2 {
                    let (a, b) = (_mm512_castps_pd(pairs[i + k]), _mm512_castps_pd(pairs[i + k + 2]));
                    fours[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    fours[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            for k in 0..4 {
                let [a, b, c, d] = [fours[k], fours[k + 4], fours[k + 8], fours[k + 12]];
                let (even, even2) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                let (odd, odd2) = (_mm512_shuffle_f32x4::<0xDD>(a, b), _mm512_shuffle_f32x4::<0xDD>(c, d));
                rows[k] = _mm512_shuffle_f32x4::<0x88>(even, even2);
                rows[k + 4] = _mm512_shuffle_f32x4::<0x88>(odd, odd2);
                rows[k + 8] = _mm512_shuffle_f32x4::<0xDD>(even, even2);
                rows[k + 12] = _mm512_shuffle_f32x4::<0xDD>(odd, odd2);
            }
        }
    }
}
