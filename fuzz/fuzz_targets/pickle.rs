#![no_main]

use candle_finetune::fuzzing::{complaint, pickle};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assert_eq!(complaint(&pickle(bytes)), None));
