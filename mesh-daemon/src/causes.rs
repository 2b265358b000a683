//! What an error says, with what lies beneath it: the outer layers of many libraries say little.

/// An error with its causes, in one line; a cause that a layer has printed already is not repeated.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layer {
        #[error("open the door")]
        Outer(#[source] Box<Layer>),
        #[error("the lock: {0}")]
        Repeats(#[source] Box<Layer>),
        #[error("no key")]
        Inner,
    }

    #[test]
    fn every_cause_is_said_once() {
        let error = Layer::Outer(Box::new(Layer::Repeats(Box::new(Layer::Inner))));
        assert_eq!(causes(&error), "open the door: the lock: no key");
        assert_eq!(causes(&Layer::Outer(Box::new(Layer::Inner))), "open the door: no key");
    }
}
