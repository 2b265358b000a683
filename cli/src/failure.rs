//! How a verb ends badly: which object, what happened to it, what to do next, and the exit status that tells a script the same.

use std::fmt;

/// Exit statuses, for the help texts.
pub const EXIT: &str = "Exit status: 0 done and well, 1 refused, or found not to be well, 2 the command line is wrong, \
3 no answer in time from the API server or from a component that was asked.";

/// Why a verb did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    what: String,
    next: String,
    status: u8,
}

impl Failure {
    /// The cluster says no, or is not as it must be.
    pub fn refused(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: next.into(), status: 1 }
    }

    /// The command line asks for something that does not exist or makes no sense.
    pub fn usage(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: next.into(), status: 2 }
    }

    /// Nobody answered in time.
    pub fn silent(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: next.into(), status: 3 }
    }

    /// A request about `object` (`list pods`, `namespace shop`) that the API server did not fulfil.
    pub fn of(object: impl fmt::Display, error: &mesh_kube::Error) -> Self {
        let what = format!("{object}: {error}");
        match error {
            mesh_kube::Error::Transport(_) | mesh_kube::Error::Late(_) => {
                Self::silent(what, "see whether the API server of this context answers: kubectl version")
            }
            mesh_kube::Error::Refused { code: 401, .. } => {
                Self::refused(what, "the credentials of this context are not accepted (any more): log in again")
            }
            mesh_kube::Error::Refused { code: 403, .. } => {
                Self::refused(what, "ask an administrator of the cluster for this permission, or use another --context")
            }
            mesh_kube::Error::Refused { code: 404, .. } => {
                Self::refused(what, "see whether the name is right: culvert ps --all")
            }
            mesh_kube::Error::Refused { code: 429 | 500..=599, .. } => {
                Self::silent(what, "the API server has too much to do or is failing: try again, then look at its log")
            }
            mesh_kube::Error::Refused { .. } | mesh_kube::Error::Answer(_) => {
                Self::refused(what, "the message above is the API server's own")
            }
        }
    }

    /// For the process.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// What happened to which object.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to do.
    pub fn next(&self) -> &str {
        &self.next
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  next: {}", self.what, self.next)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_failure_names_the_object_the_cause_and_the_next_step() {
        let refused = |code| mesh_kube::Error::Refused {
            code,
            reason: "Forbidden".to_owned(),
            message: "no".to_owned(),
            retry_after: None,
        };
        let check = |error: mesh_kube::Error, status: u8, next: &str| {
            let failure = Failure::of("list pods", &error);
            assert_eq!(failure.status(), status, "{failure}");
            assert!(failure.to_string().starts_with("list pods: ") && failure.next().contains(next), "{failure}");
        };
        check(refused(401), 1, "log in");
        check(refused(403), 1, "permission");
        check(refused(404), 1, "culvert ps");
        check(refused(409), 1, "API server's own");
        check(refused(503), 3, "try again");
        check(mesh_kube::Error::Late(Duration::from_secs(15)), 3, "kubectl version");
    }
}
