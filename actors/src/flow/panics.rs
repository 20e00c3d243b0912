//! Panics that are an error of one piece of work, and not the end of the loop that does it: what panics once would do
//! so again after each restart, and use the restarts of all loops up.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;

/// Does `work`, and makes an error of a panic in it, with its words. What the work left half done is for whoever does
/// it next to find, as after a crash: nothing of it is used any more but what is shared, and the locks of that know no
/// poison.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        metrics::counter!("holdfast_actor_task_panics_total").increment(1);
        said_by(&*panic).to_owned()
    })
}

/// The words of a panic.
fn said_by(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_with_its_words() {
        assert_eq!(caught(async { 1 }).await, Ok(1));
        assert_eq!(caught::<()>(async { panic!("over one") }).await, Err("over one".to_owned()));
        let number = 2;
        assert_eq!(caught::<()>(async { panic!("over {number}") }).await, Err("over 2".to_owned()));
    }
}
