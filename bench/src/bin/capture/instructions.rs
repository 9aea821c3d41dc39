//! Instructions of a session for one transaction: a long run minus a short one of the same transactions, so that what the session
//! does at its beginning and end falls out.

use crate::callgrind::Counted;
use crate::configuration::{
    ALL, AUTO_EXPLAIN, AUTO_EXPLAIN_ANALYZE, CAPTURE, CAPTURE_ANALYZE, CAPTURE_AND_STATISTICS,
    Configuration, DATABASE, NOTHING, OFF, server,
};
use crate::cost::Cost;
use crate::pgbench::{self, Pgbench, Statement};
use audit_db_bench::{goal, rounds};
use audit_db_e2e::{Cluster, Mode};

struct Workload {
    title: &'static str,
    statement: Statement,
    protocol: &'static str,
    /// Transactions of the short run and of the long one.
    short: u32,
    long: u32,
}

const SELECT_PREPARED: usize = 0;
const SELECT_SIMPLE: usize = 1;
const AGGREGATE_PREPARED: usize = 2;

const WORKLOADS: [Workload; 4] = [
    Workload {
        title: "one row by its key, prepared (pgbench -S -M prepared)",
        statement: Statement::Select,
        protocol: "prepared",
        short: 500,
        long: 4_500,
    },
    Workload {
        title: "one row by its key, simple (pgbench -S -M simple)",
        statement: Statement::Select,
        protocol: "simple",
        short: 500,
        long: 3_500,
    },
    Workload {
        title: "sum of 1,000 rows by a range of the key, prepared",
        statement: Statement::Aggregate,
        protocol: "prepared",
        short: 50,
        long: 350,
    },
    Workload {
        title: "sum of 1,000 rows by a range of the key, simple",
        statement: Statement::Aggregate,
        protocol: "simple",
        short: 50,
        long: 350,
    },
];

const EXPLANATION: &str = "  \
  all: median, without reading from the socket, which waits or not; added: to that of nothing; own: in the code of the
  module; hooks: from entering a hook of statements to leaving it, without the server's function that it wraps; other: from
  entering the module in another way to leaving it; +-: half the distance of most and least. What a module makes the server
  do elsewhere, such as counting the rows of each node, is in `added` only, and so is where things come to lie in memory,
  some dozens. Reading the clock costs more than shown: valgrind has the kernel do it, whose instructions do not count.";

/// The cluster for all configurations: where rows and index entries lie is the same for each of them.
pub fn prepare() -> Cluster {
    let cluster = server()
        // Tells which process a session was.
        .set("log_connections", "on")
        .start();
    drop(cluster.database(DATABASE));
    pgbench::fill(&cluster);
    cluster
}

/// The server must run, and is stopped afterwards.
pub fn per_transaction(cluster: &Cluster) {
    cluster.stop(Mode::Fast);
    let rounds = rounds(2);
    println!("\nuser instructions of a session for one transaction ({rounds} rounds)");
    let mut costs: Vec<Vec<Vec<Cost>>> = vec![vec![Vec::new(); ALL.len()]; WORKLOADS.len()];
    let mut run = 0;
    for _ in 0..rounds {
        for (who, configuration) in ALL.iter().enumerate() {
            let counted = Counted::start(cluster, configuration);
            let mut client = cluster.connect(DATABASE);
            configuration.check(&mut client);
            pgbench::warm(&mut client);
            drop(client);
            for (which, workload) in WORKLOADS.iter().enumerate() {
                let mut session = |times| {
                    run += 1;
                    workload.run(&counted, configuration, times, &format!("run{run}"))
                };
                let (short, long) = (session(workload.short), session(workload.long));
                let transactions = f64::from(workload.long - workload.short);
                costs[which][who].push(long.beyond(short, transactions));
            }
        }
    }
    println!("{EXPLANATION}");
    let table: Vec<Vec<Cost>> = WORKLOADS
        .iter()
        .zip(&costs)
        .map(|(workload, costs)| workload.print(costs))
        .collect();
    goals(&table);
}

impl Workload {
    fn run(
        &self,
        counted: &Counted,
        configuration: &Configuration,
        times: u32,
        name: &str,
    ) -> Cost {
        let pgbench = Pgbench {
            cluster: counted.cluster,
            sessions: 1,
            protocol: self.protocol,
            name,
        };
        pgbench.times(self.statement, times);
        let libraries: Vec<&str> = configuration.libraries.split(',').collect();
        counted.profile(name, &libraries)
    }

    /// Prints a line a configuration, and returns its medians.
    fn print(&self, costs: &[Vec<Cost>]) -> Vec<Cost> {
        let medians: Vec<Cost> = costs.iter().map(|costs| Cost::median(costs)).collect();
        println!(
            "  {:<54} {:>9} {:>8} {:>8} {:>7} {:>7} {:>7} {:>6}",
            self.title, "all", "added", "added %", "own", "hooks", "other", "+-"
        );
        let nothing = medians[NOTHING].all;
        // A little less than nothing would be printed as "-0".
        let whole = |figure: f64| figure.round() + 0.0;
        for ((configuration, median), costs) in ALL.iter().zip(&medians).zip(costs) {
            let most = costs.iter().map(|cost| cost.all).fold(f64::MIN, f64::max);
            let least = costs.iter().map(|cost| cost.all).fold(f64::MAX, f64::min);
            println!(
                "    {:<52} {:>9.0} {:>+8.0} {:>+8.2} {:>7.0} {:>7.0} {:>7.0} {:>6.0}",
                configuration.name,
                median.all,
                median.all - nothing,
                (median.all / nothing - 1.0) * 1e2,
                whole(median.own),
                whole(median.hooks),
                whole(median.other),
                (most - least) / 2.0,
            );
        }
        medians
    }
}

fn goals(table: &[Vec<Cost>]) {
    let added =
        |workload: usize, who: usize| table[workload][who].all - table[workload][NOTHING].all;
    let at_most = |what: &str, figure: f64, most: f64| {
        goal(
            &format!("{what}: at most {most:.0}, found {figure:.0}"),
            figure <= most,
        );
    };
    at_most(
        "capture adds to a prepared select",
        added(SELECT_PREPARED, CAPTURE),
        500.0,
    );
    at_most(
        "capture and statistics add to a prepared select",
        added(SELECT_PREPARED, CAPTURE_AND_STATISTICS),
        700.0,
    );
    at_most(
        "capture and statistics add to a simple select",
        added(SELECT_SIMPLE, CAPTURE_AND_STATISTICS),
        3_800.0,
    );
    at_most(
        "hooks of statements at a prepared select where all is off",
        table[SELECT_PREPARED][OFF].hooks,
        90.0,
    );
    let sum = &table[AGGREGATE_PREPARED];
    let more = |analyze: usize, plain: usize| (sum[analyze].all / sum[plain].all - 1.0) * 1e2;
    goal(
        &format!(
            "analyze adds to a sum that is not slow: less than 0.1 %, found {:+.2} % (auto_explain: {:+.2} %)",
            more(CAPTURE_ANALYZE, CAPTURE),
            more(AUTO_EXPLAIN_ANALYZE, AUTO_EXPLAIN),
        ),
        more(CAPTURE_ANALYZE, CAPTURE) < 0.1,
    );
}
