//! `log_event` and `log_events` as the server calls them. What they do in the caller's own transaction runs without a guard, so
//! that an error keeps all its fields: constraint, table, context.

use crate::pg::insert::Insert;
use pgrx::pg_sys;
use std::ffi::c_int;

/// What is left to do of a call when the guarded part has returned.
#[derive(Clone, Copy, Default)]
pub struct Rest {
    /// Rows that go into the caller's own transaction.
    pub insert: Option<Insert>,
    /// What the function returns, where it returns something.
    pub result: i64,
}

type Handler = fn(Call) -> Rest;

/// What to do with a call; set once, when the library is loaded.
static mut HANDLERS: Option<[Handler; 2]> = None;

pub fn install(log_event: Handler, log_events: Handler) {
    // SAFETY: a process is single threaded, and no function can be called before the library is loaded.
    unsafe { HANDLERS = Some([log_event, log_events]) };
}

/// Tells the server how to call the function.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_audit_db_log_event() -> &'static pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// Tells the server how to call the function.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_audit_db_log_events() -> &'static pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `audit_db.log_event(…)`. Unguarded trampoline.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn audit_db_log_event(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the server passes a call.
    unsafe { carry_out(call, 0) };
    pg_sys::Datum::null()
}

/// `audit_db.log_events(…)`. Unguarded trampoline.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn audit_db_log_events(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as above.
    pg_sys::Datum::from(unsafe { carry_out(call, 1) })
}

/// Without a guard; what the function returns.
///
/// # Safety
/// `call` must be what the server passed to a function.
unsafe fn carry_out(call: pg_sys::FunctionCallInfo, which: c_int) -> i64 {
    let mut rest = Rest::default();
    // SAFETY: by contract; nothing with a destructor is alive while the rest runs.
    unsafe {
        handle(call, which, &mut rest);
        if let Some(insert) = rest.insert {
            insert.run_unguarded();
        }
    }
    rest.result
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn handle(call: pg_sys::FunctionCallInfo, which: c_int, rest: *mut Rest) {
    // SAFETY: the server passes a call; the caller passes a place to write to.
    unsafe {
        if let Some(handlers) = HANDLERS {
            *rest = handlers[which as usize](Call(call));
        }
    }
}

/// The arguments of a call. What they return lives as long as the call.
#[derive(Clone, Copy)]
pub struct Call(pg_sys::FunctionCallInfo);

impl Call {
    /// # Safety
    /// The server must have passed it to a function.
    pub(super) const unsafe fn of(call: pg_sys::FunctionCallInfo) -> Self {
        Self(call)
    }

    pub fn boolean(&self, place: usize) -> Option<bool> {
        self.argument(place).map(|datum| datum.value() != 0)
    }

    /// Of an argument of type jsonb, its text.
    pub fn json(&self, place: usize) -> Option<String> {
        // SAFETY: the argument is of that type.
        self.argument(place).map(|datum| unsafe {
            let value = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::Jsonb>();
            let text = pg_sys::JsonbToCString(
                std::ptr::null_mut(),
                &raw mut (*value).root,
                pgrx::varlena::varsize_any(value.cast()) as i32,
            );
            std::ffi::CStr::from_ptr(text)
                .to_string_lossy()
                .into_owned()
        })
    }

    /// Of an argument of type interval, in seconds; a month has 30 days.
    pub fn seconds(&self, place: usize) -> Option<f64> {
        // SAFETY: the argument is of that type.
        self.argument(place).map(|datum| unsafe {
            let value = datum.cast_mut_ptr::<pg_sys::Interval>();
            let days = f64::from((*value).day) + 30.0 * f64::from((*value).month);
            (*value).time as f64 / 1e6 + days * 86_400.0
        })
    }

    fn argument(&self, place: usize) -> Option<pg_sys::Datum> {
        // SAFETY: the functions are declared with as many arguments as are asked for.
        let argument = unsafe { *(*self.0).args.as_ptr().add(place) };
        (!argument.isnull).then_some(argument.value)
    }

    /// The bytes of an argument of type text or jsonb: of a jsonb as it is stored.
    pub fn bytes(&self, place: usize) -> Option<&[u8]> {
        // SAFETY: the argument is of a type with a length; the result is the argument, or a copy in the call's memory.
        self.argument(place).map(|datum| unsafe {
            let value = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            std::slice::from_raw_parts(
                pgrx::varlena::vardata_any(value).cast(),
                pgrx::varlena::varsize_any_exhdr(value),
            )
        })
    }

    pub fn text(&self, place: usize) -> Option<&str> {
        // Only names that are plain ASCII are looked for: what is no UTF-8 is none of them.
        self.bytes(place)
            .map(|bytes| std::str::from_utf8(bytes).unwrap_or("?"))
    }

    /// An argument of type timestamptz.
    pub fn time(&self, place: usize) -> Option<i64> {
        self.argument(place).map(|datum| datum.value() as i64)
    }

    /// An argument as the server holds it.
    pub fn datum(&self, place: usize) -> Option<pg_sys::Datum> {
        self.argument(place)
    }
}
