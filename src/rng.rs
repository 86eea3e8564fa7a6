//! Seeds, and named streams of random values derived from them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The source of all randomness in a run: the same seed gives the same run.
///
/// Each use of randomness has its own stream, addressed by a name and whole numbers, so drawing more values in one place
/// never changes another. A stream depends neither on the platform nor on the number of threads. Seeds keep their meaning
/// between versions of the crate, which is why the hash here is not [`Fingerprint`](crate::fingerprint::Fingerprint).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seed(pub u64);

impl Seed {
    /// The stream called `name` at the address `at`, for example `("augment", &[epoch, i])`.
    pub fn stream(self, name: &str, at: &[u64]) -> ChaCha8Rng {
        let mut h = fnv1a(name) ^ mix(self.0);
        for &n in at {
            h = mix(h.wrapping_add(mix(n.wrapping_add(GOLDEN))));
        }
        ChaCha8Rng::seed_from_u64(h)
    }
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// FNV-1a, 64 bit.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// The finalizer of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    /// Seeds keep their meaning, so that saved runs can be repeated. The values were also computed outside of the crate.
    #[test]
    fn streams_never_change() {
        let pins: [(u64, &str, &[u64], [u64; 2]); 6] = [
            (0, "", &[], [0x0cab_52e4_7e47_6df3, 0x1539_2a2d_0d76_db90]),
            (1, "shuffle", &[0], [0xffa7_961a_79f8_e1f7, 0x24a0_2863_8824_0def]),
            (1, "shuffle", &[3], [0xe5e1_8f8c_641c_074e, 0xba42_7c68_3a74_aebe]),
            (7, "augment", &[2, 1000], [0x9c64_871b_4343_3ad5, 0x32b4_7c56_2e8a_6f7f]),
            (42, "split", &[], [0x306e_c4d2_b417_b834, 0x8d26_6f3d_e5f9_114f]),
            (u64::MAX, "dropout", &[u64::MAX], [0xf7ba_ffc0_61a6_f84c, 0xa78c_4ef3_5494_3b2e]),
        ];
        for (seed, name, at, pinned) in pins {
            let mut stream = Seed(seed).stream(name, at);
            assert_eq!([stream.random::<u64>(), stream.random::<u64>()], pinned, "{name} {at:?} of seed {seed}");
        }
    }

    #[test]
    fn streams_are_independent() {
        let draw = |seed: u64, name: &str, at: &[u64]| Seed(seed).stream(name, at).random::<u64>();
        let all = [
            draw(1, "shuffle", &[0]),
            draw(1, "shuffle", &[1]),
            draw(1, "augment", &[0]),
            draw(2, "shuffle", &[0]),
            draw(1, "shuffle", &[0, 0]),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }
}
