//! Names of partitions: the table's name and the period, within PostgreSQL's 63 bytes.

/// PostgreSQL's NAMEDATALEN less the terminating zero.
pub const MAX_NAME_BYTES: usize = 63;

/// `table_suffix`. A table name that is too long is cut at a character and marked with a hash of the whole name, so that
/// two long names with the same beginning do not meet in the same partition name.
pub fn partition_name(table: &str, suffix: &str) -> String {
    let whole = format!("{table}_{suffix}");
    if whole.len() <= MAX_NAME_BYTES {
        return whole;
    }
    let mark = format!("{:08x}", fnv1a(table.as_bytes()));
    let room = MAX_NAME_BYTES.saturating_sub(mark.len() + suffix.len() + 2);
    let mut end = room.min(table.len());
    while !table.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}_{mark}_{suffix}", &table[..end])
}

/// FNV-1a, 32 bits: small and stable across versions; names need no more.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_names_are_plain() {
        assert_eq!(partition_name("audit_log", "2026_01"), "audit_log_2026_01");
        let fits = "a".repeat(55);
        assert_eq!(partition_name(&fits, "2026_01"), format!("{fits}_2026_01"));
    }

    #[test]
    fn long_names_keep_apart() {
        let one = format!("{}x", "a".repeat(62));
        let two = format!("{}y", "a".repeat(62));
        assert_ne!(
            partition_name(&one, "2026_01"),
            partition_name(&two, "2026_01")
        );
        assert!(partition_name(&one, "2026_01").ends_with("_2026_01"));
    }

    #[test]
    fn cuts_between_characters() {
        let umlauts = "ä".repeat(31);
        let name = partition_name(&umlauts, "2026_01_31");
        assert!(name.len() <= MAX_NAME_BYTES);
        assert!(name.starts_with('ä'));
    }

    proptest! {
        #[test]
        fn always_fits(table in "\\PC{1,63}", suffix in "[a-z0-9_]{4,20}") {
            let name = partition_name(&table, &suffix);
            prop_assert!(name.len() <= MAX_NAME_BYTES);
            prop_assert!(name.ends_with(&suffix));
        }
    }
}
