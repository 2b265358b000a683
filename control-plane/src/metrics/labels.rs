//! The label values of the control plane's metrics: closed enums, each with all of its values, so that every series is there from the
//! start and none comes from what a caller says.

use mesh_api::xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use mesh_model::Reason;

/// A type of resource that nodes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceType {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl ResourceType {
    /// All.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// Of a type URL that is served here.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|of| of.type_url() == type_url)
    }

    /// Its type URL.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
        }
    }

    /// The label `type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Authorization => "authorization",
        }
    }
}

/// What became of a TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It is through.
    Done,
    /// The peer gave up or was not understood.
    Failed,
    /// It took too long.
    TimedOut,
}

impl Handshake {
    /// All.
    pub const ALL: [Self; 3] = [Self::Done, Self::Failed, Self::TimedOut];

    /// The label `result`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "ok",
            Self::Failed => "failed",
            Self::TimedOut => "timeout",
        }
    }
}

/// Why a certificate was refused: finer than [`Reason`], which is what everybody else is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No bearer token.
    NoToken,
    /// A token that is nobody's.
    UnknownToken,
    /// The API server does not take the token.
    NotTaken,
    /// The token is of an account that is not the proxies'.
    OtherAccount,
    /// The token is bound to no pod, or to one without a node.
    Unbound,
    /// The caller names another cluster.
    OtherCluster,
    /// The API server cannot be asked about the token.
    NoReview,
    /// Too many tokens wait for their review.
    TooMany,
    /// The node has used up its budget.
    TooOften,
    /// The manifests have not been read yet.
    NotReady,
    /// No identity was asked for.
    NoIdentity,
    /// What was asked for is not an identity.
    BadIdentity,
    /// An identity of another trust domain.
    TrustDomain,
    /// No mesh pod with the identity is bound to the caller's node.
    NotOnNode,
    /// The signing request is not one.
    BadRequest,
    /// Our root has run out.
    RootExpired,
    /// Signing failed: our own fault.
    Signing,
}

impl Cause {
    /// All.
    pub const ALL: [Self; 17] = [
        Self::NoToken,
        Self::UnknownToken,
        Self::NotTaken,
        Self::OtherAccount,
        Self::Unbound,
        Self::OtherCluster,
        Self::NoReview,
        Self::TooMany,
        Self::TooOften,
        Self::NotReady,
        Self::NoIdentity,
        Self::BadIdentity,
        Self::TrustDomain,
        Self::NotOnNode,
        Self::BadRequest,
        Self::RootExpired,
        Self::Signing,
    ];

    /// The label `cause`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::UnknownToken => "unknown_token",
            Self::NotTaken => "not_taken",
            Self::OtherAccount => "other_account",
            Self::Unbound => "unbound",
            Self::OtherCluster => "other_cluster",
            Self::NoReview => "no_review",
            Self::TooMany => "too_many",
            Self::TooOften => "too_often",
            Self::NotReady => "not_ready",
            Self::NoIdentity => "no_identity",
            Self::BadIdentity => "bad_identity",
            Self::TrustDomain => "trust_domain",
            Self::NotOnNode => "not_on_node",
            Self::BadRequest => "bad_request",
            Self::RootExpired => "root_expired",
            Self::Signing => "signing",
        }
    }

    /// The label `reason`: each cause has one.
    pub const fn reason(self) -> Reason {
        match self {
            Self::NoToken
            | Self::UnknownToken
            | Self::NotTaken
            | Self::OtherAccount
            | Self::Unbound
            | Self::OtherCluster => Reason::PeerUntrusted,
            Self::TooOften | Self::TooMany => Reason::Overloaded,
            Self::NotReady | Self::NoReview => Reason::NotReady,
            Self::NoIdentity | Self::BadIdentity | Self::BadRequest => Reason::Malformed,
            Self::TrustDomain | Self::NotOnNode => Reason::PolicyDenied,
            Self::RootExpired => Reason::CertificateExpired,
            Self::Signing => Reason::Internal,
        }
    }
}
