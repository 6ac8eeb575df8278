//! Choosing: which version ([`split`]), and which of its endpoints ([`p2c`], out of a [`bag`]). Pure;
//! randomness is passed in.

pub(crate) mod bag;
pub(crate) mod p2c;
pub(crate) mod split;
