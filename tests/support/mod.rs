//! Code that tests share. Fakes exist only at the wire, and check the requests.

pub(crate) mod aws;
pub(crate) mod browser;
pub(crate) mod canary;
pub(crate) mod clouds;
pub(crate) mod delayed_engine;
pub(crate) mod failures;
pub(crate) mod fake_aws;
pub(crate) mod fake_engine;
pub(crate) mod fake_entra;
pub(crate) mod fake_google;
pub(crate) mod fake_storage;
pub(crate) mod far_engine;
pub(crate) mod fault_proxy;
pub(crate) mod federation;
pub(crate) mod golden;
pub(crate) mod issuer;
pub(crate) mod listening;
pub(crate) mod proxy_fixture;
pub(crate) mod raw;
pub(crate) mod release;
pub(crate) mod replay;
pub(crate) mod second_engine;
pub(crate) mod served;
pub(crate) mod server_thread;
pub(crate) mod session;
pub(crate) mod wire;
