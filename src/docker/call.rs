//! Calls whose answers are parsed as plain JSON: bollard's types reject some of Podman's answers (container
//! states that Docker does not have, lists that are null), and bollard does not cover Podman's own API.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::{CALL_SECONDS, Engine, EngineError};
use crate::failure::Reason;

/// Largest answer accepted: a list of ten thousand containers has some 30 MiB.
const ANSWER_BOUND: usize = 64 << 20;

impl Engine {
    /// The JSON at `path`. `what` names the operation in errors.
    pub(super) async fn get(&self, what: &'static str, path: &str) -> Result<Value, EngineError> {
        self.call(what, Method::GET, path, None).await
    }

    pub(super) async fn post(
        &self,
        what: &'static str,
        path: &str,
        body: &Value,
    ) -> Result<Value, EngineError> {
        self.call(what, Method::POST, path, Some(body)).await
    }

    async fn call(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, EngineError> {
        let broken = |why: Reason| EngineError::Broken(what, why);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "docker")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| broken("a name that no path can hold".into()))?;
        let answer = tokio::time::timeout(Duration::from_secs(CALL_SECONDS), self.exchange(request));
        let answer = answer.await.map_err(|_| EngineError::silent(what))?;
        let (status, bytes) = answer.map_err(|words| {
            tracing::debug!(what, words, "a call to the engine broke");
            broken(super::advice::of_broken_answer(&words))
        })?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if (200..300).contains(&status) {
            return Ok(value);
        }
        let why =
            value["message"].as_str().or_else(|| value["cause"].as_str()).unwrap_or_default().to_owned();
        tracing::debug!(what, status, why, "the engine refuses");
        Err(EngineError::Refused { what, status, why })
    }

    /// Sends one request on a connection of its own.
    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(u16, Bytes), String> {
        let stream = self.upstream.connect().await.map_err(|error| error.to_string())?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        // The sender is dropped with the answer, and that ends the connection.
        let answer = async move {
            let reply = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = reply.status().as_u16();
            let body = Limited::new(reply.into_body(), ANSWER_BOUND).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        let (answer, _) = tokio::join!(answer, connection);
        answer
    }
}

/// Escapes a name as one segment of a path.
pub(super) fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    name.bytes().fold(String::new(), |path, byte| match plain(byte) {
        true => path + char::from(byte).encode_utf8(&mut [0]),
        false => path + &format!("%{byte:02X}"),
    })
}

/// Adds `?filters=` with the key and the value, in the engine's format.
pub(super) fn filtered(path: &str, key: &str, value: &str) -> String {
    let filters = serde_json::json!({ key: [value] }).to_string();
    let query =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("filters", &filters).finish();
    format!("{path}{}{query}", if path.contains('?') { '&' } else { '?' })
}
