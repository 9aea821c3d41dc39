//! `cached_query` and `cached_json` as the server calls them. The query itself runs without a guard, so that an error keeps all its
//! fields: constraint, table, context.

use crate::pg::event_functions::Call;
use crate::pg::query::Execution;
use pgrx::pg_sys;
use std::ffi::c_void;

/// What a call comes to.
pub enum Step {
    /// Rows that are there: their columns, and their bytes, each row at a multiple of eight.
    Rows(Vec<(u32, i32)>, Vec<u8>),
    /// A value that is there.
    Value(Vec<u8>),
    /// A query that has to run; its columns, and what the end is to be called with.
    Run {
        execution: *mut Execution,
        columns: Vec<(u32, i32)>,
        token: *mut c_void,
    },
}

/// Who answers.
#[derive(Clone, Copy)]
pub struct Handlers {
    pub begin: fn(Call, bool) -> Step,
    /// The query has run.
    pub end: fn(*mut c_void),
    /// The columns are not what the caller has listed; raises.
    pub differ: fn(String),
}

static mut HANDLERS: Option<Handlers> = None;

pub fn install(handlers: Handlers) {
    // SAFETY: a process is single threaded, and no function can be called before the library is loaded.
    unsafe { HANDLERS = Some(handlers) };
}

/// Tells the server how to call the function.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_audit_db_cached_query() -> &'static pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// Tells the server how to call the function.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_audit_db_cached_json() -> &'static pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `audit_db.cached_query(…)`. Unguarded trampoline.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn audit_db_cached_query(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let mut state = State::new(true);
    // SAFETY: the server passes a call; nothing with a destructor is alive while the query runs.
    unsafe {
        let memory = pg_sys::CurrentMemoryContext;
        // Rows outlive the call.
        let result = (*call).resultinfo.cast::<pg_sys::ReturnSetInfo>();
        if !result.is_null()
            && (*result).type_ == pg_sys::NodeTag::T_ReturnSetInfo
            && !(*result).econtext.is_null()
        {
            pg_sys::CurrentMemoryContext = (*(*result).econtext).ecxt_per_query_memory;
        }
        begin(call, &mut state);
        if !state.execution.is_null() {
            (*state.execution).run_unguarded();
            end(call, &mut state);
        }
        pg_sys::CurrentMemoryContext = memory;
        (*call).isnull = true;
    }
    pg_sys::Datum::null()
}

/// `audit_db.cached_json(…)`. Unguarded trampoline.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn audit_db_cached_json(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let mut state = State::new(false);
    // SAFETY: as above.
    unsafe {
        begin(call, &mut state);
        if !state.execution.is_null() {
            (*state.execution).run_unguarded();
            end(call, &mut state);
        }
        (*call).isnull = state.value.is_null();
    }
    state.value
}

/// Between the parts of a call.
struct State {
    rows: bool,
    execution: *mut Execution,
    token: *mut c_void,
    value: pg_sys::Datum,
}

impl State {
    const fn new(rows: bool) -> Self {
        Self {
            rows,
            execution: std::ptr::null_mut(),
            token: std::ptr::null_mut(),
            value: pg_sys::Datum::null(),
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn begin(call: pg_sys::FunctionCallInfo, state: *mut State) {
    // SAFETY: the server passes a call, the caller a place to write to.
    unsafe {
        let Some(handlers) = HANDLERS else { return };
        let state = &mut *state;
        match (handlers.begin)(Call::of(call), state.rows) {
            Step::Rows(columns, bytes) => {
                let store = open(call, &columns, handlers);
                fill(call, store, &bytes);
            }
            Step::Value(bytes) => state.value = datum(&bytes),
            Step::Run {
                execution,
                columns,
                token,
            } => {
                if state.rows {
                    check(call, &columns, handlers);
                }
                (state.execution, state.token) = (execution, token);
            }
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn end(call: pg_sys::FunctionCallInfo, state: *mut State) {
    // SAFETY: as above; the query has run.
    unsafe {
        let state = &mut *state;
        if state.rows {
            let result = (*call).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            (*result).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*result).setResult = (*state.execution).store();
            (*result).setDesc = pg_sys::CreateTupleDescCopy((*result).expectedDesc);
        } else if let Some(bytes) = (*state.execution).value() {
            state.value = datum(&bytes);
        }
        if let Some(handlers) = HANDLERS {
            (handlers.end)(state.token);
        }
    }
}

/// A copy of a value in the current memory.
unsafe fn datum(bytes: &[u8]) -> pg_sys::Datum {
    // SAFETY: as many bytes as are asked for.
    unsafe {
        let copy = pg_sys::palloc(bytes.len().max(4)).cast::<u8>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
        pg_sys::Datum::from(copy)
    }
}

/// Checks that the caller has listed the columns that there are.
unsafe fn check(call: pg_sys::FunctionCallInfo, columns: &[(u32, i32)], handlers: Handlers) {
    // SAFETY: by contract of the callers a call of a function that returns rows.
    unsafe {
        let result = (*call).resultinfo.cast::<pg_sys::ReturnSetInfo>();
        if result.is_null()
            || (*result).type_ != pg_sys::NodeTag::T_ReturnSetInfo
            || (*result).expectedDesc.is_null()
            || (*result).allowedModes & pg_sys::SetFunctionReturnMode::SFRM_Materialize as i32 == 0
        {
            (handlers.differ)(
                "The function was called where no rows, or no list of columns, can be.".to_owned(),
            );
            return;
        }
        let expected = (*result).expectedDesc;
        let count = usize::try_from((*expected).natts).unwrap_or(0);
        if count != columns.len() {
            (handlers.differ)(format!(
                "The query has {} columns, {count} are listed.",
                columns.len()
            ));
        }
        for (index, (kind, modifier)) in columns.iter().enumerate() {
            let column = crate::pg::compat::column(expected, index);
            let listed = (*column).atttypid.to_u32();
            let fits =
                listed == *kind && ((*column).atttypmod < 0 || (*column).atttypmod == *modifier);
            if !fits {
                let name = |kind: u32| {
                    std::ffi::CStr::from_ptr(pg_sys::format_type_be(pg_sys::Oid::from(kind)))
                        .to_string_lossy()
                        .into_owned()
                };
                (handlers.differ)(format!(
                    "Column {} is of type {}, listed as {}.",
                    index + 1,
                    name(*kind),
                    name(listed)
                ));
            }
        }
    }
}

/// A place for rows that are there.
unsafe fn open(
    call: pg_sys::FunctionCallInfo,
    columns: &[(u32, i32)],
    handlers: Handlers,
) -> *mut pg_sys::Tuplestorestate {
    // SAFETY: as above; all of it lives in the current memory, that of the caller's query.
    unsafe {
        check(call, columns, handlers);
        let result = (*call).resultinfo.cast::<pg_sys::ReturnSetInfo>();
        let store = pg_sys::tuplestore_begin_heap(
            (*result).allowedModes & pg_sys::SetFunctionReturnMode::SFRM_Materialize_Random as i32
                != 0,
            false,
            pg_sys::work_mem,
        );
        (*result).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
        (*result).setResult = store;
        (*result).setDesc = pg_sys::CreateTupleDescCopy((*result).expectedDesc);
        store
    }
}

unsafe fn fill(call: pg_sys::FunctionCallInfo, store: *mut pg_sys::Tuplestorestate, bytes: &[u8]) {
    // SAFETY: the bytes are rows as the server made them, one behind the other; the copy is aligned as the server's memory is.
    unsafe {
        let result = (*call).resultinfo.cast::<pg_sys::ReturnSetInfo>();
        let slot = pg_sys::MakeSingleTupleTableSlot(
            (*result).setDesc,
            &raw const pg_sys::TTSOpsMinimalTuple,
        );
        let copy = pg_sys::palloc(bytes.len().max(8)).cast::<u8>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
        let mut at = 0;
        while at + 8 <= bytes.len() {
            let tuple = copy.add(at).cast::<pg_sys::MinimalTupleData>();
            let length = (*tuple).t_len as usize;
            if length == 0 || at + length > bytes.len() {
                break;
            }
            pg_sys::ExecStoreMinimalTuple(tuple, slot, false);
            pg_sys::tuplestore_puttupleslot(store, slot);
            at += length.next_multiple_of(8);
        }
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::pfree(copy.cast());
    }
}
