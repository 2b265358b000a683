//! The ports that the mesh has for itself in every enrolled pod.

use std::ops::RangeInclusive;

/// Listener of captured outbound connections (as Istio ambient).
pub const OUTBOUND: u16 = 15001;
/// Listener of captured inbound connections (as Istio ambient).
pub const INBOUND: u16 = 15006;
/// Listener of the mesh's own tunnels (HBONE, as Istio ambient); not redirected.
pub const TUNNEL: u16 = 15008;
/// Reserved for DNS; not bound yet.
pub const DNS: u16 = 15053;
/// What captured inbound connections have as their own port before they reach [`INBOUND`]; nobody listens there. So many connections
/// from one source port to different ports of a pod are told apart. A block of 16 that begins at a multiple of 16, so that one mask
/// finds it; none of the ports that Istio's sidecars, gateways and agents use (15000 to 15090).
pub const LANDING: RangeInclusive<u16> = 15104..=15119;

/// Whether an application cannot be reached on this port.
pub fn is_reserved(port: u16) -> bool {
    [OUTBOUND, INBOUND, TUNNEL, DNS].contains(&port) || LANDING.contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_landing_ports_are_a_block_that_a_mask_finds() {
        let (first, last) = (*LANDING.start(), *LANDING.end());
        let found: Vec<u16> = (0..=u16::MAX).filter(|port| port & !(last - first) == first).collect();
        assert_eq!(found, LANDING.collect::<Vec<_>>());
    }

    #[test]
    fn the_meshs_own_ports_are_reserved_and_their_neighbours_are_not() {
        assert!([15001, 15006, 15008, 15053, 15104, 15119].into_iter().all(is_reserved));
        assert!(![0, 80, 15000, 15002, 15007, 15021, 15090, 15103, 15120].into_iter().any(is_reserved));
    }
}
