#![no_main]

use candle_finetune::fuzzing::{complaint, header};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assert_eq!(complaint(&header(bytes)), None));
