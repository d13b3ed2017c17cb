//! Encoding frames from sequences that somebody else has chosen. The only unsafe room of this crate: the zstd crate has no
//! safe way to `ZSTD_compressSequences`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::ptr::NonNull;
use zstd::zstd_safe::{compress_bound, zstd_sys};

/// Literals, then a match (RFC 8878, section 3.1.1.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Literal bytes.
    pub literals: u32,
    /// Bytes of the match; at least 3.
    pub len: u32,
    /// How far back its bytes lie; at least 1, and not beyond the start of the frame.
    pub distance: u32,
}

/// Encodes frames.
pub struct Encoder {
    context: NonNull<zstd_sys::ZSTD_CCtx>,
    sequences: Vec<zstd_sys::ZSTD_Sequence>,
}

// SAFETY: a context may be used by any thread, by one at a time (zstd.h, "Explicit context"), and nothing shares this one.
unsafe impl Send for Encoder {}

/// Shortest match that sequences may have.
const SHORTEST: u32 = 3;

impl Encoder {
    /// An encoder for frames of up to 2^`window` bytes. The level says no more than how literals and codes are encoded.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(level: i32, window: i32) -> io::Result<Self> {
        use zstd_sys::ZSTD_cParameter as Parameter;
        // SAFETY: it takes nothing; null is no memory.
        let context = NonNull::new(unsafe { zstd_sys::ZSTD_createCCtx() }).ok_or(io::ErrorKind::OutOfMemory)?;
        let encoder = Self { context, sequences: Vec::new() };
        let parameters = [
            (Parameter::ZSTD_c_compressionLevel, level),
            (Parameter::ZSTD_c_windowLog, window),
            (Parameter::ZSTD_c_minMatch, SHORTEST as i32),
        ];
        for (parameter, value) in parameters {
            // SAFETY: the context is one, and lives as long as `encoder`.
            told(unsafe { zstd_sys::ZSTD_CCtx_setParameter(context.as_ptr(), parameter, value) })?;
        }
        Ok(encoder)
    }

    /// A frame of `bytes` made of `sequences`; what they leave are literals.
    ///
    /// # Errors
    /// A sequence refers to what isn't there, or is longer than what is there. That a match's bytes are the ones it refers
    /// to isn't looked at.
    pub fn encode(&mut self, bytes: &[u8], sequences: &[Sequence]) -> io::Result<Vec<u8>> {
        self.sequences.clear();
        let mut at = 0;
        for &Sequence { literals, len, distance } in sequences {
            // libzstd relies on this; its own check (`ZSTD_c_validateSequences`) lets distances pass that are too long.
            let start = at + u64::from(literals);
            at = start + u64::from(len);
            let within = len >= SHORTEST && distance > 0 && u64::from(distance) <= start && at <= bytes.len() as u64;
            if !within {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a sequence refers to what isn't there"));
            }
            let raw = zstd_sys::ZSTD_Sequence { offset: distance, litLength: literals, matchLength: len, rep: 0 };
            self.sequences.push(raw);
        }
        let mut frame: Vec<u8> = Vec::with_capacity(compress_bound(bytes.len()));
        // SAFETY: the context is one; the sequences stay within `bytes`, as was seen above. The three pointers are of
        // vectors and a slice that live until it returns, each with the length that the vector or slice has; `frame` is
        // written to only within its capacity.
        let written = told(unsafe {
            zstd_sys::ZSTD_compressSequences(
                self.context.as_ptr(),
                frame.as_mut_ptr().cast(),
                frame.capacity(),
                self.sequences.as_ptr(),
                self.sequences.len(),
                bytes.as_ptr().cast(),
                bytes.len(),
            )
        })?;
        // SAFETY: so many bytes it has written, within the capacity.
        unsafe { frame.set_len(written) };
        Ok(frame)
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        // SAFETY: the context is one, and nobody uses it after this.
        unsafe { zstd_sys::ZSTD_freeCCtx(self.context.as_ptr()) };
    }
}

/// What a function of libzstd has returned: a number, or an error.
fn told(code: usize) -> io::Result<usize> {
    // SAFETY: both take any number; the name is a string that lives for ever.
    let name = unsafe {
        if zstd_sys::ZSTD_isError(code) == 0 {
            return Ok(code);
        }
        CStr::from_ptr(zstd_sys::ZSTD_getErrorName(code))
    };
    Err(io::Error::other(name.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> Encoder {
        Encoder::new(3, 20).unwrap()
    }

    #[test]
    fn frames_decode_to_their_bytes() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(|n| (n % 777).to_le_bytes()).collect();
        let period = 777 * 4;
        let sequence = Sequence { literals: period, len: bytes.len() as u32 - period - 5, distance: period };
        let mut encoder = encoder();
        for sequences in [&[sequence][..], &[]] {
            let frame = encoder.encode(&bytes, sequences).unwrap();
            assert_eq!(zstd::bulk::decompress(&frame, bytes.len()).unwrap(), bytes);
            let size = zstd::zstd_safe::get_frame_content_size(&frame).unwrap();
            assert_eq!(size, Some(bytes.len() as u64), "frames tell their size");
        }
        let frame = encoder.encode(&bytes, &[sequence]).unwrap();
        assert!(frame.len() < 5000, "{}", frame.len());
    }

    #[test]
    fn sequences_out_of_bounds_are_refused() {
        let bytes = [7; 1000];
        let mut encoder = encoder();
        let refused = [
            Sequence { literals: 1, len: 4, distance: 2 },
            Sequence { literals: 0, len: 4, distance: 1 },
            Sequence { literals: 5, len: 4, distance: 0 },
            Sequence { literals: 5, len: 2, distance: 1 },
            Sequence { literals: 1, len: 1000, distance: 1 },
            Sequence { literals: 1001, len: 3, distance: 1 },
        ];
        for sequence in refused {
            assert!(encoder.encode(&bytes, &[sequence]).is_err(), "{sequence:?}");
        }
        // And none of them harms what comes next.
        let frame = encoder.encode(&bytes, &[Sequence { literals: 1, len: 999, distance: 1 }]).unwrap();
        assert_eq!(zstd::bulk::decompress(&frame, 1000).unwrap(), bytes);
    }
}
