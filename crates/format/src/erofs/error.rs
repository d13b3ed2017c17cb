//! What can be wrong with a tree that is to become an image, or with an image.

/// Why a tree can't be written, or an image can't be read.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ErofsError {
    /// EROFS can't express this file, or a bound of this crate would be passed.
    #[error("{path}: {problem}")]
    File {
        /// Path from the tree's root, starting with `/`; bytes that aren't UTF-8 are replaced.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The tree as a whole is beyond a bound of the format.
    #[error("the tree can't be stored as EROFS: {0}")]
    Tree(String),
    /// The image's superblock or device table is damaged.
    #[error("corrupt EROFS image: {0}")]
    Superblock(&'static str),
    /// An inode of the image, or what hangs on it, is damaged.
    #[error("corrupt EROFS image: inode {nid}: {what}")]
    Corrupt {
        /// Node number.
        nid: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The image uses a feature that this reader doesn't know.
    #[error("unsupported EROFS image: {0}")]
    Unsupported(String),
}
