//! When an application is ready, as one of its clients sees it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::query::query;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// What has to be answered.
#[derive(Clone, Copy, Debug)]
pub enum Ready {
    /// `GET /` over HTTP, with 200.
    Page,
    /// This query, over PostgreSQL's protocol, with a row.
    Query(&'static str),
}

impl Ready {
    /// Asks every few milliseconds until the answer is right.
    pub fn wait(self, address: SocketAddr, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        loop {
            let answer = self.ask(address);
            match answer {
                Ok(()) => return Ok(()),
                Err(error) if begun.elapsed() > limit => {
                    return Err(error.context(format!("{address} is not ready after {limit:?}")));
                }
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    /// Asks once.
    fn ask(self, address: SocketAddr) -> Result<()> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        match self {
            Self::Page => match page_status(stream, address)? {
                200 => Ok(()),
                status => bail!("GET / is answered with {status}"),
            },
            Self::Query(text) => query(stream, text),
        }
    }

    /// A URL that answers 200 when the application at `address` is ready, for who only knows pages. What isn't a page is
    /// asked for by a server of our own, which lives as long as this process.
    pub fn url(self, address: SocketAddr) -> Result<String> {
        if let Self::Page = self {
            return Ok(format!("http://{address}/"));
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/", listener.local_addr()?);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let status = if self.ask(address).is_ok() { "200 OK" } else { "503 Service Unavailable" };
                let _ = reply(stream, status);
            }
        });
        Ok(url)
    }
}

fn page_status(mut stream: TcpStream, address: SocketAddr) -> Result<u16> {
    write!(stream, "GET / HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64).read_to_string(&mut answer)?;
    Ok(answer.split_whitespace().nth(1).context("no status line")?.parse()?)
}

/// Answers a request, whatever it asks for.
fn reply(mut stream: TcpStream, status: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    // Its head comes at once; closing with bytes unread would reset the connection and lose the answer.
    let _ = stream.read(&mut [0; 4096])?;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}
