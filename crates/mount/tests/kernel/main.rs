//! Images built from layers made here, mounted through the kernel's own FUSE and EROFS: needs root, `/dev/fuse` and
//! Linux 6.12.

/// Makes two tests of each function: `over_fuse::NAME` and `over_erofs::NAME`. They take the driver that they mount with.
macro_rules! over_both_drivers {
    ($($test:ident,)*) => {
        over_both_drivers!(in over_fuse with Fuse: $($test,)*);
        over_both_drivers!(in over_erofs with Erofs: $($test,)*);
    };
    (in $module:ident with $driver:ident: $($test:ident,)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(clipper_mount::Driver::$driver).await;
                }
            )*
        }
    };
}

mod faults;
mod fidelity;
mod fixture;
mod handmade;
mod idmapped;
mod life;
mod overlay;
mod reads;
mod stuck;
mod tarball;
mod tools;
mod walk;
