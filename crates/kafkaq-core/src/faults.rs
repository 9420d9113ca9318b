//! Deliberate bugs for the simulation to find, each of which removes one rule from a machine.

/// The rule that is removed from a machine. Without the feature `planted-faults` it is always none, and the check costs
/// nothing.
#[derive(Clone, Copy, Debug)]
pub struct Planted<F>(Option<F>);

impl<F> Planted<F> {
    pub(crate) const NOTHING: Self = Planted(None);
}

impl<F: PartialEq> Planted<F> {
    pub(crate) fn is_nothing(&self) -> bool {
        !cfg!(feature = "planted-faults") || self.0.is_none()
    }

    /// Whether this rule is removed.
    pub(crate) fn is(&self, fault: F) -> bool {
        cfg!(feature = "planted-faults") && self.0.as_ref() == Some(&fault)
    }
}

#[cfg(feature = "planted-faults")]
impl<F> From<Option<F>> for Planted<F> {
    fn from(fault: Option<F>) -> Self {
        Planted(fault)
    }
}

/// Defines an enum of the rules that can be removed from a machine, and a list of all of them.
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
