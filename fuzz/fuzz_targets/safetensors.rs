#![no_main]

use candle_finetune::fuzzing::{complaint, weights};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assert_eq!(complaint(&weights(bytes)), None));
