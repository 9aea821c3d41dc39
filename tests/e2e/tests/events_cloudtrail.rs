//! Real audit events: 2,900 of CloudTrail, mapped to the standard columns and spread over 18 months. Each stands in its month,
//! and the questions that the indexes are for are answered from the months in question through an index.
//!
//! The file is not part of the project; without it the test says so and passes.

use audit_db_e2e::{Client, Cluster, Session};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The events are repeated, shifted by some minutes each time, so that the tables are large enough for the planner to prefer
/// an index on its own.
const COPIES: i64 = 20;
/// First month of the 18; fixed, so that the test does not depend on today.
const FIRST_YEAR: i64 = 2024;
const MONTHS: usize = 18;

fn file() -> PathBuf {
    std::env::var_os("AUDIT_DB_EVENTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/cloudtrail.ndjson.gz"),
        PathBuf::from,
    )
}

fn events() -> Option<Vec<String>> {
    let path = file();
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    let unpacked = Command::new("gzip").arg("-dc").arg(&path).output().unwrap();
    assert!(unpacked.status.success());
    let text = String::from_utf8(unpacked.stdout).unwrap();
    Some(text.lines().map(str::to_owned).collect())
}

/// Day of an event by its number: spread evenly over 18 months of 28 days, without a calendar library on this side.
fn day(number: usize) -> (usize, usize) {
    (number % MONTHS, (number / MONTHS) % 28)
}

fn month_name(month: usize) -> String {
    format!(
        "{:04}_{:02}",
        FIRST_YEAR as usize + month / 12,
        month % 12 + 1
    )
}

fn load(client: &mut Client, events: &[String]) {
    client.run(
        "SET client_min_messages = error;
         SELECT audit_db.create_audit_log('public.audit_log', retention => NULL, premake => 0);
         SELECT audit_db.create_partitions('public.audit_log', '2024-01-01', 18);
         CREATE TABLE raw (number int, at timestamptz, event jsonb)",
    );
    let mut writer = client
        .copy_in("COPY raw FROM STDIN WITH (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')")
        .unwrap();
    for (number, event) in events.iter().enumerate() {
        let (month, day) = day(number);
        writeln!(
            writer,
            "{number}\u{1}{}-{:02}-{:02} {:02}:{:02}+00\u{1}{event}",
            FIRST_YEAR as usize + month / 12,
            month % 12 + 1,
            day + 1,
            number % 24,
            number % 60
        )
        .unwrap();
    }
    writer.finish().unwrap();
    client.run(&format!(
        "INSERT INTO audit_log (\"timestamp\", action, status, principal_id, principal_type, organization_id, resource_type,
                resource_id, outcome_description, correlation_id, data_classification, metadata)
         SELECT at + copy * interval '1 second', (event ->> 'eventSource') || '/' || (event ->> 'eventName'),
                CASE WHEN event ? 'errorCode' THEN 'failure' ELSE 'success' END,
                event #>> '{{userIdentity,arn}}', event #>> '{{userIdentity,type}}', event ->> 'recipientAccountId',
                coalesce(event #>> '{{resources,0,type}}', event ->> 'eventSource'),
                coalesce(event #>> '{{resources,0,ARN}}', event #>> '{{requestParameters,bucketName}}',
                         event #>> '{{requestParameters,roleName}}', event #>> '{{requestParameters,keyId}}',
                         event ->> 'eventID'),
                event ->> 'errorMessage', event ->> 'requestID', 'internal', event
           FROM raw, generate_series(0, {}) copy;
         ANALYZE audit_log",
        COPIES - 1
    ));
}

/// Relations that a plan scans, and the kinds of its scans.
fn scans(plan: &Value, found: &mut Vec<(String, String)>) {
    if let Some(relation) = plan.get("Relation Name") {
        found.push((
            relation.as_str().unwrap().to_owned(),
            plan["Node Type"].as_str().unwrap().to_owned(),
        ));
    }
    for child in plan
        .get("Plans")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        scans(child, found);
    }
}

fn explain(client: &mut Client, query: &str) -> Vec<(String, String)> {
    let text = client.rows(&format!("EXPLAIN (FORMAT JSON) {query}"));
    let joined: String = text.into_iter().map(|row| row[0].clone()).collect();
    let plan: Value = serde_json::from_str(&joined).unwrap();
    let mut found = Vec::new();
    scans(&plan[0]["Plan"], &mut found);
    assert!(!found.is_empty(), "{plan:#}");
    found
}

#[test]
fn real_events_stand_in_their_months_and_are_found_by_index() {
    let Some(events) = events() else { return };
    assert_eq!(events.len(), 2_900);
    let cluster = Cluster::builder().fast().start();
    let mut client = cluster.database("cloudtrail");
    load(&mut client, &events);

    // Where each event must stand is worked out here, not by the server.
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    for number in 0..events.len() {
        *expected
            .entry(format!("audit_log_{}", month_name(day(number).0)))
            .or_default() += COPIES;
    }
    let stand: BTreeMap<String, i64> = client
        .rows("SELECT tableoid::regclass::text, count(*) FROM audit_log GROUP BY 1")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].parse().unwrap()))
        .collect();
    assert_eq!(stand, expected);
    assert_eq!(stand.len(), MONTHS);
    assert_eq!(
        client.number(
            "SELECT count(*) FROM audit_log a JOIN audit_db.partition_info('audit_log') i ON i.partition = a.tableoid
              WHERE a.\"timestamp\" < i.range_start OR a.\"timestamp\" >= i.range_end"
        ),
        0
    );
    // Nothing of an event was lost on the way.
    assert_eq!(
        client.number(
            "SELECT count(*) FROM raw WHERE NOT EXISTS (SELECT FROM audit_log a WHERE a.\"timestamp\" = raw.at
                AND a.metadata = raw.event)"
        ),
        0
    );

    let one_month = "\"timestamp\" >= '2024-09-01' AND \"timestamp\" < '2024-10-01'";
    let two_months = "\"timestamp\" >= '2024-09-15' AND \"timestamp\" < '2024-10-15'";
    // Somebody with a few events in both ranges.
    let both = "\"timestamp\" >= '2024-09-15' AND \"timestamp\" < '2024-10-01'";
    let one_with_some = |client: &mut Client, column: &str| {
        client.value(&format!(
            "SELECT quote_literal({column}) FROM audit_log WHERE {both} AND {column} IS NOT NULL
              GROUP BY {column} ORDER BY abs(count(*) - 40), {column} LIMIT 1"
        ))
    };
    let principal = one_with_some(&mut client, "principal_id");
    let resource = one_with_some(&mut client, "resource_id");
    let action = one_with_some(&mut client, "action");
    let questions = [
        (
            "newest",
            format!(
                "SELECT * FROM audit_log WHERE {one_month} ORDER BY \"timestamp\" DESC, id DESC LIMIT 50"
            ),
            vec!["audit_log_2024_09"],
        ),
        (
            "by principal",
            format!(
                "SELECT * FROM audit_log WHERE principal_id = {principal} AND {two_months} ORDER BY \"timestamp\" DESC LIMIT 20"
            ),
            vec!["audit_log_2024_09", "audit_log_2024_10"],
        ),
        (
            "by resource",
            format!("SELECT * FROM audit_log WHERE resource_id = {resource} AND {two_months}"),
            vec!["audit_log_2024_09", "audit_log_2024_10"],
        ),
        (
            "by action",
            format!(
                "SELECT * FROM audit_log WHERE action = {action} AND {one_month} ORDER BY \"timestamp\" DESC LIMIT 20"
            ),
            vec!["audit_log_2024_09"],
        ),
    ];
    for (name, query, months) in questions {
        let found = explain(&mut client, &query);
        let mut relations: Vec<&str> = found
            .iter()
            .map(|(relation, _)| relation.as_str())
            .collect();
        relations.sort_unstable();
        relations.dedup();
        assert_eq!(relations, months, "{name}: only these months are read");
        for (relation, kind) in &found {
            assert!(
                kind.contains("Index") || kind == "Bitmap Heap Scan",
                "{name}: {relation} is read by {kind}"
            );
        }
        assert!(
            client.number(&format!("SELECT count(*) FROM ({query}) answer")) > 0,
            "{name} finds nothing"
        );
    }
}
