// Included by every target: checks its property, and gives the fuzzer the examples.

// Call it once before the time limit starts, because the first call may generate RSA keys.
libfuzzer_sys::fuzz_target!(init: (TARGET.holds)(&[]), |data: &[u8]| (TARGET.holds)(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    static EXAMPLES: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(|| (TARGET.examples)());
    let mut size = size;
    // Sometimes mutate an example, so that fuzzing needs no initial corpus.
    if seed % 256 == 0 && !EXAMPLES.is_empty() {
        let example = &EXAMPLES[(seed / 256) as usize % EXAMPLES.len()];
        size = example.len().min(max_size);
        data[..size].copy_from_slice(&example[..size]);
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
});
