//! File descriptors that are used up.

use std::{error::Error, io, sync::Arc};

/// What to do if an error comes from file descriptors that are used up. The server is innocent then.
#[must_use]
pub fn out_of_descriptors(error: &(dyn Error + 'static)) -> Option<&'static str> {
    // EMFILE and ENFILE, on every Unix.
    const USED_UP: [i32; 2] = [24, 23];
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        if let Some(error) = error.downcast_ref::<io::Error>() {
            if error.raw_os_error().is_some_and(|code| USED_UP.contains(&code)) {
                return Some(
                    "This process has used up its file descriptors: raise its limit (ulimit -n, LimitNOFILE), or look \
                     for what keeps them open",
                );
            }
            // Its source begins below the error that it wraps, and so does that of an `Arc`.
            next = error.get_ref().map(|inner| inner as &(dyn Error + 'static)).or(next);
        } else if let Some(error) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
            next = Some(&**error);
        }
    }
    None
}
