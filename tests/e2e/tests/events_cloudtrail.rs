//! Real events: 2,900 records of AWS CloudTrail, spread over 18 months, stand where they belong and are found by index.

use audit_db_e2e::{Client, Cluster, Session, cloudtrail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

const MONTHS: usize = 18;

/// One event as it is stored; the time is `month` (counted from the oldest) and a time in it.
struct Event {
    month: usize,
    at: String,
    fields: Vec<Option<String>>,
}

/// Order of `Event::fields`.
const COLUMNS: &str =
    "action, status, principal_id, principal_type, organization_id, resource_type, resource_id,
                       outcome_description, correlation_id, metadata";
const ACTION: usize = 0;
const PRINCIPAL: usize = 2;
const RESOURCE: usize = 6;

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// What the event was about: its first resource, else the first parameter that names something.
fn resource(event: &Value) -> (Option<String>, Option<String>) {
    let first = &event["resources"][0];
    if let Some(name) = text(&first["ARN"]) {
        return (text(&first["type"]), Some(name));
    }
    let Some(parameters) = event["requestParameters"].as_object() else {
        return (None, None);
    };
    parameters
        .iter()
        .find_map(|(key, value)| Some((Some(key.clone()), Some(text(value)?))))
        .unwrap_or_default()
}

/// `first` is the oldest month, counted in months since the year 0.
fn event(number: usize, line: &str, first: usize) -> Event {
    let event: Value = serde_json::from_str(line).expect("a JSON record");
    let identity = &event["userIdentity"];
    let (resource_type, resource_id) = resource(&event);
    let (month, turn) = (number % MONTHS, number / MONTHS);
    let calendar = first + month;
    // Every month gets days 1 to 28, so that each has the time.
    let at = format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}+00",
        calendar / 12,
        calendar % 12 + 1,
        1 + turn % 28,
        number % 24,
        number % 60,
        turn % 60,
        number
    );
    Event {
        month,
        at,
        fields: vec![
            Some(format!(
                "{}/{}",
                event["eventSource"].as_str().expect("eventSource"),
                event["eventName"].as_str().expect("eventName")
            )),
            Some(
                if event["errorCode"].is_null() {
                    "success"
                } else {
                    "failure"
                }
                .to_owned(),
            ),
            text(&identity["arn"])
                .or_else(|| text(&identity["invokedBy"]))
                .or_else(|| text(&identity["principalId"])),
            text(&identity["type"]),
            text(&event["recipientAccountId"]),
            resource_type,
            resource_id,
            text(&event["errorMessage"]),
            text(&event["requestID"]),
            Some(line.to_owned()),
        ],
    }
}

fn csv(field: &str) -> String {
    format!("\"{}\"", field.replace('"', "\"\""))
}

fn load(client: &mut Client, events: &[Event]) {
    let mut writer = client
        .copy_in(&format!(
            "COPY events (\"timestamp\", {COLUMNS}) FROM STDIN (FORMAT csv)"
        ))
        .expect("COPY");
    for event in events {
        let mut line = event.at.clone();
        for field in &event.fields {
            line.push(',');
            line.push_str(&field.as_deref().map(csv).unwrap_or_default());
        }
        line.push('\n');
        writer.write_all(line.as_bytes()).expect("COPY");
    }
    assert_eq!(writer.finish().expect("COPY"), events.len() as u64);
}

/// Relations that a plan scans, and the scans that are not by index.
fn scans(plan: &Value, relations: &mut BTreeSet<String>, others: &mut Vec<String>) {
    let kind = plan["Node Type"].as_str().unwrap_or_default();
    if let Some(relation) = plan["Relation Name"].as_str() {
        relations.insert(relation.to_owned());
        if !matches!(kind, "Index Scan" | "Index Only Scan" | "Bitmap Heap Scan") {
            others.push(format!("{kind} on {relation}"));
        }
    }
    for child in plan["Plans"].as_array().into_iter().flatten() {
        scans(child, relations, others);
    }
}

/// Asserts that a query scans these partitions, each by index, and returns its rows.
#[track_caller]
fn by_index(client: &mut Client, sql: &str, partitions: &BTreeSet<String>) -> Vec<Vec<String>> {
    let explained = client
        .column(&format!("EXPLAIN (FORMAT JSON) {sql}"))
        .join("\n");
    let plan: Value = serde_json::from_str(&explained).expect("a plan");
    let (mut relations, mut others) = (BTreeSet::new(), Vec::new());
    scans(&plan[0]["Plan"], &mut relations, &mut others);
    assert_eq!(&relations, partitions, "{sql}\n{explained}");
    assert_eq!(others, Vec::<String>::new(), "{sql}\n{explained}");
    client.rows(sql)
}

#[test]
fn real_events_stand_in_their_months_and_are_found_by_index() {
    let Some(lines) = cloudtrail::lines() else {
        return;
    };
    let cluster = Cluster::builder().fast().start();
    let mut client = cluster.database("events");
    client.run("SET TimeZone = 'UTC'; SELECT audit_db.create_audit_log('events', premake => 2)");
    // The months that end with this one.
    let this = client.rows("SELECT extract(year FROM now()), extract(month FROM now())");
    let this = this[0][0].parse::<usize>().unwrap() * 12 + this[0][1].parse::<usize>().unwrap() - 1;
    let first = this + 1 - MONTHS;
    let partition = |month: usize| {
        format!(
            "events_{:04}_{:02}",
            (first + month) / 12,
            (first + month) % 12 + 1
        )
    };
    let start = |month: usize| {
        format!(
            "'{:04}-{:02}-01 00:00+00'",
            (first + month) / 12,
            (first + month) % 12 + 1
        )
    };
    client.run(&format!(
        "SELECT audit_db.create_partitions('events', {}, {MONTHS})",
        start(0)
    ));

    let events: Vec<Event> = lines
        .iter()
        .enumerate()
        .map(|(number, line)| event(number, line, first))
        .collect();
    load(&mut client, &events);
    client.run("ANALYZE events");

    // Each in the partition of its month: by name as counted here, and by the range that the partition says it has.
    let mut expected = BTreeMap::new();
    for event in &events {
        *expected.entry(partition(event.month)).or_insert(0) += 1;
    }
    assert_eq!(expected.len(), MONTHS);
    let expected: Vec<Vec<String>> = expected
        .into_iter()
        .map(|(partition, count)| vec![partition, count.to_string()])
        .collect();
    assert_eq!(
        client.rows("SELECT tableoid::regclass::text, count(*) FROM events GROUP BY 1 ORDER BY 1"),
        expected
    );
    assert_eq!(
        client.value(
            "SELECT count(*) FROM events e JOIN audit_db.partition_info('events') i ON i.partition = e.tableoid
              WHERE e.\"timestamp\" < i.range_start OR e.\"timestamp\" >= i.range_end"
        ),
        "0"
    );
    assert_eq!(
        client.value("SELECT count(*) FROM audit_db.partition_info('events') WHERE range_start IS NULL AND record_count = 0"),
        "1"
    );
    // Nothing was changed on the way.
    for number in [0, events.len() / 2, events.len() - 1] {
        assert_eq!(
            client.column(&format!(
                "SELECT metadata = {}::jsonb FROM events WHERE \"timestamp\" = '{}'",
                quoted(&lines[number]),
                events[number].at
            )),
            ["t"]
        );
    }

    questions(&mut client, &events, &partition, &start);
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The four questions that the indexes are for, over three months in the middle; each answer is also worked out here.
fn questions(
    client: &mut Client,
    events: &[Event],
    partition: &dyn Fn(usize) -> String,
    start: &dyn Fn(usize) -> String,
) {
    let months = 7..10;
    let partitions: BTreeSet<String> = months.clone().map(partition).collect();
    let range = format!(
        "\"timestamp\" >= {} AND \"timestamp\" < {}",
        start(months.start),
        start(months.end)
    );
    for (column, index) in [
        ("principal_id", PRINCIPAL),
        ("resource_id", RESOURCE),
        ("action", ACTION),
    ] {
        // Of the values that come up most often the one that is still a question for an index: under a tenth of the rows.
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for value in events
            .iter()
            .filter_map(|event| event.fields[index].as_deref())
        {
            *counts.entry(value).or_default() += 1;
        }
        let (value, _) = counts
            .into_iter()
            .filter(|(_, count)| *count < events.len() / 10)
            .max_by_key(|(_, count)| *count)
            .expect("a value");
        let mut expected: Vec<&str> = events
            .iter()
            .filter(|event| {
                months.contains(&event.month) && event.fields[index].as_deref() == Some(value)
            })
            .map(|event| event.at.as_str())
            .collect();
        expected.sort_unstable();
        assert!(expected.len() > 3, "{column} {value}");
        let found = by_index(
            client,
            &format!(
                "SELECT to_char(\"timestamp\", 'YYYY-MM-DD HH24:MI:SS.US+00') FROM events
                  WHERE {column} = {} AND {range} ORDER BY \"timestamp\"",
                quoted(value)
            ),
            &partitions,
        );
        assert_eq!(found.concat(), expected, "{column} {value}");
    }

    let mut newest: Vec<(usize, &str)> = events
        .iter()
        .map(|event| (event.month, event.at.as_str()))
        .collect();
    newest.sort_unstable();
    newest.reverse();
    let newest_of = |wanted: &dyn Fn(usize) -> bool| -> Vec<String> {
        newest
            .iter()
            .filter(|(month, _)| wanted(*month))
            .take(20)
            .map(|(_, at)| (*at).to_owned())
            .collect()
    };
    let newest_first = "ORDER BY \"timestamp\" DESC, id DESC LIMIT 20";
    let at = "to_char(\"timestamp\", 'YYYY-MM-DD HH24:MI:SS.US+00')";
    let found = by_index(
        client,
        &format!("SELECT {at} FROM events WHERE {range} {newest_first}"),
        &partitions,
    );
    assert_eq!(found.concat(), newest_of(&|month| months.contains(&month)));
    // Without a range every partition is asked for its newest, none is read through.
    let all = client
        .column("SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'events'::regclass")
        .into_iter()
        .collect();
    let found = by_index(
        client,
        &format!("SELECT {at} FROM events {newest_first}"),
        &all,
    );
    assert_eq!(found.concat(), newest_of(&|_| true));
}
