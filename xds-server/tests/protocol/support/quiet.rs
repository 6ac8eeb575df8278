//! That nothing comes, without waiting for it: something else is changed that has to come later in
//! order, and it has to be what comes next.

use super::{CDS, Client, EDS, LDS, RDS, Received, World};

const SENTINEL: &str = "sentinel/v1";

impl Client {
    /// Nothing is due: neither for what this client has sent, nor for what was changed before.
    ///
    /// Responses it has not answered yet must not be of EDS.
    pub async fn silence(&mut self, world: &World) {
        if self.mode.aggregated {
            self.silence_of_one(world).await;
        } else {
            self.silence_of_each(world).await;
        }
    }

    /// The same after a refusal. On a stream of whole states there is no silence that leaves it standing:
    /// the next state has what was refused again, and whoever accepts it accepts that.
    pub async fn silence_after_refusal(&mut self, world: &World) {
        if self.mode.aggregated || self.mode.is_incremental() {
            return self.silence(world).await;
        }
        let deadline = tokio::time::Instant::now() + super::SOON;
        let seen = |proxies: &serde_json::Value| {
            proxies["proxies"].as_array().unwrap().iter().any(|proxy| proxy["nacks"] != 0)
        };
        while !seen(&world.get("/v1/proxies").await) {
            assert!(tokio::time::Instant::now() < deadline, "the refusal is not seen");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// One stream has one order: an endpoint of the sentinel.
    async fn silence_of_one(&mut self, world: &World) {
        if !self.asked.get(EDS).is_some_and(|asked| asked.names.contains(SENTINEL)) {
            let first = self.follow(EDS, &[SENTINEL]).await;
            assert_eq!(first.shape(), "+sentinel/v1");
        }
        // What is sent at once for a change goes out in an order between types, in which EDS is not
        // the last: a second round comes after all of the first.
        for _ in 0..2 {
            let id = format!("quiet-{}", world.next());
            world.register(SENTINEL, &id).await;
            let received = self.accept(EDS).await;
            assert_eq!(received.shape(), "+sentinel/v1", "where nothing was due");
            let value = &received.resource(SENTINEL).value;
            assert!(value.windows(id.len()).any(|part| part == id.as_bytes()), "not the newest: {id}");
        }
    }

    /// Every stream has its own order: on each, a resource of its type that is new.
    async fn silence_of_each(&mut self, world: &World) {
        let name = format!("quiet-{}", world.next());
        let kinds: Vec<&'static str> = self.asked.keys().copied().collect();
        for kind in &kinds {
            if !self.asked[kind].is_wildcard() {
                self.subscribe(kind, &[&of(kind, &name)]).await;
                if self.mode.is_incremental() {
                    // "Knowing When a Requested Resource Does Not Exist": told at once.
                    let absent = self.accept(kind).await;
                    assert_eq!(absent.shape(), format!("-{}", of(kind, &name)), "where nothing was due");
                }
            }
        }
        let port = 30_000 + world.next();
        let service = format!("kind: Service\nname: {name}\nversions: {{v1: {{}}}}\n");
        let gateway = format!("kind: Gateway\nname: {name}\nlisten: 127.0.0.1:{port}\n");
        world.apply(&format!("{service}---\n{gateway}")).await;
        for kind in kinds {
            let name = of(kind, &name);
            let received = self.arrival(kind, &format!("+{name}")).await;
            self.ack(&received).await;
            if !self.asked[kind].is_wildcard() {
                // Or it would be in every later state of the world.
                self.unsubscribe(kind, &[&name]).await;
            }
        }
    }

    /// The response with `expected`, before which nothing else comes.
    async fn arrival(&mut self, kind: &'static str, expected: &str) -> Received {
        let whole = !self.mode.is_incremental() && (kind == CDS || kind == LDS);
        for _ in 0..4 {
            let received = self.expect(kind).await;
            let shape = received.shape();
            let mut parts = shape.split(' ');
            if parts.clone().any(|part| part == expected) {
                assert!(whole || shape == expected, "{kind}: {shape}, where nothing but {expected} was due");
                return received;
            }
            // A whole state may be told once more when a name is added that is not there. What another
            // client's silence made comes to everybody who asks for all.
            let others = parts.all(|part| part.starts_with("+quiet-"));
            assert!(whole || others, "{kind}: {shape}, where nothing but {expected} was due");
            self.ack(&received).await;
        }
        panic!("{kind}: no {expected}");
    }
}

fn of(kind: &str, name: &str) -> String {
    if kind == LDS || kind == RDS { name.to_owned() } else { format!("{name}/v1") }
}
