//! The plane `none`: what the machine itself can do between these pods.

use anyhow::Result;
use lab::{Config, Lab, Pid, PodHandle};

use super::{Plane, Pods};

struct None {
    pods: Pods,
    lab: Lab,
}

/// Makes it.
pub(super) fn up(lab: &str) -> Result<impl Plane + use<>> {
    let lab = Lab::up(Config::default().name(lab))?;
    Ok(None { pods: Pods::make(&lab)?, lab })
}

impl Plane for None {
    fn name(&self) -> &str {
        "none"
    }

    fn about(&self) -> Vec<(String, String)> {
        vec![("none".into(), "the reference bridge plugin, no proxy, no rule of ours".into())]
    }

    fn lab(&self) -> &Lab {
        &self.lab
    }

    fn pods(&self) -> &Pods {
        &self.pods
    }

    fn proxy(&self, _: &PodHandle) -> Result<Option<Pid>> {
        Ok(Option::None)
    }

    fn processes(&self, _: usize) -> Result<Vec<(String, Pid)>> {
        Ok(Vec::new())
    }

    fn down(self: Box<Self>) -> Result<()> {
        self.lab.down()
    }
}
