//! Promises that need a real Kubernetes: `cargo xtask test cluster`. Root, and the parts that `cargo xtask` makes; without them these
//! tests fail, they are never skipped.

mod after_power_cut;
#[path = "../as_admin.rs"]
mod as_admin;
#[path = "../control_plane.rs"]
mod control_plane;
mod definitions;
#[path = "../figure.rs"]
mod figure;
mod flows;
mod leaves_nothing;
#[path = "../machine.rs"]
mod machine;
mod mesh_bad_objects;
mod mesh_certificates;
mod mesh_cli;
mod mesh_deny_first;
mod mesh_helm;
mod mesh_leaves;
mod mesh_near;
mod mesh_opt_in;
mod mesh_outages;
mod mesh_pods;
mod mesh_power_cut;
mod mesh_probes;
mod mesh_rights;
mod mesh_rolls;
mod mesh_starts;
mod mesh_statuses;
mod mesh_talks;
mod mesh_tokens;
mod mesh_upgrade;
mod names;
mod prober;
mod serves;
mod shop;
mod support;
mod traffic;
