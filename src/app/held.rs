//! The unexpired tokens of one container, as `status` and `cut-off` tell them: by cloud, without their values.

use serde::{Deserialize, Serialize};

use crate::cloud::Cloud;
use crate::console::rfc3339;
use crate::token::{HandedOut, Now, TokenKind};

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct HeldToken {
    pub(super) mint: String,
    pub(super) kind: String,
    pub(super) expires: String,
    /// Seconds.
    pub(super) left: u64,
}

pub(super) fn tokens(alive: &[HandedOut], now: Now) -> Vec<HeldToken> {
    let token = |token: &HandedOut| HeldToken {
        mint: token.id.to_string(),
        kind: token.kind.word().into(),
        expires: rfc3339(token.expires.wall()),
        left: token.expires.remaining(now).as_secs(),
    };
    alive.iter().map(token).collect()
}

/// The tokens of a container and their last expiry; by cloud, if any of them is of AWS or Azure.
pub(super) fn held(tokens: &[HeldToken]) -> String {
    let of =
        |cloud: Cloud| -> Vec<&HeldToken> { tokens.iter().filter(|token| token.cloud() == cloud).collect() };
    let named = tokens.iter().any(|token| token.cloud() != Cloud::Google);
    let said = Cloud::ALL.into_iter().filter_map(|cloud| {
        let all = of(cloud);
        let last = all.iter().max_by_key(|token| token.left)?;
        let whose = if named { format!("{cloud}: ") } else { String::new() };
        Some(format!("{whose}{}, the last until {} (in {} s)", all.len(), last.expires, last.left))
    });
    let said: Vec<String> = said.collect();
    if said.is_empty() { "none".into() } else { said.join("; ") }
}

impl HeldToken {
    /// Kinds of later versions count as Google's.
    fn cloud(&self) -> Cloud {
        let kind = TokenKind::ALL.into_iter().find(|kind| kind.word() == self.kind);
        kind.map_or(Cloud::Google, TokenKind::cloud)
    }
}
