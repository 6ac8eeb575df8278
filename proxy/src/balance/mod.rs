//! Choosing: which version ([`split`]), and which of its endpoints ([`p2c`]). Pure; randomness is
//! passed in.

pub(crate) mod p2c;
pub(crate) mod split;
