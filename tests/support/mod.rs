//! What tests share. Fakes stand at the wire only, and check what they are sent.

pub(crate) mod golden;
pub(crate) mod session;
