//! A table with two million rows in its default partition is taken over while sessions write and read.

use audit_db_e2e::{Client, Cluster, SOON, Session, wait_until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROWS: i64 = 2_000_000;
const MONTHS: i64 = 24;
const PRINCIPALS: i64 = 2_000;
const WRITERS: usize = 4;
const READERS: usize = 2;
/// Copying and indexing two million rows on a busy machine.
const LONG: Duration = Duration::from_secs(300);

const TABLE: &str = r#"
CREATE SEQUENCE log_id_seq;
CREATE TABLE log (
    id bigint NOT NULL DEFAULT nextval('log_id_seq'), "timestamp" timestamptz NOT NULL, action text NOT NULL, status text NOT NULL,
    principal_id text, resource_type text, resource_id text, metadata jsonb) PARTITION BY RANGE ("timestamp");
ALTER SEQUENCE log_id_seq OWNED BY log.id;
CREATE TABLE log_default PARTITION OF log DEFAULT"#;

const INDEXES: &str = r#"
ALTER TABLE log ADD PRIMARY KEY ("timestamp", id);
CREATE INDEX ON log (principal_id, "timestamp");
CREATE INDEX ON log (resource_id, "timestamp");
CREATE INDEX ON log (action, "timestamp")"#;

/// Spread evenly over 24 months up to now.
fn fill(client: &mut Client) {
    client.run("SET statement_timeout = 0; SET synchronous_commit = off");
    client.run(&format!(
        "INSERT INTO log (\"timestamp\", action, status, principal_id, resource_type, resource_id, metadata)
         SELECT start + n * (now() - start) / {ROWS}.0, (ARRAY['read', 'write', 'login', 'export'])[1 + n % 4], 'success',
                'user' || n % {PRINCIPALS}, 'seed', md5((n % 50000)::text), jsonb_build_object('session', md5(n::text))
           FROM (SELECT date_trunc('month', now(), 'UTC') - make_interval(months => {MONTHS} - 1)) t(start),
                generate_series(1, {ROWS}::bigint) n"
    ));
    // Afterwards: that is faster.
    client.run(INDEXES);
    client.run("ANALYZE log");
}

fn hash_of_seed(client: &mut Client) -> Vec<Vec<String>> {
    client.rows(
        "SELECT count(*), sum(hash_record_extended(ROW(log.*), 0)) FROM log WHERE resource_type = 'seed'",
    )
}

#[test]
fn two_million_rows_go_to_their_months_while_everybody_works_on() {
    let cluster = Cluster::builder()
        .fast()
        .set("shared_buffers", "512MB")
        .set("max_wal_size", "8GB")
        .start();
    let mut client = cluster.database("adopt");
    client.run(TABLE);
    fill(&mut client);
    let before = hash_of_seed(&mut client);
    assert_eq!(before[0][0], ROWS.to_string());

    // It began before, and keeps its snapshot.
    let mut old = cluster.connect("adopt");
    old.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    let seen_by_old = old.rows("SELECT count(*), min(id), max(id) FROM log");

    let working = AtomicBool::new(true);
    let emptied =
        "SELECT count(*) FROM audit_db.events_log WHERE event = 'default partition emptied'";
    let (total, after_old, written, reads) = std::thread::scope(|scope| {
        let working = &working;
        let _stop = Stop(working);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut session = cluster.connect("adopt");
                scope.spawn(move || write(&mut session, writer as i64, working))
            })
            .collect();
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let mut session = cluster.connect("adopt");
                scope.spawn(move || read(&mut session, reader as i64, working))
            })
            .collect();
        let started = Instant::now();
        client.run("SELECT audit_db.manage_table('log', premake => 3)");
        wait_until("the worker waits for the old snapshot", LONG, || {
            client.value(
                "SELECT count(*) FROM pg_stat_activity
                  WHERE backend_type = 'audit_db slow worker' AND query LIKE '%waiting for older snapshots%'",
            ) == "1"
        });
        // It waits as long as the snapshot is there, and holds no lock meanwhile.
        let waiting = Instant::now();
        while waiting.elapsed() < Duration::from_secs(2) {
            assert_eq!(client.number(emptied), 0);
            assert_eq!(
                client.number(
                    "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                      WHERE a.backend_type = 'audit_db slow worker' AND l.relation = 'log'::regclass
                        AND l.mode IN ('ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
                ),
                0
            );
        }
        assert_eq!(
            old.rows("SELECT count(*), min(id), max(id) FROM log"),
            seen_by_old,
            "the old snapshot sees what it saw"
        );
        old.run("COMMIT");
        let committed = Instant::now();
        wait_until("the default partition is emptied", LONG, || {
            client.number(emptied) == 1
        });
        let times = (started.elapsed(), committed.elapsed());
        wait_until("the old default partition is gone", LONG, || {
            client.holds("SELECT NOT EXISTS (SELECT FROM audit_db.unfinished)")
        });
        // Some more of both in the new partitions.
        let written_then = client.number("SELECT count(*) FROM log WHERE resource_type = 'new'");
        wait_until("writers go on", SOON, || {
            client.number("SELECT count(*) FROM log WHERE resource_type = 'new'")
                > written_then + 100
        });
        working.store(false, Ordering::Relaxed);
        let written: Vec<_> = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect();
        let reads: Vec<_> = readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .collect();
        (times.0, times.1, written, reads)
    });

    assert_eq!(
        hash_of_seed(&mut client),
        before,
        "none lost, none doubled, none changed"
    );
    for (writer, (rows, _)) in written.iter().enumerate() {
        assert_eq!(
            client.rows(&format!(
                "SELECT count(*), count(DISTINCT resource_id) FROM log WHERE resource_type = 'new' AND principal_id = 'writer{writer}'"
            )),
            [[rows.to_string(), rows.to_string()]],
            "every acknowledged row of writer {writer}, once"
        );
    }
    assert_eq!(client.value("SELECT count(*) FROM log_default"), "0");
    assert_eq!(
        client.number("SELECT count(DISTINCT tableoid) FROM log WHERE resource_type = 'seed'"),
        MONTHS
    );
    assert_eq!(
        client.number(
            "SELECT count(*) FROM log JOIN audit_db.partition_info('log') p ON p.partition = log.tableoid
              WHERE \"timestamp\" < range_start OR \"timestamp\" >= range_end"
        ),
        0,
        "every row is in its month"
    );
    // The months are the table's equals, and nothing of ours is left.
    assert_eq!(
        client.column(
            "SELECT c.relname FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
              WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND i.inhrelid IS NULL"
        ),
        ["log"]
    );
    assert_eq!(
        client.number(
            "SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
              WHERE NOT tgisinternal AND c.relnamespace <> 'audit_db'::regnamespace"
        ),
        0
    );
    assert_eq!(
        client.number("SELECT count(*) FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"),
        0
    );
    assert!(client.holds("SELECT bool_and(indisvalid) FROM pg_index"));
    assert_eq!(
        client.number(
            "SELECT count(*) FROM pg_inherits i LEFT JOIN pg_attrdef d ON d.adrelid = i.inhrelid
              WHERE i.inhparent = 'log'::regclass AND d.oid IS NULL"
        ),
        0,
        "every partition numbers its rows from the table's sequence"
    );
    assert_eq!(
        client.column(
            "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'log_default'::regclass ORDER BY 1"
        ),
        [
            "log_default_action_timestamp_idx",
            "log_default_pkey",
            "log_default_principal_id_timestamp_idx",
            "log_default_resource_id_timestamp_idx"
        ]
    );
    assert_eq!(
        client.rows("SELECT event, message FROM audit_db.events_log WHERE severity = 'error'"),
        Vec::<Vec<String>>::new()
    );
    println!(
        "{:?}",
        client.rows("SELECT logged_at, event, message FROM audit_db.events_log")
    );
    let longest = written.iter().map(|(_, longest)| *longest).max().unwrap();
    let inserted: i64 = written.iter().map(|(rows, _)| rows).sum();
    println!(
        "{ROWS} rows over {MONTHS} months: {total:.1?} in all, {after_old:.1?} after the old snapshot had gone; \
         {inserted} rows were inserted meanwhile, longest INSERT {longest:.1?}; longest read by key {:.1?}, {} reads",
        reads.iter().map(|(_, longest)| *longest).max().unwrap(),
        reads.iter().map(|(count, _)| count).sum::<usize>(),
    );
}

/// Ends the sessions also where an assertion fails: the scope waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Sessions think between two statements: what is looked at is how they get on, not who wins the processor.
const THINKING: Duration = Duration::from_millis(1);

/// Inserts rows of now and of all months; the number of rows and the longest wait.
fn write(session: &mut Client, writer: i64, working: &AtomicBool) -> (i64, Duration) {
    let statement = session
        .prepare(
            "INSERT INTO log (\"timestamp\", action, status, principal_id, resource_type, resource_id)
             VALUES (now() - $1::bigint * interval '1 hour', 'read', 'success', 'writer' || $2::bigint, 'new', $3::bigint)",
        )
        .unwrap();
    let (mut rows, mut longest) = (0i64, Duration::ZERO);
    while working.load(Ordering::Relaxed) {
        // Half of them now, the others spread.
        let hours = if rows % 2 == 0 { 0 } else { rows * 37 % 15_000 };
        let started = Instant::now();
        session
            .execute(&statement, &[&hours, &writer, &rows])
            .unwrap();
        longest = longest.max(started.elapsed());
        rows += 1;
        std::thread::sleep(THINKING);
    }
    (rows, longest)
}

/// Reads what must always be there; the number of reads and the longest by key.
fn read(session: &mut Client, reader: i64, working: &AtomicBool) -> (usize, Duration) {
    let by_principal = session
        .prepare("SELECT count(*) FROM log WHERE principal_id = 'user' || $1::bigint AND resource_type = 'seed'")
        .unwrap();
    let (mut reads, mut longest) = (0, Duration::ZERO);
    while working.load(Ordering::Relaxed) {
        let principal = (reads as i64 * 7 + reader) % PRINCIPALS;
        let started = Instant::now();
        let seen: i64 = session
            .query_one(&by_principal, &[&principal])
            .unwrap()
            .get(0);
        longest = longest.max(started.elapsed());
        assert_eq!(seen, ROWS / PRINCIPALS, "rows of user{principal}");
        reads += 1;
        std::thread::sleep(THINKING);
        if reads % 50 == 0 {
            // The whole table now and then.
            assert_eq!(
                session.number("SELECT count(*) FROM log WHERE resource_type = 'seed'"),
                ROWS
            );
        }
    }
    (reads, longest)
}
