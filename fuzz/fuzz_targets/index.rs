//! The index parser: what it accepts must encode to something that decodes to the same.
#![no_main]
use clipper_format::gzip;
use clipper_format::index::Index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = gzip::decode_group(data);
    let Ok(index) = Index::decode(data) else { return };
    let again = index.encode().expect("an index that was decoded can be encoded");
    assert_eq!(Index::decode(&again).expect("own encoding"), index);
});
