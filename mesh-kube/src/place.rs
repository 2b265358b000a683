//! Where objects come from, as the command line says it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

/// A source of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The Kubernetes API server; written `api`.
    Api,
    /// A directory of manifests; written as its path (`./api` for one of that name).
    Dir(PathBuf),
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "api" => Self::Api,
            dir => Self::Dir(dir.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_itself_means_the_api_server() {
        assert_eq!("api".parse(), Ok(Place::Api));
        for dir in ["./api", "/api", "api/", "API", "manifests"] {
            assert_eq!(dir.parse(), Ok(Place::Dir(dir.into())));
        }
    }
}
