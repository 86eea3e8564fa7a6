//! f32 and f64 with the vectors of each level.

#[cfg(target_arch = "x86_64")]
use super::lanes::Simd;
use super::lanes::{Exp, Job, Lanes};
use super::level::{Level, Set};
use super::plain::Plain;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

impl Lanes for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    fn from_f32(v: f32) -> f32 {
        v
    }
    const EXP: Exp<f32> = Exp {
        lowest: -86.5,
        highest: 88.0,
        per_ln2: std::f32::consts::LOG2_E,
        shifter: 12_582_912.0,
        minus_ln2_high: -355.0 / 512.0,
        minus_ln2_low: 2.121_944_4e-4,
        series: &[1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0],
    };

    #[inline]
    fn run<J: Job<f32>>(level: Level, job: J) -> J::Output {
        match level.0 {
            Set::Portable => job.run(Plain::<f32, 8>::new()),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level is made only after its instructions were detected.
            Set::Avx2 => unsafe { avx2::F32::detected() }.call(job),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Set::Avx512 => unsafe { avx512::F32::detected() }.call(job),
        }
    }
}

impl Lanes for f64 {
    const ZERO: f64 = 0.0;
    #[inline(always)]
    fn from_f32(v: f32) -> f64 {
        f64::from(v)
    }
    const EXP: Exp<f64> = Exp {
        lowest: -707.0,
        highest: 709.0,
        per_ln2: std::f64::consts::LOG2_E,
        shifter: 6_755_399_441_055_744.0,
        minus_ln2_high: -6.931_471_803_691_238e-1,
        minus_ln2_low: -1.908_214_929_270_587_7e-10,
        series: &[
            1.0 / 6_227_020_800.0,
            1.0 / 479_001_600.0,
            1.0 / 39_916_800.0,
            1.0 / 3_628_800.0,
            1.0 / 362_880.0,
            1.0 / 40_320.0,
            1.0 / 5040.0,
            1.0 / 720.0,
            1.0 / 120.0,
            1.0 / 24.0,
            1.0 / 6.0,
            0.5,
            1.0,
            1.0,
        ],
    };

    /// f64 is for tests and references: arrays of four on every level, which spares a fifth of this crate's code.
    #[inline]
    fn run<J: Job<f64>>(_: Level, job: J) -> J::Output {
        job.run(Plain::<f64, 4>::new())
    }
}
