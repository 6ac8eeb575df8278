//! Whether a connection lives, judged by what moved on it since it was asked last.

use std::time::Duration;

/// After so long without a word a connection with streams is asked whether it is alive, and a ping has
/// so long to be answered.
pub(super) const PING: Duration = Duration::from_secs(10);
/// Pings in a row with nothing but their answers between them. Servers of gRPC take more for an attack
/// (gRPC proposal A8); TCP's own keep-alive has to do then.
const PINGS: u32 = 2;
/// Bytes of the answer to a ping (RFC 9113 §6.7).
const PONG: u64 = 17;
/// Rounds of [`PING`] after which an idle connection is closed: 30 s.
const IDLE: u32 = 3;
/// Rounds of [`PING`] in which the endpoint may take nothing of what waits for it: a minute. Its streams
/// may have ended long ago, and the connection could not even be closed.
const STUCK: u32 = 6;

/// What is remembered of a connection.
#[derive(Debug, Default)]
pub(super) struct Alive {
    /// Whether a ping was not answered yet.
    pub(super) asked: bool,
    /// Pings in a row with nothing but their answers between them.
    pings: u32,
    /// Rounds in a row without a stream.
    idle: u32,
    /// Rounds in a row without a byte taken of those that wait.
    stuck: u32,
    received: u64,
    sent: u64,
}

/// How a connection is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Now {
    /// Bytes, ever.
    pub(super) received: u64,
    /// Bytes, ever.
    pub(super) sent: u64,
    /// Whether more is to be sent than the endpoint takes.
    pub(super) sending: bool,
    pub(super) streams: usize,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    Ask,
    Idle,
    Dead,
}

impl Alive {
    /// After [`PING`].
    pub(super) fn after_a_while(&mut self, now: Now) -> Verdict {
        let came = now.received - std::mem::replace(&mut self.received, now.received);
        let went = now.sent - std::mem::replace(&mut self.sent, now.sent);
        if came > PONG {
            self.pings = 0;
        }
        self.idle = if now.streams == 0 && came <= PONG { self.idle + 1 } else { 0 };
        self.stuck = if now.sending && went == 0 { self.stuck + 1 } else { 0 };
        if (self.asked && came == 0) || self.stuck >= STUCK {
            return Verdict::Dead;
        }
        if self.idle >= IDLE {
            return Verdict::Idle;
        }
        if came > PONG || now.streams == 0 || self.asked || self.pings >= PINGS {
            return Verdict::Fine;
        }
        self.pings += 1;
        Verdict::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(received: u64, streams: usize) -> Now {
        Now { received, streams, ..Now::default() }
    }

    #[test]
    fn a_connection_that_answers_nothing_is_dead_and_one_without_streams_idle() {
        let mut alive = Alive::default();
        assert_eq!(alive.after_a_while(now(500, 1)), Verdict::Fine, "something came");
        assert_eq!(alive.after_a_while(now(500, 1)), Verdict::Ask);
        alive.asked = true;
        assert_eq!(alive.after_a_while(now(500, 1)), Verdict::Dead);

        let mut alive = Alive::default();
        assert_eq!(alive.after_a_while(now(0, 0)), Verdict::Fine);
        assert_eq!(alive.after_a_while(now(0, 0)), Verdict::Fine);
        assert_eq!(alive.after_a_while(now(0, 0)), Verdict::Idle);
    }

    #[test]
    fn a_silent_stream_is_not_pinged_for_ever() {
        let (mut alive, mut received, mut pings) = (Alive::default(), 0, 0);
        for _ in 0..100 {
            match alive.after_a_while(now(received, 1)) {
                Verdict::Ask => {
                    pings += 1;
                    received += PONG;
                }
                verdict => assert_eq!(verdict, Verdict::Fine),
            }
        }
        assert_eq!(pings, PINGS);
        assert_eq!(alive.after_a_while(now(received + 100, 1)), Verdict::Fine);
        assert_eq!(alive.after_a_while(now(received + 100, 1)), Verdict::Ask, "after data it is asked again");
    }

    #[test]
    fn an_endpoint_that_takes_nothing_of_what_waits_is_dead_after_a_minute() {
        for streams in [0, 1] {
            let mut alive = Alive::default();
            // It talks all the while, and takes a byte now and then at first.
            let mut at = Now { sending: true, streams, ..Now::default() };
            for round in 0..20 {
                at.received += 1_000;
                at.sent += u64::from(round % 5 == 0);
                assert_eq!(alive.after_a_while(at), Verdict::Fine, "{round}");
            }
            // The last byte went five rounds ago.
            at.received += 1_000;
            assert_eq!(alive.after_a_while(at), Verdict::Fine);
            at.received += 1_000;
            assert_eq!(alive.after_a_while(at), Verdict::Dead);
        }
        // One that has nothing to take is not.
        let mut alive = Alive::default();
        for _ in 0..20 {
            assert_ne!(alive.after_a_while(now(0, 0)), Verdict::Dead);
        }
    }
}
