//! One line of the table: bytes, and what may become of them.

use crate::{client::Answers, message, message::Fault};

/// What a request means, and so what has to arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meant {
    pub(crate) method: &'static str,
    pub(crate) target: &'static str,
    pub(crate) body: &'static str,
}

pub(crate) const fn meant(method: &'static str, target: &'static str, body: &'static str) -> Meant {
    Meant { method, target, body }
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Sections of RFC 9110 (semantics) and RFC 9112 (HTTP/1.1).
    pub(crate) rule: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// Statuses it may be refused with; empty when it must not be.
    refuse: &'static [u16],
    /// A fault of the body: the head may be on its way when it is found, and closing is an answer.
    late: bool,
    /// What may be forwarded; nothing when it must not be.
    pub(crate) forward: Option<Vec<Meant>>,
    /// It is not complete, so nobody has to answer.
    pub(crate) waits: bool,
    /// Headers that must not be forwarded.
    absent: Vec<&'static str>,
    /// Headers that must be, with this value.
    present: Vec<(&'static str, &'static str)>,
    /// Why it need not be refused where both peers refuse it.
    pub(crate) exception: Option<&'static str>,
}

pub(crate) fn case(name: &'static str, rule: &'static str, bytes: impl AsRef<[u8]>) -> Case {
    Case {
        name,
        rule,
        bytes: bytes.as_ref().to_vec(),
        refuse: &[],
        late: false,
        forward: None,
        waits: false,
        absent: Vec::new(),
        present: Vec::new(),
        exception: None,
    }
}

impl Case {
    pub(crate) fn refused(self, refuse: &'static [u16]) -> Self {
        Self { refuse, ..self }
    }

    /// Refused, though perhaps when the head has been forwarded.
    pub(crate) fn broken(self) -> Self {
        Self { refuse: &[400, 413, 431, 501], late: true, ..self }
    }

    /// Closing before everything was read is an answer too: the reset may overtake the response.
    pub(crate) fn late(self) -> Self {
        Self { late: true, ..self }
    }

    pub(crate) fn forwarded(self, messages: &[Meant]) -> Self {
        Self { forward: Some(messages.to_vec()), ..self }
    }

    pub(crate) fn waits(self) -> Self {
        Self { waits: true, late: true, refuse: &[400, 408, 413], ..self }
    }

    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.absent.push(name);
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.present.push((name, value));
        self
    }

    /// Need not be refused where both peers refuse it, for this reason.
    pub(crate) fn unlike_peers(self, reason: &'static str) -> Self {
        Self { exception: Some(reason), ..self }
    }

    /// How many responses are due.
    pub(crate) fn responses(&self) -> usize {
        self.forward.as_ref().map_or(1, Vec::len).max(1)
    }

    /// What is right, in a few letters.
    pub(crate) fn expected(&self) -> String {
        let refused = self.refuse.iter().map(u16::to_string).collect::<Vec<_>>().join("/");
        let forwarded = self.forward.as_ref().map(|f| format!("forward {}", f.len()));
        let waits = self.waits.then(|| "wait".to_owned());
        let all = [forwarded, waits, (!refused.is_empty()).then_some(refused)];
        all.into_iter().flatten().collect::<Vec<_>>().join(" or ")
    }

    /// Why what became of it is wrong.
    pub(crate) fn judge(&self, outcome: &Outcome) -> Result<(), String> {
        let (messages, faults) = outcome.understood();
        if let Some(Fault::Ambiguous(why)) = faults.iter().find(|f| **f != Fault::Incomplete) {
            return Err(format!("forwarded what is ambiguous: {why}: {}", outcome.bytes()));
        }
        if !faults.is_empty() && !self.late {
            return Err(format!("forwarded a part: {}", outcome.bytes()));
        }
        for message in &messages {
            let all = || message.headers.iter().chain(&message.trailers);
            for name in &self.absent {
                if all().any(|(n, _)| n == name) {
                    return Err(format!("forwarded {name}: {}", outcome.bytes()));
                }
            }
            for (name, value) in &self.present {
                if message.header(name) != Some(value) {
                    return Err(format!("{name} is not {value}: {}", outcome.bytes()));
                }
            }
        }
        let good = outcome.answers.statuses.iter().filter(|s| **s == 200).count();
        if let Some(meant) = &self.forward {
            let same = messages.len() == meant.len()
                && messages.iter().zip(meant).all(|(message, meant)| {
                    (message.method.as_str(), message.path()) == (meant.method, meant.target)
                        && message.body == meant.body.as_bytes()
                });
            if same && faults.is_empty() && good == meant.len() {
                return Ok(());
            }
        }
        if !messages.is_empty() {
            return Err(format!("forwarded {}: {}", messages.len(), outcome.bytes()));
        }
        match (&outcome.answers.statuses[..], outcome.answers.closed) {
            ([status], _) if self.refuse.contains(status) => Ok(()),
            ([], true) if self.late => Ok(()),
            ([], false) if self.waits => Ok(()),
            (statuses, closed) => Err(format!("answered {statuses:?}, closed: {closed}")),
        }
    }
}

/// What became of the bytes at one proxy.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) answers: Answers,
    /// What the upstream got, a connection each.
    pub(crate) received: Vec<Vec<u8>>,
}

impl Outcome {
    /// The requests that arrived, and what else did.
    pub(crate) fn understood(&self) -> (Vec<message::Message>, Vec<Fault>) {
        let all = self.received.iter().map(|bytes| message::parse_all(bytes));
        let (messages, faults): (Vec<_>, Vec<_>) = all.unzip();
        (messages.concat(), faults.into_iter().flatten().collect())
    }

    /// Nothing arrived whole, and the client was told no.
    pub(crate) fn refused(&self) -> bool {
        let Answers { statuses, closed } = &self.answers;
        let told = statuses.iter().any(|s| *s >= 400) || (statuses.is_empty() && *closed);
        told && self.understood().0.is_empty()
    }

    /// In a few letters: `400`, `→1` (one request arrived), `→1!` (with something ambiguous), `…` (waits).
    pub(crate) fn short(&self) -> String {
        let (messages, faults) = self.understood();
        let mut said: Vec<String> =
            self.answers.statuses.iter().filter(|s| **s != 200).map(u16::to_string).collect();
        if !messages.is_empty() || !faults.is_empty() {
            let marks: String =
                faults.iter().map(|f| if *f == Fault::Incomplete { '~' } else { '!' }).collect();
            said.insert(0, format!("→{}{marks}", messages.len()));
        }
        if self.answers.statuses.is_empty() {
            said.push(if self.answers.closed { "closed".to_owned() } else { "…".to_owned() });
        }
        said.join(" ")
    }

    fn bytes(&self) -> String {
        let all: Vec<String> =
            self.received.iter().map(|b| b[..b.len().min(400)].escape_ascii().to_string()).collect();
        all.join(" | ")
    }
}
