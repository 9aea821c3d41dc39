//! Results with consistency `snapshot` against the plain query in the same statement, while others write in every way there is.
//! AUDIT_DB_COMPARISONS sets how many, AUDIT_DB_SEED where to begin.

use audit_db_e2e::{Client, Cluster, Session};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const WRITERS: u64 = 8;
const READERS: u64 = 8;

const QUERIES: [&str; 10] = [
    "SELECT count(*), sum(v) FROM p",
    "SELECT part, count(*), sum(v) FROM p GROUP BY part ORDER BY part",
    "SELECT count(*) FROM p WHERE id < 1000",
    "SELECT count(*), max(v) FROM p WHERE id >= 1000 AND id < 2000",
    "SELECT count(*), sum(v) FROM p2",
    "SELECT o.name, count(i.id) FROM owner o LEFT JOIN item i ON i.owner = o.id GROUP BY o.name ORDER BY o.name",
    "SELECT count(*) FROM written_by_trigger",
    "SELECT * FROM summary ORDER BY part",
    "SELECT quiet, count(*) FROM q GROUP BY quiet",
    "SELECT twice(count(*)) FROM p WHERE id < 500",
];

const SCHEMA: &str = "
CREATE TABLE p (id int NOT NULL, part int NOT NULL, v int NOT NULL) PARTITION BY RANGE (id);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000);
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (1000) TO (2000);
CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (2000) TO (3000);
CREATE TABLE p4 (id int NOT NULL, part int NOT NULL, v int NOT NULL, CHECK (id >= 3000 AND id < 4000));
CREATE TABLE q (quiet int);
INSERT INTO q SELECT i % 3 FROM generate_series(1, 100) i;
CREATE TABLE owner (id int PRIMARY KEY, name text);
CREATE TABLE item (id int PRIMARY KEY, owner int REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE written_by_trigger (at int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO written_by_trigger VALUES (NEW.id); RETURN NEW; END $$;
CREATE TRIGGER note AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION note();
CREATE VIEW summary AS SELECT part, count(*) AS n FROM p GROUP BY part;
CREATE FUNCTION twice(bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';
CREATE FUNCTION writes(int) RETURNS void LANGUAGE sql AS 'UPDATE p SET v = v + 1 WHERE id = $1';
INSERT INTO p SELECT i * 10, i % 5, i FROM generate_series(0, 299) i;
INSERT INTO owner SELECT i, 'o' || i FROM generate_series(1, 10) i";

struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }
}

/// One random change; what cannot be done at the moment is left.
fn write(client: &mut Client, random: &mut Random, name: &str, round: u64) {
    let id = random.below(3_000);
    let gid = format!("{name}_{round}");
    let statements: Vec<String> = match random.below(18) {
        0 | 1 => vec![format!("INSERT INTO p VALUES ({id}, {}, {round})", id % 5)],
        2 | 3 => vec![format!("UPDATE p SET v = v + 1 WHERE id = {}", id / 10 * 10)],
        4 => vec![format!(
            "UPDATE p SET id = {} WHERE id = {}",
            random.below(3_000),
            id / 10 * 10
        )],
        5 => vec![format!("DELETE FROM p WHERE id = {}", id / 10 * 10)],
        6 => vec![
            "BEGIN".into(),
            format!("INSERT INTO p VALUES ({id}, 1, 1)"),
            "SAVEPOINT s".into(),
            "UPDATE p SET v = 0 WHERE id < 100".into(),
            "ROLLBACK TO s".into(),
            if random.below(2) == 0 { "COMMIT" } else { "ROLLBACK" }.into(),
        ],
        7 => vec![
            "BEGIN".into(),
            format!("UPDATE p SET v = v + 2 WHERE id = {}", id / 10 * 10),
            format!("PREPARE TRANSACTION '{gid}'"),
            format!("{} PREPARED '{gid}'", if random.below(3) == 0 { "ROLLBACK" } else { "COMMIT" }),
        ],
        8 => vec![format!("SELECT writes({})", id / 10 * 10)],
        9 => vec![format!("INSERT INTO owner VALUES ({}, 'n{round}') ON CONFLICT DO NOTHING", random.below(20))],
        10 | 11 => vec![format!(
            "INSERT INTO item SELECT {}, id FROM owner ORDER BY id LIMIT 1 OFFSET {} ON CONFLICT DO NOTHING",
            random.below(200),
            random.below(10)
        )],
        12 => vec![format!("DELETE FROM owner WHERE id = {}", random.below(20))],
        13 => vec![format!(
            "MERGE INTO p USING (SELECT {} AS id) s ON p.id = s.id WHEN MATCHED THEN UPDATE SET v = p.v + 3
             WHEN NOT MATCHED THEN INSERT VALUES (s.id, 2, 0)",
            id / 10 * 10
        )],
        14 if random.below(4) == 0 => vec!["TRUNCATE p3".into()],
        14 => vec!["DO $$ BEGIN UPDATE p SET v = v + 1 WHERE id = 1500; END $$".into()],
        15 if random.below(3) == 0 => vec![
            "ALTER TABLE p ATTACH PARTITION p4 FOR VALUES FROM (3000) TO (4000)".into(),
            format!("INSERT INTO p VALUES ({}, 4, 1)", 3_000 + random.below(1_000)),
            "ALTER TABLE p DETACH PARTITION p4".into(),
        ],
        15 => vec![format!("INSERT INTO p4 VALUES ({}, 4, 1)", 3_000 + random.below(1_000))],
        16 if random.below(5) == 0 => vec![format!(
            "CREATE OR REPLACE FUNCTION twice(bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS 'SELECT $1 * {}'",
            random.below(5)
        )],
        16 if random.below(5) == 0 => vec![format!(
            "CREATE OR REPLACE VIEW summary AS SELECT part, count(*) + {} AS n FROM p GROUP BY part",
            random.below(5)
        )],
        17 => {
            if let Ok(mut copy) = client.copy_in("COPY p (id, part, v) FROM STDIN") {
                use std::io::Write as _;
                let _ = writeln!(copy, "{id}\t{}\t7", id % 5);
                let _ = copy.finish();
            }
            return;
        }
        _ => vec![format!("WITH gone AS (DELETE FROM p WHERE id = {} RETURNING *) INSERT INTO p SELECT id + 1, part, v FROM gone WHERE id < 2990", id / 10 * 10)],
    };
    for statement in statements {
        if client.batch_execute(&statement).is_err() {
            let _ = client.batch_execute("ROLLBACK");
            let _ = client.batch_execute(&format!("ROLLBACK PREPARED '{gid}'"));
            break;
        }
    }
}

/// All three under the snapshot of the statement that calls it. Which partitions a table has, and what a view or a function is, is no
/// matter of snapshots: where that changed in between, the plain query says something else before and after.
const COMPARE: &str = "
CREATE FUNCTION compare(query text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE before jsonb; cached jsonb; after jsonb;
BEGIN
  EXECUTE 'SELECT coalesce(jsonb_agg(to_jsonb(q)), ''[]'') FROM (' || query || ') q' INTO before;
  cached := audit_db.cached_json(query, consistency => 'snapshot');
  EXECUTE 'SELECT coalesce(jsonb_agg(to_jsonb(q)), ''[]'') FROM (' || query || ') q' INTO after;
  RETURN cached = before OR cached = after;
END $$";

fn comparison(query: &str) -> String {
    format!("SELECT compare($query${query}$query$)")
}

#[test]
fn exact_results_are_those_of_the_query() {
    let number = |name: &str, usual: u64| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(usual)
    };
    let (wanted, seed) = (
        number("AUDIT_DB_COMPARISONS", 4_000),
        number("AUDIT_DB_SEED", 1),
    );
    let cluster = Cluster::builder()
        .fast()
        .set("max_prepared_transactions", "64")
        .set("max_connections", "60")
        .start();
    let mut admin = cluster.database("fire");
    admin.run(SCHEMA);
    admin.run(COMPARE);
    let (stop, compared, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (cluster, stop) = (&cluster, &stop);
            scope.spawn(move || {
                let mut client = cluster.connect("fire");
                client.run("SET lock_timeout = '500ms'; SET statement_timeout = '5s'");
                let mut random = Random(seed * 1_000 + writer + 1);
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    write(&mut client, &mut random, &format!("w{writer}"), round);
                    round += 1;
                    // Readers must have a chance to see the same state twice.
                    std::thread::sleep(Duration::from_millis(random.below(60)));
                }
            });
        }
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (cluster, compared, refused, stop) = (&cluster, &compared, &refused, &stop);
                scope.spawn(move || {
                    let mut client = cluster.connect("fire");
                    let mut random = Random(seed * 7_000 + reader + 1);
                    let level = [
                        "READ COMMITTED",
                        "READ COMMITTED",
                        "REPEATABLE READ",
                        "SERIALIZABLE",
                    ][reader as usize % 4];
                    let mut wrong: Option<String> = None;
                    while !stop.load(Ordering::Relaxed) && compared.load(Ordering::Relaxed) < wanted
                    {
                        let _ = client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}"));
                        for _ in 0..1 + random.below(6) {
                            let query = QUERIES[random.below(QUERIES.len() as u64) as usize];
                            match client.query_one(&comparison(query), &[]) {
                                Ok(row) => {
                                    if level != "SERIALIZABLE" {
                                        compared.fetch_add(1, Ordering::Relaxed);
                                    }
                                    if !row.get::<_, bool>(0) {
                                        stop.store(true, Ordering::Relaxed);
                                        wrong = Some(format!("{level}: {query}"));
                                    }
                                }
                                Err(_) => {
                                    // A deadlock, a lock, a serialization failure.
                                    refused.fetch_add(1, Ordering::Relaxed);
                                    break;
                                }
                            }
                        }
                        let _ = client.batch_execute("COMMIT");
                    }
                    wrong
                })
            })
            .collect();
        let wrong: Vec<String> = readers
            .into_iter()
            .filter_map(|reader| reader.join().expect("a reader"))
            .collect();
        stop.store(true, Ordering::Relaxed);
        assert!(wrong.is_empty(), "seed {seed}: {wrong:?}");
    });
    let stats = admin.rows("SELECT hits, misses, round(hit_rate::numeric, 3), invalidations, bypasses FROM audit_db.cache_stats");
    println!(
        "{} comparisons, {} statements refused, hits, misses, hit rate, invalidations, bypasses: {:?}",
        compared.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed),
        stats
    );
    let rate: f64 = stats[0][2].parse().unwrap();
    assert!(rate > 0.1, "a hit rate of {rate} says nothing");
}
