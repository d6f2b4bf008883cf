#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| kfp_creds_fuzz::tunnel(input));
