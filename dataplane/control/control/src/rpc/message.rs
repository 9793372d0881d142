//! Requests and responses of JSON-RPC 2.0.

use crate::{Control, limits};
use api::{INVALID_REQUEST, RpcError};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Answers one JSON value of the stream: a request, or a batch of them. `None` where no answer is due.
pub(crate) async fn answer(control: &Arc<Control>, text: &[u8]) -> Option<Value> {
    match serde_json::from_slice(text) {
        Ok(Value::Array(batch)) if batch.is_empty() => Some(refusal(invalid("an empty batch"))),
        Ok(Value::Array(batch)) if batch.len() > limits::BATCH => {
            Some(refusal(RpcError::limit("requests in a batch", limits::BATCH)))
        }
        Ok(Value::Array(batch)) => {
            let mut answers = Vec::new();
            for request in batch {
                answers.extend(answer_one(control, request).await);
            }
            (!answers.is_empty()).then_some(Value::Array(answers))
        }
        Ok(request) => answer_one(control, request).await,
        Err(error) => Some(refusal(RpcError::parse(error))),
    }
}

/// The answer to a request without a usable id.
pub(crate) fn refusal(error: RpcError) -> Value {
    response(Value::Null, Err(error))
}

async fn answer_one(control: &Arc<Control>, request: Value) -> Option<Value> {
    let Request { id, method, params } = match parse(request) {
        Ok(request) => request,
        Err((id, error)) => return Some(response(id, Err(error))),
    };
    let result = control.call(&method, params).await;
    match &result {
        Ok(_) => tracing::debug!(method, "call"),
        Err(error) => tracing::warn!(method, code = error.code, %error, "call refused"),
    }
    // A request without an id is a notification: no answer is due (JSON-RPC 2.0, section 4.1).
    id.map(|id| response(id, result))
}

pub(super) struct Request {
    id: Option<Value>,
    pub(super) method: String,
    pub(super) params: Value,
}

pub(super) fn parse(request: Value) -> Result<Request, (Value, RpcError)> {
    let Value::Object(mut request) = request else { return Err((Value::Null, invalid("not an object"))) };
    let id = match request.remove("id") {
        id @ (None | Some(Value::String(_) | Value::Number(_) | Value::Null)) => id,
        Some(_) => return Err((Value::Null, invalid("id is neither a string nor a number"))),
    };
    let refuse = |what: &str| (id.clone().unwrap_or_default(), invalid(what));
    if request.remove("jsonrpc").is_some_and(|version| version != "2.0") {
        return Err(refuse("jsonrpc is not \"2.0\""));
    }
    let Some(Value::String(method)) = request.remove("method") else {
        return Err(refuse("method is missing or not a string"));
    };
    let params = request.remove("params").unwrap_or_default();
    if !matches!(params, Value::Null | Value::Object(_) | Value::Array(_)) {
        return Err(refuse("params is neither an object nor an array"));
    }
    match request.keys().next() {
        Some(unknown) => Err(refuse(&format!("unknown member {unknown}"))),
        None => Ok(Request { id, method, params }),
    }
}

fn invalid(what: &str) -> RpcError {
    RpcError::new(INVALID_REQUEST, format!("Invalid request: {what}"))
}

fn response(id: Value, result: Result<Value, RpcError>) -> Value {
    let mut answer = Map::from_iter([("jsonrpc".to_owned(), json!("2.0")), ("id".to_owned(), id)]);
    match result {
        Ok(result) => answer.insert("result".to_owned(), result),
        Err(error) => answer.insert("error".to_owned(), json!(error)),
    };
    Value::Object(answer)
}
