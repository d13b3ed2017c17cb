//! A client of PostgreSQL's protocol, version 3, that can ask one thing: a query that must be answered with a row.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};

/// Longest message that is read.
const LONGEST: usize = 1 << 20;

/// Sends `text` as user `postgres`, without a password, over a new connection.
///
/// # Errors
/// The server isn't ready, wants a password, or has no row to answer with.
pub fn query(mut stream: impl Read + Write, text: &str) -> Result<()> {
    let mut startup = 196_608_u32.to_be_bytes().to_vec();
    startup.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
    send(&mut stream, None, &startup)?;
    until_idle(&mut stream)?;
    send(&mut stream, Some(b'Q'), format!("{text}\0").as_bytes())?;
    let rows = until_idle(&mut stream)?;
    send(&mut stream, Some(b'X'), b"")?;
    ensure!(rows > 0, "no row answers {text:?}");
    Ok(())
}

/// Reads up to ReadyForQuery; gives the number of rows.
fn until_idle(stream: &mut impl Read) -> Result<usize> {
    let mut rows = 0;
    loop {
        let (kind, body) = receive(stream)?;
        match kind {
            b'Z' => return Ok(rows),
            b'D' => rows += 1,
            b'E' => bail!("the server says: {}", String::from_utf8_lossy(&body).replace('\0', " ")),
            b'R' if body != [0; 4] => bail!("the server wants a password"),
            _ => {}
        }
    }
}

fn send(stream: &mut impl Write, kind: Option<u8>, body: &[u8]) -> Result<()> {
    let mut message: Vec<u8> = kind.into_iter().collect();
    message.extend_from_slice(&u32::try_from(body.len() + 4)?.to_be_bytes());
    message.extend_from_slice(body);
    Ok(stream.write_all(&message)?)
}

fn receive(stream: &mut impl Read) -> Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let len = len.checked_sub(4).filter(|len| *len <= LONGEST).context("a message of no sensible length")?;
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok((head[0], body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// What a server says, whatever it hears.
    struct Server(Cursor<Vec<u8>>);

    impl Read for Server {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(bytes)
        }
    }

    impl Write for Server {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn server(messages: &[(u8, &[u8])]) -> Server {
        let mut said = Vec::new();
        for (kind, body) in messages {
            send(&mut said, Some(*kind), body).unwrap();
        }
        Server(Cursor::new(said))
    }

    #[test]
    fn a_row_is_an_answer_and_nothing_else_is() {
        let welcome: [(u8, &[u8]); 2] = [(b'R', &[0; 4]), (b'Z', b"I")];
        let asked = |answer: &[(u8, &[u8])]| query(server(&[&welcome[..], answer].concat()), "SELECT 1");
        assert!(asked(&[(b'T', b""), (b'D', b"\0\x01"), (b'C', b"SELECT 1\0"), (b'Z', b"I")]).is_ok());
        assert!(asked(&[(b'T', b""), (b'C', b"SELECT 0\0"), (b'Z', b"I")]).is_err());
        assert!(asked(&[(b'E', b"SERROR\0"), (b'Z', b"I")]).is_err());
        assert!(query(server(&[(b'E', b"SFATAL\0")]), "SELECT 1").is_err());
        assert!(query(server(&[(b'R', &[0, 0, 0, 10])]), "SELECT 1").is_err());
        assert!(query(server(&[]), "SELECT 1").is_err());
    }
}
