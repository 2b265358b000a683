//! Pods that ask for the mesh and have a kernel of their own: nothing is done in their network namespace, and they are told so.

use super::Node;
use crate::source::{PodRecord, Records};
use crate::status::{Condition, EventType, Seen};

/// What is said of one.
const REASON: &str = "OtherKernel";

impl Node {
    /// What has changed from the records that are known to these.
    pub(super) fn tell_uncaptured(&self, records: &Records) {
        let was = |uid| self.records.pods.get(uid).is_some_and(PodRecord::has_other_kernel);
        for (uid, record) in records.pods.iter().filter(|(uid, record)| record.has_other_kernel() && !was(uid)) {
            let message = "asks for the mesh and is not captured: its runtime class gives it a kernel of its own, so that what it sends and \
                           gets is in clear and no policy of the mesh is in force at it";
            tracing::warn!(pod = %record.name, %uid, message, "enrolment");
            self.status.event(EventType::Warning, "NotCaptured", &record.name, uid, message);
            let condition = Condition {
                pod: record.name.to_string(),
                static_uid: record.static_uid.as_ref().map(ToString::to_string),
                enrolled: false,
                observed: Seen { rules: "none", listeners: false },
                reason: REASON.to_owned(),
                message: message.to_owned(),
            };
            self.status.condition(&record.name, uid, &condition);
        }
        let before = self.records.pods.iter().filter(|(_, record)| record.has_other_kernel()).map(|(uid, _)| uid);
        let is = |uid| records.pods.get(uid).is_some_and(PodRecord::has_other_kernel);
        for uid in before.filter(|uid| !is(uid) && !self.pods.contains_key(*uid)) {
            self.status.remove(uid);
        }
    }
}
