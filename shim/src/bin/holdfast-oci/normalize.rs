//! Rewrites a specification where libcontainer would understand it differently than runc does.
//!
//! Runs after `spec_check`, so that nothing refused is lost here.

use oci_spec::runtime::{
    Capabilities, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxResources, Mount, Process, Spec,
};

use crate::payload::Payload;

/// Rewrites the whole specification; returns what the payload has to know.
pub(crate) fn spec(spec: &mut Spec) -> Payload {
    if let Some(mounts) = spec.mounts_mut() {
        mounts.iter_mut().for_each(mount);
    }
    if let Some(linux) = spec.linux_mut() {
        namespaces(linux);
        rootfs_propagation(linux);
        let resources = linux.resources_mut().get_or_insert_with(LinuxResources::default);
        device_rules(resources);
    }
    match spec.process_mut() {
        Some(process) => self::process(process),
        None => Payload::default(),
    }
}

/// Rewrites a process, of a container or of an exec.
pub(crate) fn process(process: &mut Process) -> Payload {
    // libcontainer leaves every capability set alone that is not given: absent must mean empty.
    let given = process.capabilities().clone();
    process.set_capabilities(Some(all_sets(given.as_ref())));
    // It also takes an explicit `false` for "set": the filter would be loaded after the right to do so was dropped.
    process.set_no_new_privileges(process.no_new_privileges().filter(|&set| set));
    if process.apparmor_profile().as_deref() == Some("") {
        process.set_apparmor_profile(None);
    }
    let env = process.env_mut().get_or_insert_with(Vec::new);
    let home_missing = !env.iter().any(|entry| entry.len() > "HOME=".len() && entry.starts_with("HOME="));
    if home_missing {
        // Without it libcontainer would ask the name service, in the container's root, for plug-ins to load.
        env.retain(|entry| entry != "HOME=");
        env.push("HOME=/".to_owned());
    }
    Payload { home_missing, ..Payload::default() }
}

fn all_sets(given: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let set = |get: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(given.and_then(|sets| get(sets).clone()).unwrap_or_default())
    };
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(set(LinuxCapabilities::bounding));
    sets.set_effective(set(LinuxCapabilities::effective));
    sets.set_permitted(set(LinuxCapabilities::permitted));
    sets.set_inheritable(set(LinuxCapabilities::inheritable));
    sets.set_ambient(set(LinuxCapabilities::ambient));
    sets
}

/// An empty path means a new namespace, as in Go's JSON.
fn namespaces(linux: &mut Linux) {
    for namespace in linux.namespaces_mut().iter_mut().flatten() {
        if namespace.path().as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            namespace.set_path(None);
        }
    }
}

/// libcontainer knows the names without `r` only, and always means the recursive ones.
fn rootfs_propagation(linux: &mut Linux) {
    let name = match linux.rootfs_propagation().as_deref() {
        Some("") => None,
        Some("rshared") => Some("shared"),
        Some("rslave") => Some("slave"),
        Some("rprivate") => Some("private"),
        Some("runbindable") => Some("unbindable"),
        _ => return,
    };
    linux.set_rootfs_propagation(name.map(str::to_owned));
}

/// What is not allowed is denied, also if the specification does not begin by saying so.
fn device_rules(resources: &mut LinuxResources) {
    let rules = resources.devices_mut().get_or_insert_with(Vec::new);
    if !rules.first().is_some_and(is_deny_all) {
        let deny = LinuxDeviceCgroupBuilder::default().allow(false).typ(LinuxDeviceType::A).access("rwm").build();
        rules.insert(0, deny.expect("every field has a default"));
    }
    for rule in rules {
        // Go writes -1 for "any", and leaves the access out when it means all.
        rule.set_major(rule.major().filter(|&number| number >= 0));
        rule.set_minor(rule.minor().filter(|&number| number >= 0));
        if rule.access().as_deref().unwrap_or_default().is_empty() {
            rule.set_access(Some("rwm".to_owned()));
        }
    }
}

fn is_deny_all(rule: &LinuxDeviceCgroup) -> bool {
    let any_type = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
    !rule.allow() && any_type && rule.major().is_none_or(|n| n < 0) && rule.minor().is_none_or(|n| n < 0)
}

/// Bind mounts may leave the type out, and other mounts the source.
fn mount(mount: &mut Mount) {
    let options = mount.options().as_deref().unwrap_or_default();
    let bind = options.iter().any(|option| option == "bind" || option == "rbind");
    if bind && mount.typ().as_deref() != Some("bind") {
        mount.set_typ(Some("bind".to_owned()));
    }
    if mount.source().is_none() {
        let source = mount.typ().clone().unwrap_or_default();
        mount.set_source(Some(source.into()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn absent_capabilities_are_none_at_all() {
        let mut spec = parse(r#"{"process":{"user":{},"cwd":"/","capabilities":{"bounding":["CAP_CHOWN"]}}}"#);
        self::spec(&mut spec);
        let sets = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        for set in [sets.effective(), sets.permitted(), sets.inheritable(), sets.ambient()] {
            assert!(set.as_ref().unwrap().is_empty());
        }
        let mut spec = parse(r#"{"process":{"user":{},"cwd":"/"}}"#);
        self::spec(&mut spec);
        assert!(
            spec.process().as_ref().unwrap().capabilities().as_ref().unwrap().bounding().as_ref().unwrap().is_empty()
        );
    }

    #[test]
    fn an_explicit_false_is_the_same_as_nothing() {
        let mut spec = parse(r#"{"process":{"user":{},"cwd":"/","noNewPrivileges":false}}"#);
        self::spec(&mut spec);
        assert_eq!(spec.process().as_ref().unwrap().no_new_privileges(), None);
    }

    #[test]
    fn a_missing_home_is_left_to_the_payload() {
        for (env, missing) in [(r#"["A=b"]"#, true), (r#"["HOME="]"#, true), (r#"["HOME=/root"]"#, false)] {
            let mut spec = parse(&format!(r#"{{"process":{{"user":{{}},"cwd":"/","env":{env}}}}}"#));
            assert_eq!(self::spec(&mut spec).home_missing, missing, "{env}");
            let env = spec.process().as_ref().unwrap().env().as_ref().unwrap();
            assert_eq!(env.iter().filter(|entry| entry.starts_with("HOME=/")).count(), 1);
        }
    }

    #[test]
    fn devices_are_denied_unless_allowed() {
        let mut spec = parse(r#"{"linux":{}}"#);
        self::spec(&mut spec);
        let rules = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().devices().as_ref().unwrap();
        assert_eq!(rules.len(), 1);
        assert!(is_deny_all(&rules[0]));
        let mut spec = parse(
            r#"{"linux":{"resources":{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":-1}]}}}"#,
        );
        self::spec(&mut spec);
        let rules = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().devices().as_ref().unwrap();
        assert_eq!(rules.len(), 2);
        assert_eq!((rules[1].major(), rules[1].minor()), (Some(1), None));
        assert_eq!(rules[1].access().as_deref(), Some("rwm"));
    }

    #[test]
    fn an_empty_namespace_path_is_a_new_namespace() {
        let mut spec = parse(r#"{"linux":{"namespaces":[{"type":"pid","path":""}],"rootfsPropagation":"rshared"}}"#);
        self::spec(&mut spec);
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap()[0].path(), &None);
        assert_eq!(linux.rootfs_propagation().as_deref(), Some("shared"));
    }
}
