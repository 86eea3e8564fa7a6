//! Vectors of 256 bits.

use super::lanes::{Job, Simd};
use super::x86::common_operations;
use std::arch::x86_64::{
    __m256, __m256i, _CMP_LT_OQ, _mm_load_ss, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_broadcastss_ps,
    _mm256_castpd_ps, _mm256_castps_pd, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_div_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_max_ps,
    _mm256_min_ps, _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    _mm256_sub_ps, _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpacklo_ps,
};

static FLAGS_32: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// All bits set in the first `n` of 8 lanes.
#[inline(always)]
fn first_f32(n: usize) -> __m256i {
    // SAFETY: eight elements follow position 8 - n of sixteen; only called with a token.
    unsafe { _mm256_loadu_si256(FLAGS_32.as_ptr().add(8 - n.min(8)).cast()) }
}

/// 8 elements of f32.
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
    type V = __m256;
    type Mask = __m256;
    const LANES: usize = 8;
    const TILE: [usize; 2] = [12, 6];
    const FIXED_PITCH: bool = true;

    common_operations! {
        __m256,
        splat: _mm256_set1_ps,
        broadcast: _mm256_broadcastss_ps,
        load: _mm256_loadu_ps,
        store: _mm256_storeu_ps,
        mul_add: _mm256_fmadd_ps,
        scale: _mm256_slli_epi32 _mm256_add_epi32 _mm256_castps_si256 _mm256_castsi256_ps,
        add: _mm256_add_ps,
        sub: _mm256_sub_ps,
        mul: _mm256_mul_ps,
        div: _mm256_div_ps,
        max: _mm256_max_ps,
        min: _mm256_min_ps,
    }

    #[inline(always)]
    fn call<J: Job<f32>>(self, job: J) -> J::Output {
        #[target_feature(enable = "avx2,fma")]
        fn avx2<J: Job<f32>>(s: F32, job: J) -> J::Output {
            job.run(s)
        }
        // SAFETY: `self` proves CPU support.
        unsafe { avx2(self, job) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: `self` proves CPU support; the caller upholds the method's safety contract; lanes from `n` on are not
        // touched.
        unsafe { _mm256_maskload_ps(p, first_f32(n)) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, v: __m256, n: usize) {
        // SAFETY: `self` proves CPU support; the caller upholds the method's safety contract; lanes from `n` on are not
        // touched.
        unsafe { _mm256_maskstore_ps(p, first_f32(n), v) }
    }
    #[inline(always)]
    fn less(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves CPU support.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn keep(self, mask: __m256, a: __m256) -> __m256 {
        // SAFETY: `self` proves CPU support.
        unsafe { _mm256_and_ps(mask, a) }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [__m256; 16]) {
        let mut pairs = *rows;
        let mut fours = *rows;
        // SAFETY: `self` proves CPU support.
        unsafe {
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // Half h of `fours[4 i + k]` holds element 4 h + k of the rows 4 i to 4 i + 3.
            for i in [0, 4] {
                for k in 0..2 {
                    let (a, b) = (_mm256_castps_pd(pairs[i + k]), _mm256_castps_pd(pairs[i + k + 2]));
                    fours[i + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                    fours[i + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
                }
            }
            for k in 0..4 {
                rows[k] = _mm256_permute2f128_ps::<0x20>(fours[k], fours[k + 4]);
                rows[k + 4] = _mm256_permute2f128_ps::<0x31>(fours[k], fours[k + 4]);
            }
        }
    }
}
