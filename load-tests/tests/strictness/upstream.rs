//! An endpoint that writes down every byte it gets, and answers each request it understands.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::message::{self, Fault};

/// Closing tells the proxy that no request may follow, so that each case has connections of its own.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n";

/// The bytes of a connection.
type Received = Arc<Mutex<Vec<u8>>>;

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// In the order they were accepted.
    connections: Arc<Mutex<Vec<Received>>>,
    open: watch::Receiver<usize>,
    _accepting: JoinSet<()>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (count, open) = watch::channel(0);
        let mut accepting = JoinSet::new();
        let accepted = Arc::clone(&connections);
        accepting.spawn(async move {
            let mut tasks = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let bytes = Received::default();
                accepted.lock().unwrap().push(Arc::clone(&bytes));
                count.send_modify(|open| *open += 1);
                let count = count.clone();
                tasks.spawn(async move {
                    // An error is a connection that the proxy cut; what came before it counts.
                    let _ = record(stream, &bytes).await;
                    count.send_modify(|open| *open -= 1);
                });
            }
        });
        Self { address, connections, open, _accepting: accepting }
    }

    /// What came of the case with this number, a connection each, once the proxy has closed all of them;
    /// those that it keeps open for longer than `patience` are taken as they are.
    pub(crate) async fn take(&mut self, number: usize, patience: Duration) -> Vec<Vec<u8>> {
        let _ = tokio::time::timeout(patience, self.open.wait_for(|open| *open == 0)).await;
        let taken = std::mem::take(&mut *self.connections.lock().unwrap());
        taken.iter().filter_map(|bytes| unmarked(&bytes.lock().unwrap(), number)).collect()
    }
}

/// The host of the cases, and in its place one for each, of the same length so that no body changes its.
const HOST: &str = "a.example";

fn mark(number: usize) -> String {
    format!("c{number:03}.test")
}

/// The bytes of a case, with a host that tells which case they are of.
pub(crate) fn marked(bytes: &[u8], number: usize) -> Vec<u8> {
    assert_eq!(mark(number).len(), HOST.len(), "more cases than marks");
    replace(bytes, HOST, &mark(number))
}

/// What came, as if the host had never been another; nothing if it is of another case, whose refusal
/// was known before the proxy had connected.
fn unmarked(bytes: &[u8], number: usize) -> Option<Vec<u8>> {
    let own = replace(bytes, &mark(number), HOST);
    let others = own
        .windows(HOST.len())
        .any(|w| w[0] == b'c' && w.ends_with(b".test") && w[1..4].iter().all(u8::is_ascii_digit));
    (!own.is_empty() && !others).then_some(own)
}

fn replace(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let (mut replaced, mut at) = (bytes.to_vec(), 0);
    while let Some(window) = replaced.get_mut(at..at + from.len()) {
        if window == from.as_bytes() {
            window.copy_from_slice(to.as_bytes());
        }
        at += 1;
    }
    replaced
}

async fn record(mut stream: TcpStream, bytes: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    let (mut buffer, mut answered) = (vec![0; 64 << 10], false);
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        let understood = {
            let mut bytes = bytes.lock().unwrap();
            bytes.extend_from_slice(&buffer[..n]);
            message::parse(&bytes).map(|_| ())
        };
        // What is ambiguous is answered too: no proxy has to wait, and the bytes tell.
        if !answered && understood != Err(Fault::Incomplete) {
            answered = true;
            stream.write_all(ANSWER).await?;
            stream.shutdown().await?;
        }
    }
}
