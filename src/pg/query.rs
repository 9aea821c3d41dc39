//! Queries as the result cache needs them: what they are made of, whether the caller may run them, and their rows.

use crate::pg::compat;
use pgrx::pg_sys;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_void};

/// Relations of the server's own.
const FIRST_OWN: u32 = crate::pg::writes::FIRST_OWN_RELATION;

/// A query that was parsed, analysed and rewritten, with what the caller's row-security policies add. In the current memory.
#[derive(Clone, Copy)]
pub struct Query(*mut pg_sys::Query);

/// What is in the way of storing a query's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    Volatile(String),
    Opaque(String),
    Catalog(String),
    Temporary(String),
    Foreign(String),
    Sequence(String),
    RowLocks,
    Writes,
    Session(String),
    Sample,
    RecordType,
}

/// What a query is made of.
#[derive(Default)]
pub struct Facts {
    pub obstacle: Option<Obstacle>,
    /// The first function of the clock.
    pub clock: Option<String>,
    /// Whether it asks who is connected.
    pub session_user: bool,
    /// Settings that it reads.
    pub settings: BTreeSet<String>,
    pub relations: BTreeSet<u32>,
    /// Types and modifiers of its columns.
    pub columns: Vec<(u32, i32)>,
    /// The query and those within it.
    queries: Vec<*mut pg_sys::Query>,
}

/// Why a text is not one query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOne {
    Several,
    NoSelect,
}

/// Where the only statement of a text begins and ends. Raises syntax errors.
pub fn single_select(text: &CStr) -> Result<(usize, usize), NotOne> {
    // SAFETY: the parser's result lives in the current memory.
    unsafe {
        let list = pg_sys::pg_parse_query(text.as_ptr());
        if list.is_null() || (*list).length != 1 {
            return Err(NotOne::Several);
        }
        let raw = (*(*list).elements).ptr_value.cast::<pg_sys::RawStmt>();
        let statement = (*raw).stmt;
        if (*statement).type_ != pg_sys::NodeTag::T_SelectStmt
            || !(*statement.cast::<pg_sys::SelectStmt>())
                .intoClause
                .is_null()
        {
            return Err(NotOne::NoSelect);
        }
        let from = usize::try_from((*raw).stmt_location).unwrap_or(0);
        let to = match usize::try_from((*raw).stmt_len) {
            Ok(length) if length > 0 => from + length,
            _ => text.to_bytes().len(),
        };
        Ok((from, to))
    }
}

/// Analyses the only statement of a text, a SELECT; returns the types of its parameters. Locks its tables as any statement does.
pub fn analyze(text: &CStr) -> (Query, Vec<pg_sys::Oid>) {
    // SAFETY: by contract of `single_select`; everything lives in the current memory.
    unsafe {
        let list = pg_sys::pg_parse_query(text.as_ptr());
        let raw = (*(*list).elements).ptr_value.cast::<pg_sys::RawStmt>();
        let (mut types, mut count) = (std::ptr::null_mut(), 0);
        let queries = compat::analyze(raw, text.as_ptr(), &mut types, &mut count);
        // Rules make several of one statement only where it writes.
        let query = (*(*queries).elements).ptr_value.cast::<pg_sys::Query>();
        let types = if count > 0 {
            std::slice::from_raw_parts(types, count as usize).to_vec()
        } else {
            Vec::new()
        };
        (Query(query), types)
    }
}

impl Query {
    /// A copy in a memory of its own, which stays.
    pub fn keep(self) -> Kept {
        // SAFETY: the new memory hangs on one that lives as long as the process.
        unsafe {
            let memory = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CacheMemoryContext,
                c"audit_db cached query".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            let before = pg_sys::MemoryContextSwitchTo(memory);
            let copy = pg_sys::copyObjectImpl(self.0.cast()).cast::<pg_sys::Query>();
            pg_sys::MemoryContextSwitchTo(before);
            let mut walk = Walk::default();
            walk.enter(copy);
            Kept {
                memory,
                queries: walk.facts.queries,
            }
        }
    }

    /// Looks at all of it. `settings_of` knows the functions that are said to depend on nothing but these settings.
    pub fn facts(self, settings_of: &dyn Fn(pg_sys::Oid) -> Option<Vec<String>>) -> Facts {
        let mut walk = Walk {
            settings_of: Some(settings_of),
            ..Walk::default()
        };
        // SAFETY: the query is in the current memory.
        unsafe {
            walk.enter(self.0);
            let targets = (*self.0).targetList;
            for index in 0..list_length(targets) {
                let entry = (*(*targets).elements.add(index))
                    .ptr_value
                    .cast::<pg_sys::TargetEntry>();
                if (*entry).resjunk {
                    continue;
                }
                let kind = pg_sys::exprType((*entry).expr.cast());
                if kind == pg_sys::RECORDOID {
                    walk.obstruct(Obstacle::RecordType);
                }
                walk.facts
                    .columns
                    .push((kind.to_u32(), pg_sys::exprTypmod((*entry).expr.cast())));
            }
        }
        walk.facts
    }

    /// Prepares its execution, whose rows are put aside, under the snapshot that is active. The text and the values must outlive it.
    pub fn prepare(self, text: &CStr, values: &Values, parallel: bool) -> Execution {
        Execution {
            query: self.0,
            text: text.as_ptr(),
            values: values.0,
            options: if parallel {
                pg_sys::CURSOR_OPT_PARALLEL_OK as i32
            } else {
                0
            },
            plan: std::ptr::null_mut(),
            store: std::ptr::null_mut(),
            descriptor: std::ptr::null_mut(),
        }
    }
}

/// The queries of a statement, to check rights with. Freed with the value.
pub struct Kept {
    memory: pg_sys::MemoryContext,
    queries: Vec<*mut pg_sys::Query>,
}

impl Kept {
    /// What the executor checks when a statement starts, with whoever hooks into that. Raises 42501.
    pub fn check_rights(&self) {
        for query in &self.queries {
            // SAFETY: alive while the value is.
            unsafe { compat::check_rights(*query) };
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: its own memory, which nobody else refers to.
        unsafe { pg_sys::MemoryContextDelete(self.memory) };
    }
}

fn list_length(list: *mut pg_sys::List) -> usize {
    if list.is_null() {
        return 0;
    }
    // SAFETY: a list of the server's.
    usize::try_from(unsafe { (*list).length }).unwrap_or(0)
}

#[derive(Default)]
struct Walk<'a> {
    facts: Facts,
    settings_of: Option<&'a dyn Fn(pg_sys::Oid) -> Option<Vec<String>>>,
}

fn name_of(relation: pg_sys::Oid) -> String {
    // SAFETY: a catalog look-up on a number, which returns null where there is nothing.
    unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            return relation.to_u32().to_string();
        }
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

fn function_name(function: pg_sys::Oid) -> String {
    // SAFETY: as above.
    unsafe {
        let name = pg_sys::get_func_name(function);
        if name.is_null() {
            return function.to_u32().to_string();
        }
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

// Between the server's walkers a panic must become an error of the server's.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn walk_node(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: called by the server's walkers with what `Walk::enter` gave them.
    unsafe {
        let walk = &mut *context.cast::<Walk<'_>>();
        if (*node).type_ == pg_sys::NodeTag::T_Query {
            walk.enter(node.cast());
            return false;
        }
        walk.look_at(node);
        pg_sys::expression_tree_walker(node, Some(walk_node), context)
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn walk_function(function: pg_sys::Oid, context: *mut c_void) -> bool {
    // SAFETY: as above.
    unsafe { (*context.cast::<Walk<'_>>()).function(function) };
    false
}

impl Walk<'_> {
    fn obstruct(&mut self, obstacle: Obstacle) {
        self.facts.obstacle.get_or_insert(obstacle);
    }

    /// # Safety
    /// The query must be alive.
    unsafe fn enter(&mut self, query: *mut pg_sys::Query) {
        // SAFETY: by contract.
        unsafe {
            self.facts.queries.push(query);
            if (*query).commandType != pg_sys::CmdType::CMD_SELECT || (*query).hasModifyingCTE {
                self.obstruct(Obstacle::Writes);
            }
            if list_length((*query).rowMarks) > 0 {
                self.obstruct(Obstacle::RowLocks);
            }
            let tables = (*query).rtable;
            for index in 0..list_length(tables) {
                let entry = (*(*tables).elements.add(index))
                    .ptr_value
                    .cast::<pg_sys::RangeTblEntry>();
                self.range_table_entry(entry);
            }
            pg_sys::query_tree_walker(query, Some(walk_node), (&raw mut *self).cast(), 0);
        }
    }

    unsafe fn range_table_entry(&mut self, entry: *mut pg_sys::RangeTblEntry) {
        // SAFETY: by contract of the caller an entry of a live query.
        unsafe {
            let relation = (*entry).relid;
            // From 16 on a view's entry holds its query and its number.
            if relation == pg_sys::InvalidOid
                || !matches!(
                    (*entry).rtekind,
                    pg_sys::RTEKind::RTE_RELATION | pg_sys::RTEKind::RTE_SUBQUERY
                )
            {
                return;
            }
            if !(*entry).tablesample.is_null() {
                self.obstruct(Obstacle::Sample);
            }
            self.relation(relation);
        }
    }

    fn relation(&mut self, relation: pg_sys::Oid) {
        if let Some(obstacle) = obstacle_of(relation) {
            self.obstruct(obstacle);
        }
        self.facts.relations.insert(relation.to_u32());
    }

    unsafe fn look_at(&mut self, node: *mut pg_sys::Node) {
        use pg_sys::SQLValueFunctionOp as Op;
        // SAFETY: the tag says which structure it is.
        unsafe {
            match (*node).type_ {
                pg_sys::NodeTag::T_SQLValueFunction => {
                    match (*node.cast::<pg_sys::SQLValueFunction>()).op {
                        Op::SVFOP_CURRENT_ROLE
                        | Op::SVFOP_CURRENT_USER
                        | Op::SVFOP_USER
                        | Op::SVFOP_CURRENT_CATALOG
                        | Op::SVFOP_CURRENT_SCHEMA => {}
                        Op::SVFOP_SESSION_USER => self.facts.session_user = true,
                        _ => self.clock("the current date or time"),
                    }
                }
                pg_sys::NodeTag::T_NextValueExpr => {
                    self.obstruct(Obstacle::Volatile("nextval".to_owned()));
                }
                pg_sys::NodeTag::T_Aggref => {
                    let function = (*node.cast::<pg_sys::Aggref>()).aggfnoid;
                    // Of an aggregate the server does not know what its functions are.
                    if function.to_u32() >= FIRST_OWN {
                        self.opaque(function);
                    }
                }
                pg_sys::NodeTag::T_FuncExpr if self.setting(node.cast()) => return,
                _ => {}
            }
            pg_sys::check_functions_in_node(node, Some(walk_function), (&raw mut *self).cast());
        }
    }

    fn clock(&mut self, name: &str) {
        self.facts.clock.get_or_insert_with(|| name.to_owned());
    }

    /// Whether it is current_setting of a constant.
    unsafe fn setting(&mut self, call: *mut pg_sys::FuncExpr) -> bool {
        // SAFETY: by contract of the caller a call of a function.
        unsafe {
            if (*call).funcid.to_u32() >= FIRST_OWN
                || function_name((*call).funcid) != "current_setting"
            {
                return false;
            }
            let first = (*(*(*call).args).elements).ptr_value.cast::<pg_sys::Node>();
            if (*first).type_ != pg_sys::NodeTag::T_Const {
                return false;
            }
            let constant = first.cast::<pg_sys::Const>();
            if (*constant).constisnull {
                return true;
            }
            let text = pg_sys::text_to_cstring((*constant).constvalue.cast_mut_ptr());
            let name = CStr::from_ptr(text).to_string_lossy().to_lowercase();
            self.facts.settings.insert(name);
            true
        }
    }

    fn opaque(&mut self, function: pg_sys::Oid) {
        match self
            .settings_of
            .and_then(|settings_of| settings_of(function))
        {
            Some(settings) => self.facts.settings.extend(settings),
            None => self.obstruct(Obstacle::Opaque(function_name(function))),
        }
    }

    fn function(&mut self, function: pg_sys::Oid) {
        // SAFETY: a catalog look-up on a number that a query refers to.
        let volatility = unsafe { pg_sys::func_volatile(function) } as u8;
        let known = |walk: &Self| {
            walk.settings_of
                .and_then(|settings_of| settings_of(function))
        };
        match volatility {
            b'i' => {}
            b's' if function.to_u32() >= FIRST_OWN => self.opaque(function),
            b's' => {
                let name = function_name(function);
                match kind_of_stable(&name) {
                    Stable::Harmless => {}
                    Stable::Clock => self.clock(&name),
                    Stable::SessionUser => self.facts.session_user = true,
                    Stable::Other => self.obstruct(Obstacle::Session(name)),
                }
            }
            _ => match known(self) {
                Some(settings) if function.to_u32() >= FIRST_OWN => {
                    self.facts.settings.extend(settings);
                }
                _ => self.obstruct(Obstacle::Volatile(function_name(function))),
            },
        }
    }
}

/// What is in the way of storing rows of a relation.
pub fn obstacle_of(relation: pg_sys::Oid) -> Option<Obstacle> {
    if relation.to_u32() < FIRST_OWN {
        return Some(Obstacle::Catalog(name_of(relation)));
    }
    // SAFETY: catalog look-ups on a number that a query has locked.
    let (kind, persistence) = unsafe {
        (
            pg_sys::get_rel_relkind(relation) as u8,
            pg_sys::get_rel_persistence(relation) as u8,
        )
    };
    match kind {
        _ if persistence == pg_sys::RELPERSISTENCE_TEMP => {
            Some(Obstacle::Temporary(name_of(relation)))
        }
        pg_sys::RELKIND_FOREIGN_TABLE => Some(Obstacle::Foreign(name_of(relation))),
        pg_sys::RELKIND_SEQUENCE => Some(Obstacle::Sequence(name_of(relation))),
        _ => None,
    }
}

/// What functions of the server that are not immutable depend on, besides rows and the settings that are part of every key.
enum Stable {
    Harmless,
    Clock,
    SessionUser,
    Other,
}

fn kind_of_stable(name: &str) -> Stable {
    match name {
        // The texts 'now' and 'today' are times, and the offset of a zone depends on the day.
        "now"
        | "transaction_timestamp"
        | "statement_timestamp"
        | "age"
        | "timestamptz_in"
        | "timestamp_in"
        | "date_in"
        | "time_in"
        | "timetz_in"
        | "timetz" => Stable::Clock,
        "session_user" => Stable::SessionUser,
        "current_user"
        | "getpgusername"
        | "current_schema"
        | "current_schemas"
        | "current_database"
        | "get_current_ts_config"
        | "getdatabaseencoding"
        | "version"
        | "anyarray_out"
        | "anytextcat"
        | "array_in"
        | "array_out"
        | "array_recv"
        | "array_send"
        | "array_to_json"
        | "array_to_string"
        | "cash_in"
        | "cash_out"
        | "concat"
        | "concat_ws"
        | "convert"
        | "convert_from"
        | "convert_to"
        | "date"
        | "date_cmp_timestamptz"
        | "date_eq_timestamptz"
        | "date_ge_timestamptz"
        | "date_gt_timestamptz"
        | "date_le_timestamptz"
        | "date_lt_timestamptz"
        | "date_ne_timestamptz"
        | "date_out"
        | "date_part"
        | "date_trunc"
        | "domain_in"
        | "enum_first"
        | "enum_in"
        | "enum_last"
        | "enum_out"
        | "enum_range"
        | "extract"
        | "format"
        | "generate_series"
        | "in_range"
        | "interval_in"
        | "interval_out"
        | "interval_pl_timestamptz"
        | "json_agg"
        | "json_agg_transfn"
        | "json_build_array"
        | "json_build_object"
        | "json_object_agg"
        | "json_object_agg_transfn"
        | "json_populate_record"
        | "json_populate_recordset"
        | "json_to_record"
        | "json_to_recordset"
        | "json_to_tsvector"
        | "jsonb_agg"
        | "jsonb_agg_finalfn"
        | "jsonb_agg_transfn"
        | "jsonb_build_array"
        | "jsonb_build_object"
        | "jsonb_object_agg"
        | "jsonb_object_agg_finalfn"
        | "jsonb_object_agg_transfn"
        | "jsonb_path_exists_tz"
        | "jsonb_path_match_tz"
        | "jsonb_path_query_array_tz"
        | "jsonb_path_query_first_tz"
        | "jsonb_path_query_tz"
        | "jsonb_populate_record"
        | "jsonb_populate_recordset"
        | "jsonb_to_record"
        | "jsonb_to_recordset"
        | "jsonb_to_tsvector"
        | "length"
        | "make_timestamptz"
        | "money"
        | "multirange_in"
        | "multirange_out"
        | "numeric"
        | "overlaps"
        | "phraseto_tsquery"
        | "plainto_tsquery"
        | "quote_literal"
        | "quote_nullable"
        | "range_in"
        | "range_out"
        | "record_out"
        | "row_to_json"
        | "textanycat"
        | "time"
        | "time_out"
        | "timestamp"
        | "timestamp_cmp_timestamptz"
        | "timestamp_eq_timestamptz"
        | "timestamp_ge_timestamptz"
        | "timestamp_gt_timestamptz"
        | "timestamp_le_timestamptz"
        | "timestamp_lt_timestamptz"
        | "timestamp_ne_timestamptz"
        | "timestamp_out"
        | "timestamptz"
        | "timestamptz_cmp_date"
        | "timestamptz_cmp_timestamp"
        | "timestamptz_eq_date"
        | "timestamptz_eq_timestamp"
        | "timestamptz_ge_date"
        | "timestamptz_ge_timestamp"
        | "timestamptz_gt_date"
        | "timestamptz_gt_timestamp"
        | "timestamptz_le_date"
        | "timestamptz_le_timestamp"
        | "timestamptz_lt_date"
        | "timestamptz_lt_timestamp"
        | "timestamptz_mi_interval"
        | "timestamptz_ne_date"
        | "timestamptz_ne_timestamp"
        | "timestamptz_out"
        | "timestamptz_pl_interval"
        | "timetz_out"
        | "timezone"
        | "to_char"
        | "to_date"
        | "to_json"
        | "to_jsonb"
        | "to_number"
        | "to_timestamp"
        | "to_tsquery"
        | "to_tsvector"
        | "ts_headline"
        | "ts_match_tq"
        | "ts_match_tt"
        | "websearch_to_tsquery"
        | "xml"
        | "xml_in"
        | "xml_is_well_formed" => Stable::Harmless,
        _ => Stable::Other,
    }
}

/// Values of parameters.
#[derive(Clone, Copy)]
pub struct Values(pg_sys::ParamListInfo);

/// Reads values from texts, as the input functions of their types do. Raises what those raise.
pub fn values(types: &[pg_sys::Oid], texts: &[Option<CString>]) -> Values {
    if types.is_empty() {
        return Values(std::ptr::null_mut());
    }
    // SAFETY: a list with as many places as are filled, in the current memory.
    unsafe {
        let list = pg_sys::makeParamList(types.len() as i32);
        for (place, kind) in types.iter().enumerate() {
            let parameter = (*list).params.as_mut_ptr().add(place);
            let text = texts.get(place).and_then(Option::as_ref);
            let (mut input, mut element) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
            pg_sys::getTypeInputInfo(*kind, &mut input, &mut element);
            (*parameter).ptype = *kind;
            (*parameter).pflags = pg_sys::PARAM_FLAG_CONST as u16;
            (*parameter).isnull = text.is_none();
            (*parameter).value = text.map_or(pg_sys::Datum::null(), |text| {
                pg_sys::OidInputFunctionCall(input, text.as_ptr().cast_mut(), element, -1)
            });
        }
        Values(list)
    }
}

/// A query that runs.
#[derive(Clone, Copy)]
pub struct Execution {
    query: *mut pg_sys::Query,
    text: *const c_char,
    values: pg_sys::ParamListInfo,
    options: i32,
    plan: *mut pg_sys::PlannedStmt,
    store: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
}

unsafe extern "C-unwind" {
    // Unguarded: an error keeps all of its fields.
    fn pg_plan_query(
        query: *mut pg_sys::Query,
        text: *const c_char,
        options: i32,
        values: pg_sys::ParamListInfo,
    ) -> *mut pg_sys::PlannedStmt;
    fn tuplestore_begin_heap(
        random: bool,
        across_transactions: bool,
        kilobytes: i32,
    ) -> *mut pg_sys::Tuplestorestate;
    fn CreateDestReceiver(kind: pg_sys::CommandDest::Type) -> *mut pg_sys::DestReceiver;
    fn SetTuplestoreDestReceiverParams(
        receiver: *mut pg_sys::DestReceiver,
        store: *mut pg_sys::Tuplestorestate,
        memory: pg_sys::MemoryContext,
        detoast: bool,
        target: pg_sys::TupleDesc,
        message: *const c_char,
    );
    fn GetActiveSnapshot() -> pg_sys::Snapshot;
    fn CreateQueryDesc(
        plan: *mut pg_sys::PlannedStmt,
        text: *const c_char,
        snapshot: pg_sys::Snapshot,
        crosscheck: pg_sys::Snapshot,
        receiver: *mut pg_sys::DestReceiver,
        values: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        instrument: i32,
    ) -> *mut pg_sys::QueryDesc;
    fn ExecutorStart(query: *mut pg_sys::QueryDesc, flags: i32);
    #[cfg(not(feature = "pg18"))]
    fn ExecutorRun(query: *mut pg_sys::QueryDesc, direction: i32, count: u64, once: bool);
    #[cfg(feature = "pg18")]
    fn ExecutorRun(query: *mut pg_sys::QueryDesc, direction: i32, count: u64);
    fn ExecutorFinish(query: *mut pg_sys::QueryDesc);
    fn CreateTupleDescCopy(descriptor: pg_sys::TupleDesc) -> pg_sys::TupleDesc;
    fn ExecutorEnd(query: *mut pg_sys::QueryDesc);
    fn FreeQueryDesc(query: *mut pg_sys::QueryDesc);
}

impl Execution {
    /// Plans it and runs it to its end. Nothing with a destructor may be alive in the callers: errors pass as they are.
    pub(super) unsafe fn run_unguarded(&mut self) {
        // SAFETY: what the server's own callers of planner and executor do; all of it lives in the current memory, and the
        // description of the rows outlives the query. Values that are stored out of line are fetched: rows need nothing else.
        unsafe {
            self.plan = pg_plan_query(self.query, self.text, self.options, self.values);
            self.store = tuplestore_begin_heap(true, false, pg_sys::work_mem);
            let receiver = CreateDestReceiver(pg_sys::CommandDest::DestTuplestore);
            SetTuplestoreDestReceiverParams(
                receiver,
                self.store,
                pg_sys::CurrentMemoryContext,
                true,
                std::ptr::null_mut(),
                std::ptr::null(),
            );
            let query = CreateQueryDesc(
                self.plan,
                self.text,
                GetActiveSnapshot(),
                std::ptr::null_mut(),
                receiver,
                self.values,
                std::ptr::null_mut(),
                0,
            );
            ExecutorStart(query, 0);
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            #[cfg(not(feature = "pg18"))]
            ExecutorRun(query, forward, 0, true);
            #[cfg(feature = "pg18")]
            ExecutorRun(query, forward, 0);
            ExecutorFinish(query);
            self.descriptor = CreateTupleDescCopy((*query).tupDesc);
            ExecutorEnd(query);
            FreeQueryDesc(query);
        }
    }

    /// Every relation that its plan names, once it has run.
    pub fn relations(&self) -> impl Iterator<Item = u32> {
        let list = if self.plan.is_null() {
            std::ptr::null_mut()
        } else {
            // SAFETY: the plan is in the current memory.
            unsafe { (*self.plan).relationOids }
        };
        (0..list_length(list)).map(move |index| {
            // SAFETY: as above; a list of numbers.
            unsafe { (*(*list).elements.add(index)).oid_value.to_u32() }
        })
    }

    /// Where the rows are.
    pub(super) const fn store(&self) -> *mut pg_sys::Tuplestorestate {
        self.store
    }

    /// Calls `each` with the bytes of every row, in the server's form, until it says no. Each row begins at a multiple of eight.
    pub fn rows(&self, mut each: impl FnMut(&[u8]) -> bool) {
        // SAFETY: the rows and their description live in the current memory.
        unsafe {
            let slot = pg_sys::MakeSingleTupleTableSlot(
                self.descriptor,
                &raw const pg_sys::TTSOpsMinimalTuple,
            );
            pg_sys::tuplestore_rescan(self.store);
            while pg_sys::tuplestore_gettupleslot(self.store, true, false, slot) {
                let mut free = false;
                let tuple = pg_sys::ExecFetchSlotMinimalTuple(slot, &mut free);
                let bytes = std::slice::from_raw_parts(tuple.cast::<u8>(), (*tuple).t_len as usize);
                let more = each(bytes);
                if free {
                    pg_sys::pfree(tuple.cast());
                }
                if !more {
                    break;
                }
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::tuplestore_rescan(self.store);
        }
    }

    /// The only value of the only row, as bytes of a type with a length; `None`: null.
    pub fn value(&self) -> Option<Vec<u8>> {
        // SAFETY: as above; the value is copied out of the row.
        unsafe {
            let slot = pg_sys::MakeSingleTupleTableSlot(
                self.descriptor,
                &raw const pg_sys::TTSOpsMinimalTuple,
            );
            pg_sys::tuplestore_rescan(self.store);
            let mut value = None;
            if pg_sys::tuplestore_gettupleslot(self.store, true, false, slot) {
                pg_sys::slot_getallattrs(slot);
                if !*(*slot).tts_isnull {
                    let flat = pg_sys::pg_detoast_datum((*(*slot).tts_values).cast_mut_ptr());
                    let bytes = pgrx::varlena::varsize_any(flat);
                    value = Some(std::slice::from_raw_parts(flat.cast::<u8>(), bytes).to_vec());
                }
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            value
        }
    }
}

/// Relations that statements within a statement read, while somebody wants to know.
static mut RECORD: Record = Record {
    on: false,
    count: 0,
    relations: [0; RECORDED],
};
const RECORDED: usize = 256;

struct Record {
    on: bool,
    count: usize,
    relations: [u32; RECORDED],
}

/// Whether relations are recorded.
#[inline]
pub fn is_recording() -> bool {
    // SAFETY: a variable of this process's only thread.
    unsafe { RECORD.on }
}

pub fn start_recording() {
    // SAFETY: as above.
    unsafe {
        RECORD.on = true;
        RECORD.count = 0;
    }
}

/// Ends it, also after an error.
pub fn stop_recording() {
    // SAFETY: as above.
    unsafe { RECORD.on = false };
}

/// What was recorded. `None`: more than there is room for.
pub fn recorded() -> Option<Vec<u32>> {
    // SAFETY: as above.
    unsafe {
        let record = &raw const RECORD;
        ((*record).count <= RECORDED).then(|| (&(*record).relations)[..(*record).count].to_vec())
    }
}

/// A statement starts.
///
/// # Safety
/// The statement must be alive.
pub(super) unsafe fn record(planned: *mut pg_sys::PlannedStmt) {
    // SAFETY: by contract.
    unsafe {
        let list = (*planned).relationOids;
        let record = &raw mut RECORD;
        for index in 0..list_length(list) {
            let relation = (*(*list).elements.add(index)).oid_value.to_u32();
            if (*record).count < RECORDED {
                (&mut (*record).relations)[(*record).count] = relation;
            }
            (*record).count = ((*record).count + 1).min(RECORDED + 1);
        }
    }
}
