//! Another client, in another language, written from PROTOCOL.md alone, talks with these programs: registers, logs in, chats both ways,
//! sends and receives files, resumes its session, compares safety numbers, and plays some adversaries.
//!
//! `tests/interop/messenger.py` is that client, `interop.py` the conversation. Needs Python with pycryptodome and
//! pyOpenSSL; without them the test says so and is left out, but not in `.ci/run`, which installs them.

use crate::support::{run, skip};
use std::path::Path;
use std::process::Command;

/// A Python that has what the other client needs.
fn python() -> Option<&'static str> {
    let needed = "import OpenSSL\ntry: import Cryptodome\nexcept ImportError: import Crypto";
    let has = |python: &&str| {
        Command::new(python).args(["-c", needed]).output().is_ok_and(|out| out.status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(has)
}

#[test]
fn client_written_from_the_specification_talks_with_this_one() {
    let Some(python) = python() else {
        skip("no Python with pycryptodome and pyOpenSSL is installed");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/interop.py");
    let (server, client) = (env!("CARGO_BIN_EXE_server"), env!("CARGO_BIN_EXE_client"));
    let mut command = Command::new(python);
    command.arg("-B").arg(script).args(["--server", server, "--client", client]);
    let (status, said, complaints) = run(&mut command);
    assert!(status == 0 && said.contains("all ok"), "{said}{complaints}");
}
