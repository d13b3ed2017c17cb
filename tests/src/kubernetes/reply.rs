//! Answers: as a whole, or line by line.
use std::io;

use bytes::Bytes;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use http_body_util::StreamBody;
use hyper::Response;
use hyper::body::Frame;
use hyper::header::CONTENT_TYPE;
use serde_json::{Value, json};

/// A body that may go on for long.
pub(crate) type Body = StreamBody<UnboundedReceiver<io::Result<Frame<Bytes>>>>;
/// Where its parts are put in.
pub(crate) type Lines = UnboundedSender<io::Result<Frame<Bytes>>>;

/// A `Status` of a failure.
fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
           "reason": reason, "code": code})
}

pub(crate) fn error_event(code: u16, message: &str) -> Value {
    json!({"type": "ERROR", "object": failure(code, if code == 410 { "Expired" } else { "Failed" }, message)})
}

pub(crate) fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    whole(code, failure(code, reason, message).to_string())
}

pub(crate) fn whole(code: u16, body: String) -> Response<Body> {
    let (all, stream) = unbounded();
    let _ = all.unbounded_send(Ok(Frame::data(body.into())));
    response(code, stream)
}

pub(crate) fn response(code: u16, body: UnboundedReceiver<io::Result<Frame<Bytes>>>) -> Response<Body> {
    let mut response = Response::new(StreamBody::new(body));
    *response.status_mut() = code.try_into().unwrap_or_default();
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a header"));
    response
}

pub(crate) fn send(lines: &Lines, event: &Value) {
    let _ = lines.unbounded_send(Ok(Frame::data(format!("{event}\n").into())));
}
