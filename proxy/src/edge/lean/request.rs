//! From the bytes of a head to a request that has been let in, with what will be sent to its endpoint.

use super::{
    super::{
        gateway::{Gateway, LogEntry},
        h1::{
            self, HeadError,
            chunked::Chunked,
            request::{RequestBody, RequestEdits, RequestHead, parse_request},
        },
        policy::{self, Head, Journey, Refusal, Refused},
    },
    client::Client,
    pump::{Framing, Pump},
    to_http2,
};
use http::HeaderName;

use crate::{load::now_micros, route::Fields, worker::buffer::Output};

/// What the response depends on.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) is_head: bool,
    pub(super) http10: bool,
    /// Whether the client wants to go on with its connection.
    pub(super) keep_alive: bool,
    pub(super) is_idempotent: bool,
    pub(super) upgrade: bool,
    /// Whether the client waits for an interim response before it sends the body.
    pub(super) awaits_continue: bool,
    /// Whether an interim response went on.
    pub(super) interim: bool,
    pub(super) since: u64,
    pub(super) log: Option<Box<LogEntry>>,
}

/// A request whose head was read.
pub(super) struct Request {
    pub(super) asked: Asked,
    pub(super) journey: Result<Journey, Refused>,
    /// Its head and body as an endpoint of HTTP/1 will see them.
    pub(super) up: Pump,
    /// Its head for an endpoint of HTTP/2. Its body is untouched then.
    pub(super) http2: Option<Box<to_http2::Head>>,
}

/// Reads a head from what came; `None` when more of it has to come.
pub(super) fn read(client: &mut Client, gateway: &Gateway) -> Result<Option<Request>, HeadError> {
    let mut slots = h1::slots();
    let Some(head) = parse_request(client.incoming.bytes(), &mut slots)? else { return Ok(None) };
    let since = now_micros();
    let asked = Head { host: head.host(), path: head.path(), fields: &head };
    let journey = gateway.admit(&asked, since);
    let upgrades = head.upgrade().is_some();
    let asked = Asked {
        is_head: head.is_head(),
        http10: head.is_http10(),
        keep_alive: head.keep_alive(),
        is_idempotent: policy::is_idempotent(head.method()),
        upgrade: upgrades,
        awaits_continue: head.expects_continue(),
        interim: false,
        since,
        log: gateway.log_entry(client.peer, head.method(), head.host(), head.path()),
    };
    let mut output = Output::new();
    let mut http2 = None;
    if let Ok(journey) = &journey {
        let edits = RequestEdits {
            client: client.address.as_str(),
            proto: if client.stream.is_tls() { "https" } else { "http" },
            upgrade: upgrades,
            ..RequestEdits::default()
        };
        if journey.cluster().config.http2 {
            http2 = Some(to_http2::Head::new(&head, &edits)?);
        } else {
            head.write_upstream(output.bytes(), &edits);
        }
    }
    let framing = if http2.is_some() { Framing::Done } else { framing(&head) };
    let len = head.len();
    client.incoming.consume(len);
    let mut up = Pump::new(framing, output);
    let approved = up.approve(&mut client.incoming);
    let journey = match (journey, approved) {
        // Let in, and counted as such.
        (Ok(journey), Err(_)) => {
            Err(Refused { refusal: Refusal::BadRequest, journey: Some(Box::new(journey)) })
        }
        (journey, _) => journey,
    };
    client.used = true;
    Ok(Some(Request { asked, journey, up, http2 }))
}

impl Fields for RequestHead<'_, '_> {
    fn values<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.values(name.as_str())
    }
}

fn framing(head: &RequestHead<'_, '_>) -> Framing {
    match head.body() {
        RequestBody::None => Framing::Done,
        RequestBody::Length(length) => Framing::Length(length),
        RequestBody::Chunked => Framing::Chunks(Chunked::default()),
    }
}
