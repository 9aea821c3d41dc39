//! Real events: 2,900 records of AWS CloudTrail.

use std::path::PathBuf;
use std::process::Command;

/// The file, unless it is not there.
pub fn lines() -> Option<Vec<String>> {
    let path = std::env::var_os("AUDIT_DB_EVENTS").map_or_else(
        || {
            PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("../../../shared/data/cloudtrail.ndjson.gz")
        },
        PathBuf::from,
    );
    if !path.exists() {
        println!(
            "skipped: {} is not there; AUDIT_DB_EVENTS names a gzipped file of CloudTrail records, one a line",
            path.display()
        );
        return None;
    }
    let output = Command::new("gzip")
        .arg("-dc")
        .arg(&path)
        .output()
        .expect("gzip");
    assert!(output.status.success(), "{}", path.display());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    Some(text.lines().map(str::to_owned).collect())
}
