//! Bodies on their way through the proxy, and what happens to them there.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::proxy::{Fault, State};

/// A request's body on its way to the registry.
pub(crate) struct Upload {
    pub body: Incoming,
    /// Bytes that may still go on before the connection breaks.
    pub limit: Option<u64>,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.limit == Some(0) {
            return Poll::Ready(Some(Err(io::Error::other("cut by rule"))));
        }
        let frame = Pin::new(&mut this.body).poll_frame(cx).map_err(io::Error::other);
        frame.map_ok(|frame| match (&mut this.limit, frame.into_data()) {
            (Some(limit), Ok(mut data)) => {
                data.truncate(usize::try_from(*limit).unwrap_or(usize::MAX));
                *limit -= data.len() as u64;
                Frame::data(data)
            }
            (_, Ok(data)) => Frame::data(data),
            (_, Err(frame)) => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body on its way to the client.
pub(crate) struct Shaped {
    pub body: Option<Incoming>,
    pub fault: Option<Fault>,
    /// Where in the blob the body starts.
    pub at: u64,
    pub passed: u64,
    /// Which request of the log it belongs to.
    pub entry: usize,
    pub state: Arc<State>,
}

impl Shaped {
    /// Applies the fault to a piece of the body: what is left of it, or the end of the connection.
    fn shape(&mut self, mut data: Bytes) -> Option<Bytes> {
        match self.fault {
            Some(Fault::Cut(limit) | Fault::Stall(limit)) => {
                if self.passed >= limit {
                    return None;
                }
                data.truncate(usize::try_from(limit - self.passed).unwrap_or(usize::MAX));
            }
            Some(Fault::Flip(offset)) => {
                let start = self.at + self.passed;
                if let Some(index) = offset.checked_sub(start).and_then(|index| usize::try_from(index).ok())
                    && index < data.len()
                {
                    let mut changed = data.to_vec();
                    changed[index] ^= 0xff;
                    data = changed.into();
                }
            }
            _ => {}
        }
        self.passed += data.len() as u64;
        self.state.note(self.entry, |access| access.bytes = self.passed);
        Some(data)
    }
}

impl Body for Shaped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        // No waker is kept: the silence lasts until the client gives up.
        if matches!(this.fault, Some(Fault::Stall(limit)) if this.passed >= limit) {
            return Poll::Pending;
        }
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(io::Error::other(error)))),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Err(frame) => Poll::Ready(Some(Ok(frame))),
                Ok(data) => match this.shape(data) {
                    Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                    None => Poll::Ready(Some(Err(io::Error::other("cut by rule")))),
                },
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), |body| body.size_hint())
    }
}
