//! Address blocks of policies: one form for each, so that the same addresses are never missed for the way they were written.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network};

use super::AddressBlock;

/// The text or the pair of address and length is not an address block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBlock {
    /// Not an address, nor an address and a length.
    #[error("{0:?} is neither an IP address nor an address block")]
    Text(String),
    /// The length is longer than the address.
    #[error("prefix length {length} does not fit address {address}")]
    Length {
        /// The address.
        address: IpAddr,
        /// The length.
        length: u32,
    },
}

/// A block from its parts: bits beyond the length are dropped, an IPv4-mapped block becomes the IPv4 block it means.
pub fn address_block(address: IpAddr, length: u32) -> Result<AddressBlock, BadBlock> {
    let bad = || BadBlock::Length { address, length };
    let network = IpNetwork::new(address, u8::try_from(length).map_err(|_| bad())?).map_err(|_| bad())?;
    Ok(canonical(Cow::Owned(network)).into_owned())
}

/// A block as Istio's `ipBlocks` write it: `10.0.0.0/8`, `fd00::/8`, or one address.
pub fn parse_address_block(text: &str) -> Result<AddressBlock, BadBlock> {
    let bad = || BadBlock::Text(text.chars().take(80).collect());
    let (address, length) = match text.split_once('/') {
        // Only digits: `u32::from_str` would take "+8" too.
        Some((address, length)) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            (address, Some(length.parse::<u32>().map_err(|_| bad())?))
        }
        Some(_) => return Err(bad()),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    address_block(address, length.unwrap_or(if address.is_ipv4() { 32 } else { 128 }))
}

/// The one form of a block. Already canonical blocks, nearly all, are passed through.
pub(super) fn canonical(block: Cow<'_, AddressBlock>) -> Cow<'_, AddressBlock> {
    let mapped = match *block {
        IpNetwork::V6(network) if network.prefix() >= 96 => {
            network.ip().to_ipv4_mapped().map(|ip| (ip, network.prefix() - 96))
        }
        _ => None,
    };
    let masked = match mapped {
        Some((ip, length)) => Ipv4Network::new(ip, length).ok().map(|v4| IpNetwork::V4(v4_masked(v4))),
        None if block.ip() != block.network() => IpNetwork::new(block.network(), block.prefix()).ok(),
        None => None,
    };
    masked.map_or(block, Cow::Owned)
}

fn v4_masked(network: Ipv4Network) -> Ipv4Network {
    Ipv4Network::new(network.network(), network.prefix()).unwrap_or(network)
}

/// The address of a canonical block with its length, for the wire.
pub fn block_parts(block: &AddressBlock) -> (IpAddr, u32) {
    let block = canonical(Cow::Borrowed(block));
    (block.network(), u32::from(block.prefix()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_one_form_however_it_is_written() {
        for (text, form) in [
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd77::1", "fd77::1/128"),
            ("fd77:1::5/16", "fd77::/16"),
            ("::/0", "::/0"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/96", "0.0.0.0/0"),
        ] {
            assert_eq!(parse_address_block(text).map(|block| block.to_string()), Ok(form.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_text_that_is_not_a_block_is_refused() {
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0/8",
            "fd77::/129",
            "10.0.0.0/8/8",
            "a.b.c.d",
            "*",
            " 10.0.0.1",
            "10.0.0.0/4294967297",
            "010.0.0.1",
        ] {
            assert!(parse_address_block(text).is_err(), "{text:?} was accepted");
        }
    }
}
