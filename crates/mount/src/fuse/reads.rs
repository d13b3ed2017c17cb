//! How a read is answered: at once from what is at hand, by a task of its own else.
use super::buffers::Buffers;
use crate::LazyError;
use fuser::{Errno, INodeNo, ReplyData};
use std::sync::Arc;
use tokio::runtime::Handle;

/// A file whose bytes may have to be fetched first.
pub(crate) trait Bytes: Send + Sync + 'static {
    /// Fills `buffer` from `offset` if all of that is at hand; doesn't wait.
    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, LazyError>;

    /// What the image is called that it is of.
    fn image(&self) -> &str;

    /// Fills `buffer` from `offset`, however long it takes.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> impl Future<Output = Result<(), LazyError>> + Send;
}

/// What a filesystem's reads share.
pub(crate) struct Reads {
    buffers: Arc<Buffers>,
    runtime: Handle,
}

impl Reads {
    /// For a filesystem with `threads` threads; what must be fetched is fetched on `runtime`.
    pub(crate) fn new(runtime: Handle, threads: usize) -> Self {
        Self { buffers: Arc::new(Buffers::new(threads)), runtime }
    }

    /// Answers a read of `len` bytes of `file` from `offset`, which it must have.
    pub(crate) fn answer(&self, ino: INodeNo, file: impl Bytes, offset: u64, len: usize, reply: ReplyData) {
        let mut buffer = self.buffers.take(len);
        match file.try_read(offset, &mut buffer) {
            Ok(true) => reply.data(&buffer),
            Ok(false) => {
                let buffers = Arc::clone(&self.buffers);
                self.runtime.spawn(async move {
                    match file.read(offset, &mut buffer).await {
                        Ok(()) => reply.data(&buffer),
                        Err(error) => reply.error(failed(ino, file.image(), &error)),
                    }
                    buffers.put(buffer);
                });
                return;
            }
            Err(error) => reply.error(failed(ino, file.image(), &error)),
        }
        self.buffers.put(buffer);
    }
}

/// What the kernel is told about bytes that can't be had; the log is told more.
pub(super) fn failed(ino: INodeNo, image: &str, error: &LazyError) -> Errno {
    let layer = error.layer().map(tracing::field::display);
    tracing::error!(image, layer, inode = ino.0, error = error as &dyn std::error::Error, "a file can't be read");
    Errno::EIO
}
