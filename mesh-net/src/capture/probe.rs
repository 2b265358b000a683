//! Whether this kernel has owned tables that outlive their owner: asked of the kernel itself, in a netns made for the question.

use super::{Mode, change, table};
use crate::netlink::{Protocol, Socket};
use crate::netns::Netns;

/// Whether [`Mode::Owned`] works here. Any failure to find out counts as no: plain tables work everywhere.
#[must_use]
pub fn owned_supported() -> bool {
    let tried = Netns::create().map_err(|error| error.to_string()).and_then(|netns| {
        let answer = netns.run(|| {
            Socket::open(Protocol::Netfilter).map_err(super::Error::kernel("open")).and_then(|mut socket| {
                change::adopt(&mut socket)?;
                table::read(&mut socket)
            })
        });
        answer.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    });
    match tried {
        Ok(seen) => seen.is_some_and(|seen| seen.flags == table::flags(Mode::Owned) && seen.owner.is_some()),
        Err(error) => {
            tracing::info!(%error, "owned nf_tables tables are not available");
            false
        }
    }
}
