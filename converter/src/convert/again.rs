//! Work whose result goes to a registry piece by piece and is kept nowhere: done again where the registry loses it.
use std::time::Duration;

/// Attempts, and the pause before the second, which grows.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

/// Does `work`, and again if it fails in a way that `may_pass`.
///
/// # Errors
/// What the last attempt says.
pub async fn again<T, E>(mut work: impl AsyncFnMut() -> Result<T, E>, may_pass: impl Fn(&E) -> bool) -> Result<T, E> {
    let mut attempt = 1;
    loop {
        match work().await {
            Err(error) if attempt < ATTEMPTS && may_pass(&error) => tokio::time::sleep(PAUSE * attempt).await,
            result => return result,
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_may_pass_is_done_again_and_nothing_else() {
        let mut done = 0;
        let mut work = async || {
            done += 1;
            if done < 3 { Err("lost") } else { Ok(done) }
        };
        assert_eq!(again(&mut work, |error| *error == "lost").await, Ok(3));
        done = 0;
        let mut work = async || -> Result<(), &str> {
            done += 1;
            Err("lost")
        };
        assert_eq!(again(&mut work, |_| false).await, Err("lost"));
        assert_eq!(again(&mut work, |_| true).await, Err("lost"));
        assert_eq!(done, 1 + ATTEMPTS);
    }
}
