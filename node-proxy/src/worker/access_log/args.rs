//! The flags of the access log. Filters and samplings are parsed here, so that a flaw is named before the worker starts.

use std::path::PathBuf;

use clap::ValueEnum;

use super::filter::Filter;
use super::thin::Sample;

/// How the access log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AccessLogFormat {
    /// `key=value` pairs.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// Not at all.
    Off,
}

/// What is logged of connections, how, and where to.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct AccessLogArgs {
    /// How the access log is written.
    #[arg(long = "access-log", env = "CULVERT_ACCESS_LOG", value_enum, default_value_t)]
    pub format: AccessLogFormat,
    /// A line also when a connection was set up, not only when it has ended.
    #[arg(long = "access-log-start", env = "CULVERT_ACCESS_LOG_START")]
    pub start: bool,
    /// Only lines of which this holds, for example `outcome=refused namespace=shop`. Given several times: of which any holds. In the
    /// environment separated by `;`.
    #[arg(long = "access-log-filter", env = "CULVERT_ACCESS_LOG_FILTER", value_name = "EXPR", value_delimiter = ';')]
    pub filter: Vec<Filter>,
    /// Of connections with this outcome (ok, ended, refused) only one in N, the same ones at both ends; 0: none.
    #[arg(
        long = "access-log-sample",
        env = "CULVERT_ACCESS_LOG_SAMPLE",
        value_name = "OUTCOME=N",
        value_delimiter = ','
    )]
    pub sample: Vec<Sample>,
    /// At most so many lines a second; 0: as many as there are.
    #[arg(long = "access-log-rate", env = "CULVERT_ACCESS_LOG_RATE", value_name = "N", default_value_t = 0)]
    pub rate: u32,
    /// So many lines may come at once after a quiet time; default: those of one second.
    #[arg(long = "access-log-burst", env = "CULVERT_ACCESS_LOG_BURST", value_name = "N")]
    pub burst: Option<u32>,
    /// Written to this file, which SIGHUP opens again, instead of standard output.
    #[arg(long = "access-log-file", env = "CULVERT_ACCESS_LOG_FILE", value_name = "PATH")]
    pub file: Option<PathBuf>,
}
