//! Against the real engine: every test here starts sessions of the built program and uses them as a person
//! or an attacker would.

mod basics;
mod leaving;
mod matrix;
mod outputs;
mod streams;
mod golden_relay;
mod mounts;
mod floods;
mod proxy;
