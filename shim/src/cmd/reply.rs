//! What `start` prints: the address of the shim, in the form that the daemon understands best (contract 0.1, 0.2).
//!
//! | daemon | told by | reply |
//! |---|---|---|
//! | containerd 2.3 and later | its start message | a `BootstrapResult`: what that protocol defines, and what containerd's own shim sends. A plain address is understood as well, but as a transition only |
//! | 1.7 to 2.2 | `MAX_SHIM_VERSION` | the plain address: all of them understand it, and nothing tells 1.7 from 2.x |
//! | 1.6 | neither | the plain address: the one form that it knows |
//!
//! The version is 2 unless [`VERSION_VARIABLE`] asks for 3, and never more than the shim serves that is already there. With
//! version 2 the daemon has a connection of its own for every container and cleans up after each; 3 is for the sandbox
//! API. A 1.7 refuses version 3, so without the start message it takes an administrator's word that there is none.

use containerd_shim_protos::bootstrap_api::BootstrapResult;

use crate::cli::Bootstrap;
use crate::wire;

/// The variable that asks for version 3: [`WHEN_CERTAIN`] or [`SINCE_2_0`].
const VERSION_VARIABLE: &str = "HOLDFAST_BOOTSTRAP_VERSION";
/// Version 3 for a daemon that has shown to be 2.3 or later.
const WHEN_CERTAIN: &str = "3";
/// Version 3 for whatever could be 2.0 or later.
const SINCE_2_0: &str = "3-since-2.0";

/// The version that every daemon knows.
const PLAIN: i32 = 2;
/// The version that [`VERSION_VARIABLE`] asks for.
const SANDBOXED: i32 = 3;

/// The form of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Address,
    Json,
    Message,
}

/// How a daemon is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    form: Form,
    version: i32,
}

impl Reply {
    /// Chooses the reply for a daemon.
    pub(super) fn choose(bootstrap: &Bootstrap, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let wish = env(VERSION_VARIABLE).unwrap_or_default();
        match wish.as_str() {
            WHEN_CERTAIN | SINCE_2_0 if bootstrap.new_protocol => Self { form: Form::Message, version: SANDBOXED },
            _ if bootstrap.new_protocol => Self { form: Form::Message, version: PLAIN },
            SINCE_2_0 if env("MAX_SHIM_VERSION").is_some() => Self { form: Form::Json, version: SANDBOXED },
            _ => Self { form: Form::Address, version: PLAIN },
        }
    }

    /// The bytes for a shim at `address` that serves task services up to version `served`.
    pub(super) fn bytes(self, address: &str, served: i32) -> Vec<u8> {
        let version = self.version.min(served.max(PLAIN));
        match self.form {
            Form::Address => address.as_bytes().to_vec(),
            Form::Json => {
                let text = serde_json::json!({ "version": version, "address": address, "protocol": "ttrpc" });
                text.to_string().into_bytes()
            }
            Form::Message => wire::bytes(&BootstrapResult {
                version,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..BootstrapResult::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "unix:///s/ab";

    fn reply(new_protocol: bool, variables: &[(&str, &str)], served: i32) -> Vec<u8> {
        let env = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Reply::choose(&Bootstrap { new_protocol, ..Bootstrap::default() }, &env).bytes(ADDRESS, served)
    }

    #[test]
    fn trap_53_no_daemon_is_answered_in_a_form_or_version_that_it_may_not_know() {
        let max = ("MAX_SHIM_VERSION", "2");
        let wish = |value| (VERSION_VARIABLE, value);
        let plain = ADDRESS.as_bytes();
        for (variables, what) in [
            (vec![], "1.6"),
            (vec![max], "1.7 to 2.2"),
            (vec![max, wish("2")], "a wish for what is so anyway"),
            (vec![max, wish("3")], "perhaps 1.7: nobody has said that it is not"),
            (vec![wish("3")], "1.6, whatever is wished for"),
            (vec![wish(SINCE_2_0)], "1.6, whatever is promised"),
            (vec![max, wish("4")], "a wish that does not exist"),
        ] {
            assert_eq!(reply(false, &variables, 3), plain, "{what}");
        }
        let json = br#"{"address":"unix:///s/ab","protocol":"ttrpc","version":3}"#;
        assert_eq!(reply(false, &[max, wish(SINCE_2_0)], 3), json);
    }

    #[test]
    fn the_bytes_for_the_start_message_are_fixed() {
        let message = |version: u8| {
            let mut bytes = vec![8, version, 0x12, 12];
            bytes.extend(ADDRESS.as_bytes());
            bytes.extend(b"\x1a\x05ttrpc");
            bytes
        };
        assert_eq!(reply(true, &[], 3), message(2));
        for wish in [WHEN_CERTAIN, SINCE_2_0] {
            assert_eq!(reply(true, &[(VERSION_VARIABLE, wish)], 3), message(3));
        }
        // Some daemons trim white space off the reply before they decode it: there must be none at either end.
        assert_eq!(message(2), message(2).trim_ascii());
    }

    #[test]
    fn no_more_is_promised_than_the_shim_serves() {
        let wish = [(VERSION_VARIABLE, "3")];
        assert_eq!(reply(true, &wish, 2), reply(true, &[], 2));
        assert_ne!(reply(true, &wish, 3), reply(true, &wish, 2));
    }
}
