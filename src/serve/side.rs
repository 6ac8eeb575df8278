//! One side of Sluicegate, on a runtime and a thread of its own.

use std::{panic, thread};

use anyhow::{Context, anyhow};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Worker threads of a side. The control plane needs few: what it sends is encoded once.
const WORKERS: usize = 2;

/// A side that runs. `A` is where it listens.
pub(super) struct Side<A> {
    name: &'static str,
    started: oneshot::Receiver<A>,
    ended: oneshot::Receiver<anyhow::Result<()>>,
    stop: CancellationToken,
    is_over: bool,
}

/// The one word a side has to say: it listens, and where.
pub(super) struct Started<A>(oneshot::Sender<A>);

impl<A> Started<A> {
    pub(super) fn tell(self, at: A) {
        // Nobody listens when the process is already on its way out.
        let _ = self.0.send(at);
    }
}

impl<A: Send + 'static> Side<A> {
    /// Starts `work` with the means to say that it listens, and to learn when to stop.
    pub(super) fn start<W, F>(name: &'static str, work: W) -> Self
    where
        W: FnOnce(Started<A>, tokio_util::sync::WaitForCancellationFutureOwned) -> F + Send + 'static,
        F: Future<Output = anyhow::Result<()>>,
    {
        let (tell, started) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let stop = CancellationToken::new();
        let asked = stop.clone().cancelled_owned();
        let body = move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .thread_name(name)
                .enable_all()
                .build()
                .context("cannot start its threads")?;
            runtime.block_on(work(Started(tell), asked))
        };
        thread::spawn(move || {
            let result = panic::catch_unwind(panic::AssertUnwindSafe(body));
            let _ = end.send(result.unwrap_or_else(|_| Err(anyhow!("it panicked"))));
        });
        Self { name, started, ended, stop, is_over: false }
    }

    /// Where it listens, once it does.
    pub(super) async fn started(&mut self) -> anyhow::Result<A> {
        match (&mut self.started).await {
            Ok(at) => Ok(at),
            Err(_) => {
                self.ended().await?;
                Err(anyhow!("{} ended before it listened", self.name))
            }
        }
    }
}

impl<A> Side<A> {
    /// How it ended, once it has.
    pub(super) async fn ended(&mut self) -> anyhow::Result<()> {
        let result = (&mut self.ended).await.unwrap_or_else(|_| Err(anyhow!("its thread is gone")));
        self.is_over = true;
        result
    }

    /// Stops it, and waits until it has finished what it had.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        if self.is_over { Ok(()) } else { self.ended().await }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_side_tells_where_it_is_and_stops_when_asked() {
        let mut side = Side::start("test", |started: Started<u16>, stop| async move {
            started.tell(7);
            stop.await;
            Ok(())
        });
        assert_eq!(side.started().await.unwrap(), 7);
        side.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_side_that_cannot_start_says_why() {
        let mut side =
            Side::start(
                "test",
                |_started: Started<u16>, _stop| async move { Err(anyhow!("the port is taken")) },
            );
        assert_eq!(side.started().await.unwrap_err().to_string(), "the port is taken");
    }
}
