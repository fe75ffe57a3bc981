//! The rules of the module, put to the proof: `table` goes through every state and request, `order` through the order
//! rules by name, `random` through thousands of courses of events that nobody thought of.
#![allow(clippy::unwrap_used)]

mod order;
mod random;
mod sandbox;
mod table;
mod words;
