//! How a case reports that a rule was broken.

use std::fmt;

/// Why a case failed. Every error converts into it, so a case reads like code that can't fail.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) String);

pub(crate) type Checked<T = ()> = Result<T, Failed>;

// `Failed` doesn't implement `Display`, since this would conflict with the conversion of a type into itself.
impl<E: fmt::Display> From<E> for Failed {
    fn from(error: E) -> Self {
        Failed(error.to_string())
    }
}

/// Continues only if the condition holds.
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::check::Failed(format!($($why)+)));
        }
    };
}

/// Continues only if both are equal.
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($why:tt)+) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            let why = format!($($why)+);
            return Err($crate::check::Failed(format!("{why}: expected {right:?}, got {left:?}")));
        }
    }};
}

pub(crate) use {ensure, ensure_eq};
