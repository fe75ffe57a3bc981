//! Device rules. On cgroup v1 they are lines in two files; on cgroup v2 a BPF program of our own, attached to the container's cgroup before `start`.
//!
//! cgroup v2 has no device files; the kernel asks a program for every open and mknod of a device. The program walks the
//! rules from the last to the first and keeps the accesses that are still to be decided: for each of read, write and
//! mknod the last rule that matches decides, as if the rules had been written to cgroup v1 one after the other.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::Failure;
use crate::sys::{self, BpfAttr};

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// One instruction, as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_NOT: u8 = 0x56;
const JUMP_IF: u8 = 0x16;
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

/// A rule with nothing left to interpret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Rule {
    allow: bool,
    /// `None` is any.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    fn from_spec(rule: &LinuxDeviceCgroup) -> Rule {
        let number = |value: Option<i64>| value.and_then(|value| i32::try_from(value).ok()).filter(|&value| value >= 0);
        let bit = |(letter, bit): (char, i32)| {
            if rule.access().as_deref().unwrap_or("rwm").contains(letter) { bit } else { 0 }
        };
        Rule {
            allow: rule.allow(),
            kind: match rule.typ() {
                Some(LinuxDeviceType::B) => Some(BLOCK),
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
                _ => None,
            },
            major: number(rule.major()),
            minor: number(rule.minor()),
            access: [('r', READ), ('w', WRITE), ('m', MKNOD)].map(bit).iter().sum(),
        }
    }

    /// The rule as cgroup v1 wants it.
    fn line(&self) -> String {
        let kind = match self.kind {
            Some(BLOCK) => 'b',
            Some(_) => 'c',
            None => 'a',
        };
        let number = |number: Option<i32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let access: String = [('r', READ), ('w', WRITE), ('m', MKNOD)]
            .iter()
            .filter(|(_, bit)| self.access & bit != 0)
            .map(|(c, _)| c)
            .collect();
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }

    /// The instructions that apply the rule, or fall through to the next one.
    fn instructions(&self) -> Vec<Instruction> {
        let mut verdict = Vec::new();
        if self.allow {
            // What this rule allows needs no further decision.
            verdict.push(op(AND, ACCESS, 0, 0, !self.access));
            verdict.push(op(JUMP_IF_NOT, ACCESS, 0, 2, 0));
        } else {
            verdict.push(op(MOVE_REGISTER, CONTEXT, ACCESS, 0, 0));
            verdict.push(op(AND, CONTEXT, 0, 0, self.access));
            verdict.push(op(JUMP_IF, CONTEXT, 0, 2, 0));
        }
        verdict.push(op(MOVE, RESULT, 0, 0, i32::from(self.allow)));
        verdict.push(op(EXIT, 0, 0, 0, 0));
        let conditions: Vec<(u8, i32)> = [(TYPE, self.kind), (MAJOR, self.major), (MINOR, self.minor)]
            .into_iter()
            .filter_map(|(register, value)| Some((register, value?)))
            .collect();
        let mut all = Vec::new();
        for (index, &(register, value)) in conditions.iter().enumerate() {
            let over = conditions.len() - index - 1 + verdict.len();
            let offset = i16::try_from(over).expect("a rule has fewer than ten instructions");
            all.push(op(JUMP_IF_NOT, register, 0, offset, value));
        }
        all.extend(verdict);
        all
    }
}

/// What every container may use, whatever its rules: runc allows the same.
fn always_allowed() -> Vec<Rule> {
    let all = READ | WRITE | MKNOD;
    let character = |major, minor| Rule { allow: true, kind: Some(CHARACTER), major: Some(major), minor, access: all };
    let make = |kind| Rule { allow: true, kind: Some(kind), major: None, minor: None, access: MKNOD };
    let mut rules = vec![make(CHARACTER), make(BLOCK)];
    // null, zero, full, random, urandom; tty, console, ptmx; the pseudo-terminals.
    rules.extend([3, 5, 7, 8, 9].map(|minor| character(1, Some(minor))));
    rules.extend([0, 2].map(|minor| character(5, Some(minor))));
    rules.push(character(136, None));
    rules
}

/// The program for these rules and those that hold always.
fn program(rules: &[LinuxDeviceCgroup]) -> Vec<Instruction> {
    let rules: Vec<Rule> = rules.iter().map(Rule::from_spec).chain(always_allowed()).collect();
    let mut program = vec![
        op(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        op(MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(AND, TYPE, 0, 0, 0xffff),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(rule.instructions());
        // A rule without conditions that denies everything ends the matter; the kernel refuses unreachable code.
        if !rule.allow && rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none() {
            break;
        }
    }
    program.push(op(MOVE, RESULT, 0, 0, 0));
    program.push(op(EXIT, 0, 0, 0, 0));
    program
}

/// Writes the rules to a cgroup v1 `devices` directory; those that hold always come last, as in the program.
///
/// # Errors
/// When the kernel refuses one.
pub(crate) fn write(dir: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), Failure> {
    for rule in rules.iter().map(Rule::from_spec).chain(always_allowed()) {
        let file = dir.join(if rule.allow { "devices.allow" } else { "devices.deny" });
        std::fs::write(&file, rule.line()).map_err(Failure::file("write a device rule to", file))?;
    }
    Ok(())
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
/// By this name our programs are known again.
const NAME: [u8; 16] = *b"holdfast_devices";

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}
impl BpfAttr for LoadAttr {}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}
impl BpfAttr for AttachAttr {}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}
impl BpfAttr for QueryAttr {}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}
impl BpfAttr for IdAttr {}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}
impl BpfAttr for InfoAttr {}

/// The beginning of `struct bpf_prog_info`, up to the name.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by_uid: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

fn number(fd: &impl AsRawFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("descriptors are not negative")
}

/// Attaches the program for these rules to the cgroup, in the place of an earlier one of ours.
///
/// # Errors
/// When the kernel refuses the program.
pub(crate) fn enforce(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), Failure> {
    let dir = File::open(cgroup).map_err(Failure::file("open the cgroup", cgroup))?;
    let earlier = attached(&dir).map_err(Failure::sys("list the device programs of the cgroup"))?;
    let program = load(&program(rules)).map_err(Failure::sys("load the device program"))?;
    let mut attach = AttachAttr {
        target_fd: number(&dir),
        attach_bpf_fd: number(&program),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    sys::bpf(PROG_ATTACH, &mut attach).map_err(Failure::sys("attach the device program"))?;
    // All attached programs must agree, so that there is no moment without rules.
    for program in earlier {
        let mut detach = AttachAttr { attach_bpf_fd: number(&program), attach_flags: 0, ..attach };
        sys::bpf(PROG_DETACH, &mut detach).map_err(Failure::sys("detach the earlier device program"))?;
        attach = detach;
    }
    Ok(())
}

fn load(instructions: &[Instruction]) -> Result<OwnedFd, Errno> {
    let license = c"Apache-2.0";
    let mut attr = LoadAttr {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name: name(),
        ..LoadAttr::default()
    };
    sys::bpf(PROG_LOAD, &mut attr).map(sys::bpf_fd)
}

/// The kernel wants the name to end in a zero byte.
fn name() -> [u8; 16] {
    let mut name = NAME;
    name[15] = 0;
    name
}

/// Our programs that are attached to the cgroup already; systemd's stay.
fn attached(dir: &File) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0u32; 64];
    let mut query = QueryAttr {
        target_fd: number(dir),
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        ..QueryAttr::default()
    };
    sys::bpf(PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.prog_cnt).unwrap_or(0).min(ids.len());
    let mut ours = Vec::new();
    for &id in &ids[..count] {
        let mut attr = IdAttr { id, ..IdAttr::default() };
        let program = sys::bpf(PROG_GET_FD_BY_ID, &mut attr).map(sys::bpf_fd)?;
        let mut info = ProgInfo::default();
        let mut attr = InfoAttr {
            bpf_fd: number(&program),
            info_len: u32::try_from(size_of::<ProgInfo>()).unwrap_or(0),
            info: &raw mut info as u64,
        };
        sys::bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
        if info.name == name() {
            ours.push(program);
        }
    }
    Ok(ours)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Runs the program as the kernel would.
    fn decide(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0i32; 6];
        let mut at = 0;
        loop {
            let instruction = program[at];
            let (to, from) = (usize::from(instruction.registers & 15), usize::from(instruction.registers >> 4));
            let immediate = instruction.immediate;
            at += 1;
            let jump = match instruction.code {
                LOAD_WORD => {
                    registers[to] = context[usize::try_from(instruction.offset).unwrap() / 4];
                    false
                }
                MOVE_REGISTER => {
                    registers[to] = registers[from];
                    false
                }
                MOVE => {
                    registers[to] = immediate;
                    false
                }
                AND => {
                    registers[to] &= immediate;
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] = (registers[to].cast_unsigned() >> immediate).cast_signed();
                    false
                }
                JUMP_IF_NOT => registers[to] != immediate,
                JUMP_IF => registers[to] == immediate,
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            };
            if jump {
                at += usize::try_from(instruction.offset).unwrap();
            }
        }
    }

    fn rules(json: &str) -> Vec<Instruction> {
        program(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap())
    }

    #[test]
    fn what_no_rule_allows_is_denied() {
        let program = rules(r#"[{"allow":false,"access":"rwm"}]"#);
        assert!(!decide(&program, BLOCK, READ, 8, 0), "a disk");
        assert!(!decide(&program, CHARACTER, READ, 1, 1), "memory");
        assert!(decide(&program, CHARACTER, READ | WRITE, 1, 3), "null");
        assert!(decide(&program, CHARACTER, READ | WRITE, 136, 7), "a pseudo-terminal");
        assert!(decide(&program, BLOCK, MKNOD, 8, 0), "making a node is harmless");
    }

    #[test]
    fn the_last_rule_that_matches_decides_each_access() {
        let program = rules(
            r#"[{"allow":false,"access":"rwm"},
                {"allow":true,"type":"b","major":8,"access":"r"},
                {"allow":true,"type":"b","major":8,"minor":1,"access":"w"},
                {"allow":false,"type":"b","major":8,"minor":2,"access":"r"}]"#,
        );
        assert!(decide(&program, BLOCK, READ, 8, 0));
        assert!(!decide(&program, BLOCK, WRITE, 8, 0));
        assert!(decide(&program, BLOCK, READ | WRITE, 8, 1), "two rules together");
        assert!(!decide(&program, BLOCK, READ, 8, 2));
        assert!(!decide(&program, CHARACTER, READ, 8, 0));
    }

    #[test]
    fn rules_are_written_as_v1_reads_them() {
        let line = |json: &str| Rule::from_spec(&serde_json::from_str(json).unwrap()).line();
        assert_eq!(line(r#"{"allow":false,"access":"rwm"}"#), "a *:* rwm");
        assert_eq!(line(r#"{"allow":true,"type":"c","major":136,"access":"rw"}"#), "c 136:* rw");
        assert_eq!(line(r#"{"allow":true,"type":"b","major":8,"minor":1,"access":"mr"}"#), "b 8:1 rm");
    }

    #[test]
    fn everything_can_be_allowed() {
        let program = rules(r#"[{"allow":false,"access":"rwm"},{"allow":true,"access":"rwm"}]"#);
        assert!(decide(&program, BLOCK, READ | WRITE | MKNOD, 8, 0));
        assert!(decide(&program, CHARACTER, READ, 1, 1));
    }

    #[test]
    fn nothing_after_a_final_denial_is_emitted() {
        let one = rules(r#"[{"allow":false,"access":"rwm"}]"#);
        let two = rules(r#"[{"allow":true,"type":"b","access":"r"},{"allow":false,"access":"rwm"}]"#);
        assert_eq!(one, two);
    }
}
