//! Stands in for `inotify` where there is none: there are no news, and files are looked at instead.

use std::{collections::BTreeSet, convert::Infallible, io};

use crate::places::Place;

#[derive(Debug)]
pub(super) struct News(Infallible);

#[derive(Debug)]
pub(super) struct Watches(Infallible);

pub(super) fn start() -> io::Result<(News, Watches)> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Watches {
    pub(super) fn set(&mut self, _: BTreeSet<Place>) -> Result<(), String> {
        match self.0 {}
    }
}

impl News {
    #[allow(clippy::unused_async)] // as where there are news
    pub(super) async fn changed(&self, _: &Watches) -> io::Result<()> {
        match self.0 {}
    }
}
