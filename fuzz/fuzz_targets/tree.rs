//! The tree reader over hostile images: every accessor, every inode that the root leads to, within a budget.
#![no_main]
use clipper_format::erofs::Image;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|data: &[u8]| {
    let Ok(image) = Image::parse(Arc::from(data)) else { return };
    let mut todo = vec![image.root()];
    for _ in 0..256 {
        let Some(nid) = todo.pop() else { break };
        let Ok(inode) = image.inode(nid) else { continue };
        let _ = image.xattrs(&inode);
        let _ = image.symlink(&inode);
        let _ = image.extents(&inode, 0..inode.size.min(1 << 20));
        let _ = image.lookup(&inode, b"lib");
        if let Ok(entries) = image.entries(&inode, 0) {
            for entry in entries.take(64) {
                let Ok(entry) = entry else { break };
                todo.push(entry.nid);
            }
        }
    }
    let _ = image.to_tree();
});
