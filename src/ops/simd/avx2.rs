//! Vectors of 256 bits.

use super::lanes::{Job, Simd};
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
    // SAFETY: eight numbers follow position 8 - n of sixteen; only called with a token at hand.
    unsafe { _mm256_loadu_si256(FLAGS_32.as_ptr().add(8 - n.min(8)).cast()) }
}

/// 8 numbers of f32.
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

    #[inline(always)]
    fn call<J: Job<f32>>(self, job: J) -> J::Output {
        #[target_feature(enable = "avx2,fma")]
        fn avx2<J: Job<f32>>(s: F32, job: J) -> J::Output {
            job.run(s)
        }
        // SAFETY: the token says that the processor has these instructions.
        unsafe { avx2(self, job) }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn broadcast(self, p: *const f32) -> __m256 {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm256_broadcastss_ps(_mm_load_ss(p)) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: the token, and the caller's promise.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: the token, and the caller's promise: lanes from `n` on are not touched.
        unsafe { _mm256_maskload_ps(p, first_f32(n)) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, v: __m256, n: usize) {
        // SAFETY: the token, and the caller's promise: lanes from `n` on are not touched.
        unsafe { _mm256_maskstore_ps(p, first_f32(n), v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn less(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn keep(self, mask: __m256, a: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_and_ps(mask, a) }
    }
    #[inline(always)]
    fn scale(self, v: __m256, t: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe {
            let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), power))
        }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [__m256; 16]) {
        let mut pairs = *rows;
        let mut fours = *rows;
        // SAFETY: the token.
        unsafe {
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // Half h of `fours[4 i + k]` holds number 4 h + k of the rows 4 i to 4 i + 3.
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
