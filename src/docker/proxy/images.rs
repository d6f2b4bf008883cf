//! Images created or changed without a build: loaded, imported. Containers are judged by their image's
//! environment; an image's files are scanned here if they pass in a readable form, otherwise by `scan`.

use std::sync::Arc;

use http_body_util::Either;
use hyper::body::Incoming;
use hyper::http::request::Parts;

use super::engine_client::{Refusal, Reply};
use super::path::Target;
use super::state::Proxy;
use super::texts::{Key, instruction};
use super::upload::Look;
use crate::guard::stream::Stream;
use crate::guard::{Mode, Rules};

impl Proxy {
    /// Reports what passes without a scan, if the guard is on.
    pub(super) fn unlooked(&self, what: &str) {
        if self.settings.guard.rules.mode != Mode::Off {
            let advice = "look into the image with kfp-creds scan IMAGE";
            self.settings.console.notice(format!("not verified: {what}; {advice}"));
        }
    }

    /// `docker load`: an archive of archives.
    pub(super) async fn image_load(
        self: &Arc<Self>,
        parts: Parts,
        target: &Target,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        match self.strictness(true) {
            Mode::Off => self.pass(parts, target, Either::Left(body)).await,
            mode => {
                let look = Look { mode, who: "load".into(), stream: Stream::image() };
                self.upload(parts, target, body, look).await
            }
        }
    }

    /// `docker import`, which carries the files of an image, and `docker pull`.
    pub(super) async fn image_create(
        self: &Arc<Self>,
        parts: Parts,
        target: &Target,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        let mode = self.strictness(true);
        let pulled = target.query("fromImage").is_some_and(|image| !image.is_empty());
        if pulled || mode == Mode::Off {
            return self.pass(parts, target, Either::Left(body)).await;
        }
        self.decide(mode, "import", changes(target, &self.settings.guard.rules))?;
        match target.query("fromSrc") {
            Some("-") => {
                let look = Look { mode, who: "import".into(), stream: Stream::files() };
                self.upload(parts, target, body, look).await
            }
            _ => {
                self.unlooked("an image whose files the engine fetches itself");
                self.pass(parts, target, Either::Left(body)).await
            }
        }
    }
}

/// Dockerfile instructions in the query.
pub(super) fn changes(target: &Target, rules: &Rules) -> Vec<Key> {
    let lines = target.queries("changes").flat_map(str::lines);
    lines.filter_map(|line| instruction(line, rules)).collect()
}
