//! containerd's snapshots service and the control API as compiled from `proto/`.
#![allow(missing_docs, clippy::all, rustdoc::all)]

/// Clipper's own.
pub mod clipper {
    /// `clipper.control`.
    pub mod control {
        /// `clipper.control.v1`.
        pub mod v1 {
            tonic::include_proto!("clipper.control.v1");
        }
    }
}

/// Types that containerd's services share.
pub mod containerd {
    /// `containerd.types`.
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    /// `containerd.services`.
    pub mod services {
        /// `containerd.services.snapshots`.
        pub mod snapshots {
            /// `containerd.services.snapshots.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}
