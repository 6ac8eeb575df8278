//! Whether etcd answers, for those who ask and those who would write.

use std::time::Instant;

use config::etcd::EtcdUrl;
use tokio::sync::watch;

/// Whether etcd answers.
pub(crate) struct Health {
    url: String,
    state: watch::Sender<State>,
}

#[derive(Clone, Debug)]
enum State {
    Up,
    /// Since when, and what the last attempt met.
    Down(Instant, String),
}

impl Health {
    /// It answers, until it is known that it does not.
    pub(super) fn new(url: &EtcdUrl) -> Self {
        Self { url: url.to_string(), state: watch::Sender::new(State::Up) }
    }

    /// It answers; says whether it did not before.
    pub(super) fn up(&self) -> bool {
        matches!(self.state.send_replace(State::Up), State::Down(..))
    }

    /// It has not answered since `since`; says whether it did before.
    pub(super) fn down(&self, since: Instant, why: String) -> bool {
        let mut was_up = false;
        self.state.send_modify(|state| {
            was_up = matches!(state, State::Up);
            *state = match state {
                State::Up => State::Down(since, why),
                State::Down(since, _) => State::Down(*since, why),
            };
        });
        was_up
    }

    /// Why nothing can be written now, with the remedy.
    pub(crate) fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Up => None,
            State::Down(since, why) => Some(format!(
                "the store {} has not answered for {} s ({why}); proxies are served what is known and \
                 nothing was changed; see that a majority of etcd's members run, then try again",
                self.url,
                since.elapsed().as_secs(),
            )),
        }
    }

    /// What to say of a write whose fate is not known.
    pub(crate) fn unanswered(&self, why: &str) -> String {
        format!(
            "the store {} did not answer ({why}): all of the change was made or nothing of it, as a read \
             will show when it answers; see that a majority of etcd's members run, then try again",
            self.url,
        )
    }

    /// What to say of a write that etcd will not take.
    pub(crate) fn refused(&self, why: &str) -> String {
        let remedy = if why.contains("too many operations") {
            "; change fewer objects at once, or start etcd with a larger --max-txn-ops"
        } else if why.contains("too large") {
            "; change fewer objects at once, or start etcd with a larger --max-request-bytes"
        } else if why.contains("space exceeded") {
            "; compact and defragment it, then disarm its alarm (etcdctl alarm disarm)"
        } else if why.contains("permission") || why.contains("user name") || why.contains("authentication") {
            "; give --store a user that may read and write below its prefix"
        } else {
            "; nothing was changed"
        };
        format!("the store {}: {why}{remedy}", self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_lasts_from_the_first_silence_to_the_first_answer() {
        let health = Health::new(&"etcd://u:secret@a:1/x".parse().unwrap());
        assert_eq!(health.trouble(), None);
        let since = Instant::now().checked_sub(std::time::Duration::from_secs(7)).unwrap();
        assert!(health.down(since, "connection refused".to_owned()));
        assert!(!health.down(Instant::now(), "timed out".to_owned()));
        let trouble = health.trouble().unwrap();
        let start = "the store etcd://a:1/x has not answered for 7 s (timed out); proxies are served what is";
        assert!(trouble.starts_with(start), "{trouble}");
        assert!(health.up() && !health.up());
        assert_eq!(health.trouble(), None);
    }
}
