//! The source of a session in which no identity has Google.

use crate::source::{AccessRequest, IdentityRequest, Pending, Principal, Source, SourceError};
use crate::token::{AccessToken, IdentityToken};

/// Refuses every request; has no credential and looks for none.
#[derive(Debug)]
pub struct Absent;

fn refused() -> SourceError {
    SourceError::refused("this session has no credential of Google: start a new one for an identity that has")
}

impl Source for Absent {
    fn principal(&self) -> Principal {
        Principal { kind: "none", ..Principal::default() }
    }

    fn access_token<'a>(&'a self, _: &'a AccessRequest) -> Pending<'a, Result<AccessToken, SourceError>> {
        Box::pin(async { Err(refused()) })
    }

    fn identity_token<'a>(
        &'a self,
        _: &'a IdentityRequest,
    ) -> Pending<'a, Result<IdentityToken, SourceError>> {
        Box::pin(async { Err(refused()) })
    }
}
