//! Generates the Rust side of `protos/` with a parser written in Rust: no `protoc` is needed.

use std::path::{Path, PathBuf};
use std::{env, fs};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    println!("cargo:rerun-if-changed=protos");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    Codegen::new()
        .inputs(["protos/holdfast/control.proto", "protos/holdfast/supervisor.proto"])
        .include("protos")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, ..Customize::default() })
        .out_dir(&out)
        .run()
        .expect("protos/ can be compiled");
    for entry in fs::read_dir(&out).expect("OUT_DIR can be read") {
        let path = entry.expect("OUT_DIR can be listed").path();
        if path.extension().is_some_and(|e| e == "rs") {
            strip_inner_attributes(&path);
        }
    }
}

/// `include!` rejects inner attributes and inner doc comments, which the generators write at the top of each file.
fn strip_inner_attributes(path: &Path) {
    let text = fs::read_to_string(path).expect("generated code is text");
    let kept: Vec<&str> = text.lines().filter(|l| !l.starts_with("#!") && !l.starts_with("//!")).collect();
    fs::write(path, kept.join("\n")).expect("generated code can be rewritten");
}
