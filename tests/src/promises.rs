//! One test binary, one module per promise. The lab modules run the real binaries in real nodes and need root; without it they
//! fail, they are never skipped.

mod access_log;
mod admin_redacted;
mod architecture;
mod between_nodes;
mod both_ends;
mod cardinality;
mod cleanup;
mod cni;
mod cni_chain;
mod deny_first;
mod doubt;
mod exact_counts;
mod exclusions;
mod figure;
mod live_policy;
mod machine;
mod marks;
mod metrics_page;
mod opt_in;
mod plaintext;
mod policy;
mod powers;
mod probes;
mod prometheus;
mod reference_client;
mod restart;
mod same_node;
mod scale;
mod scrape;
mod source_port;
mod support;
mod tables;
mod talk;
mod watcher_down;
mod without_control_plane;
