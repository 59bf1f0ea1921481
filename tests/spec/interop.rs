//! A client in another language, written from PROTOCOL.md alone, uses these programs: it registers, logs in, chats,
//! sends and receives files and mail, resumes its session, compares safety numbers, and plays some adversaries.
//!
//! `tests/interop/messenger.py` is that client, `interop.py` the test. They need Python with pycryptodome and
//! pyOpenSSL; without them, the test is skipped with a notice. `.ci/run` installs them.

use crate::support::{run, skip};
use std::path::Path;
use std::process::Command;

/// A Python interpreter that has the packages of the other client.
pub fn python() -> Option<&'static str> {
    let needed = "import OpenSSL\ntry: import Cryptodome\nexcept ImportError: import Crypto";
    let has = |python: &&str| {
        Command::new(python).args(["-c", needed]).output().is_ok_and(|out| out.status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(has)
}

#[test]
fn client_written_from_the_specification_interoperates() {
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
