//! `[credentials]` of the config, in the words of the source.

use std::sync::Arc;

use crate::config::{self, Provided};
use crate::source::SourceError;
use crate::source::exec::Exec;
use crate::source::external::{Federation, TokenFrom};
use crate::source::google::{Endpoints, Google, Where};
use crate::source::upstream::Upstream;

pub(super) fn provider(
    provided: &Provided,
    place: &Where,
    endpoints: Endpoints,
    upstream: Arc<Upstream>,
) -> Result<Google, SourceError> {
    let exec = provided.exec.as_ref().map(|exec| Exec {
        program: exec.program.clone(),
        arguments: exec.arguments.clone(),
        pass: exec.pass.clone(),
        timeout: exec.timeout,
    });
    let federation = provided.federation.as_ref().map(|of| Federation {
        provider: of.provider.clone(),
        service_account: of.service_account.clone(),
        from: match &of.from {
            config::TokenFrom::Github => TokenFrom::Github,
            config::TokenFrom::Variable(name) => TokenFrom::Variable(name.clone()),
            config::TokenFrom::File(path) => TokenFrom::File(path.clone()),
            config::TokenFrom::Url(url) => TokenFrom::Url(url.clone()),
            config::TokenFrom::Command => TokenFrom::Command,
        },
        token_audience: of.token_audience.clone(),
        token_type: of.token_type.clone(),
        field: of.field.clone(),
        headers: of.headers.clone(),
    });
    Google::provided(place, endpoints, upstream, exec.as_ref(), federation.as_ref())
}
