//! The processor's instruction sets, and the one in use.

use std::sync::OnceLock;

/// An instruction set that was detected on this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Level(pub(super) Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    /// The target's baseline (SSE2 on x86-64, NEON on ARM), found by the compiler.
    Portable,
    /// AVX2 and FMA: 256 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, VL, DQ and BW: 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The best of this processor, or the lower one that CANDLE_FINETUNE_SIMD (avx512, avx2 or portable) names. The
    /// choice is made once.
    pub fn chosen() -> Self {
        static CHOSEN: OnceLock<Level> = OnceLock::new();
        *CHOSEN.get_or_init(|| Self::choose(std::env::var("CANDLE_FINETUNE_SIMD").ok().as_deref()))
    }

    /// The best level that is at most the one named.
    pub(super) fn choose(wish: Option<&str>) -> Self {
        let levels = Self::available();
        let portable = Self(Set::Portable);
        let best = levels.last().copied().unwrap_or(portable);
        let Some(wish) = wish.map(str::trim).filter(|w| !w.is_empty()) else { return best };
        if let Some(level) = levels.iter().copied().find(|l| l.name() == wish) {
            return level;
        }
        tracing::warn!(
            "CANDLE_FINETUNE_SIMD={wish} names none of avx512, avx2, portable that runs here; using {}",
            best.name()
        );
        best
    }

    /// All levels of this processor, the lowest first.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut sets = vec![Set::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 {
                sets.push(Set::Avx2);
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
            {
                sets.push(Set::Avx512);
            }
        }
        sets.into_iter().map(Self).collect()
    }

    /// Its name, as CANDLE_FINETUNE_SIMD has it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
        }
    }
}
