//! Addresses by role. The same bytes mean different things; mixing them must not compile.

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Takes the address in its canonical form: an IPv4-mapped IPv6 address becomes IPv4 (peers reach a dual-stack
            /// listener in mapped form, and a policy written for IPv4 must still match them). A link-local one keeps its interface,
            /// without which it is no address (RFC 4007, 6).
            pub fn new(addr: SocketAddr) -> Self {
                match addr {
                    SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
                        Self(SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into())
                    }
                    _ => Self(SocketAddr::new(addr.ip().to_canonical(), addr.port())),
                }
            }

            /// The address and port.
            pub const fn addr(self) -> SocketAddr {
                self.0
            }

            /// The address alone.
            pub const fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port alone.
            pub const fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

role!(
    /// Where a captured connection wanted to go before it was redirected (`SO_ORIGINAL_DST`).
    OrigDst
);
role!(
    /// Where a connection comes from: the address that the far application will be shown.
    ClientAddr
);
