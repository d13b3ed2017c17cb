//! XXH64, the checksum at the end of a frame (RFC 8878, section 3.1.1; the specification is that of xxHash), seed 0.

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;
const P4: u64 = 0x85eb_ca77_c2b2_ae63;
const P5: u64 = 0x27d4_eb2f_1656_67c5;
/// Bytes that are mixed in at a time.
const STRIPE: usize = 32;

/// Hashes bytes that come in pieces.
#[derive(Clone)]
pub struct Xxh64 {
    lanes: [u64; 4],
    /// Bytes of a stripe that isn't complete.
    rest: [u8; STRIPE],
    len: u64,
}

impl Xxh64 {
    pub fn new() -> Self {
        Self { lanes: [P1.wrapping_add(P2), P2, 0, P1.wrapping_neg()], rest: [0; STRIPE], len: 0 }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let held = self.len as usize % STRIPE;
        self.len += bytes.len() as u64;
        let (first, mut bytes) = bytes.split_at(bytes.len().min((STRIPE - held) % STRIPE));
        self.rest[held..held + first.len()].copy_from_slice(first);
        if held > 0 && held + first.len() == STRIPE {
            let stripe = self.rest;
            self.stripe(&stripe);
        }
        while let Some((stripe, after)) = bytes.split_first_chunk() {
            self.stripe(stripe);
            bytes = after;
        }
        self.rest[..bytes.len()].copy_from_slice(bytes);
    }

    fn stripe(&mut self, stripe: &[u8; STRIPE]) {
        for (lane, word) in self.lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
            *lane = round(*lane, u64::from_le_bytes(*word));
        }
    }

    /// The hash of all bytes.
    pub fn finish(&self) -> u64 {
        let [a, b, c, d] = self.lanes;
        let mut hash = if self.len < STRIPE as u64 {
            P5
        } else {
            let sum = a.rotate_left(1).wrapping_add(b.rotate_left(7));
            let sum = sum.wrapping_add(c.rotate_left(12)).wrapping_add(d.rotate_left(18));
            self.lanes.iter().fold(sum, |hash, &lane| (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4))
        };
        hash = hash.wrapping_add(self.len);
        let mut rest = &self.rest[..self.len as usize % STRIPE];
        while let Some((word, after)) = rest.split_first_chunk() {
            hash ^= round(0, u64::from_le_bytes(*word));
            hash = hash.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
            rest = after;
        }
        if let Some((word, after)) = rest.split_first_chunk() {
            hash ^= u64::from(u32::from_le_bytes(*word)).wrapping_mul(P1);
            hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
            rest = after;
        }
        for &byte in rest {
            hash ^= u64::from(byte).wrapping_mul(P5);
            hash = hash.rotate_left(11).wrapping_mul(P1);
        }
        hash = (hash ^ hash >> 33).wrapping_mul(P2);
        hash = (hash ^ hash >> 29).wrapping_mul(P3);
        hash ^ hash >> 32
    }
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_checksum_that_libzstd_writes() {
        let data: Vec<u8> = (0..1000u32).map(|i| ((i * i) >> 3) as u8).collect();
        for len in (0..130).chain([255, 256, 257, 1000]) {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(true).unwrap();
            std::io::copy(&mut &data[..len], &mut encoder).unwrap();
            let frame = encoder.finish().unwrap();
            for piece in [1, 7, 32, 100, 1000] {
                let mut hash = Xxh64::new();
                data[..len].chunks(piece).for_each(|piece| hash.update(piece));
                assert_eq!((hash.finish() as u32).to_le_bytes(), frame[frame.len() - 4..], "{len} bytes by {piece}");
            }
        }
    }
}
