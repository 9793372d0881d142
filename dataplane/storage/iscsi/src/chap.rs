//! CHAP, one-way and mutual ([RFC 7143 § 12.1.3]; algorithms beyond MD5 by the IANA PPP registry).
//!
//! [RFC 7143 § 12.1.3]: https://www.rfc-editor.org/rfc/rfc7143#section-12.1.3

use digest::Digest;

/// A name and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The value of CHAP_N.
    pub name: String,
    /// The shared secret. Never printed.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A CHAP algorithm (CHAP_A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChapAlgorithm {
    /// 5: the one every target has.
    Md5,
    /// 6.
    Sha1,
    /// 7.
    Sha256,
    /// 8.
    Sha3_256,
}

impl ChapAlgorithm {
    /// All, the strongest first.
    pub const ALL: [ChapAlgorithm; 4] =
        [ChapAlgorithm::Sha3_256, ChapAlgorithm::Sha256, ChapAlgorithm::Sha1, ChapAlgorithm::Md5];

    /// The algorithm's number in CHAP_A.
    pub fn number(self) -> u32 {
        match self {
            ChapAlgorithm::Md5 => 5,
            ChapAlgorithm::Sha1 => 6,
            ChapAlgorithm::Sha256 => 7,
            ChapAlgorithm::Sha3_256 => 8,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<ChapAlgorithm> {
        Self::ALL.into_iter().find(|a| a.number() == number)
    }

    /// Bytes of a response, and of a challenge of ours.
    pub(crate) fn len(self) -> usize {
        match self {
            ChapAlgorithm::Md5 => 16,
            ChapAlgorithm::Sha1 => 20,
            ChapAlgorithm::Sha256 | ChapAlgorithm::Sha3_256 => 32,
        }
    }

    /// The response to a challenge: hash of identifier, secret, challenge (RFC 1994 section 4.1).
    pub(crate) fn respond(self, identifier: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
        fn hash<D: Digest>(identifier: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
            D::new().chain_update([identifier]).chain_update(secret).chain_update(challenge).finalize().to_vec()
        }
        match self {
            ChapAlgorithm::Md5 => hash::<md5::Md5>(identifier, secret, challenge),
            ChapAlgorithm::Sha1 => hash::<sha1::Sha1>(identifier, secret, challenge),
            ChapAlgorithm::Sha256 => hash::<sha2::Sha256>(identifier, secret, challenge),
            ChapAlgorithm::Sha3_256 => hash::<sha3::Sha3_256>(identifier, secret, challenge),
        }
    }
}

/// The value of CHAP_A that offers `algorithms`.
pub(crate) fn offer(algorithms: &[ChapAlgorithm]) -> String {
    let numbers: Vec<String> = algorithms.iter().map(|a| a.number().to_string()).collect();
    numbers.join(",")
}

/// Compares two responses in a time that does not depend on where they differ.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

/// Longest challenge accepted (RFC 7143 12.1.3: binary values are at most 1024 bytes).
pub(crate) const MAX_CHALLENGE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::to_hex;

    /// Made with Python's hashlib: H(bytes([7]) + b"sesame12345678" + bytes(range(16))).
    #[test]
    fn responses_match_an_independent_implementation() {
        let challenge: Vec<u8> = (0..16).collect();
        for (algorithm, expected) in [
            (ChapAlgorithm::Md5, "d660ada238291e5238babaa12f3b6b35"),
            (ChapAlgorithm::Sha1, "88f9fcfc41782c3f8bc5a16e40a3c0b786072d56"),
            (ChapAlgorithm::Sha256, "37abea95f4157cd02d925d0402bdd1c66ffbf138d6af1fa7726010829d92ddaf"),
            (ChapAlgorithm::Sha3_256, "7a64a30ccd458a950057a89637fbeaecbdd87da189be633149519352572e79d3"),
        ] {
            let response = algorithm.respond(7, "sesame12345678", &challenge);
            assert_eq!(to_hex(&response), format!("0x{expected}"), "{algorithm:?}");
            assert_eq!(response.len(), algorithm.len());
            assert_eq!(ChapAlgorithm::from_number(algorithm.number()), Some(algorithm));
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let credentials = Credentials { name: "host".into(), secret: "sesame".into() };
        assert!(!format!("{credentials:?}").contains("sesame"));
    }

    #[test]
    fn comparison_sees_every_byte() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"abc", b"ab") && !same(b"xbc", b"abc"));
    }
}
