#![no_main]

use candle_finetune::fuzzing::{complaint, description};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assert_eq!(complaint(&description(bytes)), None));
