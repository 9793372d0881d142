//! Where one JSON value of a byte stream ends and the next begins, without parsing any byte twice.

use crate::limits;

/// Cuts a stream into JSON objects and arrays that stand back to back, with or without white space between them.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    buffer: Vec<u8>,
    /// Where in `buffer` the value begins that is not whole yet: behind the white space before it.
    start: usize,
    /// Bytes of `buffer` that were looked at.
    scanned: usize,
    /// Open braces and brackets at `scanned`.
    depth: usize,
    string: InString,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum InString {
    #[default]
    No,
    Yes,
    /// After a backslash.
    Escape,
}

/// Why a stream cannot be cut any further.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    #[error("a request begins with '{{' or '[', got byte 0x{0:02x}")]
    NotJson(u8),
    #[error("limit reached: a request has at most {} bytes", limits::REQUEST_BYTES)]
    TooLong,
}

impl Framer {
    /// Takes what came.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole value, if it is there. After an error the stream is lost.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            if self.depth == 0 && byte.is_ascii_whitespace() {
                self.start = self.scanned;
                continue;
            }
            self.step(byte)?;
            if self.depth == 0 {
                let value = self.buffer[self.start..self.scanned].to_vec();
                self.buffer.drain(..self.scanned);
                (self.start, self.scanned) = (0, 0);
                return Ok(Some(value));
            }
        }
        if self.depth == 0 {
            // White space alone.
            self.buffer.clear();
            (self.start, self.scanned) = (0, 0);
        }
        if self.buffer.len() > limits::REQUEST_BYTES { Err(FramingError::TooLong) } else { Ok(None) }
    }

    fn step(&mut self, byte: u8) -> Result<(), FramingError> {
        self.string = match (&self.string, byte) {
            (InString::Yes, b'\\') => InString::Escape,
            (InString::Yes, b'"') => InString::No,
            (InString::Yes | InString::Escape, _) => InString::Yes,
            (InString::No, b'{' | b'[') => {
                self.depth += 1;
                InString::No
            }
            (InString::No, _) if self.depth == 0 => return Err(FramingError::NotJson(byte)),
            (InString::No, b'}' | b']') => {
                self.depth -= 1;
                InString::No
            }
            (InString::No, b'"') => InString::Yes,
            (InString::No, _) => InString::No,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(chunks: &[&[u8]]) -> Result<Vec<Vec<u8>>, FramingError> {
        let (mut framer, mut values) = (Framer::default(), Vec::new());
        for chunk in chunks {
            framer.push(chunk);
            while let Some(value) = framer.next()? {
                values.push(value);
            }
        }
        Ok(values)
    }

    #[test]
    fn values_back_to_back_are_separated() {
        let stream = br#"{"a":"}{\"\\"}[1,{"b":[]}]  {} "#;
        let values = cut(&[stream]).unwrap();
        assert_eq!(values, [&br#"{"a":"}{\"\\"}"#[..], br#"[1,{"b":[]}]"#, b"{}"]);
    }

    #[test]
    fn a_stream_that_is_not_json_is_refused_at_its_first_byte() {
        assert_eq!(cut(&[b"  GET / HTTP/1.1"]), Err(FramingError::NotJson(b'G')));
        assert_eq!(cut(&[b"{}}"]), Err(FramingError::NotJson(b'}')));
    }

    #[test]
    fn a_request_without_end_is_refused_at_the_limit() {
        let chunk = vec![b'['; 1 << 20];
        let chunks = vec![&chunk[..]; limits::REQUEST_BYTES / chunk.len()];
        assert_eq!(cut(&chunks), Ok(vec![]));
        assert_eq!(cut(&[chunks, vec![&chunk[..1]]].concat()), Err(FramingError::TooLong));
    }

    #[test]
    fn white_space_between_values_is_discarded() {
        let mut framer = Framer::default();
        for _ in 0..100 {
            framer.push(&[b'\n'; 1000]);
            assert_eq!(framer.next(), Ok(None));
            assert!(framer.buffer.is_empty());
        }
    }

    proptest! {
        /// However a stream is split, the same values come out.
        #[test]
        fn splits_do_not_matter(texts in prop::collection::vec(".{0,12}", 1..6), at in prop::collection::vec(0..200_usize, 0..8)) {
            let values: Vec<Vec<u8>> =
                texts.iter().map(|t| serde_json::to_vec(&serde_json::json!({"k": [t, {"n": t}]})).unwrap()).collect();
            let stream = values.join(&b" \n"[..]);
            let mut at: Vec<usize> = at.into_iter().map(|i| i % (stream.len() + 1)).chain([0, stream.len()]).collect();
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|w| &stream[w[0]..w[1]]).collect();
            prop_assert_eq!(cut(&chunks).unwrap(), values);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..2000)) {
            crate::fuzz_stream(&data);
        }

        /// Requests with a known method and parameters that hardly ever fit.
        #[test]
        fn any_parameters_are_survived(
            calls in prop::collection::vec((any::<prop::sample::Index>(), ".{0,4}", any::<i64>()), 1..20),
        ) {
            let methods = api::table();
            let stream = calls.iter().flat_map(|(method, text, number)| {
                let method = &methods.entries()[method.index(methods.entries().len())];
                let params = serde_json::json!({ "name": text, "num_blocks": number, "block_size": 512, "ctrlr": [text] });
                serde_json::to_vec(&serde_json::json!({ "id": 1, "method": method.name, "params": params })).unwrap()
            });
            crate::fuzz_stream(&[7].into_iter().chain(stream).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_harness_counts_calls_that_fit() {
        let stream = br#"9{"method":"rpc_get_methods"} {"method":"bdev_malloc_create","params":{"num_blocks":8,"block_size":512}}
            [{"method":"rpc_get_methods","params":{"no_such":1}},{"method":"none"}]"#;
        assert_eq!(crate::fuzz_stream(stream), 2);
    }
}
