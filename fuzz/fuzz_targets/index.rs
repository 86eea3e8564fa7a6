#![no_main]

use candle_finetune::fuzzing::{complaint, index};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assert_eq!(complaint(&index(bytes)), None));
