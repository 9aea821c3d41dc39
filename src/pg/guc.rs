//! Settings of the server and of ours: checked strings, and values that hold for one scope only.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// What the values of a string setting must look like.
pub trait Check {
    fn is_valid(text: &str) -> bool;
}

/// Declares a string setting whose values must pass a check.
pub fn define_checked_string<C: Check>(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<Option<CString>>,
    context: GucContext,
) {
    // SAFETY: the hook has the signature the server asks for.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            name,
            short,
            long,
            setting,
            context,
            GucFlags::default(),
            Some(check_string::<C>),
            None,
            None,
        );
    }
}

/// Check hooks run in places without a transaction: pure code only.
unsafe extern "C-unwind" fn check_string<C: Check>(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // What `#[pg_guard]` does, which does not take generic functions.
    // SAFETY: the server passes a pointer to a zero-terminated string, or to null for "no value".
    unsafe {
        pg_sys::panic::pgrx_extern_c_guard(|| {
            if value.is_null() || (*value).is_null() {
                return true;
            }
            CStr::from_ptr(*value).to_str().is_ok_and(C::is_valid)
        })
    }
}

/// The value of a setting, for what every statement passes: without the look at the thread that pgrx takes each time.
#[inline(always)]
pub fn read<T: pgrx::guc::GucValue>(setting: &'static GucSetting<T>) -> T::Raw
where
    T::Raw: Copy,
{
    // SAFETY: the server writes it, in the process's only thread.
    unsafe { *setting.as_ptr() }
}

/// Who hears of a switch that is turned.
pub trait Told {
    /// Called in places without a transaction; must not raise or panic.
    fn turned(on: bool);
}

/// Declares a switch that somebody hears of.
pub fn define_told_switch<T: Told>(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<bool>,
    context: GucContext,
) {
    // SAFETY: the hook has the signature the server asks for.
    unsafe {
        GucRegistry::define_bool_guc_with_hooks(
            name,
            short,
            long,
            setting,
            context,
            GucFlags::default(),
            None,
            Some(assign_switch::<T>),
            None,
        );
    }
}

unsafe extern "C-unwind" fn assign_switch<T: Told>(value: bool, _extra: *mut c_void) {
    T::turned(value);
}

/// Makes unknown settings with this prefix an error.
pub fn reserve_prefix(prefix: &'static CStr) {
    // SAFETY: the server copies the string. Before 15 the same function has another name.
    unsafe {
        #[cfg(not(feature = "pg14"))]
        pg_sys::MarkGUCPrefixReserved(prefix.as_ptr());
        #[cfg(feature = "pg14")]
        pg_sys::EmitWarningsOnPlaceholders(prefix.as_ptr());
    }
}

/// Settings that hold until this value is dropped, as a function's SET clause does.
pub struct Scope {
    level: c_int,
}

impl Scope {
    /// What every piece of our own SQL runs under: nobody else's objects are found by a bare name (nor his operators, which
    /// would run with the rights of a superuser), bounds are written in one way, and no lock is waited for longer than a
    /// maintenance step may.
    pub fn new() -> Self {
        let scope = Self::reading();
        let timeout = crate::settings::lock_timeout().as_millis();
        scope.set(c"lock_timeout", &format!("{timeout}ms"));
        scope
    }

    /// Settings stay as they are; what others set meanwhile is undone.
    pub fn unchanged() -> Self {
        // SAFETY: opens a nesting level that Drop, or the abort of the transaction, closes.
        let level = unsafe { pg_sys::NewGUCNestLevel() };
        Self { level }
    }

    /// The same for functions that only look: they wait like any query.
    pub fn reading() -> Self {
        let scope = Self::unchanged();
        scope.set(c"search_path", "pg_catalog, pg_temp");
        scope.set(c"datestyle", "ISO, MDY");
        scope.set(c"default_tablespace", "");
        scope
    }

    /// Sets one value for the rest of the scope.
    pub fn set(&self, name: &CStr, value: &str) {
        let Ok(value) = CString::new(value) else {
            return;
        };
        // SAFETY: both strings live across the call; GUC_ACTION_SAVE is undone when the level closes.
        unsafe {
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // After an error the abort of the (sub)transaction closes it.
        if !std::thread::panicking() {
            // As at an abort: code of a table's owner that ran meanwhile may have set something for the session.
            // SAFETY: closes the level that `reading` opened.
            unsafe { pg_sys::AtEOXact_GUC(false, self.level) };
        }
    }
}

/// Sets a value for the whole life of a worker, above what the database or the role has set.
pub fn fix_for_worker(name: &CStr, value: &str) {
    let Ok(value) = CString::new(value) else {
        return;
    };
    // SAFETY: both strings live across the call; a worker that is not yet in a transaction.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// The value of `synchronous_commit` with which a commit is on this server's disk when it returns; more where more is set.
pub fn at_least_flushed() -> &'static str {
    // SAFETY: reads a variable.
    let level = unsafe { pg_sys::synchronous_commit } as u32;
    if level == pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_APPLY {
        "remote_apply"
    } else {
        "on"
    }
}

/// From now on commits of this process are flushed to this server's disk and wait for no standby.
pub fn flush_locally() {
    // SAFETY: a variable of this process, which is about to end; the setting itself may not be changed within a commit.
    unsafe {
        pg_sys::synchronous_commit =
            pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH as c_int;
    }
}

/// Reads the configuration files again, as a worker must after SIGHUP.
pub fn reload_configuration() {
    // SAFETY: called between transactions by a background worker.
    unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
}

unsafe extern "C" {
    // Not in pgrx's bindings.
    static bytea_output: c_int;
    static xmlbinary: c_int;
    static xmloption: c_int;
    static locale_monetary: *const c_char;
    static locale_numeric: *const c_char;
    static locale_time: *const c_char;
}

/// Everything that decides how values are read and written: two sessions for which it is the same print the same. Each piece says
/// how long it is.
pub fn output_settings(add: &mut impl FnMut(&[u8])) {
    // SAFETY: reads variables; strings are zero-terminated or null.
    unsafe {
        for number in [
            pg_sys::DateStyle,
            pg_sys::DateOrder,
            pg_sys::IntervalStyle,
            pg_sys::extra_float_digits,
            bytea_output,
            xmlbinary,
            xmloption,
            c_int::from(pg_sys::Array_nulls),
            c_int::from(pg_sys::Transform_null_equals),
            c_int::from(pg_sys::row_security),
            c_int::from(pg_sys::quote_all_identifiers),
            c_int::from(pg_sys::standard_conforming_strings),
        ] {
            add(&number.to_ne_bytes());
        }
        for text in [
            pg_sys::pg_get_timezone_name(pg_sys::session_timezone),
            locale_monetary,
            locale_numeric,
            locale_time,
            pg_sys::TSCurrentConfig.cast_const(),
        ] {
            add(if text.is_null() {
                &[]
            } else {
                CStr::from_ptr(text).to_bytes()
            });
        }
    }
}

/// The value of a setting by its name, as current_setting returns it. `None`: there is none.
pub fn value_of(name: &str) -> Option<String> {
    let name = CString::new(name).ok()?;
    // SAFETY: with missing_ok nothing is raised for an unknown name; one that the role may not see raises 42501.
    unsafe {
        let value = pg_sys::GetConfigOptionByName(name.as_ptr(), std::ptr::null_mut(), true);
        if value.is_null() {
            return None;
        }
        Some(CStr::from_ptr(value).to_string_lossy().into_owned())
    }
}
