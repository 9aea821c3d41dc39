//! What the worker does for one table in each cycle.

use crate::error::{Error, Failure, Result};
use crate::partition::create::{self, Maker};
use crate::partition::inspect::{Calendar, Table};
use crate::partition::managed::{self, Managed};
use crate::partition::steps::{self, Place};
use crate::partition::waiting::{self, MOVED_LIMIT, Waiting};
use crate::partition::{events, retire};
use crate::pg::guc::Scope;
use crate::pg::spi;
use crate::pg::xact::{self, Kind};
use crate::pg::{catalog, clock, identity};
use crate::settings;
use audit_db_core::partition_plan::{self, Facts, NewPartition, Placement, Policy};
use audit_db_core::retention::RetentionAction;
use pgrx::pg_sys::Oid;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Partitions made in one run of the worker; where more are missing the next run follows at once.
const MADE_IN_A_RUN: usize = 24;

/// A restored table whose indexes do not come is looked after all the same after this time.
const RESTORE_PATIENCE: Duration = Duration::from_secs(86_400);

/// The log is purged, and the clock written down, this often at most.
const BETWEEN_RECORDS: Duration = Duration::from_secs(60);

/// What a worker remembers from cycle to cycle: since when something has been as it should not be.
pub struct Memory {
    since: HashMap<(Oid, Fault), Instant>,
    /// Nobody can have begun anything before the first cycle of a server that has just started.
    first_cycle: bool,
    /// When the log was last purged and the clock written down.
    records: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    InvalidIndex,
    PendingDetach,
    Restoring,
}

impl Memory {
    pub fn new() -> Self {
        Self {
            since: HashMap::new(),
            first_cycle: true,
            records: None,
        }
    }

    /// Whether it is a minute or more since the last time.
    pub fn is_time_for_records(&mut self) -> bool {
        let due = self
            .records
            .is_none_or(|last| last.elapsed() >= BETWEEN_RECORDS);
        if due {
            self.records = Some(Instant::now());
        }
        due
    }

    /// A cycle over these tables has ended.
    pub fn cycle_ended(&mut self, tables: &[Oid]) {
        self.first_cycle = false;
        self.since.retain(|(table, _), _| tables.contains(table));
    }

    /// How long a fault has lasted; `None` when there is none.
    fn lasted(&mut self, table: Oid, fault: Fault, is_there: bool) -> Option<Duration> {
        if is_there {
            let since = self
                .since
                .entry((table, fault))
                .or_insert_with(Instant::now);
            Some(since.elapsed())
        } else {
            self.since.remove(&(table, fault));
            None
        }
    }
}

/// What a table's turn came to.
#[derive(Default)]
pub struct Turn {
    pub error: Option<Error>,
    /// There is work for the slow worker.
    pub slow: bool,
    /// Of that, missing indexes that nobody can be about to make.
    pub repair: bool,
    /// And a detach that nobody can be at.
    pub finish: bool,
    /// There is more to do at once.
    pub more: bool,
}

/// One thing that was done for a table, or will be.
#[derive(Debug)]
pub struct Report {
    pub step: &'static str,
    /// The partition or the table, qualified.
    pub object: String,
    /// As in `create`, `drop`, `queued`.
    pub action: String,
    pub duration: Duration,
    pub failure: Option<Failure>,
}

impl Report {
    fn new(step: &'static str, object: &str, action: impl Into<String>, begun: Instant) -> Self {
        Self {
            step,
            object: object.to_owned(),
            action: action.into(),
            duration: begun.elapsed(),
            failure: None,
        }
    }
}

/// What a table's turn would do now.
#[derive(Debug, Default)]
pub struct Preview {
    pub reports: Vec<Report>,
    /// Partitions that will be made and get rows from the default partition.
    pub filled: Vec<String>,
    /// Rows that the default partition will lose.
    pub moved: i64,
    /// Partitions that will leave the table.
    pub leaving: Vec<String>,
}

/// What is to be done for a table.
struct Survey {
    name: String,
    schema: String,
    default_name: String,
    /// Partitions without the row security that the table has.
    side_doors: bool,
    lacks_default: bool,
    due: Result<Due>,
    expired: Result<bool>,
    pending: bool,
    /// Something is unfinished or going on.
    unfinished: bool,
    invalid_index: Option<String>,
    restoring: Option<Error>,
    /// Complete here with this number of indexes, which is not what is on record.
    complete: Option<i32>,
}

/// Partitions to make.
#[derive(Default)]
struct Due {
    now: Vec<NewPartition>,
    /// For some the rows that wait must be copied beforehand.
    exchange: bool,
    /// As many as are made in one run.
    full: bool,
    /// Rows of the default partition that wait for each of those to make now.
    rows: Vec<i64>,
}

/// Makes partitions ahead, empties the default partition and applies retention. Each step is a transaction; what fails is
/// recorded and returned, and never keeps the next step from running.
pub fn table(
    oid: Oid,
    clock_moved: Option<i64>,
    memory: &mut Memory,
    emit: &mut dyn FnMut(Report),
) -> Turn {
    let mut turn = Turn::default();
    let survey = match xact::in_transaction(|| survey(oid)) {
        Ok(Some(survey)) => survey,
        Ok(None) => return turn,
        Err(error) => {
            let name = xact::in_transaction(|| Ok(catalog::qualified_name(oid)));
            let name = name
                .ok()
                .flatten()
                .unwrap_or_else(|| oid.to_u32().to_string());
            record("maintenance", &name, &error);
            turn.error = Some(error);
            return turn;
        }
    };
    let name = survey.name.clone();
    let restoring = memory.lasted(oid, Fault::Restoring, survey.restoring.is_some());
    if let Some(error) = survey.restoring
        && restoring.is_some_and(|lasted| lasted < RESTORE_PATIENCE)
    {
        record("restore", &name, &error);
        turn.error = Some(error);
        return turn;
    }
    let mut check = |event: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            record(event, &name, &error);
            turn.error = Some(error);
        }
    };
    if let Some(index_count) = survey.complete {
        let noted = xact::in_transaction(|| managed::note_complete(oid, index_count));
        check("maintenance", noted);
    }
    if survey.side_doors {
        let begun = Instant::now();
        let closed = close_side_doors(oid, &name);
        report(
            emit,
            "row security",
            &name,
            "enable",
            begun,
            closed.as_ref().err(),
        );
        check("row security", closed);
    }
    if survey.lacks_default {
        let begun = Instant::now();
        let made =
            steps::in_transactions_with_retries(&name, |scope| restore_default(scope, oid, &name));
        report(
            emit,
            "default partition",
            &name,
            "create",
            begun,
            made.as_ref().err(),
        );
        check("default partition", made);
    }
    let has_invalid = survey.invalid_index.is_some();
    let mut exchange = false;
    match (survey.due, survey.invalid_index) {
        (Ok(due), Some(index)) if !due.now.is_empty() || due.exchange => {
            let error = Error::InvalidIndex {
                table: name.clone(),
                index,
            };
            check("create partition", Err(error));
        }
        (Ok(_), Some(_)) => {}
        (Ok(due), None) => {
            exchange = due.exchange;
            let made = make(Place::Worker, oid, &survey.schema, &name, due.now, emit);
            turn.more = due.full && made.is_ok();
            match made {
                // So many came meanwhile that they must be copied.
                Err(Error::WaitingRows { .. }) => exchange = true,
                Err(error) if error.is_cancel_of_statement() => {
                    check("create partition", Err(error));
                    return turn;
                }
                made => check("create partition", made),
            }
        }
        (Err(error), _) => check("create partition", Err(error)),
    }
    let mut failed = None;
    match survey.expired {
        Ok(false) => {}
        Ok(true) => {
            let mut begun = Instant::now();
            let retired = retire::expired_of_table(oid, clock_moved, &mut |outcome| {
                turn.slow |= outcome.action == retire::QUEUED;
                emit(retirement(&outcome, begun));
                begun = Instant::now();
                // Recorded by the step itself.
                if let Some(failure) = outcome.failure {
                    let error = Error::Server(failure);
                    error.warn();
                    failed = Some(error);
                }
                true
            });
            check("retention", retired);
        }
        Err(error) => check("retention", Err(error)),
    }
    if turn.error.is_none() {
        turn.error = failed;
    }
    // Whoever is in the middle of a staged index or a concurrent detach gets one cycle's time to finish it himself.
    let interval = settings::maintenance_interval();
    let pending = memory.lasted(oid, Fault::PendingDetach, survey.pending);
    let pending = pending
        .is_some_and(|lasted| lasted >= interval || memory.first_cycle && clock::just_started());
    let invalid = memory.lasted(oid, Fault::InvalidIndex, has_invalid);
    let invalid = invalid.is_some_and(|lasted| lasted >= interval);
    turn.repair = invalid;
    turn.finish = pending;
    turn.slow |= exchange || pending || invalid || survey.unfinished;
    if exchange {
        let begun = Instant::now();
        report(
            emit,
            EMPTY,
            &survey.default_name,
            retire::QUEUED,
            begun,
            None,
        );
    }
    turn
}

/// What of a table's turn can be done in a session: where there is no worker. What fails ends it, unless it is one partition's
/// retention.
pub fn in_session(oid: Oid, emit: &mut dyn FnMut(Report)) -> Result<()> {
    let Some(survey) = managed::as_extension_owner(|| survey(oid))? else {
        return Ok(());
    };
    if let Some(error) = survey.restoring {
        return Err(error);
    }
    let name = survey.name;
    let due = survey.due?;
    if survey.lacks_default {
        let begun = Instant::now();
        steps::with_retries(&name, |scope| restore_default(scope, oid, &name))?;
        report(emit, DEFAULT, &name, "create", begun, None);
    }
    if survey.invalid_index.is_none() {
        make(Place::Session, oid, &survey.schema, &name, due.now, emit)?;
    }
    if survey.expired? {
        let mut begun = Instant::now();
        retire::expired_in_session(oid, &mut |outcome| {
            emit(retirement(&outcome, begun));
            begun = Instant::now();
            true
        })?;
    }
    if due.exchange {
        let begun = Instant::now();
        report(
            emit,
            EMPTY,
            &survey.default_name,
            retire::QUEUED,
            begun,
            None,
        );
    }
    Ok(())
}

const DEFAULT: &str = "default partition";
const CREATE: &str = "create partition";
const EMPTY: &str = "empty default partition";
const RETENTION: &str = "retention";

fn report(
    emit: &mut dyn FnMut(Report),
    step: &'static str,
    object: &str,
    action: &str,
    begun: Instant,
    error: Option<&Error>,
) {
    let failure = error.map(Error::failure);
    let mut report = Report::new(step, object, action, begun);
    if let Some(failure) = failure {
        report.action = format!("failed: {}", failure.message);
        report.failure = Some(failure);
    }
    emit(report);
}

fn retirement(outcome: &retire::Outcome, begun: Instant) -> Report {
    Report {
        failure: outcome.failure.clone(),
        ..Report::new(
            RETENTION,
            &outcome.partition,
            RetentionAction::as_intended(&outcome.action),
            begun,
        )
    }
}

/// Lists what a table's turn would do now. What takes more than one turn is listed as far as the first one goes.
pub fn preview(oid: Oid, clock_moved: Option<i64>) -> Result<Preview> {
    let mut preview = Preview::default();
    let Some(survey) = survey(oid)? else {
        return Ok(preview);
    };
    let begun = Instant::now();
    if let Some(error) = survey.restoring {
        return Err(error);
    }
    let mut add = |step, object: &str, action: &str| {
        preview.reports.push(Report {
            duration: Duration::ZERO,
            ..Report::new(step, object, action, begun)
        });
    };
    if survey.side_doors {
        add("row security", &survey.name, "enable");
    }
    if survey.lacks_default {
        add(DEFAULT, &survey.name, "create");
    }
    let due = survey.due?;
    if let Some(index) = survey.invalid_index {
        if !due.now.is_empty() || due.exchange {
            return Err(Error::InvalidIndex {
                table: survey.name,
                index,
            });
        }
    } else {
        for (new, rows) in due.now.iter().zip(&due.rows) {
            let partition = spi::quote_qualified_identifier(&survey.schema, &new.name);
            add(CREATE, &partition, "create");
            if *rows > 0 {
                preview.filled.push(partition);
                preview.moved += rows;
            }
        }
    }
    if survey.expired? {
        for outcome in retire::dry_run(oid, clock_moved, retire::QUEUED)? {
            let report = retirement(&outcome, begun);
            // One that is queued leaves later.
            if matches!(report.action.as_str(), "drop" | "detach" | "archive") {
                preview.leaving.push(report.object.clone());
            }
            add(RETENTION, &report.object, &report.action);
        }
    }
    if due.exchange && survey.default_name != survey.name {
        add(EMPTY, &survey.default_name, retire::QUEUED);
    }
    Ok(preview)
}

pub fn record(event: &str, name: &str, error: &Error) {
    error.warn();
    let recorded = xact::in_transaction(|| events::failed(event, name, &error.failure()));
    if let Err(error) = recorded {
        error.warn();
    }
}

/// Looks at everything once. What cannot be looked at does not hide the rest.
fn survey(oid: Oid) -> Result<Option<Survey>> {
    let Some(managed) = managed::find(oid)? else {
        return Ok(None);
    };
    let table = Table::load(oid)?;
    let name = table.qualified();
    let calendar = Calendar::new(table.key, &managed.time_zone)?;
    let unusual = unusual(&table)?;
    let at_home = managed.home.as_deref() == Some(managed::home_of(oid).as_str());
    let restoring = restoring(&table, &managed);
    let complete = (table.invalid_index.is_none()
        && restoring.is_none()
        && (!at_home || table.index_count != managed.index_count))
        .then_some(table.index_count);
    let due = if unusual.exchange {
        // The slow worker is at it, or will clear it away first.
        Ok(Due::default())
    } else {
        xact::in_subtransaction(|| due(&table, &managed, &calendar))
    };
    let expired = xact::in_subtransaction(|| {
        Ok(!retire::expired_partitions(&table, &managed, &calendar).is_empty())
    });
    Ok(Some(Survey {
        default_name: table.default.as_ref().map_or_else(
            || name.clone(),
            |default| table.qualified_partition(default),
        ),
        schema: table.schema.clone(),
        name,
        side_doors: (table.row_security || table.force_row_security)
            && !open_side_doors(oid)?.is_empty(),
        lacks_default: managed.default_partition && table.default.is_none() && !unusual.exchange,
        due,
        expired,
        pending: unusual.pending,
        unfinished: unusual.unfinished || unusual.stray_trigger,
        invalid_index: table.invalid_index,
        restoring,
        complete,
    }))
}

/// Why a table must be left alone because it is being restored, if so: its settings came from elsewhere, and not all of its
/// indexes are there.
pub fn restoring(table: &Table, managed: &Managed) -> Option<Error> {
    let at_home = managed.home.as_deref() == Some(managed::home_of(table.oid).as_str());
    let lacks_indexes = table.invalid_index.is_some() || table.index_count < managed.index_count;
    (!at_home && lacks_indexes).then(|| Error::Restoring {
        table: table.qualified(),
        there: table.index_count - i32::from(table.invalid_index.is_some()),
        expected: managed.index_count,
    })
}

/// The same question for a managed table.
pub fn is_restoring(oid: Oid) -> Result<bool> {
    match managed::find(oid)? {
        Some(managed) => Ok(restoring(&Table::load(oid)?, &managed).is_some()),
        None => Ok(false),
    }
}

/// What a table rarely has.
#[derive(Default)]
struct Unusual {
    /// A detach is pending.
    pending: bool,
    /// Something is unfinished or going on.
    unfinished: bool,
    /// Of that, an exchange before its swap.
    exchange: bool,
    /// A trigger of ours is on the default partition.
    stray_trigger: bool,
}

fn unusual(table: &Table) -> Result<Unusual> {
    let default = table
        .default
        .as_ref()
        .map_or(Oid::INVALID, |default| default.oid);
    Ok(spi::rows_of_kept(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = $1 AND inhdetachpending),
                EXISTS (SELECT FROM audit_db.unfinished WHERE parent = $1),
                EXISTS (SELECT FROM audit_db.unfinished WHERE parent = $1 AND step = 'exchange'),
                EXISTS (SELECT FROM pg_catalog.pg_trigger
                         WHERE tgrelid = $2 AND tgfoid = 'audit_db.capture_change'::pg_catalog.regproc)",
        &[table.oid, default],
        |row| {
            Ok(Unusual {
                pending: row.get(1)?.unwrap_or(false),
                unfinished: row.get(2)?.unwrap_or(false),
                exchange: row.get(3)?.unwrap_or(false),
                stray_trigger: row.get(4)?.unwrap_or(false),
            })
        },
    )?
    .pop()
    .unwrap_or_default())
}

/// The partitions that a table should get now.
pub fn missing(
    table: &Table,
    managed: &Managed,
    calendar: &Calendar,
    waiting: &Waiting,
    limit: usize,
) -> Result<Vec<NewPartition>> {
    let no_date = || Error::Internal("the clock shows no calendar date".into());
    let now = calendar
        .local_at(clock::transaction_start())
        .ok_or_else(no_date)?;
    let (earliest, latest) = waiting::window(managed, calendar).ok_or_else(no_date)?;
    let facts = Facts {
        table: &table.name,
        ranges: &table.ranges(),
        names: &table.names(),
        now,
        waiting: &waiting.local_times(calendar),
    };
    let policy = Policy {
        interval: managed.interval,
        premake: managed.premake,
        earliest,
        latest,
        limit,
    };
    Ok(partition_plan::missing(&facts, &policy, calendar))
}

/// What waits in a table's default partition, where it must be copied into its months. Reads all of it: without a lock that
/// anybody would feel, and as long as it takes.
pub fn waiting_for_exchange(parent: Oid) -> Result<Option<Waiting>> {
    xact::in_transaction_of(Kind::Long, || {
        let (table, managed) = (Table::load(parent)?, managed::get(parent)?);
        if table.invalid_index.is_some() || table.default.is_none() {
            return Ok(None);
        }
        let calendar = Calendar::new(table.key, &managed.time_zone)?;
        let waiting = Waiting::look(&table, &managed, &calendar)?;
        let due = divide(&table, &managed, &calendar, &waiting)?;
        Ok(due.exchange.then_some(waiting))
    })
}

fn due(table: &Table, managed: &Managed, calendar: &Calendar) -> Result<Due> {
    // Months cannot be attached beside it, and to read it takes time that the slow worker has.
    if let Some(default) = &table.default
        && waiting::is_large(default.oid)?
    {
        return Ok(Due {
            exchange: true,
            ..Due::default()
        });
    }
    let waiting = Waiting::look(table, managed, calendar)?;
    divide(table, managed, calendar, &waiting)
}

/// Which partitions can be made at once, and whether the others need their rows copied beforehand.
fn divide(table: &Table, managed: &Managed, calendar: &Calendar, waiting: &Waiting) -> Result<Due> {
    let planned = missing(table, managed, calendar, waiting, MADE_IN_A_RUN)?;
    let full = planned.len() == MADE_IN_A_RUN;
    let all = planned.len();
    let now = without_copying(table, waiting, planned)?;
    let rows = now
        .iter()
        .map(|month| waiting.rows_in(month.lower, month.upper))
        .collect();
    Ok(Due {
        rows,
        exchange: now.len() < all,
        full: full && now.len() == all,
        now,
    })
}

/// Those of the planned partitions that can be made at once: next to none of their rows wait, and ATTACH's scan is not felt.
pub fn without_copying(
    table: &Table,
    waiting: &Waiting,
    mut planned: Vec<NewPartition>,
) -> Result<Vec<NewPartition>> {
    let Some(default) = &table.default else {
        return Ok(planned);
    };
    if planned.is_empty() || catalog::has_no_pages(default.oid) {
        return Ok(planned);
    }
    if waiting::is_large(default.oid)? {
        return Ok(Vec::new());
    }
    let movable = waiting::why_not_movable(default.oid)?.is_none();
    planned.retain(|month| {
        let rows = waiting.rows_in(month.lower, month.upper);
        rows == 0 || movable && rows <= MOVED_LIMIT
    });
    Ok(planned)
}

/// Somebody dropped or detached the default partition: without it events outside all months are refused.
fn restore_default(scope: &Scope, oid: Oid, name: &str) -> Result<()> {
    let table = create::lock_and_load(scope, oid)?;
    let managed = managed::get(oid)?;
    if table.default.is_some() || !managed.default_partition {
        return Ok(());
    }
    let calendar = Calendar::new(table.key, &managed.time_zone)?;
    Maker::new(&table, &managed, calendar)?.make_default(scope)?;
    events::done("default partition created", name, "the table had none")
}

fn make(
    place: Place,
    oid: Oid,
    schema: &str,
    name: &str,
    planned: Vec<NewPartition>,
    emit: &mut dyn FnMut(Report),
) -> Result<()> {
    let mut first_error = None;
    for new in planned {
        let begun = Instant::now();
        let outcome = place.step(name, |scope| make_one(scope, oid, &new));
        let partition = spi::quote_qualified_identifier(schema, &new.name);
        report(
            emit,
            CREATE,
            &partition,
            "create",
            begun,
            outcome.as_ref().err(),
        );
        if let Err(error) = outcome {
            // Who keeps the table locked keeps it from the other months too; who cancels means all of it.
            let stop = error.is_lock_timeout() || error.is_cancel_of_statement();
            if first_error.is_none() {
                first_error = Some(error);
            }
            if stop {
                break;
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn make_one(scope: &Scope, oid: Oid, new: &NewPartition) -> Result<()> {
    let table = create::lock_and_load(scope, oid)?;
    let managed = managed::get(oid)?;
    let range = partition_plan::Range::new(new.lower, new.upper);
    // Somebody else may have been faster.
    if !matches!(
        partition_plan::place_exact(&table.ranges(), range),
        Placement::Free(_)
    ) {
        return Ok(());
    }
    let calendar = Calendar::new(table.key, &managed.time_zone)?;
    Maker::new(&table, &managed, calendar)?.make(scope, std::slice::from_ref(new))?;
    events::done(
        "partition created",
        &spi::quote_qualified_identifier(&table.schema, &new.name),
        &calendar.describe(range),
    )
}

/// Row security that the table got after its partitions were made.
fn close_side_doors(oid: Oid, name: &str) -> Result<()> {
    let open = xact::in_transaction(|| open_side_doors(oid))?;
    for (schema, partition, enable, force) in open {
        steps::in_transactions_with_retries(name, |_scope| {
            let table = Table::load(oid)?;
            identity::as_role(table.owner, || {
                for (wanted, word) in [(enable, "ENABLE"), (force, "FORCE")] {
                    if wanted {
                        spi::execute(
                            &format!("ALTER TABLE {schema}.{partition} {word} ROW LEVEL SECURITY"),
                            &[],
                        )?;
                    }
                }
                Ok(())
            })
        })?;
    }
    Ok(())
}

/// Partitions that lack row security: schema and name, quoted, and which flags to set.
fn open_side_doors(oid: Oid) -> Result<Vec<(String, String, bool, bool)>> {
    spi::rows(
            "SELECT pg_catalog.quote_ident(n.nspname), pg_catalog.quote_ident(c.relname),
                    p.relrowsecurity AND NOT c.relrowsecurity, p.relforcerowsecurity AND NOT c.relforcerowsecurity
               FROM pg_catalog.pg_inherits h
               JOIN pg_catalog.pg_class p ON p.oid = h.inhparent
               JOIN pg_catalog.pg_class c ON c.oid = h.inhrelid
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE h.inhparent = $1 AND c.relkind IN ('r', 'p')
                AND (p.relrowsecurity AND NOT c.relrowsecurity OR p.relforcerowsecurity AND NOT c.relforcerowsecurity)",
            &[oid.into()],
            |row| {
                Ok((
                    row.get::<String>(1)?.unwrap_or_default(),
                    row.get::<String>(2)?.unwrap_or_default(),
                    row.get::<bool>(3)?.unwrap_or(false),
                    row.get::<bool>(4)?.unwrap_or(false),
                ))
            },
    )
}
