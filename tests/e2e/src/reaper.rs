//! Clears a cluster away when the test process ends, however it ends: a static is never dropped, and a killed process drops
//! nothing.

use crate::tools;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Waits for the end of its input, that is of this process; then stops the server and deletes its folder.
const SCRIPT: &str = r#"
trap '' INT TERM
cat >/dev/null
[ -d "$2" ] || exit 0
"$1/pg_ctl" -D "$2/data" -m immediate -w -t 30 stop
rm -rf "$2"
"#;

pub struct Reaper(Child);

impl Reaper {
    pub fn new(folder: &Path) -> Self {
        let child = Command::new("sh")
            .args(["-c", SCRIPT, "reaper"])
            .arg(tools::bin())
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        Self(child)
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
