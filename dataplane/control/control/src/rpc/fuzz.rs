//! One harness for property tests and fuzzing: any bytes on the RPC socket, up to the point where a method would act.

use super::framing::{Framer, FramingError};
use super::message;
use crate::rpc::method::Handlers;
use api::RpcError;
use api::config::Call;
use serde_json::Value;
use std::sync::OnceLock;

/// Takes the stream that `data` stands for: its first byte says in what pieces it comes. Returns how many calls fitted a method.
pub fn fuzz_stream(data: &[u8]) -> usize {
    static TABLE: OnceLock<Handlers> = OnceLock::new();
    let table = TABLE.get_or_init(crate::handlers);
    let Some((&piece, stream)) = data.split_first() else { return 0 };
    let (values, end) = cut(stream, usize::from(piece).max(1));
    assert!(cut(stream, stream.len().max(1)) == (values.clone(), end), "splits matter");
    values.iter().filter_map(|text| serde_json::from_slice(text).ok()).map(|value| check(table, value)).sum()
}

fn cut(stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, Option<FramingError>) {
    let (mut framer, mut values) = (Framer::default(), Vec::new());
    for piece in stream.chunks(piece) {
        framer.push(piece);
        loop {
            match framer.next() {
                Ok(Some(value)) => values.push(value),
                Ok(None) => break,
                Err(error) => return (values, Some(error)),
            }
        }
    }
    (values, None)
}

fn check(table: &Handlers, value: Value) -> usize {
    let requests = match value {
        Value::Array(batch) => batch,
        request => vec![request],
    };
    requests.into_iter().filter(|request| fits(table, request.clone()).map_err(complete).is_ok()).count()
}

fn fits(table: &Handlers, request: Value) -> Result<(), RpcError> {
    let request = message::parse(request).map_err(|(_, error)| error)?;
    table.effect(&Call::new(&request.method, request.params)).map(drop)
}

/// A refusal says what is wrong, in the form that JSON-RPC has for it.
fn complete(error: RpcError) {
    assert!(error.code < 0 && !error.message.is_empty(), "{error:?}");
    serde_json::to_vec(&error).expect("an error is JSON");
}
