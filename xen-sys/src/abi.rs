//! What this crate claims about Xen's headers, as data, and the macros that make a claim and a
//! definition one and the same line.
//!
//! A layout or a number stands in this crate exactly once, beside its name in C. From that line the
//! macros make the Rust item, a compile-time assertion where there is something to assert, and a
//! [`Claim`]; `tests/headers.rs` puts every claim to a C compiler that reads Xen's own headers.

use core::fmt;

/// One statement that must hold in C as it does here.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// An integer expression in C.
    pub c: &'static str,
    /// What we say it is worth; compared modulo 2^64, as C's constants are signed or not by whim.
    pub value: i64,
    /// For what Debian's 4.17 headers do not have yet: an expression that compiles only where they
    /// do. A claim whose expression does not compile is reported as unchecked, not passed.
    pub newer: Option<&'static str>,
}

/// Which compiler sees a header's claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The x86_64 that this crate describes.
    X86_64,
    /// 32-bit x86, where 64-bit integers are aligned to four bytes.
    X86_32,
}

/// A header of Xen or Linux and all that is claimed of it.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// The path to `#include`.
    pub include: &'static str,
    /// The compiler to ask.
    pub target: Target,
    /// The claims, in groups: one group for each constant list and each field.
    pub claims: &'static [&'static [&'static [Claim]]],
}

impl Header {
    /// Every claim, in the order of definition.
    pub fn iter(&self) -> impl Iterator<Item = &'static Claim> {
        self.claims.iter().copied().flatten().copied().flatten()
    }
}

/// A number that names nothing in the enumeration it was read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownValue {
    /// The enumeration, by its Rust name.
    pub enumeration: &'static str,
    /// The number.
    pub value: u32,
}

impl fmt::Display for UnknownValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is no {}", self.value, self.enumeration)
    }
}

impl core::error::Error for UnknownValue {}

/// The size of a field, found through a function that moves it out: `offset_of!` has no sister for
/// sizes, and a reference to a field of a packed structure is forbidden.
pub(crate) const fn size_of_field<S, F>(_: fn(S) -> F) -> usize {
    size_of::<F>()
}

/// Structures shared with Xen or a peer: `offset field: type`, the offset being asserted.
///
/// Every structure can be made from any bytes and turned into bytes; the latter only compiles if
/// there is no implicit padding, so that no byte of ours reaches a peer unwritten (XSA-216).
/// `Default` is all zeroes. A field is called in C as it is here unless `= "other"` follows;
/// `= ours` marks what has no name in C, such as padding, and `= newer` a field that older headers lack;
/// `= "union.member" at 16` names a place in a structure of C of which ours is the part from 16 on.
///
/// `= "struct x", 8` after the name says what C calls the structure, and its size. `in "union y"`
/// before the size says whose size that is, for a variant that we keep as long as its slot.
/// `newer "expression"` after the size excuses headers in which that expression does not compile.
macro_rules! layout {
    ($(
        $(#[$attr:meta])*
        pub struct $name:ident = $c:literal $(in $slot:literal)?, $size:literal
            $(newer $newer:literal)?
        {
            $(
                $(#[$fattr:meta])*
                $offset:literal $field:ident : $type:ty $(= $cfield:tt $(at $base:literal)?)?
            ),* $(,)?
        }
    )*) => {
        $(
            $(#[$attr])*
            #[derive(
                Clone, Copy, Debug, PartialEq, Eq,
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
            )]
            #[repr(C)]
            pub struct $name {
                $( $(#[$fattr])* pub $field: $type, )*
            }

            impl Default for $name {
                fn default() -> Self {
                    zerocopy::FromZeros::new_zeroed()
                }
            }

            const _: () = {
                assert!(size_of::<$name>() == $size);
                $( assert!(core::mem::offset_of!($name, $field) == $offset); )*
            };

            impl $name {
                pub(crate) const CLAIMS: &'static [&'static [$crate::abi::Claim]] = &[
                    &[$crate::abi::Claim {
                        c: $crate::abi::layout!(@size $c $($slot)?),
                        value: $size,
                        newer: $crate::abi::layout!(@newer $($newer)?),
                    }],
                    $( $crate::abi::layout!(
                        @field $name $c, $field, $offset $($(+ $base)?)?, [$($cfield)?]
                    ) ),*
                ];
            }
        )*
    };
    (@size $c:literal $slot:literal) => { concat!("sizeof(", $slot, ")") };
    (@size $c:literal) => { concat!("sizeof(", $c, ")") };
    (@newer $newer:literal) => { Some($newer) };
    (@newer) => { None };
    (@field $name:ident $c:literal, $field:ident, $offset:expr, [ours]) => { &[] };
    (@field $name:ident $c:literal, $field:ident, $offset:expr, [$cfield:literal]) => {
        $crate::abi::layout!(@claims $name $c, $field, $offset, $cfield, None)
    };
    (@field $name:ident $c:literal, $field:ident, $offset:expr, [newer]) => {
        $crate::abi::layout!(
            @claims $name $c, $field, $offset, stringify!($field),
            Some(concat!("offsetof(", $c, ", ", stringify!($field), ")"))
        )
    };
    (@field $name:ident $c:literal, $field:ident, $offset:expr, []) => {
        $crate::abi::layout!(@claims $name $c, $field, $offset, stringify!($field), None)
    };
    (@claims $name:ident $c:literal, $field:ident, $offset:expr, $cfield:expr, $newer:expr) => {
        &[
            $crate::abi::Claim {
                c: concat!("offsetof(", $c, ", ", $cfield, ")"),
                value: $offset,
                newer: $newer,
            },
            $crate::abi::Claim {
                c: concat!("sizeof(((", $c, " *)0)->", $cfield, ")"),
                value: $crate::abi::size_of_field(|s: $name| s.$field) as i64,
                newer: $newer,
            },
        ]
    };
}

/// Constants: `NAME: type = value => "NAME_IN_C"`, gathered under the name of a list of claims.
macro_rules! constants {
    ($list:ident: $(
        $(#[$attr:meta])*
        pub const $name:ident: $type:ty = $value:expr => $c:literal $(, $newer:ident)?;
    )*) => {
        $( $(#[$attr])* pub const $name: $type = $value; )*

        pub(crate) const $list: &[&[$crate::abi::Claim]] = &[&[
            $( $crate::abi::claim!($c, $name, $($newer)?) ),*
        ]];
    };
}

/// Strings: as [`constants`], compared by `strcmp`.
macro_rules! texts {
    ($list:ident: $(
        $(#[$attr:meta])*
        pub const $name:ident: &str = $value:literal => $c:literal;
    )*) => {
        $( $(#[$attr])* pub const $name: &str = $value; )*

        pub(crate) const $list: &[&[$crate::abi::Claim]] = &[&[
            $( $crate::abi::claim!(concat!("strcmp(", $c, ", \"", $value, "\")"), 0,) ),*
        ]];
    };
}

/// A claim on a constant; the word `newer` excuses headers that do not have it.
macro_rules! claim {
    ($c:expr, $value:expr, newer) => {
        $crate::abi::Claim {
            c: $c,
            value: $value as i64,
            newer: Some($c),
        }
    };
    ($c:expr, $value:expr,) => {
        $crate::abi::Claim {
            c: $c,
            value: $value as i64,
            newer: None,
        }
    };
}

/// A closed set of numbers: an `enum` to be had from a number by `TryFrom`, so that what a peer
/// sends is either one of these or an error.
macro_rules! enumeration {
    ($(
        $(#[$attr:meta])*
        pub enum $name:ident: $type:ident {
            $( $(#[$vattr:meta])* $variant:ident = $value:literal => $c:literal $($newer:ident)? ),*
            $(,)?
        }
    )*) => {
        $(
            $(#[$attr])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
            #[repr($type)]
            pub enum $name {
                $( $(#[$vattr])* $variant = $value, )*
            }

            impl $name {
                /// All of them, in the order of their definition.
                pub const ALL: &'static [Self] = &[$( Self::$variant ),*];

                pub(crate) const CLAIMS: &'static [&'static [$crate::abi::Claim]] = &[&[
                    $( $crate::abi::claim!($c, Self::$variant, $($newer)?) ),*
                ]];
            }

            impl TryFrom<$type> for $name {
                type Error = $crate::UnknownValue;

                fn try_from(value: $type) -> Result<Self, $crate::UnknownValue> {
                    match value {
                        $( $value => Ok(Self::$variant), )*
                        _ => Err($crate::UnknownValue {
                            enumeration: stringify!($name),
                            value: value.into(),
                        }),
                    }
                }
            }

            impl From<$name> for $type {
                fn from(value: $name) -> Self {
                    value as Self
                }
            }
        )*
    };
}

/// An open set of numbers: a newtype with named values that can also carry a number unknown to us,
/// for results that a caller passes on rather than acts upon. Displayed by the name in C.
macro_rules! codes {
    (
        $(#[$attr:meta])*
        pub struct $name:ident($type:ident) {
            $( $(#[$vattr:meta])* $code:ident = $value:literal => $c:literal $($newer:ident)? ),*
            $(,)?
        }
    ) => {
        $(#[$attr])*
        #[derive(
            Clone, Copy, Default, Debug, PartialEq, Eq, Hash,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name(pub $type);

        impl $name {
            $( $(#[$vattr])* pub const $code: Self = Self($value); )*

            pub(crate) const CLAIMS: &'static [&'static [$crate::abi::Claim]] = &[&[
                $( $crate::abi::claim!($c, Self::$code.0, $($newer)?) ),*
            ]];

            /// Its name in C, if it has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $( $value => Some($c), )*
                    _ => None,
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{} {}", stringify!($name), self.0),
                }
            }
        }
    };
}

/// Numbers that name things: newtypes displayed as plain numbers, with the names reserved in C.
macro_rules! identifiers {
    ($(
        $(#[$attr:meta])*
        pub struct $name:ident($type:ident) = $ctype:literal {
            $( $(#[$vattr:meta])* $reserved:ident = $value:literal => $c:literal $($newer:ident)? ),*
            $(,)?
        }
    )*) => {
        $(
            $(#[$attr])*
            #[derive(
                Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
            )]
            #[repr(transparent)]
            pub struct $name(pub $type);

            impl $name {
                $( $(#[$vattr])* pub const $reserved: Self = Self($value); )*

                pub(crate) const CLAIMS: &'static [&'static [$crate::abi::Claim]] = &[&[
                    $crate::abi::claim!(concat!("sizeof(", $ctype, ")"), size_of::<Self>(),),
                    $( $crate::abi::claim!($c, Self::$reserved.0, $($newer)?) ),*
                ]];
            }

            impl core::fmt::Display for $name {
                fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                    self.0.fmt(f)
                }
            }
        )*
    };
}

/// Bits that are set and cleared one by one. Unknown bits are kept, never dropped: what they mean is
/// for whoever checks the flags to say.
macro_rules! flags {
    ($(
        $(#[$attr:meta])*
        pub struct $name:ident: $type:ident {
            $( $(#[$fattr:ident $($fargs:tt)*])* const $flag:ident = $value:expr => $c:literal $(, $newer:ident)?; )*
        }
    )*) => {
        $(
            $(#[$attr])*
            #[derive(
                Clone, Copy, Default, Debug, PartialEq, Eq, Hash,
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
                zerocopy::KnownLayout,
            )]
            #[repr(transparent)]
            pub struct $name($type);

            bitflags::bitflags! {
                impl $name: $type {
                    $( $(#[$fattr $($fargs)*])* const $flag = $value; )*
                    const _ = !0;
                }
            }

            impl $name {
                pub(crate) const CLAIMS: &'static [&'static [$crate::abi::Claim]] = &[&[
                    $( $crate::abi::claim!($c, Self::$flag.bits(), $($newer)?) ),*
                ]];
            }
        )*
    };
}

pub(crate) use {claim, codes, constants, enumeration, flags, identifiers, layout, texts};
