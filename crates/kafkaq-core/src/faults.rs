//! What the lists of planted faults have in common.

/// Makes an enum of rules that can be taken out of a machine, and the list of all of them.
macro_rules! faults {
    ($(#[$doc:meta])* $faults:ident: $($(#[$rule:meta])* $fault:ident,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $faults { $($(#[$rule])* $fault),* }

        impl $faults {
            /// All of them.
            pub const ALL: &[$faults] = &[$($faults::$fault),*];
        }
    };
}
pub(crate) use faults;
