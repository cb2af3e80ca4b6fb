//! The floor: a relay without any protocol, on the engine that pgmend uses (tokio, one thread, one task for each client and
//! its own server connection). What pgmend costs above it is the price of pooling.
//!
//! With `epoll` the same relay goes without a runtime: what tokio's share of the floor is.
//!
//! Use: `floor LISTEN_PORT SERVER_PORT [epoll]`, on loopback, until it is ended. `tests/perf` does so. Without arguments (as
//! `cargo bench` starts it) it says so and ends.

mod epoll;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

fn main() -> ExitCode {
    let ports: Vec<u16> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [listen, server] = ports[..] else {
        println!("use: floor LISTEN_PORT SERVER_PORT [epoll] (started by tests/perf)");
        return ExitCode::SUCCESS;
    };
    if std::env::args().any(|word| word == "epoll") {
        return match epoll::relay(listen, server) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("floor: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async move {
        let listener = TcpListener::bind(("127.0.0.1", listen)).await.expect("the port is free");
        while let Ok((client, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                // A pair that breaks is of no interest: pgbench says so.
                let _ = pair(client, server).await;
            });
        }
    }));
    ExitCode::SUCCESS
}

async fn pair(mut client: TcpStream, server: u16) -> io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut up, mut down) = (Lane::new(), Lane::new());
    poll_fn(|cx| {
        let up = up.turn(&mut client, &mut server, cx)?;
        let down = down.turn(&mut server, &mut client, cx)?;
        if up.is_ready() || down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

struct Lane {
    buffer: Vec<u8>,
    from: usize,
    to: usize,
}

impl Lane {
    fn new() -> Lane {
        Lane { buffer: vec![0; 16 * 1024], from: 0, to: 0 }
    }

    /// Moves bytes until nothing moves. Ready: the reading side has closed.
    fn turn(&mut self, source: &mut TcpStream, sink: &mut TcpStream, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        loop {
            match self.step(source, sink, cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Ok(Poll::Ready(())),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
    }

    fn step(&mut self, source: &mut TcpStream, sink: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.from < self.to {
            self.from += ready!(Pin::new(&mut *sink).poll_write(cx, &self.buffer[self.from..self.to]))?;
        }
        let mut room = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(source).poll_read(cx, &mut room))?;
        (self.from, self.to) = (0, room.filled().len());
        Poll::Ready(Ok(self.to > 0))
    }
}
