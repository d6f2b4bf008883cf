//! The service of a cloud that a path belongs to.

use super::target::PathTarget;
use crate::cloud::Cloud;

/// A service from which clients request credentials. Each has its own error format.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Service {
    Google,
    /// `/v2/…`: the agent of Amazon's container service.
    AwsContainer,
    /// `/latest/…`: the instance metadata service, version 2.
    AwsImds,
    /// `/msi/…`: Azure's App Service.
    AppService,
    /// `/metadata/…`: Azure's instance metadata service.
    AzureImds,
}

impl Service {
    /// The service of a request target, which may be in absolute form.
    pub fn of(target: &str) -> Self {
        Self::at(PathTarget::parse(target).as_ref())
    }

    pub(super) fn at(target: Option<&PathTarget<'_>>) -> Self {
        let Some(target) = target else { return Self::Google };
        let is_at = |segment: &str| Cloud::first_segment(target.path) == segment;
        match Cloud::of_path(target.path) {
            Cloud::Google => Self::Google,
            Cloud::Aws if is_at("v2") => Self::AwsContainer,
            Cloud::Aws => Self::AwsImds,
            Cloud::Azure if is_at("msi") => Self::AppService,
            Cloud::Azure => Self::AzureImds,
        }
    }
}
