//! Against the real engine: every test here starts sessions of the built program and uses them as a person
//! or an attacker would.

mod alone;
mod attacks;
mod baselines;
mod basics;
mod cells;
mod clients;
mod conforming;
mod eth0;
mod exit_codes;
mod floods;
mod golden_relay;
mod guard;
mod interfaces;
mod interrupts;
mod kfp;
mod leaks;
mod leaving;
mod matrix;
mod mounts;
mod names;
mod node_clients;
mod order;
mod outputs;
mod proxy;
mod reload;
mod runs;
mod seeing;
mod sessions;
mod smuggling;
mod sources;
mod stand_ins;
mod starts;
mod streams;
mod stress;
mod terminal;
