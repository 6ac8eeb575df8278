//! What is measured: one shape of traffic each.

use super::program::load::Upload;

#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub work: Work,
}

#[derive(Clone, Copy, Debug)]
pub enum Work {
    Http(Shape),
    /// Keep-alive connections that do nothing.
    Idle(usize),
    /// Driven by h2load.
    Tls(Tls),
    /// A connection a request.
    Handshakes {
        resumed: bool,
    },
}

/// HTTP/1.1 without TLS.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub connections: usize,
    pub path: &'static str,
    /// Bytes of body that a response has.
    pub expected: u64,
    pub upload: Option<Upload>,
    pub pace: Pace,
    /// A new connection for each request.
    pub close: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// The next request follows the response to the last.
    Closed,
    /// Requests a second, at fixed times.
    Open(f64),
    /// The same, as a share of what `HAProxy` reaches with 32 connections.
    OfPeak(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    Http1,
    /// Streams at a time on each connection.
    Http2(usize),
    /// POST with trailers, HTTP/2 to the upstream as well; streams at a time on each connection.
    Grpc(usize),
}

/// What a subject has to listen for, and how it speaks to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    Plain,
    Tls,
    /// TLS to clients, HTTP/2 without TLS to the upstream.
    Grpc,
}

impl Work {
    pub fn front(self) -> Front {
        match self {
            Self::Http(_) | Self::Idle(_) => Front::Plain,
            Self::Tls(Tls::Grpc(_)) => Front::Grpc,
            Self::Tls(_) | Self::Handshakes { .. } => Front::Tls,
        }
    }
}

/// What `--scenarios quick` stands for.
pub const QUICK: &[&str] = &["c1", "c32", "c256"];

const fn shape(connections: usize, path: &'static str, expected: u64) -> Shape {
    Shape { connections, path, expected, upload: None, pace: Pace::Closed, close: false }
}

const fn down(name: &'static str, about: &'static str, path: &'static str, expected: u64) -> Scenario {
    Scenario { name, about, work: Work::Http(shape(32, path, expected)) }
}

const fn connections(name: &'static str, about: &'static str, connections: usize) -> Scenario {
    Scenario { name, about, work: Work::Http(shape(connections, "/b/1024", 1_024)) }
}

const fn up(
    name: &'static str,
    about: &'static str,
    path: &'static str,
    bytes: usize,
    chunked: bool,
) -> Scenario {
    let upload = Some(Upload { bytes, chunked });
    Scenario { name, about, work: Work::Http(Shape { upload, ..shape(32, path, 2) }) }
}

const fn open(name: &'static str, about: &'static str, pace: Pace) -> Scenario {
    Scenario { name, about, work: Work::Http(Shape { pace, ..shape(64, "/b/1024", 1_024) }) }
}

const fn tls(name: &'static str, about: &'static str, tls: Tls) -> Scenario {
    Scenario { name, about, work: Work::Tls(tls) }
}

pub const ALL: &[Scenario] = &[
    connections("c1", "1 connection, 1 KB", 1),
    connections("c32", "32 connections, 1 KB", 32),
    connections("c256", "256 connections, 1 KB", 256),
    connections("c4096", "4,096 connections, 1 KB", 4_096),
    down("body-0", "32 connections, empty responses", "/b/0", 0),
    down("body-16k", "32 connections, 16 KB down", "/b/16384", 16_384),
    down("body-1m", "32 connections, 1 MB down", "/b/1048576", 1_048_576),
    down("chunked-16k", "32 connections, 16 KB down in chunks", "/c/16384", 16_384),
    down("chunked-1m", "32 connections, 1 MB down in chunks", "/c/1048576", 1_048_576),
    up("up-16k", "32 connections, 16 KB up", "/u/16384", 16_384, false),
    up("up-1m", "32 connections, 1 MB up", "/u/1048576", 1_048_576, false),
    up("up-chunked-16k", "32 connections, 16 KB up in chunks", "/u/16384", 16_384, true),
    up("up-chunked-1m", "32 connections, 1 MB up in chunks", "/u/1048576", 1_048_576, true),
    open("open-5000", "open loop, 5,000 requests/s, 1 KB", Pace::Open(5_000.0)),
    open("open-70", "open loop at 70 % of HAProxy's peak, 1 KB", Pace::OfPeak(0.7)),
    Scenario {
        name: "new-connections",
        about: "32 at a time, a connection a request, 1 KB",
        work: Work::Http(Shape { close: true, ..shape(32, "/b/1024", 1_024) }),
    },
    Scenario { name: "idle", about: "10,000 idle connections", work: Work::Idle(10_000) },
    tls("tls-h1", "HTTP/1.1 over TLS, 32 connections, 1 KB", Tls::Http1),
    tls("tls-h2-1", "HTTP/2 over TLS, 32 connections with 1 stream, 1 KB", Tls::Http2(1)),
    tls("tls-h2-10", "HTTP/2 over TLS, 32 connections with 10 streams, 1 KB", Tls::Http2(10)),
    tls("grpc", "unary gRPC over TLS, 32 connections with 10 streams, HTTP/2 upstream", Tls::Grpc(10)),
    Scenario {
        name: "handshake-full",
        about: "full TLS 1.3 handshakes, P-256, one request each",
        work: Work::Handshakes { resumed: false },
    },
    Scenario {
        name: "handshake-resumed",
        about: "resumed TLS 1.3 handshakes, one request each",
        work: Work::Handshakes { resumed: true },
    },
];

/// The scenarios that words stand for, in the order of [`ALL`]: names, `quick`, `all`, or the start of
/// names followed by `*`.
pub fn select(words: &[String]) -> Result<Vec<Scenario>, String> {
    let matches = |word: &str, scenario: &Scenario| match word {
        "all" => true,
        "quick" => QUICK.contains(&scenario.name),
        word => match word.strip_suffix('*') {
            Some(start) => scenario.name.starts_with(start),
            None => scenario.name == word,
        },
    };
    if let Some(unknown) = words.iter().find(|word| !ALL.iter().any(|s| matches(word, s))) {
        return Err(format!("there is no scenario `{unknown}`; --list shows all"));
    }
    Ok(ALL.iter().filter(|s| words.iter().any(|word| matches(word, s))).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Result<Vec<&'static str>, String> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        Ok(select(&words)?.iter().map(|s| s.name).collect())
    }

    #[test]
    fn words_stand_for_scenarios() {
        assert_eq!(names(&["quick"]), Ok(vec!["c1", "c32", "c256"]));
        assert_eq!(names(&["up-1m", "c1"]), Ok(vec!["c1", "up-1m"]));
        assert_eq!(names(&["tls-h2*"]), Ok(vec!["tls-h2-1", "tls-h2-10"]));
        assert_eq!(names(&["all"]).map(|all| all.len()), Ok(ALL.len()));
        assert!(names(&["c33"]).is_err());
    }
}
