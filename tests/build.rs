//! Generates the messages of `protos/` with a parser written in Rust: no `protoc` is needed.

use std::path::PathBuf;
use std::{env, fs};

use ttrpc_codegen::{Codegen, ProtobufCustomize};

const NAMES: [&str; 3] = ["containerd", "cri", "sandbox"];

fn main() {
    println!("cargo:rerun-if-changed=protos");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    Codegen::new()
        .inputs(NAMES.map(|name| format!("protos/{name}.proto")))
        .include("protos")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .out_dir(&out)
        .run()
        .expect("protos/ can be compiled");
    // `include!` rejects inner attributes and inner doc comments.
    for name in NAMES {
        let path = out.join(format!("{name}.rs"));
        let text = fs::read_to_string(&path).expect("the generator has written it");
        let kept: Vec<&str> = text.lines().filter(|l| !l.starts_with("#!") && !l.starts_with("//!")).collect();
        fs::write(path, kept.join("\n")).expect("it can be rewritten");
    }
}
