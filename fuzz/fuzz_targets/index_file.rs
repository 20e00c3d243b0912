#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| holdfast_storage::format::fuzz::index_file(bytes));
