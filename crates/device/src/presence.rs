//! The presence file: which blocks of a device are on disk, so that a restart needn't fetch them again.
//!
//! ```text
//!  0  8  "clipprs\0"
//!  8  4  version, 1                          all numbers little-endian
//! 12  4  bytes in a block, 4096
//! 16  8  bytes of the device
//! 24 32  digest that names the device
//! 56 32  fingerprint of the span table that the blocks were verified against
//! 88 8n  the bitmap: bit b of word w is block 64 w + b
//!    32  BLAKE3 of everything before
//! ```
use clipper_format::{Digest, span::BLOCK};

const MAGIC: &[u8; 8] = b"clipprs\0";
const VERSION: u32 = 1;
const HEADER: usize = 88;
const CHECKSUM: usize = 32;

/// Which device a presence file speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) device: Digest,
    pub(crate) fingerprint: [u8; 32],
    pub(crate) size: u64,
}

/// Why a presence file isn't believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PresenceError {
    #[error("it is torn or damaged")]
    Checksum,
    #[error("it is of version {0}, and this program knows version {VERSION}")]
    Version(u32),
    #[error("it belongs to another device")]
    Foreign,
}

impl Identity {
    /// Blocks of the device.
    pub(crate) fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    /// Bytes of a presence file.
    pub(crate) fn file_len(&self) -> u64 {
        self.blocks().div_ceil(64) * 8 + (HEADER + CHECKSUM) as u64
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        header[16..24].copy_from_slice(&self.size.to_le_bytes());
        header[24..56].copy_from_slice(self.device.as_bytes());
        header[56..].copy_from_slice(&self.fingerprint);
        header
    }

    /// The presence file for these bits.
    pub(crate) fn encode(&self, words: &[u64]) -> Vec<u8> {
        let mut file = self.header().to_vec();
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let checksum = blake3::hash(&file);
        file.extend_from_slice(checksum.as_bytes());
        file
    }

    /// The device that a presence file speaks of, and its bits; `None` if it is damaged or of another version.
    pub(crate) fn of_file(file: &[u8]) -> Option<(Self, Vec<u64>)> {
        let header: &[u8; HEADER] = file.first_chunk()?;
        let size = u64::from_le_bytes(*header[16..].first_chunk()?);
        let device = Digest::from_bytes(*header[24..].first_chunk()?);
        let identity = Self { device, fingerprint: *header[56..].first_chunk()?, size };
        Some((identity, identity.decode(file).ok()?))
    }

    /// The bits of a presence file.
    pub(crate) fn decode(&self, file: &[u8]) -> Result<Vec<u64>, PresenceError> {
        let (body, checksum) = file.split_last_chunk::<CHECKSUM>().ok_or(PresenceError::Checksum)?;
        if body.len() < HEADER || blake3::hash(body) != blake3::Hash::from(*checksum) || !body.starts_with(MAGIC) {
            return Err(PresenceError::Checksum);
        }
        let (header, bits) = body.split_at(HEADER);
        let version = header[8..12].iter().rev().fold(0u32, |n, byte| n << 8 | u32::from(*byte));
        if version != VERSION {
            return Err(PresenceError::Version(version));
        }
        if header != self.header() || file.len() as u64 != self.file_len() {
            return Err(PresenceError::Foreign);
        }
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        Ok(bits.chunks_exact(8).map(word).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { device: Digest::of(b"layer"), fingerprint: [7; 32], size: 70 * BLOCK - 1 }
    }

    #[test]
    fn round_trips() {
        let words = [0x8000_0000_0000_0001, 0x3f];
        let file = identity().encode(&words);
        assert_eq!(file.len() as u64, identity().file_len());
        assert_eq!(identity().decode(&file).unwrap(), words);
        assert_eq!(Identity::of_file(&file), Some((identity(), words.to_vec())));
        assert_eq!((Identity::of_file(&file[1..]), Identity::of_file(&file[..50])), (None, None));
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let file = identity().encode(&[1, 2]);
        for i in 0..file.len() {
            let mut bad = file.clone();
            bad[i] ^= 1;
            assert_eq!(identity().decode(&bad), Err(PresenceError::Checksum), "byte {i}");
            assert_eq!(identity().decode(&file[..i]), Err(PresenceError::Checksum), "cut at {i}");
        }
    }

    #[test]
    fn refuses_another_devices_file_and_another_version() {
        let file = identity().encode(&[1, 2]);
        for other in [
            Identity { device: Digest::of(b"other"), ..identity() },
            Identity { fingerprint: [8; 32], ..identity() },
            Identity { size: identity().size + 1, ..identity() },
        ] {
            assert_eq!(other.decode(&file), Err(PresenceError::Foreign));
        }
        assert_eq!(identity().decode(&identity().encode(&[1])), Err(PresenceError::Foreign));
        let mut body = file[..file.len() - 32].to_vec();
        body[8] = 2;
        body.extend_from_slice(blake3::hash(&body.clone()).as_bytes());
        assert_eq!(identity().decode(&body), Err(PresenceError::Version(2)));
    }
}
