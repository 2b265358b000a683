//! What Istio's webhook refuses, as far as it bears on who is allowed.
//!
//! An error names the place in the document. Everything here makes a policy invalid, so that it refuses: in particular a `from` that
//! names nothing, which would make a DENY deny nobody.

use mesh_model::policy::parse_address_block;

use super::{Action, AuthorizationSpec, Condition, Operation, PeerSpec, Rule, Source, WorkloadSelector, narrowing};

impl AuthorizationSpec {
    pub(super) fn check(&self) -> Result<(), String> {
        check_selector(self.selector.as_ref())?;
        let targets = self.target_refs.iter().chain(&self.target_ref).count();
        if targets > 0 && self.selector.is_some() {
            return Err("spec: selector and targetRefs exclude each other".to_owned());
        }
        match (self.action, &self.provider) {
            (Action::Custom, None) => return Err("spec.provider: needed by action CUSTOM".to_owned()),
            (Action::Custom, Some(_)) | (_, None) => {}
            (_, Some(_)) => return Err("spec.provider: only for action CUSTOM".to_owned()),
        }
        for (index, rule) in self.rules.iter().enumerate() {
            rule.check().map_err(|error| format!("spec.rules[{index}].{error}"))?;
        }
        Ok(())
    }
}

impl Rule {
    pub(super) fn check(&self) -> Result<(), String> {
        for (index, from) in self.from.iter().enumerate() {
            from.source.check().map_err(|error| format!("from[{index}].source{error}"))?;
        }
        for (index, to) in self.to.iter().enumerate() {
            to.operation.check().map_err(|error| format!("to[{index}].operation{error}"))?;
        }
        for (index, condition) in self.when.iter().enumerate() {
            condition.check().map_err(|error| format!("when[{index}]{error}"))?;
        }
        Ok(())
    }
}

impl Source {
    pub(super) fn check(&self) -> Result<(), String> {
        if *self == Self::default() {
            // In a DENY it would deny nobody.
            return Err(": names nothing".to_owned());
        }
        let Self {
            principals,
            not_principals,
            request_principals,
            not_request_principals,
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            ip_blocks,
            not_ip_blocks,
            remote_ip_blocks,
            not_remote_ip_blocks,
        } = self;
        for (name, list) in [
            ("principals", principals),
            ("notPrincipals", not_principals),
            ("requestPrincipals", request_principals),
            ("notRequestPrincipals", not_request_principals),
            ("namespaces", namespaces),
            ("notNamespaces", not_namespaces),
        ] {
            all(name, list, text)?;
        }
        all("serviceAccounts", service_accounts, service_account)?;
        all("notServiceAccounts", not_service_accounts, service_account)?;
        let accounts = [service_accounts, not_service_accounts].iter().any(|list| !list.is_empty());
        let wider = [principals, not_principals, namespaces, not_namespaces].iter().any(|list| !list.is_empty());
        if accounts && wider {
            return Err(": serviceAccounts exclude principals and namespaces".to_owned());
        }
        all("ipBlocks", ip_blocks, block)?;
        all("notIpBlocks", not_ip_blocks, block)?;
        all("remoteIpBlocks", remote_ip_blocks, block)?;
        all("notRemoteIpBlocks", not_remote_ip_blocks, block)
    }
}

impl Operation {
    pub(super) fn check(&self) -> Result<(), String> {
        if *self == Self::default() {
            return Err(": names nothing".to_owned());
        }
        let Self { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } = self;
        for (name, list) in [
            ("hosts", hosts),
            ("notHosts", not_hosts),
            ("methods", methods),
            ("notMethods", not_methods),
            ("paths", paths),
            ("notPaths", not_paths),
        ] {
            all(name, list, text)?;
        }
        all("ports", ports, port)?;
        all("notPorts", not_ports, port)
    }
}

impl Condition {
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { key, values, not_values } = self;
        if values.is_empty() && not_values.is_empty() {
            return Err(": neither values nor notValues".to_owned());
        }
        let form: fn(&str) -> bool = match key.as_str() {
            "source.ip" | "remote.ip" | "destination.ip" => block,
            "destination.port" => port,
            "source.namespace" | "source.principal" | "connection.sni" => text,
            "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter" => text,
            _ if ["request.headers[", "request.auth.claims["].iter().any(|start| key.starts_with(start))
                && key.ends_with(']') =>
            {
                text
            }
            _ => return Err(format!(".key: {key:?} is not an attribute that policies can ask for")),
        };
        all("values", values, form)?;
        all("notValues", not_values, form)
    }
}

impl PeerSpec {
    pub(super) fn check(&self) -> Result<(), String> {
        check_selector(self.selector.as_ref())?;
        if self.port_level_mtls.contains_key(&0) {
            return Err("spec.portLevelMtls: 0 is not a port".to_owned());
        }
        if !self.port_level_mtls.is_empty() && narrowing(self.selector.as_ref()).is_none() {
            return Err("spec.portLevelMtls: needs a selector with labels".to_owned());
        }
        Ok(())
    }
}

pub(super) fn check_selector(selector: Option<&WorkloadSelector>) -> Result<(), String> {
    // Istio: labels are compared exactly, so a star would select nothing, which cannot be meant.
    let strange = |(key, value): (&String, &String)| key.is_empty() || key.contains('*') || value.contains('*');
    match selector.is_some_and(|selector| selector.match_labels.iter().any(strange)) {
        true => Err("spec.selector.matchLabels: empty keys and wildcards are not allowed".to_owned()),
        false => Ok(()),
    }
}

fn all(name: &str, list: &[String], form: fn(&str) -> bool) -> Result<(), String> {
    match list.iter().find(|text| !form(text)) {
        Some(bad) => {
            Err(format!(".{name}: {:?} is not of the form that it takes", bad.chars().take(80).collect::<String>()))
        }
        None => Ok(()),
    }
}

fn text(text: &str) -> bool {
    !text.is_empty()
}

fn block(text: &str) -> bool {
    parse_address_block(text).is_ok()
}

fn port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// `account` of the policy's own namespace, or `namespace/account`.
fn service_account(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|part| !part.is_empty() && !part.contains('*'))
}
