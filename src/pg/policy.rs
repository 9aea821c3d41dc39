//! Row-security expressions of one table, written for another that has the same columns in other places.

use crate::pg::compat;
use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// The SQL text of a stored policy expression of `from` as it must read on `to`. `None` where either table is gone or the
/// expression needs a whole row. Locks both tables as a reader does.
pub fn expression_for(stored: &str, from: pg_sys::Oid, to: pg_sys::Oid) -> Option<String> {
    let stored = CString::new(stored).ok()?;
    // SAFETY: the text came from pg_policy; both relations stay open while their descriptors are used.
    unsafe {
        let source = pg_sys::try_relation_open(from, pg_sys::AccessShareLock as _);
        if source.is_null() {
            return None;
        }
        let target = pg_sys::try_relation_open(to, pg_sys::AccessShareLock as _);
        if target.is_null() {
            pg_sys::relation_close(source, pg_sys::NoLock as _);
            return None;
        }
        let node = pg_sys::stringToNode(stored.as_ptr().cast_mut()).cast::<pg_sys::Node>();
        let map = compat::attribute_map((*target).rd_att, (*source).rd_att);
        let mut whole_row = false;
        let mapped = pg_sys::map_variable_attnos(
            node,
            1,
            0,
            map,
            (*(*target).rd_rel).reltype,
            &mut whole_row,
        );
        let text = if whole_row {
            None
        } else {
            let name = pg_sys::get_rel_name(to);
            let context = pg_sys::deparse_context_for(name, to);
            let text = pg_sys::deparse_expression(mapped, context, false, false);
            Some(CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        pg_sys::relation_close(target, pg_sys::NoLock as _);
        pg_sys::relation_close(source, pg_sys::NoLock as _);
        text
    }
}
