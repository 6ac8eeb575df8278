//! Which server is next, after what pause, and whether that is worth a line in the log. Pure.

use std::{collections::HashMap, error::Error, time::Duration};

/// Pause before the next round of attempts: doubles from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A stream that lived this long shows a server that works, whether or not it had anything to say.
const STABLE: Duration = Duration::from_secs(10);

/// The servers in order of preference, and where we are.
pub(super) struct Servers {
    addresses: Vec<String>,
    at: usize,
    pause: Duration,
    /// What last went wrong with each, as it was logged.
    troubles: HashMap<String, String>,
}

/// What to do after a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// Wait this long before the next attempt; `None` is not at all.
    pub(super) pause: Option<Duration>,
    /// The cause was not logged yet.
    pub(super) news: bool,
}

impl Servers {
    /// Begins with the first.
    pub(super) fn new(addresses: Vec<String>) -> Self {
        Self { addresses, at: 0, pause: BACK_OFF.0, troubles: HashMap::new() }
    }

    /// The one to connect to.
    pub(super) fn current(&self) -> &str {
        self.addresses.get(self.at).map_or("", String::as_str)
    }

    /// The stream of the current server, or the attempt at one, ended because of `cause`.
    pub(super) fn ended(&mut self, cause: &str, lived: Duration) -> Ended {
        let stable = lived >= STABLE;
        let server = self.current().to_owned();
        let before = self.troubles.insert(server, cause.to_owned());
        let news = stable || before.as_deref() != Some(cause);
        if stable {
            // From the first on, so that a preferred server that is back is used.
            self.at = 0;
            self.pause = BACK_OFF.0;
        } else {
            self.skip();
        }
        Ended { pause: (stable || self.at == 0).then(|| self.next_pause()), news }
    }

    /// Turns to the next server.
    pub(super) fn skip(&mut self) {
        self.at = (self.at + 1) % self.addresses.len().max(1);
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(BACK_OFF.1);
        pause
    }
}

/// What is at the bottom of `error`: "connection refused" rather than "transport error".
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    fn two() -> Servers {
        Servers::new(vec!["one".into(), "two".into()])
    }

    #[test]
    fn after_a_short_stream_the_next_server_is_used_and_rounds_come_less_and_less_often() {
        let mut servers = two();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(servers.current(), "one");
            assert_eq!(servers.ended("closed", SHORT).pause, None, "the next one at once");
            assert_eq!(servers.current(), "two");
            pauses.extend(servers.ended("closed", SHORT).pause);
        }
        assert_eq!((pauses[0], pauses[1], pauses[8]), (BACK_OFF.0, BACK_OFF.0 * 2, BACK_OFF.1));
    }

    #[test]
    fn a_stable_stream_without_an_update_resets_the_pause_and_returns_to_the_first_server() {
        let mut servers = two();
        for _ in 0..9 {
            servers.ended("closed", SHORT);
        }
        assert_eq!(servers.current(), "two");
        assert_eq!(servers.ended("closed", STABLE).pause, Some(BACK_OFF.0));
        assert_eq!(servers.current(), "one");
    }

    #[test]
    fn a_cause_is_news_once_for_each_server_until_it_worked_again() {
        let mut servers = two();
        let mut news = |cause, lived| servers.ended(cause, lived).news;
        assert!(news("refused", SHORT) && news("refused", SHORT), "one of each server");
        assert!(!news("refused", SHORT) && !news("refused", SHORT));
        assert!(news("reset", SHORT), "another cause");
        assert!(!news("refused", SHORT));
        assert!(news("reset", STABLE), "it had worked meanwhile");
    }

    #[tokio::test]
    async fn the_root_cause_of_a_failed_connection_says_what_happened() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap(); // taken, and not listening
        let address = socket.local_addr().unwrap();
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let cause = root_cause(&endpoint.connect().await.unwrap_err());
        assert!(cause.to_lowercase().contains("connection refused"), "{cause}");
    }
}
