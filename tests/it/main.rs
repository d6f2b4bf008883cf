#[path = "../support/fake_engine.rs"]
mod fake_engine;
mod proxy;
mod proxy_engine;
#[path = "../support/stand.rs"]
mod stand;
