//! Turns panics of handlers into failures whose reason contains the location.

use crate::sync;
use std::{any::Any, cell::RefCell, panic, sync::Once};

tokio::task_local! {
    static WHERE: RefCell<Option<String>>;
}

/// Installs a panic hook, once per process, that remembers where a worker's code panicked. The previous hook is called
/// as well.
pub(super) fn remember_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map(ToString::to_string);
            let _ = WHERE.try_with(|told| *told.borrow_mut() = place);
            earlier(info);
        }));
    });
}

/// Runs a handler. `Err` is the message of its panic, with its location.
pub(super) async fn caught<T>(handler: impl Future<Output = T>) -> Result<T, String> {
    let run = async { sync::caught(handler).await.map_err(|panicked| describe(&*panicked)) };
    WHERE.scope(RefCell::default(), run).await
}

/// The same for a blocking handler.
pub(super) fn caught_blocking<T>(handler: impl FnOnce() -> T) -> Result<T, String> {
    WHERE.sync_scope(RefCell::default(), || {
        let outcome = panic::catch_unwind(panic::AssertUnwindSafe(handler));
        outcome.map_err(|panicked| describe(&*panicked))
    })
}

fn describe(panicked: &(dyn Any + Send)) -> String {
    let place = WHERE.try_with(RefCell::take).ok().flatten();
    let place = place.map(|place| format!(" at {place}")).unwrap_or_default();
    format!("panicked{place}: {}", sync::panic_message(panicked).unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_is_reported_with_its_message_and_location() {
        remember_places();
        let told = caught(async { panic!("no {}", "stock") }).await.map(|(): ()| ()).unwrap_err();
        assert!(told.starts_with("panicked at ") && told.contains("panics.rs:"), "{told}");
        assert!(told.ends_with(": no stock"), "{told}");
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let told = caught_blocking(|| panic!("no stock")).map(|(): ()| ()).unwrap_err();
        assert!(told.starts_with("panicked at ") && told.ends_with(": no stock"), "{told}");
    }
}
